"""When a job that failed is executed again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from streams.durations import to_milliseconds
from streams.errors import ConfigurationError

LONGEST_BACKOFF = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Retry:
    """Execute a job that fails up to ``tries`` times in all.

    ``backoff`` is the wait before the second attempt. It is multiplied by ``factor`` for each further one, up
    to ``longest_backoff``, and shortened at random by at most the share ``jitter``, so that jobs that failed
    together are not repeated together. ``on`` are the exceptions that are worth another attempt; after any
    other one the job has failed at once.
    """

    tries: int
    backoff: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    longest_backoff: timedelta = LONGEST_BACKOFF
    jitter: float = 0.1
    on: tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        if type(self.tries) is not int or self.tries < 1:
            raise ConfigurationError(f"Retry: tries is a whole number from 1, got {self.tries!r:.80}")
        to_milliseconds(self.backoff, "Retry: backoff")
        to_milliseconds(self.longest_backoff, "Retry: longest_backoff")
        if not self.factor >= 1:
            raise ConfigurationError(f"Retry: factor is a number from 1, got {self.factor!r:.80}")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"Retry: jitter is a share from 0 to 1, got {self.jitter!r:.80}")
        kinds: tuple[object, ...] = self.on
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise ConfigurationError(f"Retry: on takes a tuple of exception classes, got {self.on!r:.80}")

    def again(self, attempt: int, error: BaseException) -> bool:
        """Whether a job is executed again after attempt number ``attempt``, from 1, raised this error."""
        return attempt < self.tries and isinstance(error, self.on)

    def delay(self, attempt: int) -> int:
        """The wait after attempt number ``attempt``, from 1, in milliseconds."""
        wait = self.backoff / timedelta(milliseconds=1) * self.factor ** min(attempt - 1, 64)
        wait = min(wait, self.longest_backoff / timedelta(milliseconds=1))
        return round(wait * (1 - self.jitter * random.random()))  # noqa: S311 - no secret


ONCE = Retry(1)


class RetryLater(Exception):
    """Raised by a job that cannot be done now: it is executed again, which does not count as a failure.

    ``after`` is a duration, ``at`` a time with a time zone; one of them is needed. The jobs that share the
    job's ``limit``, or else its key, wait until then too, in all workers: for an upstream that responds with
    ``Retry-After``. With ``alone``, only this job waits.
    """

    def __init__(
        self, *, after: timedelta | None = None, at: datetime | None = None, alone: bool = False
    ) -> None:
        super().__init__(f"later: after {after}" if at is None else f"later: at {at}")
        if (after is None) == (at is None):
            raise ConfigurationError("RetryLater takes either after= or at=")
        if after is not None:
            to_milliseconds(after, "RetryLater: after")
        if at is not None:
            epoch_milliseconds(at, "RetryLater: at")
        self.after = after
        self.at = at
        self.alone = alone

    def due(self, now: int) -> int:
        """When to execute it again, in milliseconds since the epoch."""
        if self.after is not None:
            return now + self.after // timedelta(milliseconds=1)
        assert self.at is not None
        return epoch_milliseconds(self.at, "RetryLater: at")

    def __reduce__(self) -> tuple[object, ...]:
        return _later, (self.after, self.at, self.alone)


def _later(after: timedelta | None, at: datetime | None, alone: bool) -> RetryLater:
    return RetryLater(after=after, at=at, alone=alone)


def epoch_milliseconds(time: object, what: str) -> int:
    """A time with a time zone as milliseconds since the epoch. Raises ``ConfigurationError`` for others."""
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise ConfigurationError(
            f"{what} must be a time with a time zone, got {time!r:.80}",
            hint="datetime.now(UTC) + timedelta(hours=1), or datetime(…, tzinfo=ZoneInfo('Europe/Berlin'))",
        )
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
