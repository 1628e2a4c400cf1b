"""User code over columns against a loop that does it one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, strategies as st

from streams.guard import Guard
from streams.policy import retry, skip
from streams.records import Batch, FetchedLists

if TYPE_CHECKING:
    from streams.policy import Action


class Notes:
    """The surroundings of a guard, which remember what they are told."""

    def __init__(self) -> None:
        self.failed_rows: list[int] = []
        self.waited: list[float] = []

    def keep_alive(self) -> None: ...

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
    results, rows = Guard("step", skip, notes, "step").each(
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
    policy = retry(tries, backoff=1.0, then=skip)
    results, _ = Guard("step", policy, notes, "step").each(
        lambda part: map(work, part), column, batch_of(column)
    )
    assert results == [row for row, count in enumerate(failures) if count <= tries]
    assert notes.waited == [2.0**attempt for count in failures for attempt in range(min(count, tries))]
