"""A table with a column of each kind, and rows of it as a source connector hands them on."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from streams.connectors.change import Change, ChangeSource
from streams.connectors.table_row import Column, TableColumns, TableRow, table_row

TOPIC = "shop.public.orders"
SOURCE = ChangeSource(
    db="shop", schema="public", table="orders", lsn=7, txId=3, ts_ms=1_700_000_000_000, sequence='["1","2"]'
)
ID = Column("id", "int")


def table(*columns: Column, key: tuple[str, ...] = ("id",)) -> TableColumns:
    return TableColumns(("shop", "public", "orders"), columns, key)


EVERY = table(
    ID,
    Column("flag", "boolean"),
    Column("big", "long"),
    Column("ratio", "double"),
    Column("price", "decimal", precision=10, scale=2),
    Column("count", "decimal", precision=5),
    Column("raw", "bytes"),
    Column("code", "uuid"),
    Column("a-b", "text"),
    Column("1st", "text"),
    Column("day", "date"),
    Column("hour", "time"),
    Column("at", "timestamp"),
    Column("seen", "timestamptz"),
    Column("days", "date", array=True),
    Column("prices", "decimal", array=True, precision=4, scale=1),
    Column("names", "text", array=True),
)

_numbers = st.sampled_from(["NaN", "Infinity", "-Infinity", "1E+5", "-0", "-0.00"])
_prices = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**8), max_value=10**8)
_odd = st.sampled_from(["infinity", "-infinity", "0044-03-15 BC", "20000-01-01", "0000-01-01"])
_texts = st.text(st.characters(exclude_categories=["Cs"]))
_days = st.dates().map(str)
_times = st.times().map(lambda time: _trimmed(time.isoformat()))
_moments = st.datetimes()


def _trimmed(text: str) -> str:
    """Without zeros at the end of a fraction, as a source writes it."""
    return text.rstrip("0") if "." in text else text


_kinds: dict[str, st.SearchStrategy[Any]] = {
    "id": st.integers(-(2**31), 2**31 - 1),
    "flag": st.booleans(),
    "big": st.integers(-(2**63), 2**63 - 1),
    "ratio": st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["NaN", "Infinity"]),
    "price": _prices.map(lambda number: f"{number:.2f}") | _numbers,
    "count": st.integers(-99999, 99999).map(str) | _numbers,
    "raw": st.binary(),
    "code": st.uuids().map(str),
    "a-b": _texts,
    "1st": _texts,
    "day": _days | _odd,
    "hour": _times | st.just("24:00:00"),
    "at": _moments.map(lambda at: _trimmed(at.isoformat())) | _odd,
    "seen": _moments.map(lambda at: at.isoformat(timespec="microseconds") + "Z") | _odd,
    "days": st.lists(st.none() | _days | _odd),
    "prices": st.lists(st.none() | st.integers(-9999, 9999).map(lambda n: f"{n / 10:.1f}") | _numbers),
    "names": st.lists(st.none() | _texts),
}
every_row = st.fixed_dictionaries(
    {name: kind if name == "id" else st.none() | kind for name, kind in _kinds.items()}
).map(lambda row: table_row(row, EVERY))


def row(of: TableColumns, **values: Any) -> TableRow:
    return table_row(values, of)


def created(after: TableRow, source: ChangeSource = SOURCE) -> Change[Any]:
    return Change(op="c", after=after, source=source, ts_ms=1_700_000_000_001)
