"""Inputs and results of the tasks in one phase of a bounded run: the warm-up, or the range."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from streams.records import Output, TopicPartition
from streams.replay.bounded.merged import merged
from streams.replay.bounded.range_reader import read_range
from streams.replay.bounded.spool import SpoolFile, read_spool, spooled, task_file
from streams.replay.bounded.unit import as_slices
from streams.replay.plain_values import PlainValues

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from streams.broker import Broker
    from streams.records import Fetched
    from streams.replay.bounded.plan import RunPlan
    from streams.replay.bounded.sink_effects import SinkEffects
    from streams.replay.bounded.spool import Phase
    from streams.replay.bounded.throttle import Throttle
    from streams.runtime.task import Task, TaskId
    from streams.topology.graph import Topology


_ROWS: Final = PlainValues()

RANGE_OFFSET: Final = 2**40
"""The first offset of a repartition topic's records that come from the range and not from before it."""


def sink_rows(store: str) -> str:
    """What stands for a topic where rows for a sink connector are kept; no topic has such a name."""
    return f"sink:{store}"


class PhaseInputs:
    """What the tasks of a unit read in one phase."""

    def __init__(
        self,
        plan: RunPlan,
        broker: Broker,
        topology: Topology,
        within: Collection[str],
        phase: Phase,
        throttle: Throttle,
    ) -> None:
        self._plan = plan
        self._broker = broker
        self._topology = topology
        self._within = within
        self._phase = phase
        self._throttle = throttle
        self._open: list[Iterator[Fetched]] = []

    def of_task(self, task: TaskId, size: int) -> dict[TopicPartition, Iterator[Fetched]]:
        """The input partitions of a task, each in pieces of ``size`` records at most."""
        part = self._topology.subtopologies[task.subtopology]
        found: dict[TopicPartition, Iterator[Fetched]] = {}
        for topic, count in self._plan.partitions.items():
            if not part.reads(topic) or task.partition >= count or topic in self._within:
                continue
            place = TopicPartition(topic, task.partition)
            internal = topic in self._topology.repartitions
            found[place] = self._from_spool(place, size) if internal else self._from_log(place, size)
        self._open += found.values()
        return found

    def close(self) -> None:
        """Close the readers that were not read to their end."""
        for reader in self._open:
            reader.close()  # type: ignore[attr-defined]  # generators

    def _from_log(self, place: TopicPartition, size: int) -> Iterator[Fetched]:
        start, begin, end = self._plan.bounds.partitions[place]
        first, last = (start, begin) if self._phase == "warmup" else (begin, end)
        yield from read_range(self._broker, place, first, last, size=size, throttle=self._throttle)

    def _from_spool(self, place: TopicPartition, size: int) -> Iterator[Fetched]:
        folder = self._plan.spool.internal(self._phase, place)
        rows = merged([read_spool(path) for path in spooled(folder)])
        yield from as_slices(rows, place, RANGE_OFFSET if self._phase == "range" else 0, size)


class PhaseResults:
    """Keeps what a unit writes in one phase."""

    def __init__(
        self, plan: RunPlan, topology: Topology, phase: Phase, effects: SinkEffects | None = None
    ) -> None:
        self._plan = plan
        self._effects = effects
        self._topology = topology
        self._phase = phase
        self._files: dict[Path, SpoolFile] = {}
        self.muted: Counter[str] = Counter()
        self.written: Counter[str] = Counter()

    def internal(self, output: Output, partitions: Sequence[int], task: TaskId) -> None:
        """Keep rows of a repartition topic for a later stage; ``partitions`` has one number for each."""
        rows: defaultdict[int, list[int]] = defaultdict(list)
        for row, number in enumerate(partitions):
            rows[number].append(row)
        for number, own in rows.items():
            folder = self._plan.spool.internal(self._phase, TopicPartition(output.topic, number))
            self._file(folder, task).append(_select(output, own))

    def external(self, output: Output, task: TaskId) -> None:
        """Keep rows of any other topic, unless they come before the range."""
        if self._phase == "warmup":
            return
        count = self._plan.outputs.get(output.topic) or max(self._plan.outputs.values(), default=1)
        file = self._file(self._plan.spool.results(output.topic), task, count)
        file.append(output, keyless=task.partition % count)
        self.written[output.topic] += len(output)

    def delivered(self, task: Task) -> None:
        """Take the rows for sink connectors: they are written where effects are wanted, else counted.

        A shadow run keeps them, to compare them.
        """
        deliveries = task.take_deliveries()
        if self._phase == "warmup":
            return
        if self._effects is not None:
            self._effects.write(task, deliveries)
            return
        for delivery in deliveries:
            batch, store = delivery.batch, self._topology.sink_connector(delivery.sink).store
            self.muted[store] += len(batch)
            if self._plan.replay.kind == "shadow":
                keys, values = (_ROWS.serialize(column) for column in (batch.keys, batch.values))
                rows = Output(sink_rows(store), list(keys), list(values), list(batch.timestamps))
                self._file(self._plan.spool.results(rows.topic), task.id).append(rows)
                self.written[rows.topic] += len(rows)

    def close(self) -> None:
        """Write everything."""
        for file in self._files.values():
            file.close()

    def _file(self, folder: Path, task: TaskId, partitions: int | None = None) -> SpoolFile:
        path = folder / task_file(task)
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = SpoolFile(path, partitions)
        return file


def _select(output: Output, rows: list[int]) -> Output:
    """Rows of an output whose partitions are known."""
    if len(rows) == len(output):
        return output
    headers = output.headers
    return type(output)(
        output.topic,
        [output.keys[row] for row in rows],
        [output.values[row] for row in rows],
        [output.timestamps[row] for row in rows],
        None if headers is None else [headers[row] for row in rows],
    )
