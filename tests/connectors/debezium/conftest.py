from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from streams.connectors.debezium import Debezium, jvm
from tests.support.captured import Captured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Database = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="session", autouse=True)
def java() -> None:
    """Start the Java runtime in the main thread, as ``check`` does before a worker runs."""
    jvm.start()


@pytest.fixture
def db(database: str) -> Iterator[Database]:
    """A connection to the test's database."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection
        # A database that slots refer to cannot be dropped.
        connection.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots"
            " where database = current_database() and active"
        )
        connection.execute(
            "do $$ begin for attempt in 1..50 loop perform pg_sleep(0.05); exit when not exists (select from"
            " pg_replication_slots where database = current_database() and active); end loop; end $$"
        )
        connection.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where database = current_database()"
        )


@pytest.fixture
def capture(database: str, db: Database) -> Iterator[Callable[..., Captured]]:
    """Captures tables of the test's database, ``t`` unless others are named."""
    opened = []

    def make(*tables: str, schemas: Path | None = None, **options: Any) -> Captured:
        captured = Captured(Debezium.postgres(database, tables or ("t",), **options), schemas=schemas)
        opened.append(captured)
        return captured

    yield make
    for captured in opened:
        captured.close()
