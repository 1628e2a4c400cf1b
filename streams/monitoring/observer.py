"""Measures how the input of a worker is doing. Runs in a thread beside it, at no cost for its loop."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import BrokerError
from streams.events import Event, get_logger
from streams.monitoring.causes import LATE_SECONDS, Causes
from streams.monitoring.condition import Condition, ConditionJudge, Judgement
from streams.monitoring.ledger import Ledger
from streams.monitoring.oldest_records import OldestRecords
from streams.monitoring.partition_figures import PartitionFigures, PartitionObserver, known_longest
from streams.monitoring.series import Series
from streams.monitoring.workload import WorkersWanted, Workload
from streams.runtime.counts import Counts
from streams.runtime.status import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.broker import Admin, Broker
    from streams.monitoring.bottleneck import Bottleneck
    from streams.monitoring.processor_wait import ProcessorWait
    from streams.monitoring.watchdog import Watchdog
    from streams.records import TopicPartition
    from streams.runtime.worker import Worker

OBSERVE_SECONDS = 1.0
"""Seconds between observations."""

RETENTION_SECONDS = 10.0
"""How often the beginnings of partitions are requested, and for how long their topics' settings hold."""

READ_SECONDS = 2.0
"""The longest time of reading records that wait."""


class Observation(NamedTuple):
    """What was measured at one moment."""

    time: int
    """In milliseconds since the epoch."""
    judgement: Judgement
    since: int
    """Since when the condition holds, in milliseconds since the epoch."""
    partitions: Mapping[TopicPartition, PartitionFigures]
    bottlenecks: Sequence[Bottleneck] = ()
    """What holds the input back, the worst first; empty while nothing does."""
    workers: WorkersWanted | None = None
    """How many workers its tasks need, its part of the sum; ``None`` if that is unknown."""

    @property
    def waiting(self) -> float | None:
        """The longest waiting time, in seconds; ``None`` if that of a partition is unknown."""
        return known_longest([item.waiting for item in self.partitions.values()])


