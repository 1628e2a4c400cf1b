"""Stream time: the highest event time observed so far, per row where needed."""

from __future__ import annotations

from itertools import accumulate
from operator import sub
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import Batch

NOT_STARTED = -1


class StreamClock:
    """The stream time of one task downstream of a step that sets event times, e.g. a source.

    Downstream steps share it, even behind filters, so that records that a filter drops also close windows.
    In milliseconds since the epoch; -1 before the first record.
    """

    __slots__ = ("_at_commit", "_at_slice", "_batch", "_seen", "_times", "observed", "time")

    def __init__(self, time: int = NOT_STARTED) -> None:
        self.time = time
        self.observed = time
        """The highest event time of a record; ``time`` may be higher after ``advance``."""
        self._at_slice = self._at_commit = time, time
        self._batch: Batch[Any, Any] | None = None
        self._seen: dict[int, tuple[Batch[Any, Any], int]] = {}
        """The batches of the slice by identity, each with the stream time before it."""
        self._times: dict[int, int] | None = None

    def observe(self, batch: Batch[Any, Any]) -> Batch[Any, Any] | None:
        """Advance stream time by a batch whose event times are final, and make it the current batch.

        The same batch again does not advance it. Returns the previous current batch, which is to be resumed
        when this one is processed.
        """
        if id(batch) not in self._seen:
            self._seen[id(batch)] = batch, self.time
            self.observed = max(self.observed, *batch.timestamps)
            self.time = max(self.time, self.observed)
        before = self._batch
        self.resume(batch)
        return before

    def resume(self, batch: Batch[Any, Any] | None) -> None:
        """Make an observed batch the current one again, after other batches that were observed meanwhile."""
        self._batch, self._times = batch, None

    def times(self, batch: Batch[Any, Any]) -> Sequence[int]:
        """The stream time after each row of ``batch``, whose rows are rows of the current observed batch.

        It depends only on the records, not on how they are divided into batches.
        """
        observed = self._batch
        if observed is None:
            return [self.time] * len(batch)
        if self._times is None:
            running = accumulate(observed.timestamps, max, initial=self._seen[id(observed)][1])
            next(running)
            self._times = dict(zip(observed.rows, running, strict=True))
        times = self._times
        return [times[row] for row in batch.rows]

    def most_behind(self) -> int | None:
        """How far any row of the current observed batch is behind the stream time after it, at most.

        ``None`` without such a batch. Looks at the whole column, where ``times`` looks at each row.
        """
        observed = self._batch
        if observed is None:
            return None
        times = observed.timestamps
        running = accumulate(times, max, initial=self._seen[id(observed)][1])
        next(running)
        return max(map(sub, running, times), default=0)

    def advance(self, time: int) -> None:
        """Advance stream time without a record, e.g. to close idle windows."""
        self._batch = None
        self.time = max(self.time, time)

    def restore(self, time: int, observed: int) -> None:
        """Continue from the stream time of an earlier task."""
        self.time, self.observed = max(self.time, time), max(self.observed, observed)
        self._at_slice = self._at_commit = self.time, self.observed

    def end_slice(self) -> None:
        self._at_slice = self.time, self.observed
        self._batch = self._times = None
        self._seen = {}

    def drop_slice(self) -> None:
        self.time, self.observed = self._at_slice
        self._batch = self._times = None
        self._seen = {}

    def committed(self) -> None:
        self._at_commit = self._at_slice

    def drop(self) -> None:
        self._at_slice = self._at_commit
        self.drop_slice()
