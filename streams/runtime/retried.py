"""Records that are retried: as input of a task, with what becomes of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from streams.errors import error_text
from streams.origin import Relayed, with_origin
from streams.records import take
from streams.runtime.retry_log import Result, RetryOutcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from streams.records import Fetched, Headers, Rows, Trace
    from streams.runtime.letter import LetterId
    from streams.runtime.retry_log import RetryRequest


class Ordered(NamedTuple):
    """A request for a dead letter, and how often its step was given the record before."""

    letter: LetterId
    request: RetryRequest
    tries: int
    offset: int
    """The offset of the request in its topic."""


class Retried:
    """``Fetched`` for records that are retried at one step, with one topic and partition.

    ``upstream`` are the steps on the way to the step, and the step: a record that fails in one of them is
    still the same dead letter. Where it fails further downstream, the step has processed it, and it is
    another dead letter.
    """

    next_offset = -1

    def __init__(self, ordered: Sequence[Ordered], upstream: Collection[str], *, internal: bool) -> None:
        self.ordered = ordered
        self.topic, self.partition = ordered[0].request.source
        self._upstream = upstream
        self._internal = internal
        self._failed: dict[int, tuple[Result, str, str, str]] = {}

    def fail(self, row: int, step: str, error: Exception) -> bool:
        """Note that a record has failed in a step. Returns ``False`` if it is another dead letter."""
        if step not in self._upstream:
            return False
        self._failed[row] = Result.FAILED, step, type(error).__qualname__, error_text(error)
        return True

    def refuse(self, row: int, reason: str) -> None:
        """Note that a record cannot be retried."""
        self._failed[row] = Result.REFUSED, self.ordered[row].request.step, "", reason

    def outcomes(self, at: int) -> Iterable[tuple[LetterId, RetryOutcome]]:
        """The outcome of each request, at that time (milliseconds since the epoch)."""
        for row, (letter, request, tries, _) in enumerate(self.ordered):
            result, step, exception, message = self._failed.get(row, (Result.DONE, "", "", ""))
            yield (
                letter,
                RetryOutcome(
                    number=request.number,
                    result=result,
                    at=at,
                    tries=tries + (result is not Result.REFUSED),
                    step=step,
                    exception=exception,
                    message=message,
                ),
            )

    def __len__(self) -> int:
        return len(self.ordered)

    def keys(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        return take([item.request.key for item in self.ordered], rows)

    def values(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        values = [item.request.value for item in self.ordered]
        if self._internal:
            values = [
                with_origin(item.request.value, item.request.origin, is_result=item.request.is_result)
                for item in self.ordered
            ]
        return take(values, rows)

    def timestamps(self, rows: Rows | None = None) -> Sequence[int]:
        return take([item.request.timestamp for item in self.ordered], rows)

    def offsets(self, rows: Rows | None = None) -> Sequence[int]:
        return take([item.request.origin[2] for item in self.ordered], rows)

    def headers(self, rows: Rows | None = None) -> Sequence[Headers | None] | None:
        headers = [item.request.headers for item in self.ordered]
        return take(headers, rows) if any(headers) else None

    def slice(self, start: int, stop: int) -> Retried:
        return Retried(self.ordered[start:stop], self._upstream, internal=self._internal)

    def tracer(self, rows: Rows) -> Iterable[Trace]:
        """The input records of these rows: offsets are neither contiguous nor distinct."""
        return [self.ordered[row].request.origin for row in rows]


def retried_from(fetched: Fetched | Relayed) -> Retried | None:
    """The retried records from which a batch was made; ``None`` for other input."""
    own = fetched.read if isinstance(fetched, Relayed) else fetched
    return own if isinstance(own, Retried) else None