class Observer:
    """Measures each second what waits in the worker's partitions, and for how long.

    Positions are the worker's, ends are the broker's: a worker whose thread hangs still has true figures.
    ``goal`` is how long a record may wait, in seconds. With ``show_keys`` false, causes name no key of a
    record. ``clock`` returns seconds, ``wall_clock`` milliseconds since the epoch.
    """

    def __init__(
        self,
        worker: Worker,
        watchdog: Watchdog | None,
        broker: Broker,
        *,
        goal: float,
        show_keys: bool = True,
        processor: ProcessorWait | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] | None = None,
    ) -> None:
        self._worker = worker
        self._watchdog = watchdog
        self._broker = broker
        self._clock = clock
        self._wall_clock = wall_clock or (lambda: time.time_ns() // 1_000_000)
        self._oldest = OldestRecords(broker, worker.application, clock)
        self._admin: Admin | None = None
        self._observers: dict[TopicPartition, PartitionObserver] = {}
        self._retention: dict[str, float | None] = {}
        self._retention_read = -float("inf")
        self._open_transactions: dict[TopicPartition, int] = {}
        self._judge = ConditionJudge(goal, clock())
        self._causes = Causes(worker, broker, show_keys=show_keys, processor=processor)
        self._workload = Workload()
        self.ledger = Ledger(worker)
        """Whether all records are accounted for; any thread may read what it found."""
        self.goal = goal
        """How long a record may wait, in seconds."""
        self._stop = threading.Event()
        self._log = get_logger()
        self.latest = Observation(
            self._wall_clock(), Judgement(Condition.UNKNOWN, clock()), self._wall_clock(), {}
        )
        """The last observation; any thread may read it."""
        self.started = self.latest.time
        """When it was created, in milliseconds since the epoch."""
        self.series = Series()
        """The figures of the last hours; any thread may read it."""

    def start(self) -> None:
        """Observe every second, in a thread, until ``close``."""
        threading.Thread(target=self._run, name="streams-observer", daemon=True).start()

    def close(self) -> None:
        """Stop. Does not wait for a pending request to the broker."""
        self._stop.set()

    def _run(self) -> None:
        failure = ""
        while not self._stop.wait(OBSERVE_SECONDS):
            before = failure
            try:
                self.observe()
                failure = ""
            except Exception as error:  # noqa: BLE001 - if this thread ended, the figures would grow old
                failure = f"{type(error).__name__}: {error}"
                if failure != before:
                    self._log.error(Event.OBSERVER_FAILED, error=failure)
        self._forget_admin()
        self._causes.close()

    def observe(self) -> Observation:
        """Measure once."""
        worker, silence = self._worker, ""
        self.ledger.check()
        if worker.state is State.RUNNING:
            self._read_positions()
            try:
                self._read_ends()
                self._read_oldest()
            except BrokerError as error:
                # The ages of the figures say it too, and the watchdog logs it.
                silence = str(error).partition("\n")[0]
                self._forget_admin()
        now = self._clock()
        figures = {partition: item.figures(now) for partition, item in self._observers.items()}
        judgement = self._judge.judge(
            list(figures.values()),
            stalled=self._watchdog is not None and bool(self._watchdog.stalls),
            restoring=bool(worker.restoring),
            now=now,
        )
        wall = self._wall_clock()
        since = wall - round((now - judgement.since) * 1000)
        self.series.observe(
            wall,
            figures,
            elapsed=now,
            busy=now - worker.stages.poll,
            dead_letters=Counts.total(worker.counts).dead_letters.total(),
        )
        self.latest = Observation(
            wall,
            judgement,
            since,
            figures,
            self._causes.name(figures, self._open_transactions, silence, now),
            self._workload.measure(worker, figures, self._open_transactions, now),
        )
        return self.latest

    def _read_positions(self) -> None:
        progress = self._worker.progress
        for partition in self._observers.keys() - progress.keys():
            del self._observers[partition]
        now = self._clock()
        for partition, item in progress.items():
            observer = self._observers.setdefault(partition, PartitionObserver(partition))
            if item.position is not None:
                observer.position(item.position, now)

    def _read_ends(self) -> None:
        if not self._observers:
            return
        if self._admin is None:
            self._admin = self._broker.admin()
        now = self._clock()
        for partition, end in self._admin.end_offsets(self._observers.keys(), "read_uncommitted").items():
            self._observers[partition].end(end, now)
        self._read_starts(self._admin, now)
        self._read_open_transactions(self._admin, now)
        if now - self._retention_read < RETENTION_SECONDS:
            return
        self._retention_read = now
        # From its own topics, the app deletes only what it has processed.
        losing = [item for item in self._observers if item.topic not in self._worker.purged_topics]
        if not losing:
            return
        topics = {partition.topic for partition in losing}
        self._retention = {
            topic: _seconds(settings) for topic, settings in self._admin.settings(topics).items()
        }
        for partition, beginning in self._admin.beginning_offsets(losing).items():
            self._observers[partition].beginning(beginning, self._retention.get(partition.topic), now)

    def _read_open_transactions(self, admin: Admin, now: float) -> None:
        """Find out for partitions whose records wait whether an open transaction hides them."""
        waiting = {
            partition: item
            for partition, observer in self._observers.items()
            if ((item := observer.figures(now)).waiting or 0.0) > LATE_SECONDS
        }
        stable = admin.end_offsets(waiting.keys(), "read_committed") if waiting else {}
        self._open_transactions = {
            partition: offset
            for partition, offset in stable.items()
            if offset < (waiting[partition].end or 0) and offset <= (waiting[partition].position or 0)
        }

    def _read_starts(self, admin: Admin, now: float) -> None:
        """Read where partitions begin of which nothing was processed yet, e.g. during a restore."""
        progress = self._worker.progress
        waiting = [
            partition
            for partition in self._observers
            if partition in progress and progress[partition].position is None
        ]
        if not waiting:
            return
        committed = admin.committed_offsets(self._worker.application, waiting)
        new = [partition for partition in waiting if partition not in committed]
        for partition, offset in {**committed, **(admin.beginning_offsets(new) if new else {})}.items():
            self._observers[partition].position(offset, now)

    def _read_oldest(self) -> None:
        now = self._clock()
        wanted = {
            partition: offset
            for partition, item in self._observers.items()
            if (offset := item.to_read(now)) is not None
        }
        found = self._oldest.read(wanted, READ_SECONDS, self._stop.is_set)
        wall = self._wall_clock()
        now = self._clock()
        for partition, timestamp in found.items():
            if timestamp is not None:
                self._observers[partition].oldest(wanted[partition], now - (wall - timestamp) / 1000)

    def _forget_admin(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()


def _seconds(settings: Mapping[str, str]) -> float | None:
    """How long a topic with these settings keeps records; ``None`` if they are not deleted by age."""
    milliseconds = int(settings.get("retention.ms", -1))
    if "delete" not in settings.get("cleanup.policy", "delete") or milliseconds < 0:
        return None
    return milliseconds / 1000
