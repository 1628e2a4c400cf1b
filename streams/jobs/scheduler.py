"""Decides what becomes of each instant of the app's schedules, in the task of the queue's first partition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from streams.jobs.occurrence import Decision, Occurrence, said
from streams.jobs.order import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from streams.jobs.job_store import JobStore
    from streams.jobs.schedule import Schedule
    from streams.jobs.schedule_rules import Rule

PARTITION = 0
"""The partition of the queue whose owner decides."""

MOST_PASSED = 10_000
"""How many instants of a schedule that have passed get a record each; earlier ones have one together."""

LATE_MILLISECONDS = 60_000
"""How late an instant may be decided until it counts as missed."""


class Released(NamedTuple):
    """The record of a job to be written to the queue's topic."""

    key: str
    value: bytes


@dataclass(slots=True)
class _Upcoming:
    """Where a schedule has come to."""

    next: int
    instants: Iterator[int]
    """Those after ``next``."""


class Scheduler:
    """The schedules of an app, whose last decided instants are in the store.

    A new schedule begins after now, one that is not declared any more is forgotten, and one with another rule
    continues with the first instant of that after the last decided one.
    """

    def __init__(self, store: JobStore, schedules: Mapping[str, Schedule]) -> None:
        self._store = store
        self._schedules = schedules
        self._upcoming: dict[str, _Upcoming] | None = None
        self._wakes = 0
        self.missed: dict[str, int] = {}
        """When it was last decided of each schedule, in this worker, that instants were missed."""

    def forget(self) -> None:
        """The store may have changed: read it again."""
        self._upcoming = None
        self._wakes = 0

    def wakes(self) -> int:
        """When the next instant is, in milliseconds since the epoch; 0 if that is not known."""
        return self._wakes

    def next_instants(self) -> dict[str, int]:
        """The next instant of each schedule that has one, in milliseconds since the epoch; from any thread.

        One that has passed is decided when the task's turn comes. Empty while that is not known.
        """
        upcoming = self._upcoming or {}
        return {name: item.next for name, item in list(upcoming.items()) if item.next != NEVER}

    def decide(self, now: int) -> tuple[list[Released], list[Occurrence]]:
        """Decide all instants up to now. Returns the jobs in the order of their instants.

        Only instants for which there is no job are returned as occurrences: what becomes of the others is
        decided where their records arrive.
        """
        if self._upcoming is None:
            self._upcoming = self._read(now)
        released: list[tuple[int, str]] = []
        occurrences: list[Occurrence] = []
        for name, upcoming in self._upcoming.items():
            if upcoming.next <= now:
                schedule = self._schedules[name]
                passed = _passed(schedule.rule, upcoming, now)
                self._store.put_schedule(name, passed.instants[-1])
                due, others = _decide(schedule, passed, now)
                released += [(instant, name) for instant in due]
                occurrences += others
                if others:
                    self.missed[name] = now
        self._wakes = min((upcoming.next for upcoming in self._upcoming.values()), default=NEVER)
        return [
            Released(self._schedules[name].partition_key, self._schedules[name].payload(instant, now))
            for instant, name in sorted(released)
        ], occurrences

    def _read(self, now: int) -> dict[str, _Upcoming]:
        stored = dict(self._store.schedules())
        for name in stored.keys() - self._schedules.keys():
            self._store.put_schedule(name, None)
        upcoming = {}
        for name, schedule in self._schedules.items():
            last = stored.get(name)
            if last is None:
                last = now
                self._store.put_schedule(name, now)
            upcoming[name] = _from(schedule.rule, last)
        return upcoming


class _Passed(NamedTuple):
    """Instants up to now, the latest ones in order."""

    instants: list[int]
    earlier: tuple[int, int] | None
    """The first and the last one of those before, if they are too many."""


def _from(rule: Rule, instant: int) -> _Upcoming:
    instants = rule.after(instant)
    return _Upcoming(next(instants, NEVER), instants)


def _passed(rule: Rule, upcoming: _Upcoming, now: int) -> _Passed:
    """Take the instants up to now."""
    first = upcoming.next
    found: list[int] = []
    while upcoming.next <= now and len(found) <= MOST_PASSED:
        found.append(upcoming.next)
        upcoming.next = next(upcoming.instants, NEVER)
    if len(found) <= MOST_PASSED:
        return _Passed(found, None)
    # Of the time before now, as much as has enough of them: all of it might be years of seconds.
    reach = found[-1] - first
    while True:
        start = max(first - 1, now - reach)
        found = []
        for instant in rule.after(start):
            if instant > now:
                break
            found.append(instant)
        if len(found) > MOST_PASSED:
            break
        reach *= 2
    latest = found[-MOST_PASSED:]
    later = _from(rule, latest[-1])
    upcoming.next, upcoming.instants = later.next, later.instants
    return _Passed(latest, (first, found[-MOST_PASSED - 1]))


def _decide(schedule: Schedule, passed: _Passed, now: int) -> tuple[list[int], list[Occurrence]]:
    """Which of the instants become jobs, and the records of the others."""
    instants, earlier = passed
    missed, last = schedule.rule.missed, instants[-1]
    decision, reason = Decision.MISSED, ""
    if missed == "all":
        released = instants
        reason = f"more than {MOST_PASSED:,} instants had passed: only the latest were released"
    elif missed == "latest":
        released = instants[-1:]
        decision = Decision.COLLAPSED
        reason = "no worker ran, and missed='latest' releases the last instant that has passed"
    else:
        released = instants[-1:] if now - last <= LATE_MILLISECONDS else []
        reason = "no worker ran, and missed='skip' releases none that is more than a minute late"
    others = instants[: len(instants) - len(released)]

    def occurrence(instant: int, first: int | None = None) -> Occurrence:
        late = f"decided {said(now - instant)} late: {reason}"
        return Occurrence(schedule.name, instant, decision, now, late, first=first)

    found = [] if earlier is None else [occurrence(earlier[1], earlier[0])]
    return released, found + [occurrence(instant) for instant in others]
