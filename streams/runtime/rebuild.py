"""Fills a sink's target again from its topics, while the sink keeps running: no row is missing or left over.

The sink's steps read the input from the beginning and write to a copy of the target. When the copy has
reached the target's positions, these are locked, the last records are read, and the target is made equal to
the copy in one transaction.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from streams.broker import BEGINNING, GroupSettings
from streams.broker.reading import find_partitions
from streams.connectors.sink import SinkContext
from streams.errors import BrokerError, ConfigurationError, TopicError
from streams.records import TopicPartition
from streams.runtime.dead_letters import FirstFailures
from streams.runtime.global_tables import GlobalTables
from streams.runtime.sinks import rows_of
from streams.runtime.task import Task, TaskId
from streams.state.memory import MemoryDatabases

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.broker import Admin, Broker
    from streams.connectors.sink import MergeCounts, RebuildableSink, SinkRebuild, SinkWriter
    from streams.coroutines.event_loop import Calls
    from streams.origin import Origin
    from streams.records import Fetched, Record
    from streams.topology.graph import SinkConnectorNode, Subtopology, Topology

CHUNK_RECORDS = 10_000
POLL_SECONDS = 0.2

SILENCE_SECONDS = 60.0
"""How long no record may arrive before the end is reached."""

CLOSE_RECORDS = 5_000
"""At this distance the target's positions are locked: the sink waits while the rest is read."""

ROUNDS = 20
"""How often the copy follows a target that moves on before the positions are locked all the same."""

LOCK_SECONDS = 30.0


class Rebuilt(NamedTuple):
    """What a rebuild has done."""

    records: int
    """Records read from the topics."""
    refused: int
    """Records that became no row, as the sink's steps or the system refuse them."""
    counts: MergeCounts


class _Runtime:
    """The runtime of tasks outside of a group."""

    @property
    def inline(self) -> bool:
        return True

    def wall_clock(self) -> int:
        return time.time_ns() // 1_000_000

    def stopwatch(self) -> float:
        return time.monotonic()

    def keep_alive(self) -> None:
        """There is no group."""

    def wait(self, seconds: float, step: str, error: Exception) -> None:  # noqa: ARG002 - only time matters
        time.sleep(seconds)

    def attend(self, calls: Calls) -> None:
        calls.wait(None)

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:  # noqa: ARG002 - dead letters are not written
        return {}


