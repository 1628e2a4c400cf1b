"""Error policies: what happens to a record on which a step fails, given as ``on_error=``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from streams.durations import milliseconds, seconds, to_milliseconds
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import timedelta

Action: TypeAlias = Literal["fail", "dead_letter", "skip"]


_BACKOFF, _LONGEST_BACKOFF = milliseconds(100), seconds(30)


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """Retry ``retries`` times, then take the action.

    ``backoff`` is the wait before the first retry; it doubles each time up to ``longest_backoff``. The worker
    stays a member of its group while it waits, however long that takes in all.
    """

    action: Action
    retries: int = 0
    backoff: timedelta = _BACKOFF
    longest_backoff: timedelta = _LONGEST_BACKOFF

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise ConfigurationError(
                f"the action of a policy is one of {', '.join(get_args(Action))}, got {self.action!r:.80}"
            )
        if type(self.retries) is not int or self.retries < 0:
            raise ConfigurationError(f"retry needs a whole number of times, got {self.retries!r:.80}")
        to_milliseconds(self.backoff, "retry: backoff")
        to_milliseconds(self.longest_backoff, "retry: longest_backoff")

    def delay(self, attempt: int) -> float:
        """Seconds to wait before retry number ``attempt``, counted from 0."""
        doubled = self.backoff.total_seconds() * 2.0 ** min(attempt, 60)
        return min(doubled, self.longest_backoff.total_seconds())

    def __str__(self) -> str:
        return f"retry({self.retries}), then {self.action}" if self.retries else self.action


fail = ErrorPolicy("fail")
"""Commit the records before, then stop the worker with an error that has the record's coordinates."""

dead_letter = ErrorPolicy("dead_letter")
"""Write the original record to the dead-letter topic, in the same transaction, and continue."""

skip = ErrorPolicy("skip")
"""Count the record and continue without it."""


def retry(
    times: int,
    *,
    backoff: timedelta = _BACKOFF,
    longest_backoff: timedelta = _LONGEST_BACKOFF,
    then: ErrorPolicy = fail,
) -> ErrorPolicy:
    """Retry a failing record up to ``times`` times, with waits in between, before ``then`` applies.

    ``backoff`` is the first wait and doubles up to ``longest_backoff``, e.g. ``backoff=milliseconds(200)``.
    Records after the failing one wait too, so the order within a partition is kept.
    """
    if not isinstance(then, ErrorPolicy):
        raise ConfigurationError(
            f"retry({times}): then takes a policy, got {then!r:.80}", hint="then=fail, dead_letter or skip"
        )
    policy = replace(then, retries=times, backoff=backoff, longest_backoff=longest_backoff)
    if times < 1 or longest_backoff < backoff:
        raise ConfigurationError(
            f"retry({times}, backoff={backoff}, longest_backoff={longest_backoff}): needs at least one retry "
            "and 0 <= backoff <= longest_backoff"
        )
    return policy
