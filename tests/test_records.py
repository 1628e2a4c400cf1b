"""Batches against lists of records."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from streams.records import Batch, FetchedLists, Record, take
from tests.support.columns import Numbers

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


@given(originals, st.data())
def test_a_slice_of_what_was_fetched_is_what_a_slice_of_records_is(rows, data):
    columns = [list(column) for column in zip(*rows, strict=True)]
    offsets = [10 + 3 * row for row in range(len(rows))]
    fetched = FetchedLists("topic", 4, columns[0], columns[1], columns[2], offsets, columns[3])
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    part = fetched.slice(start, stop)
    assert len(part) == stop - start
    assert part.next_offset == offsets[stop - 1] + 1
    whole = Batch[Any, Any](fetched, columns[1])
    assert list(Batch[Any, Any](part, columns[1][start:stop]).records()) == list(whole.records())[start:stop]
    chosen = data.draw(st.lists(st.integers(0, len(part) - 1), max_size=5))
    assert part.offsets(chosen) == [offsets[start + row] for row in chosen]


def test_records_without_headers_have_none_whatever_is_selected():
    fetched = FetchedLists("t", 0, [b"a", b"b"], [b"1", b"2"], [1, 2], [5, 9])
    batch: Batch[Any, Any] = Batch(fetched, [b"1", b"2"])
    assert batch.headers is None
    assert batch.select([1, 1]).headers is None
    assert [record.headers for record in batch.select([1]).records()] == [None]
    assert batch.select([1]).original(0).headers is None


def test_an_empty_selection_has_no_rows_in_any_column():
    fetched = FetchedLists("t", 0, [b"a"], [b"1"], [1], [5], [[("h", b"x")]])
    nothing = Batch[Any, Any](fetched, [b"1"]).select([])
    assert (len(nothing), list(nothing.records())) == (0, [])
    assert (list(nothing.keys), list(nothing.timestamps), list(nothing.offsets)) == ([], [], [])
    assert (nothing.topic, nothing.partition) == ("t", 0)


def test_a_batch_is_not_changed_by_what_is_made_of_it():
    fetched = FetchedLists("t", 0, [b"a", b"b"], [b"1", b"2"], [1, 2], [5, 9], [None, [("h", b"x")]])
    batch: Batch[Any, Any] = Batch(fetched, ["one", "two"])
    before = list(batch.records())
    batch.with_values([1, 2]).with_keys([3, 4]).with_timestamps([5, 6]).with_headers([None, None]).select([1])
    assert list(batch.records()) == before


@given(st.lists(st.integers(0, 99), max_size=20), st.data())
def test_rows_are_taken_from_any_sequence_alike(numbers, data):
    positions = st.integers(0, max(0, len(numbers) - 1))
    some = st.lists(positions, max_size=10) if numbers else st.just([])
    ranges = st.builds(range, st.integers(0, len(numbers)), st.just(len(numbers)))
    rows = data.draw(st.one_of(st.none(), some, ranges))
    wanted = numbers if rows is None else [numbers[row] for row in rows]
    looks: list[str] = []
    taken = take(Numbers(numbers, looks), rows)
    assert isinstance(taken, Numbers)
    assert looks == []
    assert list(taken) == wanted
    assert take(numbers, rows) == take(tuple(numbers), rows) == wanted


def test_a_copy_of_a_batch_shares_no_list_with_it():
    fetched = FetchedLists("topic", 0, [b"a", b"b"], [b"1", b"2"], [0, 1], [0, 1])
    batch: Batch[Any, Any] = Batch(fetched, [1, 2], keys=["a", "b"], timestamps=[0, 1])
    copied = batch.copy()
    for column in (copied.values, copied.keys, copied.timestamps):
        assert isinstance(column, list)
        column.clear()
    assert (batch.values, batch.keys, batch.timestamps) == ([1, 2], ["a", "b"], [0, 1])
