"""Runs tasks of a bounded run over their ranges, with commits at places that depend on the records alone."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from streams.eventtime.merge import InputQueue
from streams.partitioning import partition_for
from streams.records import FetchedLists, Output, TopicPartition
from streams.replay.bounded.range_reader import PIECE_BYTES
from streams.replay.bounded.rows import resized
from streams.runtime.dead_letters import FirstFailures
from streams.runtime.task import Task, TaskId
from streams.state.changelog import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from streams.coroutines.event_loop import Calls
    from streams.origin import Origin
    from streams.records import Fetched, Record
    from streams.replay.bounded.rows import SpooledRows
    from streams.runtime.binding import Lookup
    from streams.state.store import Databases
    from streams.topology.graph import Subtopology

SLICE_RECORDS: Final = 10_000
"""The size of slices: the more records, the more of them have the same key, and share its work."""

PASSED_RECORDS: Final = 2_000
"""The size of slices of tasks that feed each other: they see each other's results after each slice."""

TAKEN_RECORDS: Final = 20_000
"""After how many records of its input a task's outputs are taken, and timers on the wall clock run."""

COMMIT_RECORDS: Final = 100_000
"""After how many records of its input a task commits: its aggregates forward their updates then.

About as many as a worker that catches up processes in the time of its commit interval.
"""

COMMIT_ENTRIES: Final = 50_000
"""A task commits sooner when so many entries of its stores have changed, as these are in memory."""

PLACED_KEYS: Final = 200_000
"""Of how many keys the partition is remembered."""


class Inputs(Protocol):
    """What tasks read in one phase of the run."""

    def of_task(self, task: TaskId, size: int) -> Mapping[TopicPartition, Iterator[Fetched]]:
        """The input partitions of a task, each in pieces of ``size`` records at most."""


class Results(Protocol):
    """What becomes of what tasks write."""

    def internal(self, output: Output, partitions: Sequence[int], task: TaskId) -> None:
        """Keep rows of a repartition topic for a later stage; ``partitions`` has one number for each."""

    def external(self, output: Output, task: TaskId) -> None:
        """Keep rows of any other topic."""

    def delivered(self, task: Task) -> None:
        """Take the rows for sink connectors of a task that is about to commit."""


@dataclass
class UnitCounts:
    """What a unit has done."""

    records: int = 0
    """Read from input topics, in the range and before it."""
    late: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    dead_letters: int = 0


class ReplayRuntime:
    """The runtime of the unit's tasks: their wall clock is the newest record's time, so runs are equal.

    ``look`` is called now and then while a slice takes long; it raises to end the run.
    """

    def __init__(self, look: Callable[[], None] = lambda: None) -> None:
        self.now = 0
        self._look = look

    @property
    def inline(self) -> bool:
        return True

    def wall_clock(self) -> int:
        return self.now

    def stopwatch(self) -> float:
        return time.monotonic()

    def keep_alive(self) -> None:
        # There is no group, but the run may have been stopped.
        self._look()

    def wait(self, seconds: float, step: str, error: Exception) -> None:  # noqa: ARG002 - only time matters
        time.sleep(seconds)
        self._look()

    def attend(self, calls: Calls) -> None:
        calls.wait(None)

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:  # noqa: ARG002 - dead letters of a replay have the bytes that the step received
        return {}


