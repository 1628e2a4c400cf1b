"""Batches against lists of records."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from streams.records import Batch, FetchedLists, Record

if TYPE_CHECKING:
    from streams.records import Headers

headers = st.one_of(
    st.none(), st.lists(st.tuples(st.text(max_size=3), st.one_of(st.none(), st.binary(max_size=3))))
)
originals = st.lists(
    st.tuples(
        st.one_of(st.none(), st.binary(max_size=4)), st.binary(max_size=4), st.integers(0, 99), headers
    ),
    min_size=1,
    max_size=20,
)


@given(originals, st.data())
def test_selecting_and_replacing_columns_equals_doing_it_to_records(rows, data):
    columns = [list(column) for column in zip(*rows, strict=True)]
    offsets = [10 + 3 * row for row in range(len(rows))]
    fetched = FetchedLists("topic", 4, columns[0], columns[1], columns[2], offsets, columns[3])
    batch: Batch[Any, Any] = Batch(fetched, columns[1])
    records = [
        Record(key, value, time, named, "topic", 4, offset)
        for (key, value, time, named), offset in zip(rows, offsets, strict=True)
    ]
    origins = list(records)
    for _ in range(data.draw(st.integers(0, 4))):
        change = data.draw(st.sampled_from(["select", "values", "keys", "timestamps", "headers"]))
        if change == "select":
            chosen = data.draw(st.lists(st.integers(0, len(records) - 1), min_size=1, max_size=8))
            batch = batch.select(chosen)
            records = [replace(records[row]) for row in chosen]
            origins = [origins[row] for row in chosen]
            continue
        column = data.draw(st.lists(st.integers(), min_size=len(records), max_size=len(records)))
        if change == "headers":
            named: list[Headers | None] = [[("n", b"%d" % value)] for value in column]
            batch = batch.with_headers(named)
            records = [replace(record, headers=value) for record, value in zip(records, named, strict=True)]
        elif change == "values":
            batch = batch.with_values(column)
            records = [replace(record, value=value) for record, value in zip(records, column, strict=True)]
        elif change == "keys":
            batch = batch.with_keys(column)
            records = [replace(record, key=value) for record, value in zip(records, column, strict=True)]
        else:
            batch = batch.with_timestamps(column)
            records = [
                replace(record, timestamp=value) for record, value in zip(records, column, strict=True)
            ]
    assert list(batch.records()) == records
    assert [batch.original(row) for row in range(len(batch))] == origins
    assert [batch.offset(row) for row in range(len(batch))] == [record.offset for record in records]


def test_a_column_of_another_length_is_refused():
    batch: Batch[Any, Any] = Batch(FetchedLists("t", 0, [None], [b""], [0], [0]), [b""])
    with pytest.raises(ValueError, match="1 rows need as many values, got 2"):
        batch.with_values([1, 2])