class Rebuild:
    """Rebuilds the target of the sink with ``store``.

    Raises ``ConfigurationError`` for a sink that does not exist or cannot be rebuilt, ``TopicError`` for
    topics that have lost records, and what the sink raises.
    """

    def __init__(self, topology: Topology, broker: Broker, *, application: str, store: str) -> None:
        self._topology = topology
        self._broker = broker
        self._application = application
        self._node = _node(topology, store)
        self._part: Subtopology = next(
            part for part in topology.subtopologies if self._node in part.sink_connectors
        )
        self._tasks: dict[int, Task] = {}
        self._copied: dict[TopicPartition, int] = {}
        self._records = self._refused = 0
        self._databases = MemoryDatabases()
        self._globals = GlobalTables(
            topology.global_tables,
            broker,
            self._databases,
            application=application,
            wall_clock=_Runtime().wall_clock,
        )

    def run(self, progress: Callable[[int, int], None] = lambda _, __: None) -> Rebuilt:
        """Rebuild; ``progress`` is called with the records read and those known to be left."""
        connector: RebuildableSink = self._node.connector  # type: ignore[assignment]  # checked by _node
        admin = self._broker.admin()
        try:
            partitions = self._partitions(admin)
        finally:
            admin.close()
        self._globals.start(lambda: False)
        context = SinkContext(
            application=self._application,
            name=self._node.store,
            worker="rebuild",
            lock_timeout=LOCK_SECONDS,
        )
        rebuild = connector.rebuild(context)
        try:
            return self._run(rebuild, partitions, context, progress)
        finally:
            rebuild.close()
            for task in self._tasks.values():
                task.close()
            self._globals.close()
            self._databases.close()

    def _run(
        self,
        rebuild: SinkRebuild,
        partitions: Mapping[TopicPartition, str],
        context: SinkContext,
        progress: Callable[[int, int], None],
    ) -> Rebuilt:
        copy = rebuild.copy()
        own = SinkContext(
            application=context.application,
            name=f"{context.name}__rebuild",
            worker=context.worker,
            lock_timeout=context.lock_timeout,
        )
        copy.check(own)
        writer = copy.open(own)
        try:
            self._copied = writer.claim(partitions)
            for _ in range(ROUNDS):
                until = rebuild.positions(partitions)
                left = self._distance(until)
                if left < CLOSE_RECORDS:
                    break
                self._copy_until(writer, until, partial(_report, progress, left))
            until = rebuild.lock(partitions)
            self._copy_until(writer, until, partial(_report, progress, 0))
        finally:
            writer.close()
        return Rebuilt(self._records, self._refused, rebuild.merge())

    def _distance(self, until: Mapping[TopicPartition, int]) -> int:
        return sum(max(0, end - self._copied[partition]) for partition, end in until.items())

    def _partitions(self, admin: Admin) -> dict[TopicPartition, str]:
        """The input partitions with their topics' ids. Raises ``TopicError`` if records are missing."""
        topics = [topic for topic in admin.topics() if self._part.reads(topic)]
        ids = admin.topic_ids(topics)
        partitions = find_partitions(self._broker, topics)
        beginnings = admin.beginning_offsets(partitions)
        policies = admin.settings(topics)
        for partition in partitions:
            policy = policies[partition.topic].get("cleanup.policy", "delete")
            if beginnings[partition] and policy != "compact":
                raise TopicError(
                    f"{partition} begins at offset {beginnings[partition]}: records before it were deleted "
                    f"(cleanup.policy={policy}), so rows made of them would be missing",
                    hint="rebuild from a topic that is compacted, or whose retention.ms is -1; a source's "
                    "topics are filled again by a new snapshot",
                )
        return {partition: ids[partition.topic] for partition in partitions}

    def _copy_until(
        self,
        writer: SinkWriter,
        until: Mapping[TopicPartition, int],
        progress: Callable[[int], None],
    ) -> None:
        """Write the records before these offsets to the copy."""
        waiting = {item: end for item, end in until.items() if end > self._copied[item]}
        if not waiting:
            return
        consumer = self._broker.consumer(
            GroupSettings(group="streams-rebuild", isolation="read_committed", protocol="classic")
        )
        try:
            consumer.assign({item: self._copied[item] or BEGINNING for item in waiting})
            deadline = time.monotonic() + SILENCE_SECONDS
            while waiting:
                polled = consumer.poll(CHUNK_RECORDS, POLL_SECONDS)
                reached: dict[TopicPartition, int] = {}
                for fetched in polled.fetched:
                    partition = TopicPartition(fetched.topic, fetched.partition)
                    if partition in waiting:
                        piece = _before(fetched, waiting[partition])
                        self._process(piece)
                        reached[partition] = min(fetched.next_offset, waiting[partition])
                for partition, end in polled.ends.items():
                    # Only markers are left before it.
                    if partition in waiting:
                        reached[partition] = min(end, waiting[partition])
                if reached:
                    deadline = time.monotonic() + SILENCE_SECONDS
                    self._write(writer, reached)
                    progress(self._records)
                elif time.monotonic() > deadline:
                    raise BrokerError(
                        f"no records arrived for {SILENCE_SECONDS:.0f} s; partitions not read to the sink's "
                        f"position: {', '.join(map(str, sorted(waiting)))}"
                    )
                waiting = {item: end for item, end in waiting.items() if end > self._copied[item]}
        finally:
            consumer.close()

    def _process(self, fetched: Fetched) -> None:
        if not len(fetched):
            return
        self._records += len(fetched)
        self._task(fetched.partition).process(fetched)

    def _write(self, writer: SinkWriter, reached: Mapping[TopicPartition, int]) -> None:
        """Write what the steps have made of the records up to these offsets, in one transaction."""
        rows = []
        for partition, position in reached.items():
            self._task(partition.partition).positions[partition] = position
        for task in self._tasks.values():
            deliveries = [item for item in task.take_deliveries() if item.sink == self._node.name]
            self._refused += sum(len(output) for output in task.take())
            rows += rows_of(task.positions, self._copied, deliveries)
        if rows:
            self._refused += len(writer.write([item.rows for item in rows]))
            writer.commit()
            self._copied |= {item.rows.partition: item.rows.next_offset for item in rows}

    def _task(self, number: int) -> Task:
        if number not in self._tasks:
            self._tasks[number] = Task(
                TaskId(self._part.number, number),
                self._part,
                _Runtime(),
                application=self._application,
                dead_letter_topic="",
                lookups=self._globals.lookups,
                failures=FirstFailures(""),
            )
        return self._tasks[number]


def _report(progress: Callable[[int, int], None], left: int, records: int) -> None:
    progress(records, left)


def _before(fetched: Fetched, end: int) -> Fetched:
    """The records before an offset."""
    if fetched.next_offset <= end:
        return fetched
    offsets: Sequence[int] = fetched.offsets()
    return fetched.slice(0, next(row for row, offset in enumerate(offsets) if offset >= end))


def _node(topology: Topology, store: str) -> SinkConnectorNode:
    known = {node.store: node for node in topology.sink_connectors}
    if store not in known:
        raise ConfigurationError(
            f"the app has no sink with store {store!r}",
            hint=f"its sinks: {', '.join(sorted(known)) or 'none'}",
        )
    node = known[store]
    if not hasattr(node.connector, "rebuild"):
        raise ConfigurationError(
            f"sink {store!r} ({node.connector.kind}) cannot be rebuilt: its connector has no rebuild()"
        )
    return node