class Unit:
    """Tasks that are run together: one, or all of subtopologies that feed each other.

    ``partitions`` are the partition counts of all input topics, ``within`` the repartition topics whose
    records go from one task of the unit to another. ``placed`` is called with the records read since the
    last call, for progress.
    """

    def __init__(
        self,
        tasks: Sequence[TaskId],
        parts: Mapping[int, Subtopology],
        *,
        application: str,
        dead_letter_topic: str,
        databases: Databases,
        lookups: Mapping[str, Lookup],
        partitions: Mapping[str, int],
        within: Collection[str],
        internal: Collection[str],
        progress: Callable[[int], None],
    ) -> None:
        self._runtime = ReplayRuntime(lambda: progress(0))
        self._parts = parts
        self._partitions = partitions
        self._within = within
        self._internal = internal
        self._progress = progress
        self._size = PASSED_RECORDS if within else SLICE_RECORDS
        self._places: dict[int, dict[bytes, int]] = {}
        """The partition of each key, by the topic's partition count."""
        self._since_taken: Counter[TaskId] = Counter()
        self._since_commit: Counter[TaskId] = Counter()
        self._offsets: Counter[TopicPartition] = Counter()
        self.counts = UnitCounts()
        self._tasks: dict[TaskId, Task] = {}
        failures = FirstFailures(dead_letter_topic)
        for identifier in tasks:
            part = parts[identifier.subtopology]
            names = [store.name for store in part.stores]
            self._tasks[identifier] = Task(
                identifier,
                part,
                self._runtime,
                application=application,
                dead_letter_topic=dead_letter_topic,
                database=databases.open(names, identifier.partition) if names else None,
                checkpoints={store.name: Checkpoint(store.schema) for store in part.stores},
                lookups=lookups,
                failures=failures,
            )

    def run(self, inputs: Inputs, results: Results) -> None:
        """Process all inputs of one phase, and commit."""
        lanes = {
            identifier: _Lanes(
                task, self._parts[identifier.subtopology], inputs.of_task(identifier, self._size), self._size
            )
            for identifier, task in self._tasks.items()
        }
        while lanes:
            identifier = _first(lanes)
            fetched = lanes[identifier].take()
            if fetched is None:
                del lanes[identifier]
                continue
            self._process(self._tasks[identifier], fetched, results)
            if fetched.topic not in self._internal:
                self.counts.records += len(fetched)
                self._progress(len(fetched))
        for task in self._tasks.values():
            self._commit(task, results)

    def close(self) -> None:
        """End the tasks."""
        for task in self._tasks.values():
            self.counts.late += task.counts.late
            self.counts.skipped += task.counts.skipped
            self.counts.dead_letters += task.counts.dead_letters.total()
            task.close()

    def _process(self, task: Task, fetched: Fetched, results: Results) -> None:
        newest = max(fetched.timestamps())
        self._runtime.now = max(self._runtime.now, newest)
        task.process(fetched)
        self._since_taken[task.id] += len(fetched)
        self._since_commit[task.id] += len(fetched)
        # Tasks that feed each other see each other's results at once, as far as one process can.
        if self._within:
            self._commit(task, results)
        elif self._since_taken[task.id] >= TAKEN_RECORDS:
            if self._since_commit[task.id] >= COMMIT_RECORDS or task.dirty >= COMMIT_ENTRIES:
                self._commit(task, results)
            else:
                for output in self._taken(task, results):
                    self._write(task, output, results)

    def _commit(self, task: Task, results: Results) -> None:
        self._since_commit[task.id] = 0
        outputs = self._taken(task, results)
        task.prepare()
        outputs += task.take()
        task.take_changelog()
        task.committed()
        for output in outputs:
            self._write(task, output, results)

    def _taken(self, task: Task, results: Results) -> list[Output]:
        """What the task has written, with timers that are due."""
        self._since_taken[task.id] = 0
        if task.stateful:
            task.punctuate()
        results.delivered(task)
        return task.take()

    def _write(self, task: Task, output: Output, results: Results) -> None:
        if output.topic in self._within:
            for number, rows in self._by_partition(task, output):
                self._pass_on(output, number, rows, results)
        elif output.topic in self._internal:
            results.internal(output, self._places_of(task, output), task.id)
        else:
            results.external(output, task.id)

    def _pass_on(self, output: Output, number: int, rows: list[int], results: Results) -> None:
        """Process records of a topic within the unit, and what follows from them."""
        place = TopicPartition(output.topic, number)
        first = self._offsets[place]
        self._offsets[place] += len(rows)
        headers = output.headers
        target = next(part for part in self._parts.values() if part.reads(output.topic))
        self._process(
            self._tasks[TaskId(target.number, number)],
            FetchedLists(
                output.topic,
                number,
                [output.keys[row] for row in rows],
                [output.values[row] for row in rows],
                [output.timestamps[row] for row in rows],
                range(first, first + len(rows)),
                None if headers is None else [headers[row] for row in rows],
            ),
            results,
        )

    def _by_partition(self, task: Task, output: Output) -> Iterator[tuple[int, list[int]]]:
        rows: dict[int, list[int]] = {}
        for row, number in enumerate(self._places_of(task, output)):
            rows.setdefault(number, []).append(row)
        yield from rows.items()

    def _places_of(self, task: Task, output: Output) -> Sequence[int]:
        """The partition of each row of a repartition topic."""
        if output.partitions is not None:
            return output.partitions
        count = self._partitions[output.topic]
        if output.partition is not None:
            return [output.partition] * len(output)
        places = self._places.setdefault(count, {})
        keys = output.keys
        try:
            return list(map(places.__getitem__, keys))  # type: ignore[arg-type]  # none of them is None
        except KeyError:
            pass
        if len(places) > PLACED_KEYS:
            places.clear()
        keyless = task.id.partition % count
        places |= {key: partition_for(key, count) for key in {*keys}.difference(places) if key is not None}
        return [keyless if key is None else places[key] for key in keys]


