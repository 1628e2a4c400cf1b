"""What is checked, and created, before the first record is read; and columns that appear later."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import threading
from decimal import Decimal
from typing import Any, Literal, TypedDict

import msgspec
import pytest

from streams.connectors.change import Change
from streams.connectors.postgres import PostgresSink, postgres_types
from streams.errors import ConfigurationError, ConnectorError


class Customer(msgspec.Struct):
    id: int
    name: str
    since: dt.datetime | None = None


@pytest.mark.parametrize(
    ("declaration", "options", "expected"),
    [
        ("", {}, r"(?s)there is no table t.*create=True"),
        ("create table t (id int, v text)", {}, r"(?s)no primary key.*ADD PRIMARY KEY"),
        (
            "create table t (id int, v text)",
            {"key": ("id",)},
            r'(?s)no unique index of the columns id.*CREATE UNIQUE INDEX ON ".*"."t" \("id"\)',
        ),
        ("create table t (id int unique deferrable)", {"key": ("id",)}, "no unique index"),
        (
            "create table t (id int); create unique index on t (id) where id > 0",
            {"key": ("id",)},
            "no unique",
        ),
        ("create table t (id int primary key)", {"key": ("nr",)}, r"(?s)no column 'nr'.*columns are id"),
        ("create unlogged table t (id int primary key)", {}, r"(?s)unlogged.*SET LOGGED"),
        ("create view t as select 1 as id", {}, "is no table"),
        ("create table t (id int primary key, name text)", {"row_type": Customer}, "no column 'since'"),
        (
            "create table t (id int primary key, name text, since date)",
            {"row_type": Customer},
            r"(?s)'since' of .* is of type date, which cannot hold every value of type timestamp with",
        ),
        (
            "create table t (id int primary key, name text, since timestamptz, region text not null)",
            {"row_type": Customer},
            r"(?s)'region' of .* is NOT NULL without a default",
        ),
        (
            "create table t (id int primary key, n int)",
            {"row_type": {"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}]}},
            "'n' of .* is of type integer",
        ),
        ("create table streams_positions (a int); create table t (id int primary key)", {}, "positions"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(target, declaration, options, expected):
    if declaration:
        target.sql(declaration)
    with pytest.raises(ConnectorError, match=expected):
        target.feed(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"table": "a b"}, "no name of a table"),
        ({"dsn": "host=x password=secret nonsense"}, "no connection string"),
        ({"key": "id"}, r"key=\('id',\)"),
        ({"columns": "id"}, r"columns=\('id',\)"),
        ({"create": True}, "row_type"),
        ({"mode": "append", "key": ("id",)}, "no key="),
        ({"max_rows": 0}, "at least 1"),
        ({"mode": "insert"}, "'insert' is none of upsert, append"),
    ],
)
def test_options_that_make_no_sense(options, expected):
    with pytest.raises(ConfigurationError, match=expected) as refused:
        PostgresSink(**{"dsn": "host=127.0.0.1 password=secret", "table": "t", **options})
    assert "secret" not in str(refused.value)


def test_a_password_is_not_shown():
    assert "secret" not in repr(PostgresSink("host=127.0.0.1 password=secret", "t"))


def test_workers_that_start_together_create_the_table_and_add_columns(target):
    def start(number: int) -> None:
        target.feed("customers", name=f"s{number}", row_type=Customer, key=("id",), create=True, alter=True)

    for declaration in (None, "alter table customers drop column since"):
        if declaration:
            target.sql(declaration)
        errors: list[BaseException] = []

        def attempt(number: int) -> None:
            try:
                start(number)
            except BaseException as error:  # noqa: BLE001 - reported below
                errors.append(error)  # noqa: B023 - joined in this round

        threads = [threading.Thread(target=attempt, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not errors
    feed = target.feed("customers", row_type=Customer, key=("id",))
    feed.put((b"k", Customer(1, "a", dt.datetime(2026, 1, 1, tzinfo=dt.UTC))))
    assert target.sql("select id, name, extract(year from since)::int from customers") == [(1, "a", 2026)]


def test_a_field_that_appears_later(target):
    target.sql("create table t (id int primary key)")
    feed = target.feed()
    feed.put((1, {}))
    with pytest.raises(ConnectorError, match=r"(?s)no column for .*'tags'.*alter=True"):
        feed.put((1, {"tags": ["a"]}))
    target.sql("alter table t add column tags text[]")
    assert feed.put((1, {"tags": ["a"]})) == {}
    altering = target.feed(alter=True)
    records: list[tuple[int, Any]] = [
        (2, {"tags": [], "n": None}),
        (3, {"n": Decimal("1.5")}),
        (4, {"when": dt.date(2026, 1, 2), "doc": {"a": 1}, "always null": None}),
    ]
    assert altering.put(*records) == {}
    assert altering.put(records[0]) == {}
    assert target.sql("select * from t order by id") == [
        (1, ["a"], None, None, None),
        (2, [], None, None, None),
        (3, None, Decimal("1.5"), None, None),
        (4, None, None, dt.date(2026, 1, 2), {"a": 1}),
    ]


class Size(enum.Enum):
    SMALL = 1


class Everything(TypedDict):
    a: int
    b: list[str]
    c: list[list[int]]
    d: dict[str, int] | None
    e: Literal["x", "y"]
    f: Size
    g: int | str
    h: bytes
    i: Customer


@dataclasses.dataclass
class Parcel:
    weight: float
    sent: dt.date | None


def test_types_of_columns():
    assert postgres_types(Everything) == {
        "a": "bigint",
        "b": "text[]",
        "c": "jsonb",
        "d": "jsonb",
        "e": "text",
        "f": "bigint",
        "g": "jsonb",
        "h": "bytea",
        "i": "jsonb",
    }
    assert postgres_types(Change[Parcel]) == {"weight": "double precision", "sent": "date"}
    fields = [
        {
            "name": "n",
            "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2}],
        },
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "u", "type": {"type": "array", "items": "int"}},
        {"name": "m", "type": {"type": "map", "values": "int"}},
    ]
    assert postgres_types({"type": "record", "name": "R", "fields": fields}) == {
        "n": "numeric(8,2)",
        "t": "timestamp(3) with time zone",
        "u": "integer[]",
        "m": "jsonb",
    }
    with pytest.raises(ConfigurationError, match="has no fields"):
        postgres_types(int)
