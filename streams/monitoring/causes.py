"""Puts together what may hold a worker back, second by second, and leaves out what another cause explains."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from streams.monitoring.bottleneck import (
    BUSY,
    WINDOW_SECONDS,
    Bottleneck,
    Bottlenecks,
    Cause,
    TimeSpent,
    of_fetching,
    of_garbage,
    of_processor,
    of_silence,
    of_waiting,
)
from streams.monitoring.garbage_time import GarbageTime
from streams.monitoring.hot_keys import HotKeys
from streams.monitoring.processor_wait import ProcessorWait, Waited

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.broker import Broker
    from streams.monitoring.partition_figures import PartitionFigures
    from streams.records import TopicPartition
    from streams.runtime.worker import Worker

LATE_SECONDS = 5.0
"""Waiting time above which the cause is looked for, and how long a broker must be silent."""

LASTING_SECONDS = 10.0
"""How long records must have been late until it is said that they arrive slowly: after a start or a long
slice they have waited for other reasons. For so long after they were late, connectors are still named."""


class Causes:
    """Names what holds a worker's input back. With ``show_keys`` false, no key of a record is named."""

    def __init__(
        self, worker: Worker, broker: Broker, *, show_keys: bool, processor: ProcessorWait | None = None
    ) -> None:
        self._worker = worker
        self._broker = broker
        self._bottlenecks = Bottlenecks()
        self._keys = HotKeys(show=show_keys)
        self._garbage = GarbageTime()
        self._processor = processor or ProcessorWait()
        self._waited: deque[tuple[float, Waited]] = deque()
        self._late_since: dict[TopicPartition, float] = {}
        self._last_late = -float("inf")
        self._silent_since: float | None = None

    def close(self) -> None:
        """Measure nothing more."""
        self._garbage.stop()
        self._worker.key_sample.wanted = False

    def name(
        self,
        figures: Mapping[TopicPartition, PartitionFigures],
        open_transactions: Mapping[TopicPartition, int],
        silence: str,
        now: float,
    ) -> list[Bottleneck]:
        """The causes, the worst first.

        ``open_transactions`` are the offsets from which they hide records, ``silence`` is why the broker's
        answers are missing; empty while it answers. ``now`` is in seconds.
        """
        spent = TimeSpent.of(self._worker, figures, self._broker.throttled(), now)
        self._bottlenecks.observe(spent)
        late = self._late(figures, now)
        busy = self._bottlenecks.of_time()
        quotas = self._bottlenecks.of_throttling(late=bool(late), restoring=bool(self._worker.restoring))
        retrying = self._worker.status.retrying
        limits = self._processor_wait(now)
        found = self._silence(silence, now)
        found += of_waiting(
            open_transactions={
                partition: offset for partition, offset in open_transactions.items() if partition in late
            },
            held_back={
                # Of a busy worker, the other input's records wait as well.
                partition: others
                for partition in late
                if not busy and (others := self._worker.held_back_by(partition))
            },
            # While a sink is tried again and again, its records count as processed now and then.
            problems=self._worker.problems if now - self._last_late <= LASTING_SECONDS else {},
            retrying=retrying,
        )
        found += quotas
        found += limits if busy or late else []
        found += self._garbage_share(busy, now)
        for item in busy:
            if item.cause is Cause.BROKER and any(quota.subject.startswith("producer") for quota in quotas):
                found.append(
                    item._replace(
                        sentence=f"waiting for the broker's acknowledgements takes {item.share:.0%} of the "
                        "worker's time"
                    )
                )
            elif retrying is None or item.subject != retrying[0]:
                found.append(item)
        partitions = self._bottlenecks.of_partitions() if busy or late else []
        found += partitions
        found += self._hot_keys([item.subject for item in partitions], bool(busy), now)
        if all(item.cause is Cause.PARTITION or item.cause is Cause.KEY for item in found):
            found += self._fetching(late, now)
        return found

    def _late(
        self, figures: Mapping[TopicPartition, PartitionFigures], now: float
    ) -> dict[TopicPartition, int | None]:
        """The partitions whose records wait for long, with their lag."""
        late = {place: item.lag for place, item in figures.items() if (item.waiting or 0.0) > LATE_SECONDS}
        if late:
            self._last_late = now
        self._late_since = {place: self._late_since.get(place, now) for place in late}
        return late

    def _silence(self, error: str, now: float) -> list[Bottleneck]:
        if not error:
            self._silent_since = None
            return []
        if self._silent_since is None:
            self._silent_since = now
        seconds = now - self._silent_since
        return [of_silence(seconds, error)] if seconds >= LATE_SECONDS else []

    def _processor_wait(self, now: float) -> list[Bottleneck]:
        waited = self._processor.read(self._worker.status.thread)
        self._waited.append((now, waited))
        while len(self._waited) > 2 and self._waited[1][0] <= now - WINDOW_SECONDS:
            self._waited.popleft()
        begun, before = self._waited[0]
        elapsed = now - begun
        if elapsed < LATE_SECONDS:
            return []
        return of_processor(
            _share(before.for_processor, waited.for_processor, elapsed),
            _share(before.by_limit, waited.by_limit, elapsed),
        )

    def _garbage_share(self, busy: list[Bottleneck], now: float) -> list[Bottleneck]:
        if not busy:
            self._garbage.stop()
            return []
        return of_garbage(self._garbage.share(now))

    def _hot_keys(self, hot: list[str], busy: bool, now: float) -> list[Bottleneck]:
        sample = self._worker.key_sample
        if not hot and not busy:
            sample.wanted = False
            sample.take()
            self._keys.forget()
            return []
        self._keys.observe(sample.take(), now)
        sample.wanted = True
        return self._keys.name(hot)

    def _fetching(self, late: Mapping[TopicPartition, int | None], now: float) -> list[Bottleneck]:
        """Say that records arrive slowly, if the worker does nothing but wait for them."""
        worker, share = self._worker, self._bottlenecks.polls
        status = worker.status
        held = {*status.waiting, *status.full}
        slow = {
            place: lag
            for place, lag in late.items()
            if now - self._late_since[place] >= LASTING_SECONDS and place not in held and lag != 0
        }
        if not slow or share < BUSY or status.restoring:
            return []
        if worker.switching is not None and worker.switching.stopped:
            return []
        return [of_fetching(slow, share)]


def _share(before: float | None, after: float | None, elapsed: float) -> float | None:
    if before is None or after is None:
        return None
    return min(1.0, max(0.0, (after - before) / elapsed))
