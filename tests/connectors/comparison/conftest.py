from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.devstack.postgres import LocalPostgres

# On these, Postgres' text of values depends.
SETTINGS = {
    "source": {
        "timezone": "'America/New_York'",
        "datestyle": "'SQL, DMY'",
        "intervalstyle": "'iso_8601'",
        "extra_float_digits": "-3",
        "bytea_output": "'escape'",
    },
    "target": {
        "timezone": "'Asia/Kolkata'",
        "datestyle": "'German'",
        "intervalstyle": "'postgres_verbose'",
        "extra_float_digits": "0",
    },
}


@pytest.fixture(scope="module")
def dsns(postgres: LocalPostgres) -> Iterator[dict[str, str]]:
    """The connection strings of two databases with other settings."""
    names = {side: f"{side}_{uuid.uuid4().hex[:8]}" for side in SETTINGS}
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        for side, name in names.items():
            connection.execute(f"create database {name}".encode())
            for setting, value in SETTINGS[side].items():
                connection.execute(f"alter database {name} set {setting} = {value}".encode())
    yield {side: postgres.dsn(name) for side, name in names.items()}
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        for name in names.values():
            connection.execute(f"drop database {name} with (force)".encode())


class Database:
    """A database of a test, and how statements are run in it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = psycopg.connect(dsn, autocommit=True)

    def run(self, statements: str) -> None:
        self.connection.execute(statements.encode())


def _opened(dsn: str) -> Iterator[Database]:
    database = Database(dsn)
    database.run("drop schema public cascade; create schema public")
    yield database
    database.connection.close()


@pytest.fixture
def source(dsns: dict[str, str]) -> Iterator[Database]:
    yield from _opened(dsns["source"])


@pytest.fixture
def target(dsns: dict[str, str]) -> Iterator[Database]:
    yield from _opened(dsns["target"])
