"""Tables, columns and values of every kind."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import ipaddress
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from streams.connectors.change import Change, ChangeSource
from streams.errors import ConnectorError

SOURCE = ChangeSource()


class Customer(msgspec.Struct, rename={"select": "a-b"}):
    name: str
    select: int = 1
    note: str | msgspec.UnsetType | None = msgspec.UNSET


@dataclasses.dataclass
class Order:
    item: str
    count: int


def test_a_table_of_key_columns_only(target):
    target.sql("create table t (a int, b int, primary key (a, b))")
    feed = target.feed()
    keys = [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 2}]
    assert feed.put(*((key, key) for key in keys), (keys[1], None), (keys[1], {})) == {}
    assert feed.put((keys[0], keys[0])) == {}
    assert target.sql("select * from t order by b") == [(1, 2), (1, 3)]


def test_identity_and_generated_columns(target):
    target.sql(
        "create table t (id int generated always as identity primary key, v text, "
        "n int generated always as identity, twice text generated always as (v || v) stored)"
    )
    feed = target.feed()
    assert feed.put((7, {"id": 7, "v": "a", "n": 5, "twice": "x"})) == {}
    assert feed.put((7, {"id": 7, "v": "b", "n": 6})) == {}
    assert target.sql("select * from t") == [(7, "b", 5, "bb")]


def test_three_hundred_columns_and_a_thousand_rows(target):
    names = [f"c{number}" for number in range(300)]
    target.sql(f"create table t (id int primary key, {', '.join(f'{name} text' for name in names)})")
    feed = target.feed()
    row = {name: f"value of {name}" for name in names}
    assert feed.put(*((number, row) for number in range(1_000))) == {}
    assert target.sql("select count(*), count(c299), min(c7) from t") == [(1_000, 1_000, "value of c7")]


def test_names_that_need_quotes(target):
    columns = ("a-b", "a_b", "1st", "Übung", 'x"y', "50%", "%s", "it's")
    quoted = [f'"{name.replace(chr(34), chr(34) * 2)}"' for name in columns]
    others = ", ".join(f"{name} text" for name in quoted)
    target.sql(f'create table "Order %s Items" ("select" int primary key, {others})')
    feed = target.feed('"Order %s Items"')
    row = {name: f"<{name}>" for name in columns}
    assert feed.put(({"select": 1}, {"select": 1, **row})) == {}
    assert feed.put(({"select": 1}, {"select": 1, **row}), ({"select": 2}, row), ({"select": 2}, None)) == {}
    assert target.sql('select * from "Order %s Items"') == [(1, *row.values())]


def test_structs_dataclasses_and_mappings_are_rows(target):
    target.sql('create table t (id int primary key, name text, "a-b" int, note text, item text, count int)')
    feed = target.feed()
    records: list[tuple[int, Any]] = [
        (1, Customer("Ada", 3, None)),
        (2, Customer("Bo")),
        (3, Order("pen", 5)),
        (4, {"name": "Cy", "note": "n"}),
        (5, Customer("Di", note="old")),
        (5, Customer("Dee")),
    ]
    assert feed.put(*records) == {}
    assert target.sql("select * from t order by id") == [
        (1, "Ada", 3, None, None, None),
        (2, "Bo", 1, None, None, None),
        (3, None, None, None, "pen", 5),
        (4, "Cy", None, "n", None, None),
        (5, "Dee", 1, "old", None, None),
    ]


def test_null_is_null_and_only_a_missing_field_has_the_default(target):
    target.sql("create table t (id int primary key, v text default 'dflt', n int default 7)")
    feed = target.feed()
    feed.put((1, {"v": None, "n": None}), (2, {"n": 1}), (3, {}))
    assert target.sql("select * from t order by id") == [(1, None, None), (2, "dflt", 1), (3, "dflt", 7)]


def test_change_events_upsert_and_delete(target):
    target.sql("create table t (id int primary key, v text, big text, tags text[])")
    feed = target.feed()
    big = "x" * 9_000
    marker = "__debezium_unavailable_value"

    def change(op: Any, after: Any = None, before: Any = None) -> Change[Any]:
        return Change(op=op, before=before, after=after, source=SOURCE)

    feed.put(
        ({"id": 1}, change("r", {"id": 1, "v": "a", "big": big, "tags": ["p", "q"]})),
        ({"id": 2}, change("c", {"id": 2, "v": "a", "big": big, "tags": None})),
        ({"id": 1}, change("u", {"id": 1, "v": "b", "big": marker, "tags": [marker]})),
        ({"id": 2}, change("d", None, {"id": 2, "v": "a"})),
        ({"id": 2}, None),
    )
    assert target.sql("select * from t") == [(1, "b", big, ["p", "q"])]
    with pytest.raises(ConnectorError, match=r"(?s)truncated \(changes-0, offset 5\).*on_truncate"):
        feed.put((None, change("t")))
    feed.close()
    again = target.feed(name="sink 0", on_truncate="delete")
    again.put(({"id": 3}, change("c", {"id": 3})), (None, change("t")), ({"id": 4}, change("c", {"id": 4})))
    assert target.sql("select id from t") == [(4,)]


def test_the_key_may_be_columns_of_the_value(target):
    target.sql("create table t (email text not null unique, name text)")
    feed = target.feed(key=("email",), columns={"address": "email", "name": "name"})
    refused = feed.put(
        (b"any", {"address": "a@x", "name": "A", "other": 1}),
        (b"any", {"address": "b@x", "name": "B"}),
        (b"any", {"name": "C"}),
        ({"email": "b@x"}, None),
        (b"any", {"address": None, "name": "D"}),
    )
    assert target.sql("select * from t") == [("a@x", "A")]
    assert {row: str(error) for row, error in refused.items()}.keys() == {2, 4}
    assert "address is missing" in str(refused[2])
    assert "address is null" in str(refused[4])


def test_only_the_named_columns_are_written(target):
    target.sql("create table t (id int primary key, name text)")
    feed = target.feed(columns=["name"])
    assert feed.put((1, {"name": "a", "secret": "s"})) == {}
    assert target.sql("select * from t") == [(1, "a")]


ODD = """
create table odd (id int primary key, n numeric, n2 numeric(10,2), m money, f float8, d date, ts timestamp,
    tz timestamptz, iv interval, b bytea, u uuid, i inet, r int4range, c char(4), bits bit(3), box box);
