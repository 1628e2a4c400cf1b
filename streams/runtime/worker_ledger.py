"""What a worker reads, writes and commits, beside what its tasks count: see ``streams.runtime.ledger``."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.records import Fetched, TopicPartition
    from streams.runtime.ledger import TaskKey, TaskLedger

MOST_KEPT = 1_000
"""So many faults and closed tasks are kept for the thread that reads them."""


class Fault(NamedTuple):
    """A difference that was found while counting. ``records`` are those that are missing, or too many."""

    kind: str
    task: str
    topic: str
    partition: int
    offsets: tuple[int, int] | None
    records: int
    sentence: str


class _Reading:
    """The records that were polled of a partition, and those that were processed, since the last seek."""

    __slots__ = ("begun", "expected", "polled", "processed")

    def __init__(self, begun: int) -> None:
        self.begun = begun
        self.polled: deque[tuple[int, int]] = deque()
        """For each poll the next offset after it, and how many records there are up to it."""
        self.expected = 0
        self.processed = 0


class WorkerLedger:
    """What a worker polls and processes, hands to its producer and commits.

    Differences are noted at once in ``faults``, which any thread may take.
    """

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque(maxlen=MOST_KEPT)
        self.closed: deque[tuple[TaskKey, TaskLedger]] = deque(maxlen=MOST_KEPT)
        """The ledgers of tasks that have ended."""
        self._reading: dict[TopicPartition, _Reading] = {}
        self._handed: Counter[str] = Counter()

    # --- reading

    def polled(self, partition: TopicPartition, fetched: Fetched) -> None:
        """Records were polled that a task is to process."""
        reading = self._reading.get(partition)
        if reading is None:
            reading = self._reading[partition] = _Reading(fetched.offsets([0])[0])
        reading.expected += len(fetched)
        reading.polled.append((fetched.next_offset, reading.expected))

    def processed(self, task: TaskKey, partition: TopicPartition, fetched: Fetched) -> None:
        """A slice of them is complete."""
        reading = self._reading.get(partition)
        if reading is None:
            return
        reading.processed += len(fetched)
        reached, expected = fetched.next_offset, None
        begun = reading.begun
        while reading.polled and reading.polled[0][0] <= reached:
            until, records = reading.polled.popleft()
            reading.begun = until
            expected = records if until == reached else None
        if expected is not None and expected != reading.processed:
            missing = expected - reading.processed
            self.faults.append(
                Fault(
                    "reading",
                    str(task),
                    partition.topic,
                    partition.partition,
                    (begun, reached),
                    missing,
                    "polled and not processed" if missing > 0 else "processed twice",
                )
            )
            reading.processed = expected

    def forget(self, partition: TopicPartition) -> None:
        """The partition was released, or is read from another offset."""
        self._reading.pop(partition, None)

    # --- writing

    def handed(self, topic: str, records: int) -> None:
        """The producer has accepted records."""
        self._handed[topic] += records

    def discard(self) -> None:
        """They were undone, or will be written again."""
        self._handed.clear()

    def acknowledged(self, records: Mapping[str, int]) -> None:
        """A commit has succeeded, before which the broker has acknowledged these records, by topic."""
        if self._handed != records:
            for topic in sorted({*self._handed, *records}):
                missing = self._handed[topic] - records.get(topic, 0)
                if missing:
                    what = "committed and not acknowledged" if missing > 0 else "written twice"
                    self.faults.append(Fault("writing", "", topic, -1, None, missing, what))
        self._handed.clear()

    # --- commits

    def committed(self, task: TaskKey, ledger: TaskLedger, partition: TopicPartition, offset: int) -> None:
        """An offset of a task's partition was committed."""
        found = ledger.commit(partition, offset)
        if found is None:
            return
        before, after = found
        skips = after > before
        self.faults.append(
            Fault(
                "commit",
                str(task),
                partition.topic,
                partition.partition,
                (min(found), max(found)),
                after - before,
                "committed and not processed" if skips else "committed before, and read again",
            )
        )

    def close(self, task: TaskKey, ledger: TaskLedger) -> None:
        """A task has ended."""
        self.closed.append((task, ledger))
