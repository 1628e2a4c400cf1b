"""Tables that every worker keeps completely: read to their ends before it begins, and followed after that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from streams.broker import GroupSettings
from streams.errors import RegistryUnavailable
from streams.events import Event, get_logger
from streams.records import TopicPartition
from streams.runtime.restore import CHUNK_RECORDS, OLDEST_CHECKPOINT
from streams.state.changelog import Checkpoint, decode_metadata, encode_metadata
from streams.state.store import Changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.broker import Broker, Consumer
    from streams.records import Fetched
    from streams.state.store import Database, Databases
    from streams.topology.graph import GlobalSource

REPORT_SECONDS = 10.0
"""Shortest time between log lines about skipped records."""

WAIT_SECONDS = 0.1
"""How long one poll waits for records while a table is read to its end."""


class GlobalTable:
    """One table: its database, and the database's position in each partition of the topic."""

    def __init__(self, source: GlobalSource, databases: Databases, wall_clock: Callable[[], int]) -> None:
        self.source = source
        self._definition = source.store
        self._wall_clock = wall_clock
        self.skipped = 0
        """The number of records skipped because they have no key or cannot be decoded."""
        self._reported = -float("inf")
        self._unreported = 0
        self._database: Database = databases.open([source.store.name], 0)
        self._positions = self._saved()

    def position(self, partition: int) -> int:
        """The next offset to read."""
        return self._positions.get(partition, 0)

    def lookup(self, keys: Sequence[Any]) -> list[Any]:
        """The values of these keys; ``None`` where there is none."""
        definition = self._definition
        payloads = self._database.store(definition.name).get_many(list(definition.key.serialize(keys)))
        present = [payload for payload in payloads if payload is not None]
        found = iter(definition.value.deserialize(present))
        values = [None if payload is None else next(found) for payload in payloads]
        return [None if value is None else value[0] for value in values]

    def apply(self, fetched: Fetched) -> None:
        """Apply records of the topic."""
        read = self._definition.read_source
        assert read is not None
        entries, refused = read(fetched)
        if refused:
            self._refuse(fetched, refused)
        self._positions[fetched.partition] = fetched.next_offset
        self._database.write({self._definition.name: Changes(entries)}, self._metadata())

    def _refuse(self, fetched: Fetched, refused: Sequence[tuple[int, str]]) -> None:
        """Count skipped records, and log them: at most one line in ``REPORT_SECONDS``."""
        self.skipped += len(refused)
        self._unreported += len(refused)
        now = self._wall_clock() / 1000
        if now - self._reported < REPORT_SECONDS:
            return
        row, reason = refused[0]
        get_logger().warning(
            Event.RECORDS_SKIPPED,
            store=self._definition.name,
            topic=fetched.topic,
            partition=fetched.partition,
            offset=fetched.offsets([row])[0],
            reason=reason,
            records=self._unreported,
        )
        self._reported, self._unreported = now, 0

    def move(self, partition: int, offset: int) -> None:
        """Advance the position to ``offset``: only transaction markers are before it."""
        self._positions[partition] = max(offset, self.position(partition))

    def rebuild(self, reason: str) -> None:
        """Delete the contents, which no longer match the topic."""
        get_logger().warning(Event.STATE_REBUILT, store=self._definition.name, reason=reason)
        self._positions = {}
        # In this order: if the process ends in between, the topic is read again completely.
        self._database.write({}, dict.fromkeys(self._database.metadata(), b""))
        self._database.drop(self._definition.name)

    def entries(self) -> list[tuple[Any, Any]]:
        """All entries, in the order of encoded keys."""
        definition = self._definition
        stored = list(self._database.store(definition.name).scan())
        keys = definition.key.deserialize([key for key, _ in stored])
        values = definition.value.deserialize([value for _, value in stored])
        return [(key, found[0]) for key, found in zip(keys, values, strict=True) if found is not None]

    def close(self) -> None:
        """Release the database."""
        self._database.close()

    def _metadata(self) -> dict[str, bytes]:
        schema = self._definition.schema
        checkpoints = {
            str(partition): Checkpoint(schema, offset=offset, schema_written=schema)
            for partition, offset in self._positions.items()
        }
        return encode_metadata(checkpoints, self._wall_clock())

    def _saved(self) -> dict[int, int]:
        metadata = {key: value for key, value in self._database.metadata().items() if value}
        try:
            saved = decode_metadata(metadata)
        except msgspec.DecodeError as error:
            self.rebuild(f"unreadable checkpoint: {error}")
            return {}
        if any(checkpoint.schema != self._definition.schema for checkpoint in saved.values()):
            self.rebuild("it was written with another schema")
            return {}
        oldest = min((checkpoint.saved_at for checkpoint in saved.values()), default=self._wall_clock())
        if self._wall_clock() - oldest > OLDEST_CHECKPOINT:
            self.rebuild("not used for so long that the topic may have removed tombstones")
            return {}
        return {int(partition): checkpoint.offset for partition, checkpoint in saved.items()}


