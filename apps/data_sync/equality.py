"""Whether the targets have exactly what the shop has: row by row, and in three independent ways."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import psycopg

from apps.data_sync.order_view import OrderDocument
from streams.broker.reading import read_to_end
from streams.connectors.comparison.compare import compare
from streams.connectors.postgres.comparable import PostgresTable
from streams.durations import seconds
from streams.serde.compatibility import incompatibilities

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.broker import Broker

EXPECTED = Path(__file__).with_name("expected.sql")
TABLES = {"customers": "expected_customers", "order_view": "expected_order_view"}
"""The warehouse's tables, and the views of the shop that they must be equal to."""

# Numbers are written with the same number of decimal places in both databases.
DUMPS = {
    "customers": "select id, name, email, phone, notes, tier, updated_at from {} order by id",
    "order_view": "select id, status, placed_at, customer_id, customer_name, customer_email, customer_tier, "
    "lines, quantity, total::numeric(30, 4) as total from {} order by id",
}


class Check(NamedTuple):
    """One comparison, in words, with its result."""

    claim: str
    holds: bool


def require_views(shop_url: str) -> None:
    """Create the views that say what the warehouse must contain."""
    with psycopg.connect(shop_url, autocommit=True) as shop:
        shop.execute(EXPECTED.read_text(encoding="utf-8").encode())


def dump(url: str, table: str, source: str) -> tuple[int, str]:
    """The number of rows and a digest of the table as text."""
    digest, rows = hashlib.sha256(), 0
    with psycopg.connect(url, options="-c timezone=UTC") as connection, connection.cursor() as cursor:
        statement = f"copy ({DUMPS[table].format(source)}) to stdout"
        with cursor.copy(statement.encode()) as copy:
            for data in copy:
                digest.update(data)
                # A line for each row; line feeds in texts are escaped.
                rows += bytes(data).count(b"\n")
    return rows, digest.hexdigest()


def same_dumps(shop_url: str, warehouse_url: str) -> bool:
    """Whether both databases print the same text: shop's views and warehouse's tables."""
    return all(
        _count(shop_url, view) == _count(warehouse_url, table)
        and dump(shop_url, table, view) == dump(warehouse_url, table, table)
        for table, view in TABLES.items()
    )


def _count(url: str, source: str) -> int:
    """The number of rows, which tells soon that tables differ."""
    with psycopg.connect(url) as connection:
        found = connection.execute(f"select count(*) from {source}".encode()).fetchone()  # noqa: S608 - names of TABLES
    return 0 if found is None else int(found[0])


def checks(
    shop_url: str, warehouse_url: str, orders_file: Path, broker: Broker, documents: str
) -> tuple[list[Check], list[str]]:
    """Compare all targets with the shop. Returns the checks, and examples of differences."""
    found: list[Check] = []
    examples: list[str] = []
    for table, view in TABLES.items():
        comparison = compare(
            PostgresTable(dsn=shop_url, table=view),
            PostgresTable(dsn=warehouse_url, table=table),
            key=["id"],
            settle=seconds(1),
            limit=20,
        )
        found.append(
            Check(
                f"{table}: {comparison.source_rows:,} rows of the shop's query = "
                f"{comparison.target_rows:,} rows of the warehouse, column by column",
                comparison.equal,
            )
        )
        examples += [f"{table}: {difference}" for difference in comparison.differences[:5]]
    found.append(
        Check("the databases print the same text (COPY … TO STDOUT)", same_dumps(shop_url, warehouse_url))
    )
    with psycopg.connect(shop_url) as shop:
        rows = shop.execute(b"select * from expected_order_view order by id").fetchall()
    in_file = _rows_of_file(orders_file)
    found.append(Check(f"the SQLite file has the same {len(in_file):,} orders", in_file == rows))
    live = {row[0]: (row[1], row[2], row[4], row[5], row[7], row[9]) for row in rows}
    indexed = _indexed(broker, documents)
    found.append(
        Check(f"{len(indexed):,} documents in the topic {documents}, one for each order", indexed == live)
    )
    return found, examples


def schema_check(folder: Path, table: str, versions: int) -> Check:
    """Whether each version of a table in the shop has its schema, which reads the records before it."""
    files = folder.glob(f"*.public.{table}.Envelope.*.avsc")
    found = [
        json.loads(path.read_bytes()) for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)
    ]
    differences = [line for old, new in pairwise(found) for line in incompatibilities(old, new, "BACKWARD")]
    return Check(
        f"{len(found)} of {versions} versions of {table} have a schema in {folder}, compatible (BACKWARD)",
        len(found) == versions and not differences,
    )


def _rows_of_file(path: Path) -> list[tuple[Any, ...]]:
    parsed: dict[str, Callable[[str], Any]] = {"placed_at": datetime.fromisoformat, "total": Decimal}
    with closing(sqlite3.connect(path)) as connection:
        cursor = connection.execute(
            "select id, status, placed_at, customer_id, customer_name, customer_email, customer_tier, lines, "
            "quantity, total from order_view order by id"
        )
        names = [column[0] for column in cursor.description]
        return [
            tuple(
                parsed[name](str(value)) if name in parsed else value
                for name, value in zip(names, row, strict=True)
            )
            for row in cursor
        ]


def _indexed(broker: Broker, topic: str) -> dict[int, tuple[Any, ...]]:
    """What a search engine would have that reads the topic: the last document of each key."""
    latest: dict[bytes | None, bytes | None] = {}
    for fetched in read_to_end(broker, [topic]):
        latest.update(zip(fetched.keys(), fetched.values(), strict=True))
    decode = msgspec.json.Decoder(OrderDocument).decode
    documents = [decode(value) for value in latest.values() if value is not None]
    return {
        each.id: (each.status, each.placed_at, each.customer, each.email, len(each.lines), each.total)
        for each in documents
    }
