"""Detect stalled partitions, which have lag but make no progress, and report the cause. Runs in a thread."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.errors import BrokerError, BrokerUnreachable, Retriable, Stalled
from streams.events import Event, get_logger
from streams.process.stacks import called, flush_output, format_stacks
from streams.runtime.status import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.broker import Admin, Broker
    from streams.config import Settings
    from streams.records import TopicPartition
    from streams.runtime.status import Progress, WorkerStatus
    from streams.runtime.worker import Worker

CHECK_SECONDS = 1.0
"""Seconds between checks of the worker."""

SHORTEST_ASK_SECONDS = 5.0
"""The shortest time between requests for the end offsets of quiet partitions; else ``stall_timeout`` / 4."""


@dataclass(frozen=True, slots=True)
class Stall:
    """A partition without progress for ``stall_timeout``."""

    partition: TopicPartition
    position: int | None
    """The next offset to process; ``None`` if no record of the partition was received yet."""
    lag: int | None
    """Records (and transaction markers) from the position to the end; ``None`` if unknown."""
    seconds: float
    """Seconds since the last progress."""
    reason: str
    fixed_by_restart: bool
    """Whether restarting the process would probably fix it."""

    def __str__(self) -> str:
        lag = "unknown" if self.lag is None else self.lag
        return f"{self.partition} at {self.position}, lag {lag}, for {self.seconds:.0f} s: {self.reason}"


@dataclass(slots=True)
class _Track:
    """The observed progress of a partition during one assignment. Times are on the worker's clock."""

    progress: Progress
    stage: str
    reached: int
    since: float
    """When it last made progress or had nothing to read."""
    moved: float
    """When it last made progress."""
    pieces: int = 0