class GlobalTables:
    """The global tables of one worker, read by a separate consumer that is in no group.

    ``start`` returns when they contain everything committed to their topics by then; ``poll`` is called from
    time to time to follow them. Used by one thread.
    """

    def __init__(
        self,
        sources: Iterable[GlobalSource],
        broker: Broker,
        databases: Databases,
        *,
        application: str,
        wall_clock: Callable[[], int] | None = None,
    ) -> None:
        self._sources = tuple(sources)
        self._broker = broker
        self._databases = databases
        self._application = application
        self._wall_clock = wall_clock or (lambda: time.time_ns() // 1_000_000)
        self._consumer: Consumer | None = None
        self._partitions: list[TopicPartition] = []
        self._tables: dict[str, GlobalTable] = {}
        """By topic."""

    @property
    def lookups(self) -> dict[str, Callable[[Sequence[Any]], list[Any]]]:
        """The functions with which tasks read the tables, by the table's name."""
        return {table.source.store.name: table.lookup for table in self._tables.values()}

    @property
    def skipped(self) -> dict[str, int]:
        """The number of skipped records of each table's topic, by the table's name; from any thread."""
        return {table.source.store.name: table.skipped for table in list(self._tables.values())}

    def start(self, stopped: Callable[[], bool]) -> None:
        """Read every table to its end, or until ``stopped`` returns true.

        Raises ``BrokerError`` when the broker does not answer; it may be called again then.
        """
        if not self._sources:
            return
        for source in self._sources:
            if source.topic not in self._tables:
                self._tables[source.topic] = GlobalTable(source, self._databases, self._wall_clock)
        admin = self._broker.admin()
        try:
            topics = admin.topics()
            partitions = [
                TopicPartition(topic, number)
                for topic in self._tables
                for number in range(topics[topic].partitions if topic in topics else 0)
            ]
            ends = admin.end_offsets(partitions)
            beginnings = admin.beginning_offsets(partitions)
        finally:
            admin.close()
        for partition in partitions:
            table = self._tables[partition.topic]
            if table.position(partition.partition) > ends[partition]:
                table.rebuild(f"the checkpoint is ahead of {partition}, which ends at {ends[partition]}")
        for partition in partitions:
            self._tables[partition.topic].move(partition.partition, beginnings[partition])
        if self._consumer is None:
            self._consumer = self._broker.consumer(
                GroupSettings(group=f"{self._application}-global", protocol="classic")
            )
        self._partitions = partitions
        self._consumer.assign(
            {place: self._tables[place.topic].position(place.partition) for place in partitions}
        )
        while not stopped() and any(
            self._tables[partition.topic].position(partition.partition) < end
            for partition, end in ends.items()
        ):
            self.poll(WAIT_SECONDS)

    def poll(self, timeout: float = 0.0) -> None:
        """Apply the records that arrived since the last call.

        Raises ``BrokerError`` and ``RegistryUnavailable``.
        """
        if self._consumer is None:
            return
        polled = self._consumer.poll(CHUNK_RECORDS, timeout)
        try:
            for fetched in polled.fetched:
                self._tables[fetched.topic].apply(fetched)
        except RegistryUnavailable:
            # What was not applied is fetched again.
            self._consumer.assign(
                {place: self._tables[place.topic].position(place.partition) for place in self._partitions}
            )
            raise
        for partition, end in polled.ends.items():
            self._tables[partition.topic].move(partition.partition, end)

    def close(self) -> None:
        """Release the client and the databases."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        for table in self._tables.values():
            table.close()
        self._tables.clear()