class _Lanes:
    """The input of a task, merged by event time where it has several partitions."""

    def __init__(
        self, task: Task, part: Subtopology, inputs: Mapping[TopicPartition, Iterator[Fetched]], size: int
    ) -> None:
        self._task = task
        self._size = size
        self._inputs = dict(inputs)
        self._queue = (
            InputQueue({place: part.rank(place.topic) for place in inputs}, task.event_times)
            if len(inputs) > 1
            else None
        )
        self._next: Fetched | None = None

    def head(self) -> int:
        """The event time of the next record; the largest of all without one."""
        piece = self._peek()
        return 1 << 62 if piece is None else self._task.event_times(piece)[0]

    def take(self) -> Fetched | None:
        """The next records, of one partition; ``None`` at the end."""
        piece = self._peek()
        self._next = None
        if piece is not None and self._queue is not None:
            # They leave the queue before they are processed: whatever fails ends the run.
            self._queue.taken(piece)
        return piece

    def _peek(self) -> Fetched | None:
        if self._next is None:
            self._next = self._alone() if self._queue is None else self._merged(self._queue)
        return self._next

    def _alone(self) -> Fetched | None:
        return next((piece for lane in self._inputs.values() for piece in lane), None)

    def _merged(self, queue: InputQueue) -> Fetched | None:
        for place, lane in list(self._inputs.items()):
            while not queue.size(place):
                fetched = next(lane, None)
                if fetched is None:
                    queue.at_end(place, 0)
                    del self._inputs[place]
                    break
                for piece in self._task.timed(fetched):
                    queue.add(piece)
        return queue.peek(self._size)


def _first(lanes: Mapping[TaskId, _Lanes]) -> TaskId:
    """The task whose next record has the lowest event time."""
    if len(lanes) == 1:
        return next(iter(lanes))
    return min(lanes, key=lambda identifier: (lanes[identifier].head(), identifier))


def as_slices(
    rows: Iterator[SpooledRows], place: TopicPartition, offset: int, size: int
) -> Iterator[FetchedLists]:
    """Spooled rows as records of a partition, in pieces of ``size`` at most, from an offset on."""
    for piece in resized(rows, size, PIECE_BYTES):
        yield FetchedLists(
            place.topic,
            place.partition,
            piece.keys,
            piece.values,
            piece.timestamps,
            range(offset, offset + len(piece)),
            piece.headers,
        )
        offset += len(piece)