insert into odd values
    (1, 'NaN', 'NaN', '-$1.05', 'NaN', 'infinity', '-infinity', 'infinity', 'infinity', '\\x00ff',
        '6f1c1e5e-8f6b-4d0c-9d0e-0123456789ab', '::1', '[1,5)', 'ab', '101', '(1,1),(0,0)'),
    (2, 'Infinity', '1.10', '$0.00', '-Infinity', '0044-03-15 BC', '0044-03-15 12:00:00 BC',
        '0001-01-01 00:00:00+00', '1 mon -1 days', '\\x', null, '10.0.0.1', 'empty', '', '000', null),
    (3, '12345678901234567890.123456789000', '99999999.99', '$92,233,720,368,547,758.07', '-0', '20000-01-01',
        '1969-12-31 23:59:59.999999', '2026-11-01 01:30:00-04', '-00:00:01',
        null, null, null, null, null, null, null);
"""


def test_values_that_python_has_not_are_written_as_text(target):
    target.sql(ODD)
    names = ["n", "n2", "m", "f", "d", "ts", "tz", "iv", "b", "u", "i", "r", "c", "bits", "box"]
    rows = target.sql(f"select id, {', '.join(f'{name}::text' for name in names)} from odd")
    expected = target.sql("select o::text from odd o order by id")
    target.sql("delete from odd")
    feed = target.feed("odd")
    assert feed.put(*((row[0], dict(zip(names, row[1:], strict=True))) for row in rows)) == {}
    assert target.sql("select o::text from odd o order by id") == expected


class Color(enum.Enum):
    RED = "red"


def test_values_of_python_types(target):
    target.sql(
        "create table t (id int primary key, i bigint, f float8, n numeric, b bool, s text, raw bytea, "
        "u uuid, d date, t time, ts timestamp, tz timestamptz, iv interval, ip inet, a int[], aa text[], "
        "j jsonb, e text, js json, ja jsonb[], v varchar(3)[])"
    )
    row = {
        "i": 2**63 - 1,
        "f": float("-inf"),
        "n": Decimal("1.10"),
        "b": True,
        "s": "'\"\\{}",
        "raw": b"\x00\xff\\",
        "u": uuid.UUID(int=5),
        "d": dt.date(2026, 1, 2),
        "t": dt.time(1, 2, 3, 4),
        "ts": dt.datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001 - a column without a time zone
        "tz": dt.datetime(2026, 1, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=5))),
        "iv": dt.timedelta(days=-1, seconds=5, microseconds=7),
        "ip": ipaddress.IPv4Address("10.0.0.1"),
        "a": [[1, 2], [None, 4]],
        "aa": ["x", 'q"\\', None, "NULL", "", "a,b{}"],
        "j": {"a": [1, None], "b": "NaN"},
        "e": Color.RED,
        "js": '{"kept":  1}',
        "ja": [{"a": 1}, "[2]", None],
        "v": ["abc"],
    }
    feed = target.feed()
    assert feed.put((1, row)) == {}
    stored = dict(zip(["id", *row], target.sql("select * from t")[0], strict=True))
    assert stored == {**row, "id": 1, "e": "red", "js": {"kept": 1}, "ja": [{"a": 1}, [2], None]}
    assert target.sql("select js::text from t") == [('{"kept":  1}',)]
    wrong: list[dict[str, Any]] = [
        {"j": {"a": float("nan")}},
        {"i": [1]},
        {"s": b"x"},
        {"raw": 5},
        {"s": object()},
        {"v": ["abcd"]},
        {"a": {"x": 1}},
        {"i": 2**63},
    ]
    refused = feed.put(*((2, value) for value in wrong), (3, 5), (4, {"s": "good"}))
    assert sorted(refused) == list(range(9))
    assert "column 's' is of type text: it takes no bytes" in str(refused[2])
    assert target.sql("select id from t order by id") == [(1,), (4,)]


def test_times_without_a_zone_are_utc_whatever_the_database_says(target):
    (database,) = target.sql("select current_database()")[0]
    target.sql(f"alter database {database} set timezone = 'Asia/Kolkata'")
    target.sql(f"alter database {database} set datestyle = 'SQL, DMY'")
    target.sql("create table t (id int primary key, tz timestamptz, d date)")
    feed = target.feed()
    naive = dt.datetime(2026, 1, 2, 3, 4)  # noqa: DTZ001 - its meaning is tested
    feed.put((1, {"tz": naive, "d": "2026-02-03"}), (2, {"tz": "2026-01-02 03:04", "d": "26/02/03"}))
    found = target.sql("select extract(epoch from tz)::int, d from t")
    assert found == [(1767323040, dt.date(2026, 2, 3))] * 2
    target.sql(f"alter database {database} reset all")


def test_partitioned_tables(target):
    target.sql("create table t (id int primary key, v text) partition by range (id)")
    target.sql("create table t1 partition of t for values from (0) to (100)")
    feed = target.feed()
    refused = feed.put((1, {"v": "a"}), (500, {"v": "b"}), (2, {"v": "c"}), (1, {"v": "d"}))
    assert {row: str(error).split(":")[0] for row, error in refused.items()} == {1: "SQLSTATE 23514"}
    assert target.sql("select * from t order by id") == [(1, "d"), (2, "c")]


def test_numbers_of_every_size(target):
    """Columns of numbers have a form of their own on the wire, if all of a transaction's are such numbers."""
    target.sql("create domain small as int check (value < 1000)")
    target.sql(
        "create table t (id bigint primary key, s smallint, i int, f float8, r real, d small, n numeric, "
        "o oid)"
    )
    feed = target.feed()
    edges: list[dict[str, Any]] = [
        {"s": -(2**15), "i": -(2**31), "f": float("-inf"), "r": 0.5, "d": 1, "n": 2**70, "o": 2**32 - 1},
        {"s": 2**15 - 1, "i": 2**31 - 1, "f": -0.0, "r": -0.5, "d": 999, "n": -1, "o": 0},
        {"s": 0, "i": 0, "f": 5e-324, "r": float("inf"), "d": -1, "n": 0, "o": 7},
    ]
    keys = [-(2**63), 0, 2**63 - 1]
    assert feed.put(*zip(keys, edges, strict=True)) == {}
    assert target.sql("select s, i, f, r, d, n, o from t order by id") == [
        tuple(row.values()) for row in edges
    ]
    assert target.sql("select f::text from t where id = 0") == [("-0",)]
    refused = feed.put(
        (1, {"s": 2**15, "i": 1, "f": 1.0}),
        (2, {"s": 1, "i": 2**31, "f": 1.0}),
        (2**63, {"s": 1, "i": 1, "f": 1.0}),
        (3, {"s": 1, "i": 1, "f": float("nan")}),
        (4, {"s": True, "i": 1, "f": 1}),
        (5, {"s": None, "i": 1, "f": None}),
        (6, {"d": 1000}),
    )
    assert {row: str(error).partition(":")[0] for row, error in refused.items()} == {
        0: "SQLSTATE 22003",
        1: "SQLSTATE 22003",
        2: "SQLSTATE 22003",
        4: "SQLSTATE 22P02",
        6: "SQLSTATE 23514",
    }
    assert target.sql("select id, s, i, f::text from t where id in (3, 5) order by id") == [
        (3, 1, 1, "NaN"),
        (5, None, 1, None),
    ]
