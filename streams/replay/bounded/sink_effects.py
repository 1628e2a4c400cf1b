"""Writes the rows of a replay to the app's sinks, where effects are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

from streams.connectors.sink import SinkContext
from streams.errors import StreamsError
from streams.runtime.sinks import refuse_rows, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.sink import SinkWriter
    from streams.records import TopicPartition
    from streams.replay.bounded.plan import RunPlan
    from streams.runtime.outbox import Delivery
    from streams.runtime.task import Task
    from streams.topology.graph import Topology

LOCK_SECONDS: Final = 30.0


class SinkEffects:
    """The open sinks of a unit.

    Their positions have a name of their own, made of the run's name, its range and the program's topology:
    a run that is repeated, e.g. after it was interrupted, does not write again what has been written.
    """

    def __init__(self, application: str, topology: Topology, plan: RunPlan) -> None:
        self._application = application
        self._topology = topology
        self._plan = plan
        range_and_program = f"{plan.bounds.partitions} {topology.describe('json')}"
        self._suffix = f"{plan.replay.name}-{crc32(range_and_program.encode()):08x}"
        self._writers: dict[str, SinkWriter] = {}
        self._starts: dict[str, dict[TopicPartition, int]] = {}

    def write(self, task: Task, deliveries: Sequence[Delivery]) -> None:
        """Write and commit the rows of completed slices. Refused ones become dead letters of the task.

        Raises what the sink raises: an interrupted run is to be repeated.
        """
        for sink in {delivery.sink: None for delivery in deliveries}:
            own = [delivery for delivery in deliveries if delivery.sink == sink]
            writer, starts = self._claimed(sink, task.positions)
            rows = rows_of(task.positions, starts, own)
            if not rows:
                continue
            try:
                refuse_rows(rows, writer.write([item.rows for item in rows]))
                writer.commit()
            except StreamsError:
                writer.rollback()
                raise
            starts |= {item.rows.partition: item.rows.next_offset for item in rows}

    def close(self) -> None:
        """Release the connections."""
        for writer in self._writers.values():
            writer.close()

    def _claimed(
        self, sink: str, positions: Mapping[TopicPartition, int]
    ) -> tuple[SinkWriter, dict[TopicPartition, int]]:
        node = self._topology.sink_connector(sink)
        if sink not in self._writers:
            context = SinkContext(
                application=self._application,
                name=f"{node.store}__replay_{self._suffix}",
                worker="replay",
                lock_timeout=LOCK_SECONDS,
            )
            node.connector.check(context)
            self._writers[sink] = node.connector.open(context)
            self._starts[sink] = {}
        starts = self._starts[sink]
        # The range is part of the name, so one id serves for all topics, and for those between stages.
        new = {place: "replay" for place in positions if place not in starts}
        if new:
            starts |= self._writers[sink].claim(new)
        return self._writers[sink], starts
