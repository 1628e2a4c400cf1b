"""Error policies: what happens to a record on which a step fails, given as ``on_error=``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from streams.errors import ConfigurationError

Action: TypeAlias = Literal["fail", "dead_letter", "skip"]


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """Retry ``retries`` times, then take the action.

    ``backoff`` is the wait in seconds before the first retry; it doubles each time up to ``longest_backoff``.
    The worker stays a member of its group while it waits, however long that takes in all.
    """

    action: Action
    retries: int = 0
    backoff: float = 0.1
    longest_backoff: float = 30.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait before retry number ``attempt``, counted from 0."""
        return min(self.backoff * 2.0 ** min(attempt, 60), self.longest_backoff)

    def __str__(self) -> str:
        return f"retry({self.retries}), then {self.action}" if self.retries else self.action


fail = ErrorPolicy("fail")
"""Commit the records before, then stop the worker with an error that has the record's coordinates."""

dead_letter = ErrorPolicy("dead_letter")
"""Write the original record to the dead-letter topic, in the same transaction, and continue."""

skip = ErrorPolicy("skip")
"""Count the record and continue without it."""


def retry(
    times: int, *, backoff: float = 0.1, longest_backoff: float = 30.0, then: ErrorPolicy = fail
) -> ErrorPolicy:
    """Retry a failing record up to ``times`` times, with waits in between, before ``then`` applies.

    ``backoff`` (seconds) is the first wait and doubles up to ``longest_backoff``. Records after the failing
    one wait too, so the order within a partition is kept.
    """
    if times < 1 or backoff < 0 or longest_backoff < backoff:
        raise ConfigurationError(
            f"retry({times}, backoff={backoff}, longest_backoff={longest_backoff}): needs at least one retry "
            "and 0 <= backoff <= longest_backoff"
        )
    return replace(then, retries=times, backoff=backoff, longest_backoff=longest_backoff)
