"""Which jobs are wanted, of those that have not ended and of those that have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from streams.errors import ConfigurationError
from streams.jobs.reasons import JobState
from streams.jobs.record import Ending

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from streams.jobs.record import JobEnd
    from streams.jobs.survey import Surveyed

STATES = (*(state.value for state in JobState), *(ending.value for ending in Ending))
"""The words for all states."""


@dataclass(frozen=True)
class JobSelection:
    """Which jobs are wanted; all conditions must hold."""

    function: str | None = None
    states: Sequence[str] = ()
    key: str | None = None
    since: int | None = None
    until: int | None = None

    @property
    def ended(self) -> bool:
        """Whether jobs that have ended are wanted."""
        return any(state in tuple(Ending) for state in self.states)

    def unfinished(self, jobs: Iterable[Surveyed]) -> Iterator[Surveyed]:
        """The selected ones of jobs that have not ended."""
        for item in jobs:
            record = item.job.record
            if (
                self.function in (None, record.job)
                and self.key in (None, record.key)
                and (not self.states or item.case.state.value in self.states)
                and self._in_time(item.job.enqueued)
            ):
                yield item

    def of_ends(self, ends: Iterable[JobEnd]) -> Iterator[JobEnd]:
        """The selected ones of jobs that have ended."""
        for end in ends:
            if (
                self.function in (None, end.job)
                and end.ending.value in self.states
                and self.key in (None, _key_of(end))
                and self._in_time(end.enqueued)
            ):
                yield end

    def _in_time(self, enqueued: int) -> bool:
        return (self.since is None or enqueued >= self.since) and (
            self.until is None or enqueued < self.until
        )


def require_states(states: Iterable[str]) -> None:
    """Raise ``ConfigurationError`` for a word that is no state."""
    unknown = [state for state in states if state not in STATES]
    if unknown:
        raise ConfigurationError(f"{unknown[0]!r} is no state of a job", hint=f"one of {', '.join(STATES)}")


def _key_of(end: JobEnd) -> str | None:
    record = msgspec.json.decode(end.record)
    return None if record is None else record.get("key")
