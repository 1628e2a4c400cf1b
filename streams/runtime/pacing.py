"""Sizes of polls and slices, and when a commit is due, from the measured cost of records."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.config import Settings
    from streams.runtime.task import TaskId

SLICE_SECONDS = 0.25
"""Target duration of a slice: commits and stops wait at most about this long."""

POLL_SECONDS = 1.0
"""Target duration of processing the records of one poll."""

FIRST_SLICE = 1_000

SETTLE_SECONDS = 0.005
"""The broker needs about this long after a commit to complete the transaction.

A next one that writes earlier is refused at first (CONCURRENT_TRANSACTIONS), and librdkafka retries only
after 20 ms.
"""

BYTES_PER_ENTRY = 500
"""Estimated memory of a store's changed entry until it is committed."""


class Pacing:
    """Sizes of polls and slices, and the age of the uncommitted work. ``clock`` returns seconds."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._seconds_per_record: dict[TaskId, float] = {}
        self._dirty_since: float | None = None
        self._last_commit = -float("inf")
        self._waited = 0.0
        """Seconds for which the worker has waited for records since the last commit."""
        self._rest_until = -float("inf")

    def measured(self, task: TaskId, records: int, seconds: float) -> None:
        """Record the duration of a slice of that many records."""
        cost = seconds / records
        # Increase at once, decrease slowly: an expensive batch must shorten the next one.
        self._seconds_per_record[task] = max(cost, 0.8 * self._seconds_per_record.get(task, 0.0) + 0.2 * cost)

    def forget(self, task: TaskId) -> None:
        """Drop the measurements of a closed task."""
        self._seconds_per_record.pop(task, None)

    def poll_size(self, least: int = 1) -> int:
        """The number of records to poll, so that a slow task does not make other partitions wait too long.

        At least ``least``, as far as ``max_poll_records`` allows: what the tasks need for concurrent calls.
        """
        size = max(least, int(POLL_SECONDS / max(self._record_seconds(), 1e-9)))
        return max(1, min(self._settings.max_poll_records, size))

    def slice_size(self, task: TaskId, least: int = 1) -> int:
        """The number of records in the task's next slice, at least ``least``."""
        cost = self._seconds_per_record.get(task)
        if cost is None:
            return max(least, FIRST_SLICE)
        return max(least, int(SLICE_SECONDS / max(cost, 1e-9)))

    def _record_seconds(self) -> float:
        """The known cost of a record of the slowest task, in seconds."""
        return max(self._seconds_per_record.values(), default=0.0)

    @property
    def dirty(self) -> bool:
        """Whether there is uncommitted work."""
        return self._dirty_since is not None

    def processed(self) -> None:
        """Note that there is work to commit."""
        if self._dirty_since is None:
            self._dirty_since = self._clock()

    def discarded(self) -> None:
        """Note that the uncommitted work was discarded."""
        self._dirty_since = None

    def committed(self, begun: float, *, transaction: bool = False) -> None:
        """Note that a commit that began at ``begun`` has just ended, with or without success.

        ``transaction`` says whether the results are in a transaction: the next one should not begin at once.
        """
        self._dirty_since = None
        keeps_up = transaction and self._waited > max(0.0, (begun - self._last_commit) / 2)
        self._last_commit = now = self._clock()
        # With a backlog, continuing at once outweighs the cost of a transaction that begins too early.
        self._rest_until = now + SETTLE_SECONDS if keeps_up else now
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """Note that the worker was idle for that long."""
        self._waited += seconds

    def rest(self) -> float:
        """Seconds to wait before the next transaction: records that arrive until then share it."""
        return max(0.0, self._rest_until - self._clock())

    def overdue(self, changed_entries: int) -> bool:
        """Whether a commit is due even with a backlog. ``changed_entries`` are uncommitted, in all stores."""
        if self._dirty_since is None:
            return False
        if self._clock() - self._dirty_since >= self._settings.commit_interval:
            return True
        return changed_entries * BYTES_PER_ENTRY > self._settings.state_buffer_mb * 1_000_000

    def next_commit(self) -> float:
        """When the next commit is due if no more records arrive: soon, as the worker has then caught up."""
        return self._last_commit + self._settings.shortest_commit_interval

    def would_time_out(self) -> bool:
        """Whether the open transaction may time out during one more record."""
        if self._dirty_since is None:
            return False
        age = self._clock() - self._dirty_since
        return age + 2 * self._record_seconds() > self._settings.transaction_timeout
