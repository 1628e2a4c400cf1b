"""User code over columns against a loop that does it one by one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from streams.durations import seconds
from streams.errors import ProcessingError, StateError
from streams.operators.guard import PIECE_SECONDS, Guard, Interrupted, WholeColumn
from streams.policy import fail, retry, skip
from streams.records import Batch, FetchedLists
from tests.support.columns import Numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.coroutines.event_loop import Calls
    from streams.origin import Origin
    from streams.policy import Action
    from streams.records import Record


class Notes:
    """The runtime of a guard, which records its calls."""

    def __init__(self) -> None:
        self.failed_rows: list[int] = []
        self.waited: list[float] = []
        self.inline = True

    def wall_clock(self) -> int:
        return 0

    def stopwatch(self) -> float:
        return time.perf_counter()

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:
        return {}

    def keep_alive(self) -> None: ...

    def attend(self, calls: Calls) -> None: ...

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        self.waited.append(seconds)

    def failed(self, action: Action, batch: Batch[Any, Any], row: int, step: str, error: Exception) -> None:
        self.failed_rows.append(row)


def batch_of(values: list[Any]) -> Batch[Any, Any]:
    rows = range(len(values))
    return Batch(
        FetchedLists("t", 0, [None] * len(values), [b""] * len(values), [0] * len(values), rows), values
    )


# What the function does with an element: give a result, raise, or end the iteration.
fates = st.lists(st.sampled_from(["good", "good", "good", "raise", "stop"]), max_size=3_000)


@given(fates)
def test_results_rows_and_calls_are_those_of_a_plain_loop(fates):
    calls: list[int] = []

    def work(row: int) -> int:
        calls.append(row)
        if fates[row] == "raise":
            raise ValueError("made to fail")
        if fates[row] == "stop":
            raise StopIteration
        return row * 2

    notes = Notes()
    column = list(range(len(fates)))
    results, rows = Guard("step", skip, notes, notes.failed, "step").each(
        lambda part: map(work, part), column, batch_of(column)
    )
    good = [row for row, fate in enumerate(fates) if fate == "good"]
    assert results == [row * 2 for row in good]
    assert list(range(len(fates)) if rows is None else rows) == good
    assert notes.failed_rows == [row for row in column if row not in set(good)]
    assert calls == column


@given(st.lists(st.integers(0, 4), max_size=200), st.integers(1, 3))
def test_a_record_that_succeeds_on_a_retry_keeps_its_place(failures, tries):
    left = dict(enumerate(failures))

    def work(row: int) -> int:
        if left[row]:
            left[row] -= 1
            raise ConnectionError("not yet")
        return row

    notes = Notes()
    column = list(range(len(failures)))
    policy = retry(tries, backoff=seconds(1.0), then=skip)
    results, _ = Guard("step", policy, notes, notes.failed, "step").each(
        lambda part: map(work, part), column, batch_of(column)
    )
    assert results == [row for row, count in enumerate(failures) if count <= tries]
    assert notes.waited == [2.0**attempt for count in failures for attempt in range(min(count, tries))]


@given(st.lists(st.sampled_from(["good", "good", "raise", "stop"]), min_size=1, max_size=40), st.booleans())
def test_a_batch_that_fails_as_one_fails_only_where_a_record_alone_would(fates, by_value):
    calls: list[list[int]] = []

    def work(batch: Batch[Any, Any]) -> list[int]:
        rows = list(batch.values) if by_value else list(batch.offsets)
        calls.append(rows)
        for row in rows:
            if fates[row] == "raise":
                raise ValueError("made to fail")
            if fates[row] == "stop":
                raise StopIteration
        return rows

    notes = Notes()
    column = list(range(len(fates)))
    results = Guard("step", skip, notes, notes.failed, "step").whole(work, batch_of(column))
    good = [row for row in column if fates[row] == "good"]
    if good == column:
        assert (results, calls) == ([column], [column])
    else:
        assert results == [[row] for row in good]
        assert calls == [column, *([row] for row in column)]
    assert notes.failed_rows == [row for row in column if row not in good]


def test_a_transform_with_more_results_than_records_is_an_error_that_names_the_step():
    column, notes = [1, 2, 3], Notes()
    with pytest.raises(ProcessingError, match=r"step 'odd' returned \d+ results for the first \d+ records"):
        Guard("odd", skip, notes, notes.failed, "step 'odd'").each(
            lambda part: [*part, 0], column, batch_of(column)
        )


def test_the_group_is_looked_after_between_pieces_of_slow_code():
    served_after: list[int] = []
    calls = 0

    class Serving(Notes):
        def keep_alive(self) -> None:
            served_after.append(calls)

    def work(row: int) -> int:
        nonlocal calls
        calls += 1
        if row % 100 == 50:
            deadline = time.perf_counter() + 1.2 * PIECE_SECONDS
            while time.perf_counter() < deadline:
                pass
        return row

    column = list(range(200))
    serving = Serving()
    results, rows = Guard("step", fail, serving, serving.failed, "step").each(
        lambda part: map(work, part), column, batch_of(column)
    )
    assert (results, rows) == (column, None)
    assert len(served_after) == 2


def test_what_interrupts_a_slice_is_no_failure_of_a_record():
    def work(row: int) -> int:
        if row == 3:
            raise Interrupted
        return row

    notes = Notes()
    column = list(range(10))
    with pytest.raises(Interrupted):
        Guard("step", skip, notes, notes.failed, "step").each(
            lambda part: map(work, part), column, batch_of(column)
        )
    assert notes.failed_rows == []


# --- functions of complete columns


def test_the_column_that_a_whole_column_function_returns_is_the_result():
    looks: list[str] = []
    given: list[int] = []
    notes, column = Notes(), list(range(5_000))

    def double(values: Any) -> Numbers:
        given.append(len(values))
        return Numbers([2 * value for value in values], looks)

    guard = Guard("step", fail, notes, notes.failed, "step")
    results, rows = guard.each(WholeColumn(double), column, batch_of(column))
    assert isinstance(results, Numbers)
    assert (given, rows, looks) == ([len(column)], None, [])
    assert list(results) == [2 * value for value in column]


@given(
    st.lists(st.sampled_from(["good", "good", "good", "raise"]), min_size=2, max_size=60), st.integers(0, 2)
)
def test_a_whole_column_function_that_fails_is_called_for_each_record_alone(fates, tries):
    attempts = [0] * len(fates)

    def work(values: Any) -> Numbers:
        for value in values:
            attempts[value] += len(values) == 1
            if fates[value] == "raise":
                raise ValueError("made to fail")
        return Numbers(values, [])

    notes, column = Notes(), list(range(len(fates)))
    policy = skip if not tries else retry(times=tries, then=skip)
    guard = Guard("step", policy, notes, notes.failed, "step")
    results, rows = guard.each(WholeColumn(work), column, batch_of(column))
    good = [row for row, fate in enumerate(fates) if fate == "good"]
    assert list(results) == good
    assert list(column if rows is None else rows) == good
    assert notes.failed_rows == [row for row in column if row not in good]
    assert all(attempts[row] == 1 + tries for row in notes.failed_rows)


def test_a_whole_column_function_that_returns_too_few_results_fails_for_each_record():
    notes, column = Notes(), [1, 2, 3]
    guard = Guard("step", skip, notes, notes.failed, "step")
    results, rows = guard.each(WholeColumn(lambda _: []), column, batch_of(column))
    assert (list(results), rows, notes.failed_rows) == ([], [], [0, 1, 2])


def test_a_state_error_in_a_whole_column_function_is_not_an_error_of_a_record():
    calls: list[int] = []

    def work(values: Any) -> Any:
        calls.append(len(values))
        raise StateError("the store is gone")

    notes, column = Notes(), [1, 2, 3]
    with pytest.raises(StateError):
        Guard("step", skip, notes, notes.failed, "step").each(WholeColumn(work), column, batch_of(column))
    assert (calls, notes.failed_rows) == ([3], [])


def test_awaitables_in_the_list_of_a_whole_column_function_fail_for_their_records():
    async def later(value: int) -> int:
        return value

    notes, column = Notes(), [1, 2, 3]
    guard = Guard("step", skip, notes, notes.failed, "step")
    transform = WholeColumn(lambda values: [later(value) if value == 2 else value for value in values])
    results, rows = guard.each(transform, column, batch_of(column))
    assert (list(results), rows, notes.failed_rows) == ([1, 3], [0, 2], [1])
