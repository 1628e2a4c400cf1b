"""Values as Postgres writes them, from the snapshot and from the log: cast back, they are the same."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from streams.connectors.postgres import PostgresSink
from streams.errors import ConnectorError, StateError
from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows

if TYPE_CHECKING:
    from streams.connectors.change import Change

COLUMNS = {
    "n": ("numeric", ["NaN", "Infinity", "-Infinity", "12345678901234567890.123456789000", "1e-20"]),
    "n2": ("numeric(10,2)", ["NaN", "1.10", "99999999.99", "-0.01"]),
    "m": ("money", ["-1.05", "0", "92233720368547758.07"]),
    "f": ("float8", ["NaN", "Infinity", "-Infinity", "-0", "1e300", "0.1", "5e-324"]),
    "f4": ("float4", ["NaN", "0.1", "16777216"]),
    "k": ("bigint", ["9223372036854775807", "-9223372036854775808"]),
    "d": (
        "date",
        [
            *("infinity", "-infinity", "20000-01-01", "0001-01-01", "1582-10-04", "2026-11-30"),
            *("5874897-12-31", "1969-12-31"),
        ],
    ),
    "ts": (
        "timestamp",
        [
            *("infinity", "-infinity", "0044-03-15 12:00 BC", "20000-01-01 00:00:00.000001"),
            *("1969-12-31 23:59:59.999999", "1582-10-10 01:02:03.5", "0001-12-31 23:59:59 BC"),
            *("4713-01-01 BC", "294246-12-31 23:59:59.999999", "1970-01-01 00:00"),
        ],
    ),
    "tz": (
        "timestamptz",
        [
            *(
                "infinity",
                "-infinity",
                "0001-01-01 00:00+00",
                "0044-03-15 12:00+00 BC",
                "2026-11-01 01:30-04",
            ),
            *("0001-12-31 12:00+00 BC", "4713-01-01 00:00+00 BC", "294276-12-31 23:59:59.999999+00"),
        ],
    ),
    "ts3": ("timestamp(3)", ["infinity", "2026-11-30 01:02:03.5", "0044-03-15 12:00 BC"]),
    "tm": ("time", ["12:00:00.000001", "00:00", "23:59:59.999999", "24:00"]),
    "tm0": ("time(0)", ["24:00", "01:02:03"]),
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
    "dr": ("daterange", ['["0044-03-15 BC",infinity)', "[2020-01-01,2020-01-02)"]),
    "pt": ("point", ["(1.5,-2)"]),
    "o": ("mood", ["ok", "so so"]),
    "p": ("positive", ["7"]),
}
ARRAYS = {
    "ai": ("int[]", ["{1,NULL,3}", "{}"]),
    "at": ("text[]", ['{a,NULL,"b,c"}']),
    "au": ("uuid[]", ["{00000000-0000-0000-0000-000000000001}"]),
    "an": ("numeric[]", ["{1.10,NULL}", "{12345678901234567890.123456789000}"]),
    "an2": ("numeric(10,2)[]", ["{1.10,NULL}"]),
    "af": ("float8[]", ["{NaN,Infinity,0.1}"]),
    "ad": ("date[]", ["{2020-01-01,infinity}", "{1582-10-15,20000-01-01}"]),
    "ats": (
        "timestamp[]",
        ['{"2020-01-01 00:00:00.5",NULL}', '{infinity,"1582-10-15 00:00","20000-01-01 00:00:00.000001"}'],
    ),
    "atz": ("timestamptz[]", ['{"2020-01-01 00:00:00.5+02",infinity}', '{"1582-10-15 00:00+00"}']),
    "ab": ("boolean[]", ["{t,f,NULL}"]),
    "ao": ("mood[]", ["{ok}"]),
}
CHECKS = {
    "iv": "isfinite(iv)",
    "an": "'Infinity' > all (an) and '-Infinity' < all (an)",
    "an2": "'Infinity' > all (an2) and '-Infinity' < all (an2)",
    "ad": "'1582-10-15' <= all (ad)",
    "ats": "'1582-10-15' <= all (ats)",
    "atz": "'1582-10-15 00:00+00' <= all (atz)",
}
"""Of values that would not arrive."""
SETUP = "create type mood as enum('ok', 'so so'); create domain positive as int check (value > 0)"


def literal(value: Any) -> str | None:
    """A captured value as the text that the column's type reads."""
    if value is None:
        return None
    if isinstance(value, list):
        return "{" + ",".join("NULL" if item is None else json.dumps(item) for item in value) + "}"
    return str(value)