class Watchdog:
    """Checks a worker's progress by reading its counters, at no cost for the worker.

    Only new positions are progress: records that are read again after a rewind are not. A partition without
    lag is never stalled, unless no broker has answered for ``stall_timeout``. ``clock`` is the worker's, in
    seconds; ``end_process`` is called with the exit code if ``stall_exit`` is set and the worker does not
    stop by itself.
    """

    def __init__(
        self,
        worker: Worker,
        broker: Broker,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._worker = worker
        self._broker = broker
        self._settings = settings
        self._clock = clock
        self._end_process = end_process
        self._log = get_logger()
        self._admin: Admin | None = None
        self._tracks: dict[TopicPartition, _Track] = {}
        self._ends: dict[TopicPartition, tuple[int, int]] = {}
        """Of quiet partitions: the last stable offset and the end offset."""
        self._asked = clock()
        self._away: tuple[float, str] | None = None
        """When brokers stopped answering, and the error; ``None`` while they answer."""
        self._commits = 0
        self._rewinds = 0
        self._committed = clock()
        self._stop = threading.Event()
        self._fatal: Stall | None = None
        self.stalls: tuple[Stall, ...] = ()
        """The stalls at the last check; any thread may read it."""

    def start(self) -> None:
        """Check every second, in a thread, until ``close``."""
        threading.Thread(target=self._run, name="streams-watchdog", daemon=True).start()

    def close(self) -> None:
        """Stop checking. Does not wait for a pending request to the broker."""
        self._stop.set()

    def raise_if_fatal(self) -> None:
        """Raise ``Stalled`` if the worker was stopped for a stall."""
        if self._fatal is not None:
            raise Stalled(
                f"no progress: {self._fatal}",
                hint="the log has the stacks of all threads; with stall_exit=False the worker keeps waiting",
            )

    def _run(self) -> None:
        failure = ""
        while not self._stop.wait(CHECK_SECONDS):
            try:
                self.check()
            except Exception as error:  # noqa: BLE001 - if this thread ended, no stall would be detected
                before, failure = failure, f"{type(error).__name__}: {error}"
                if failure != before:
                    self._log.error(Event.WATCHDOG_FAILED, error=failure)
        if self._admin is not None:
            self._admin.close()

    def check(self) -> tuple[Stall, ...]:
        """Check once: return the current stalls, and log those that are new or have ended."""
        if self._worker.state is not State.RUNNING:
            self.stalls = ()
            return ()
        status = self._worker.status
        now = self._clock()
        progress = self._worker.progress
        self._follow(progress, status, now)
        self._ask_if_due(now)
        stalls = tuple(
            stall for partition in progress if (stall := self._judge(partition, status, now)) is not None
        )
        before, self.stalls = self.stalls, stalls
        self._report(before, stalls, progress, status)
        return stalls

    # --- observing progress

    def _follow(self, progress: Mapping[TopicPartition, Progress], status: WorkerStatus, now: float) -> None:
        for partition in self._tracks.keys() - progress.keys():
            del self._tracks[partition]
        for partition, own in progress.items():
            stage, reached = "work", -1 if own.position is None else own.position
            if partition in status.waiting:
                restoring = status.restoring.get(status.waiting[partition])
                stage, reached = "restore", -1 if restoring is None else restoring.done
            track = self._tracks.get(partition)
            if track is None or track.progress is not own:
                self._tracks[partition] = _Track(own, stage, reached, own.since, own.since, status.pieces)
                continue
            if stage != track.stage or reached > track.reached:
                track.stage, track.reached = stage, reached
                track.moved = track.since = max(track.since, own.since) if stage == "work" else now
            elif status.busy == partition and status.pieces > track.pieces:
                # Within a slice, pieces of it are being finished.
                track.moved = track.since = now
            track.pieces = status.pieces
            if stage == "work" and (partition in status.full or self._nothing_left(partition, own)):
                track.since = now
        unsettled = status.dirty or any(
            track.stage == "work" and track.since < now for track in self._tracks.values()
        )
        if status.commits != self._commits or not unsettled:
            self._commits, self._rewinds, self._committed = status.commits, status.rewinds, now

    def _nothing_left(self, partition: TopicPartition, progress: Progress) -> bool:
        if progress.position is None:
            return False
        _, asked = self._ends.get(partition, (0, 0))
        return progress.position >= max(progress.end or 0, asked)

    def _ask_if_due(self, now: float) -> None:
        """Request the end offsets of quiet partitions: those of a consumer that hangs are outdated."""
        every = max(SHORTEST_ASK_SECONDS, self._settings.stall_timeout / 4)
        if now - self._asked < every:
            return
        self._asked = now
        quiet = [
            partition
            for partition, track in self._tracks.items()
            if track.stage == "work" and now - track.moved >= every
        ]
        self._ends = {}
        if not quiet:
            self._away = None
            return
        try:
            if self._admin is None:
                self._admin = self._broker.admin()
            stable = self._admin.end_offsets(quiet, "read_committed")
            ends = self._admin.end_offsets(quiet, "read_uncommitted")
        except (BrokerUnreachable, Retriable) as error:
            if self._away is None:
                self._away = now, str(error).partition("\n")[0]
            self._forget_admin()
        except BrokerError:
            # For example a topic was deleted: the worker handles that itself.
            self._away = None
            self._forget_admin()
        else:
            self._away = None
            self._ends = {partition: (stable[partition], ends[partition]) for partition in quiet}

    def _forget_admin(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    # --- detecting stalls

    def _judge(self, partition: TopicPartition, status: WorkerStatus, now: float) -> Stall | None:
        timeout = self._settings.stall_timeout
        track = self._tracks[partition]
        position, lag = track.progress.position, self._lag(partition, track.progress)
        if now - track.since > timeout:
            reason, fixed = self._reason(partition, track, status, now)
            return Stall(partition, position, lag, now - track.since, reason, fixed)
        if self._away is not None and now - self._away[0] > timeout and track.moved < self._away[0]:
            reason = f"no broker answers, so the lag is unknown: {self._away[1]}"
            return Stall(partition, position, None, now - self._away[0], reason, fixed_by_restart=False)
        uncommitted = now - self._committed
        if (
            track.stage == "work"
            and self._reads_again(status)
            and uncommitted > timeout + self._settings.commit_interval
        ):
            # Without a commit there is no progress, even if positions reach the end each time.
            reason, fixed = self._reason(partition, track, status, now)
            return Stall(partition, position, lag, uncommitted, reason, fixed)
        return None

    def _reads_again(self, status: WorkerStatus) -> bool:
        """Whether the worker has rewound repeatedly without a commit in between."""
        return status.rewinds - self._rewinds > 1

    def _lag(self, partition: TopicPartition, progress: Progress) -> int | None:
        if progress.position is None:
            return None
        _, asked = self._ends.get(partition, (0, 0))
        return max(0, max(progress.end or 0, asked) - progress.position)

    def _reason(
        self, partition: TopicPartition, track: _Track, status: WorkerStatus, now: float
    ) -> tuple[str, bool]:
        """Why a partition makes no progress, and whether a restart would fix it."""
        silent = now - status.served
        if silent > self._settings.stall_timeout / 2:
            busy = f" for {status.busy}" if status.busy is not None else ""
            where = called(status.thread)
            return f"the worker's thread has not returned for {silent:.0f} s{busy} from {where}", True
        if status.retrying is not None:
            step, error = status.retrying
            return f"step {step!r} is being retried: {error}", False
        if self._away is not None:
            return f"no broker answers: {self._away[1]}", False
        if status.writing is not None:
            topic, since = status.writing
            what = f"no record could be queued for {topic}" if topic else "records are not acknowledged"
            return f"{what} for {now - since:.0f} s: the client's queue is full, or its broker hangs", False
        if track.stage == "restore":
            return self._reason_of_restore(partition, status)
        if status.busy is not None:
            return f"the worker is processing a slice of {status.busy}, in {called(status.thread)}", True
        if self._reads_again(status):
            again = status.rewinds - self._rewinds
            why = status.aborted_by or "see the log"
            return f"it was read again {again} times because no commit succeeded: {why}", False
        others = self._worker.held_back_by(partition)
        if others:
            return f"its records wait for earlier event times of {', '.join(map(str, others))}", False
        position = track.progress.position
        stable, end = self._ends.get(partition, (-1, -1))
        if position is not None and stable <= position < end:
            reason = (
                f"a transaction that began at offset {stable} is still open: later records cannot be read "
                "before it ends (to abort it: kafka-transactions.sh find-hanging, then abort)"
            )
            return reason, False
        return "polls return no records of it", True

    def _reason_of_restore(self, partition: TopicPartition, status: WorkerStatus) -> tuple[str, bool]:
        task = status.waiting[partition]
        restoring = status.restoring.get(task)
        if restoring is None:
            return (
                f"task {task} waits for its other input partitions, or for the end offsets of its changelogs"
            ), False
        reason = (
            f"the restore of task {task} is stuck at {restoring.done} of {restoring.total} records: polls "
            "return no records of its changelogs, e.g. because of an open transaction"
        )
        return reason, True

    # --- reporting stalls

    def _report(
        self,
        before: tuple[Stall, ...],
        stalls: tuple[Stall, ...],
        progress: Mapping[TopicPartition, Progress],
        status: WorkerStatus,
    ) -> None:
        known = {stall.partition: stall for stall in before}
        new = [stall for stall in stalls if stall.partition not in known]
        fatal = next((stall for stall in stalls if stall.fixed_by_restart), None)
        if fatal is not None and self._settings.stall_exit and self._fatal is None:
            self._fatal = fatal
            # Started before anything is logged, because logging may hang too.
            threading.Thread(target=self._end, name="streams-exit", daemon=True).start()
        stack = format_stacks(status.thread) if new else ""
        for number, stall in enumerate(new):
            # The stacks are logged once for all partitions that stall at the same time.
            stacks = {"stack": stack} if number == 0 else {}
            self._log.error(
                Event.PARTITION_STALLED,
                partition=str(stall.partition),
                position=stall.position,
                lag=stall.lag,
                seconds=round(stall.seconds, 1),
                reason=stall.reason,
                **stacks,
            )
        over = known.keys() - {stall.partition for stall in stalls}
        for partition in sorted(over & progress.keys()):
            seconds = round(known[partition].seconds, 1)
            self._log.info(Event.PARTITION_RECOVERED, partition=str(partition), seconds=seconds)

    def _end(self) -> None:
        """Stop the worker; if it does not stop in time, end the process: user code cannot be interrupted."""
        self._worker.request_stop()
        if self._stop.wait(self._settings.shutdown_timeout):
            return
        flush_output()
        self._end_process(Stalled.exit_code)
