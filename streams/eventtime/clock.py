"""Stream time: the highest event time seen, row by row where that matters."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import Batch

NOT_STARTED = -1


class StreamClock:
    """The stream time of one task behind a step that makes event times, e.g. a source.

    Steps further on share it, filtered or not, so that a window closes also when only records that it does
    not take come. Milliseconds since the epoch; -1 before the first record.
    """

    __slots__ = ("_at_commit", "_at_slice", "_batch", "_seen", "_times", "observed", "time")

    def __init__(self, time: int = NOT_STARTED) -> None:
        self.time = time
        self.observed = time
        """The highest event time of a record: stream time, where it has not moved on without one."""
        self._at_slice = self._at_commit = time, time
        self._batch: Batch[Any, Any] | None = None
        self._seen: dict[int, tuple[Batch[Any, Any], int]] = {}
        """The slice's batches by identity, each with the stream time before it."""
        self._times: dict[int, int] | None = None

    def observe(self, batch: Batch[Any, Any]) -> Batch[Any, Any] | None:
        """Records have come whose event times are final; the same batch again is no news.

        Returns the batch that was at work, to be resumed when this one is through.
        """
        if id(batch) not in self._seen:
            self._seen[id(batch)] = batch, self.time
            self.observed = max(self.observed, *batch.timestamps)
            self.time = max(self.time, self.observed)
        before = self._batch
        self.resume(batch)
        return before

    def resume(self, batch: Batch[Any, Any] | None) -> None:
        """Go on with a batch that was observed: others of the same clock may have come in its middle."""
        self._batch, self._times = batch, None

    def times(self, batch: Batch[Any, Any]) -> Sequence[int]:
        """The stream time when each row of ``batch`` had come, which is made of the observed one at work.

        It depends on the records alone, not on how they were cut into batches.
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

    def advance(self, time: int) -> None:
        """Move on without a record."""
        self._batch = None
        self.time = max(self.time, time)

    def restore(self, time: int, observed: int) -> None:
        """Begin where an earlier task stopped."""
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