@pytest.mark.parametrize("columns", [COLUMNS, ARRAYS], ids=["scalars", "arrays"])
def test_values_cast_back_are_the_same_also_by_a_sink(db, database, capture, tmp_path, columns):
    db.execute(SETUP)
    listed = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
    checks = "".join(f", check ({check})" for name, check in CHECKS.items() if name in columns)
    db.execute(f"create table t(id int primary key, {listed}{checks})".encode())
    db.execute("alter table t replica identity full")
    for target in ("back", "written", "from_avro"):
        db.execute(f"create table {target}(id int primary key, {listed})".encode())
    count = max(len(values) for _, values in columns.values())
    for row in range(count):
        fields = [values[row] if row < len(values) else None for _, values in columns.values()]
        casts = ", ".join(f"%s::{kind}" for kind, _ in columns.values())
        db.execute(f"insert into t values (%s, {casts})".encode(), [row, *fields])
    source = capture(schemas=tmp_path)
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
        return rows("back")

    def rows(table: str) -> list[str]:
        return [text for (text,) in db.execute(f"select x::text from {table} x order by id".encode())]

    expected = rows("t")
    assert back([change for change in source.changes if change.op == "c"]) == expected
    snapshot = back([change for change in source.changes if change.op == "r"])
    assert [text.partition(",")[2] for text in snapshot] == [text.partition(",")[2] for text in expected]
    for table, changes in {"written": source.changes, "from_avro": source.from_avro}.items():
        write(database, table, changes)
        assert rows(table) == expected


def write(database: str, table: str, changes: list[Change[Any]]) -> None:
    sink = PostgresSink(database, table)
    named = context(table)
    sink.check(named)
    writer = sink.open(named)
    start = writer.claim({ORDERS: TOPIC_ID})[ORDERS]
    keys = [{"id": (change.after or change.before or {})["id"]} for change in changes]
    assert writer.write([sink_rows(changes, keys=keys, start=start)]) == []
    writer.commit()
    writer.close()


@pytest.mark.parametrize(
    ("kind", "check", "refused"),
    [
        ("interval", "isfinite({})", "infinity"),
        ("numeric[]", "(('Infinity'::numeric > ALL ({0})) AND ('-Infinity'::numeric < ALL ({0})))", "{NaN}"),
        ("numeric(10,2)[]", "'Infinity' > all ({0}) and '-Infinity' < all ({0})", "{1.10,NaN}"),
        ("date[]", "'1582-10-15' <= all ({})", '{"0044-03-15 BC",NULL}'),
        ("timestamp(3)[]", "'1582-10-15' <= all ({})", '{"1582-10-14 12:00"}'),
        ("timestamptz[]", "'1582-10-15 00:00+00' <= all ({})", "{-infinity}"),
    ],
)
def test_types_with_values_that_do_not_arrive_need_a_constraint(db, database, capture, kind, check, refused):
    """The one that the error names: it excludes the values, and then the table is captured."""
    db.execute(f'create table t(id int primary key, "the V" {kind}, w {kind})'.encode())
    db.execute("alter table t replica identity full")
    db.execute("set timezone = 'Asia/Tokyo'; set datestyle = 'SQL, DMY'")
    source = capture()
    for column in ('"the V"', "w"):
        with pytest.raises(ConnectorError, match=f"column {column.strip(chr(34))} of public.t") as caught:
            source.open()
        hint = re.search(r"ALTER TABLE .* ADD CHECK (\(.*\));", caught.value.hint or "")
        assert hint is not None
        db.execute(f"alter table t add constraint own check ({check.format(column)}) not valid".encode())
        with pytest.raises(ConnectorError, match=f"column {column.strip(chr(34))} of public.t"):
            source.open()
        if column == "w":
            db.execute("alter table t validate constraint own")
        else:
            db.execute("alter table t drop constraint own")
            db.execute(f"alter table t add check {hint[1]}".encode())
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute(f"insert into t(id, {column}) values (1, %s)".encode(), [refused])
    source.streaming()


