"""The table of positions: how far each input partition has been written, moved with the rows themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from streams.connectors.postgres.encoding import number_array, text_array
from streams.connectors.postgres.table import parse_name, quoted
from streams.errors import ConnectorError, SinkFenced, SinkMismatch
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.postgres.connection import Connection
    from streams.connectors.postgres.pipeline import Pipeline
    from streams.connectors.sink import SinkContext, SinkRows

_COLUMNS = ("application", "sink", "topic", "partition", "topic_id", "next_offset")

_FENCED = "streams.position_was_moved_by_another_worker"

# Serialises workers that start at the same time and create tables or columns.
DDL_LOCK = "select pg_advisory_xact_lock(5066120, 1)"


class Locked(NamedTuple):
    """Positions that are locked until the transaction ends, and whether some were added."""

    positions: dict[TopicPartition, int]
    added: bool


@dataclass(frozen=True)
class Positions:
    """The positions of one sink of one application."""

    table: str
    context: SinkContext

    @property
    def identifier(self) -> str:
        """The table's quoted name."""
        schema, name = parse_name(self.table)
        return quoted(name) if schema is None else f"{quoted(schema)}.{quoted(name)}"

    def create(self, connection: Connection) -> None:
        """Create the table unless it exists. Raises ``ConnectorError`` if it is another table."""
        find = b"select to_regclass(%s) is not null"
        exists = connection.run(find, [self.identifier]).fetchone()
        if exists != (True,):
            connection.run(
                f"begin; {DDL_LOCK}; create table if not exists {self.identifier} ("
                "application text, sink text, topic text, partition int, topic_id text not null, "
                "next_offset bigint not null, primary key (application, sink, topic, partition)); "
                "commit".encode()
            )
        try:
            connection.run(f"select {', '.join(_COLUMNS)} from {self.identifier} limit 0".encode())
        except psycopg.errors.UndefinedColumn as error:
            raise ConnectorError(
                f"{self.identifier} is no table of positions: {error.diag.message_primary}",
                hint=f"its columns are {', '.join(_COLUMNS)}; name another one with positions_table=",
            ) from error

    def lock(self, connection: Connection, partitions: Mapping[TopicPartition, str]) -> Locked:
        """Read positions in a transaction that locks them: a commit that is still under way is waited for."""
        positions = self._read_locked(connection, partitions)
        new = sorted(partitions.keys() - positions.keys())
        if new:
            connection.run(
                f"insert into {self._escaped} (application, sink, topic, partition, topic_id, next_offset) "
                "select %s, %s, r.topic, r.partition, r.topic_id, 0 "
                "from unnest(%s::text[], %s::int[], %s::text[]) as r(topic, partition, topic_id) "
                "on conflict do nothing".encode(),
                [
                    self.context.application,
                    self.context.name,
                    [partition.topic for partition in new],
                    [partition.partition for partition in new],
                    [partitions[partition] for partition in new],
                ],
            )
            # Another worker may have been faster, and be beyond 0.
            positions = self._read_locked(connection, partitions)
        return Locked(positions, bool(new))

    def _read_locked(
        self, connection: Connection, partitions: Mapping[TopicPartition, str]
    ) -> dict[TopicPartition, int]:
        found = connection.run(
            "select p.topic, p.partition, p.topic_id, p.next_offset "
            f"from {self._escaped} p where p.application = %s and p.sink = %s and (p.topic, p.partition) in "
            "(select * from unnest(%s::text[], %s::int[])) order by p.topic, p.partition for update".encode(),
            [
                self.context.application,
                self.context.name,
                [partition.topic for partition in partitions],
                [partition.partition for partition in partitions],
            ],
        )
        positions = {}
        for topic, number, topic_id, next_offset in found:
            partition = TopicPartition(topic, number)
            if topic_id != partitions[partition]:
                raise SinkMismatch(
                    f"sink {self.context.name!r}: its position {next_offset} in {partition} belongs to the "
                    f"topic with the id {topic_id}, which was deleted: {topic!r} has the id "
                    f"{partitions[partition]} now",
                    hint=self._way_on(topic),
                )
            positions[partition] = next_offset
        return positions

    @cached_property
    def _move(self) -> bytes:
        """Fails where a position is not ``start``, so that the statements after it have no effect.

        SQL has no statement that raises an error: it is that of a setting which does not exist.
        """
        return (
            f"with moved as (update {self.identifier} p set next_offset = r.next_offset "
            "from unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[]) "
            "as r(topic, partition, start, next_offset) "
            "where p.application = $5 and p.sink = $6 and p.topic = r.topic and p.partition = r.partition "
            "and p.next_offset = r.start returning 1) "
            f"select case when count(*) <> $7::int then current_setting('{_FENCED}') end from moved"
        ).encode()

    def move(self, pipeline: Pipeline, parts: Sequence[SinkRows]) -> None:
        """Send the statement that moves positions from ``start`` to ``next_offset``, and locks their rows.

        It fails where a position is another one: see ``fenced``.
        """
        ordered = sorted(parts, key=lambda part: part.partition)
        pipeline.send(
            self._move,
            [
                text_array([part.partition.topic for part in ordered]),
                number_array([part.partition.partition for part in ordered]),
                number_array([part.start for part in ordered]),
                number_array([part.next_offset for part in ordered]),
                self.context.application.encode(),
                self.context.name.encode(),
                b"%d" % len(ordered),
            ],
        )

    def fenced(self, parts: Sequence[SinkRows]) -> SinkFenced:
        """The error for positions that could not be moved."""
        expected = ", ".join(f"{part.start} of {part.partition}" for part in parts)
        which = "the position" if len(parts) == 1 else "one of the positions"
        return SinkFenced(
            f"sink {self.context.name!r}: {which} {expected} in {self.identifier} is another one by now: "
            "another worker has moved it"
        )

    @property
    def _escaped(self) -> str:
        return self.identifier.replace("%", "%%")

    def _way_on(self, topic: str) -> str:
        where = (
            f"application = '{self.context.application}' AND sink = '{self.context.name}' "
            f"AND topic = '{topic}'"
        )
        return (
            "to read the new topic from its beginning: "
            f"DELETE FROM {self.identifier} WHERE {where} (and empty the target, if it should have the new "
            "topic's rows only)"
        )
