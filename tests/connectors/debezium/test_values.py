"""Values as Postgres writes them, from the snapshot and from the log: cast back, they are the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from streams.connectors.change import Change

COLUMNS = {
    "n": ("numeric", ["NaN", "Infinity", "-Infinity", "12345678901234567890.123456789000", "1e-20"]),
    "n2": ("numeric(10,2)", ["NaN", "1.10", "99999999.99", "-0.01"]),
    "m": ("money", ["-1.05", "0", "92233720368547758.07"]),
    "f": ("float8", ["NaN", "Infinity", "-Infinity", "-0", "1e300", "0.1", "5e-324"]),
    "f4": ("float4", ["NaN", "0.1", "16777216"]),
    "k": ("bigint", ["9223372036854775807", "-9223372036854775808"]),
    "d": ("date", ["infinity", "-infinity", "20000-01-01", "0001-01-01", "1582-10-04", "2026-11-30"]),
    "ts": (
        "timestamp",
        [
            *("infinity", "-infinity", "0044-03-15 12:00 BC", "20000-01-01 00:00:00.000001"),
            *("1969-12-31 23:59:59.999999", "1582-10-10 01:02:03.5"),
        ],
    ),
    "tz": (
        "timestamptz",
        ["infinity", "-infinity", "0001-01-01 00:00+00", "0044-03-15 12:00+00 BC", "2026-11-01 01:30-04"],
    ),
    "tm": ("time", ["12:00:00.000001", "00:00", "23:59:59.999999"]),
    "iv": ("interval", ["1 mon -1 day", "-00:00:01", "1 year 14 mon 3 days 00:00:01.5", "-178000000 years"]),
    "b": ("bytea", ["\\x00ff10", "\\x"]),
    "b1": ("bit", ["1", "0"]),
    "b9": ("bit(9)", ["101000001", "000000001"]),
    "s": ("text", ["NAN", "POSITIVE_INFINITY", "", 'ü"\\', "line\nbreak", "2020-01-01Z", "\U0001f600"]),
    "c": ("char(3)", ["a", "abc"]),
    "q": ("boolean", ["true", "false"]),
    "j": ("jsonb", ['{"k": [1, null, "x"]}', "null", "1.10"]),
    "js": ("json", ['{"a":  1}']),
    "u": ("uuid", ["00000000-0000-0000-0000-000000000001"]),
    "i": ("inet", ["10.0.0.1/24", "::1"]),
    "ci": ("cidr", ["10.0.0.0/24"]),
    "mac": ("macaddr", ["08:00:2b:01:02:03"]),
    "r": ("int4range", ["[1,5)", "empty", "(,3)"]),
    "rt": ("tstzrange", ['["2020-01-01 00:00:00+00","2020-01-02 00:00:00+00")']),
    "v": ("tsvector", ["'a' 'b'"]),
    "o": ("mood", ["ok", "so so"]),
    "p": ("positive", ["7"]),
}
ARRAYS = {
    "ai": ("int[]", ["{1,NULL,3}", "{}"]),
    "at": ("text[]", ['{a,NULL,"b,c"}']),
    "au": ("uuid[]", ["{00000000-0000-0000-0000-000000000001}"]),
    "an": ("numeric[]", ["{1.10,NULL}"]),
    "ad": ("date[]", ["{2020-01-01,infinity}"]),
    "ats": ("timestamp[]", ['{"2020-01-01 00:00:00.5",NULL}']),
    "ab": ("boolean[]", ["{t,f,NULL}"]),
    "ao": ("mood[]", ["{ok}"]),
}
SETUP = "create type mood as enum('ok', 'so so'); create domain positive as int check (value > 0)"


def literal(value: Any) -> str | None:
    """A captured value as the text that the column's type reads."""
    if value is None:
        return None
    if isinstance(value, list):
        return "{" + ",".join("NULL" if item is None else json.dumps(item) for item in value) + "}"
    return str(value)


@pytest.mark.parametrize("columns", [COLUMNS, ARRAYS], ids=["scalars", "arrays"])
def test_values_cast_back_are_the_same(db, capture, columns):
    db.execute(SETUP)
    listed = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
    db.execute(f"create table t(id int primary key, {listed}); alter table t replica identity full".encode())
    db.execute(f"create table back(id int primary key, {listed})".encode())
    count = max(len(values) for _, values in columns.values())
    for row in range(count):
        fields = [values[row] if row < len(values) else None for _, values in columns.values()]
        casts = ", ".join(f"%s::{kind}" for kind, _ in columns.values())
        db.execute(f"insert into t values (%s, {casts})".encode(), [row, *fields])
    source = capture()
    source.streaming()
    db.execute("update t set id = id + 100")
    source.count(3 * count)

    def back(changes: list[Change[Any]]) -> list[str]:
        db.execute("truncate back")
        for change in changes:
            row = change.after
            assert row is not None
            casts = ", ".join(f"%s::text::{kind}" for kind, _ in columns.values())
            fields = [literal(row[name]) for name in columns]
            db.execute(f"insert into back values (%s, {casts})".encode(), [row["id"], *fields])
        return [text for (text,) in db.execute("select back::text from back order by id")]

    expected = [text for (text,) in db.execute("select t::text from t order by id")]
    assert back([change for change in source.changes if change.op == "c"]) == expected
    snapshot = back([change for change in source.changes if change.op == "r"])
    assert [text.partition(",")[2] for text in snapshot] == [text.partition(",")[2] for text in expected]


def test_dates_before_christ_in_the_log(db, capture):
    db.execute("create table t(id int primary key, d date)")
    source = capture()
    source.streaming()
    db.execute("insert into t values (1, '0044-03-15 BC'), (2, '4713-01-01 BC')")
    source.count(2)
    assert [change.after["d"] for change in source.changes] == ["0044-03-15 BC", "4713-01-01 BC"]


def test_keys_have_the_same_form_as_columns(db, capture):
    db.execute("create table t(d date primary key, v text)")
    db.execute("insert into t values ('2020-01-02', 'a')")
    source = capture()
    source.streaming()
    db.execute("delete from t")
    source.count(2)
    assert source.changes[0].after == {"d": "2020-01-02", "v": "a"}
    assert source.changes[1].before == {"d": "2020-01-02"}
    assert source.keys_seen == [{"d": "2020-01-02"}] * 2
