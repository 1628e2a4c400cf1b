"""What each step takes: its own time, whatever it calls."""

from __future__ import annotations

from typing import Any

import pytest

from streams.runtime import step_times
from streams.runtime.counts import Counts
from streams.runtime.step_times import StepTimes


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(step_times, "perf_counter", clock)
    return clock


def test_a_step_has_its_own_time_and_not_that_of_the_steps_it_calls(clock: Clock):
    counts = Counts()
    times = StepTimes(counts)
    entrance = [0], 0

    def write(_batch: Any) -> None:
        clock.now += 1

    slow = times.counted("write", write, entrance)

    def enrich(batch: Any) -> None:
        clock.now += 5
        slow(batch)
        slow(batch[:1])
        clock.now += 2

    times.counted("enrich", enrich, entrance)([1, 2, 3])  # type: ignore[arg-type]  # a batch has a length, too
    assert counts.step_seconds == {"write": 2, "enrich": 7}
    assert counts.step_records == {"write": 4, "enrich": 3}
    assert entrance[0] == [7], "the ledger counts what enters, of both here"


def test_a_step_that_fails_has_taken_its_time_and_its_caller_is_measured_on(clock: Clock):
    counts = Counts()
    times = StepTimes(counts)
    entrance = [0], 0

    def fail(_batch: Any) -> None:
        clock.now += 3
        raise ValueError

    failing = times.counted("fail", fail, entrance)

    def caller(batch: Any) -> None:
        clock.now += 1
        with pytest.raises(ValueError):
            failing(batch)
        clock.now += 1

    times.counted("caller", caller, entrance)([1])  # type: ignore[arg-type]  # as above
    assert counts.step_seconds == {"fail": 3, "caller": 2}
    # Records that a step did not pass are counted once it has.
    assert counts.step_records == {"fail": 0, "caller": 1}


def test_calls_without_records_belong_to_the_step(clock: Clock):
    counts = Counts()
    times = StepTimes(counts)

    def at_commit() -> None:
        clock.now += 4

    times.measured("window", at_commit)()
    assert counts.step_seconds == {"window": 4}


def test_counts_of_several_tasks_together_are_a_new_object():
    one, other = Counts(), Counts()
    one.step_seconds["map"], other.step_seconds["map"] = 1.0, 2.0
    one.dead_letters["map"] = 1
    total = Counts.total([one, other])
    assert (total.step_seconds, total.dead_letters) == ({"map": 3.0}, {"map": 1})
    assert one.step_seconds == {"map": 1.0}