@pytest.mark.parametrize("kind", ["timetz", "timetz(0)", "time[]", "timetz[]"])
def test_times_with_a_zone_and_arrays_of_times_are_refused(db, capture, kind):
    db.execute(f"create table t(id int primary key, v {kind}); alter table t replica identity full".encode())
    with pytest.raises(ConnectorError, match=r"column v of public.t has the type time.*cannot be captured"):
        capture().open()


@pytest.mark.parametrize("kind", ["int[]", "text[]", "bytea[]", "mood[]"])
@pytest.mark.parametrize("phase", ["snapshot", "stream"])
def test_an_array_with_several_dimensions_stops_the_source(db, capture, kind, phase):
    db.execute(SETUP)
    db.execute(f"create table t(id int primary key, v {kind}); alter table t replica identity full".encode())
    element = "ok" if kind == "mood[]" else "1"
    insert = f"insert into t values (1, '{{{element}}}'), (2, '{{{{{element}}}}}')".encode()
    if phase == "snapshot":
        db.execute(insert)
    source = capture()
    if phase == "stream":
        source.streaming()
        db.execute(insert)
    with pytest.raises((ConnectorError, StateError), match="several dimensions"):
        source.until(lambda: len(source.changes) > 1)
    assert len(source.changes) < 2


@pytest.mark.parametrize("kind", ["int[][]", "text[3][3]"])
def test_arrays_declared_with_several_dimensions_are_refused(db, capture, kind):
    db.execute(f"create table t(id int primary key, v {kind})".encode())
    with pytest.raises(ConnectorError, match=r"column v of public\.t is an array with several dimensions"):
        capture().open()


def test_a_domain_of_intervals_is_captured_with_the_constraint(db, capture):
    db.execute("create domain span as interval")
    db.execute("create table t(id int primary key, v span, check (isfinite(v)))")
    db.execute("insert into t values (1, '1 day')")
    source = capture()
    source.count(1)
    assert source.table() == {1: {"id": 1, "v": "P0Y0M1DT0H0M0S"}}


def test_a_timestamp_that_cannot_be_captured_stops_the_source(db, capture):
    db.execute("create table t(id int primary key, v timestamp)")
    db.execute("insert into t values (1, '294276-12-31')")
    with pytest.raises(StateError, match="year 294247"):
        capture().count(1)


def test_dates_before_christ_in_the_log(db, capture):
    db.execute("create table t(id int primary key, d date)")
    source = capture()
    source.streaming()
    db.execute("insert into t values (1, '0044-03-15 BC'), (2, '4713-01-01 BC'), (3, '0001-12-31 BC')")
    source.count(3)
    assert [change.after["d"] for change in source.changes] == [
        *("0044-03-15 BC", "4713-01-01 BC", "0001-12-31 BC")
    ]


def test_keys_have_the_same_form_as_columns(db, capture):
    db.execute("create table t(d date, h time, at timestamp, v text, primary key (d, h, at))")
    db.execute("insert into t values ('2020-01-02', '24:00', '2020-01-01 00:00:00.5', 'a')")
    source = capture()
    source.streaming()
    db.execute("delete from t")
    source.count(2)
    key = {"d": "2020-01-02", "h": "24:00:00", "at": "2020-01-01T00:00:00.5"}
    assert source.changes[0].after == {**key, "v": "a"}
    assert source.changes[1].before == key
    assert source.keys_seen == [key] * 2
