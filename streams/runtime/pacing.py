"""How much to take on at once, and when a commit is due: told by what records have taken so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.config import Settings
    from streams.runtime.task import TaskId

SLICE_SECONDS = 0.25
"""A slice is sized to take about this long, so that commits and stops need not wait for more."""

POLL_SECONDS = 1.0
"""No more records are polled at once than take about this long."""

FIRST_SLICE = 1_000

SETTLE_SECONDS = 0.005
"""The broker needs about this long after a commit to finish the transaction. A next one that writes before is
refused at first (CONCURRENT_TRANSACTIONS), and librdkafka tries again only after 20 ms."""

BYTES_PER_ENTRY = 500
"""A changed entry of a store takes about this much memory until it is committed."""


class Pace:
    """Sizes of polls and slices, and the age of what is not committed. ``clock`` counts seconds."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._seconds_per_record: dict[TaskId, float] = {}
        self._dirty_since: float | None = None
        self._last_commit = -float("inf")
        self._waited = 0.0
        """How long the worker has waited for records since then."""
        self._rest_until = -float("inf")

    def measured(self, task: TaskId, records: int, seconds: float) -> None:
        """A slice of so many records took so long."""
        cost = seconds / records
        # Quickly up, slowly down: an expensive batch must shorten the next one.
        self._seconds_per_record[task] = max(cost, 0.8 * self._seconds_per_record.get(task, 0.0) + 0.2 * cost)

    def forget(self, task: TaskId) -> None:
        """What its records take matters no more."""
        self._seconds_per_record.pop(task, None)

    def poll_size(self, least: int = 1) -> int:
        """As many records as the costliest task can process before other partitions have waited too long.

        At least ``least``, as far as ``max_poll_records`` allows: what the tasks need to work side by side.
        """
        size = max(least, int(POLL_SECONDS / max(self._record_seconds(), 1e-9)))
        return max(1, min(self._settings.max_poll_records, size))

    def slice_size(self, task: TaskId, least: int = 1) -> int:
        """Records, at least ``least``, that the task can process before something else is looked at."""
        cost = self._seconds_per_record.get(task)
        if cost is None:
            return max(least, FIRST_SLICE)
        return max(least, int(SLICE_SECONDS / max(cost, 1e-9)))

    def _record_seconds(self) -> float:
        """What a record of the costliest task takes, as far as is known."""
        return max(self._seconds_per_record.values(), default=0.0)

    @property
    def dirty(self) -> bool:
        """Whether something is processed and not committed."""
        return self._dirty_since is not None

    def processed(self) -> None:
        """Something is to be committed."""
        if self._dirty_since is None:
            self._dirty_since = self._clock()

    def discarded(self) -> None:
        """What was not committed is given up."""
        self._dirty_since = None

    def committed(self, begun: float, *, transaction: bool = False) -> None:
        """A commit that began at ``begun`` ended just now, whatever came of it.

        With a ``transaction``, results are in one, and the next one had better not begin at once.
        """
        self._dirty_since = None
        keeps_up = transaction and self._waited > max(0.0, (begun - self._last_commit) / 2)
        self._last_commit = now = self._clock()
        # Where there is a backlog, what is processed meanwhile outweighs a transaction that begins too early.
        self._rest_until = now + SETTLE_SECONDS if keeps_up else now
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """The worker had nothing to do for so long."""
        self._waited += seconds

    def rest(self) -> float:
        """Seconds until the next transaction had better begin: records that come until then go together."""
        return max(0.0, self._rest_until - self._clock())

    def overdue(self, changed_entries: int) -> bool:
        """Whether a commit must not wait for the worker to catch up; ``changed_entries`` are its stores'."""
        if self._dirty_since is None:
            return False
        if self._clock() - self._dirty_since >= self._settings.commit_interval:
            return True
        return changed_entries * BYTES_PER_ENTRY > self._settings.state_buffer_mb * 1_000_000

    def next_commit(self) -> float:
        """When the next commit is due if nothing more comes: soon, as the worker has then caught up."""
        return self._last_commit + self._settings.shortest_commit_interval

    def would_time_out(self) -> bool:
        """Whether the open transaction may not outlive one more record."""
        if self._dirty_since is None:
            return False
        age = self._clock() - self._dirty_since
        return age + 2 * self._record_seconds() > self._settings.transaction_timeout
