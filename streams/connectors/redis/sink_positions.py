"""Positions of a sink: for each input partition a hash, which a transaction watches and moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.connectors.redis.connection import in_slot_of
from streams.connectors.redis.resp import packed
from streams.errors import SinkFenced, SinkMismatch, SinkUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.redis.connection import Connection
    from streams.connectors.sink import SinkContext, SinkRows
    from streams.records import TopicPartition


@dataclass(frozen=True)
class SinkPositions:
    """The positions of one sink of one application, beside the key ``target``."""

    prefix: str
    target: str
    context: SinkContext

    def key(self, partition: TopicPartition) -> str:
        """The hash of a partition."""
        beside = in_slot_of(self.target, self.prefix)
        # A slash is in no name of a topic, and names are at their own places.
        return (
            f"{beside}:{self.context.application}/{self.context.name}/{partition.topic}/{partition.partition}"
        )

    def claim(
        self, connection: Connection, partitions: Mapping[TopicPartition, str]
    ) -> dict[TopicPartition, int]:
        """Read positions, and make transactions fail that other owners have open.

        Raises ``SinkMismatch`` for a position of another topic of that name.
        """
        commands = []
        for partition, topic_id in partitions.items():
            key = self.key(partition).encode()
            commands += [
                packed(b"HSETNX", key, b"topic_id", topic_id.encode()),
                packed(b"HSETNX", key, b"next_offset", b"0"),
                # Written at each claim: whoever watches the key has lost.
                packed(b"HINCRBY", key, b"claims", b"1"),
                packed(b"HMGET", key, b"topic_id", b"next_offset"),
            ]
        answers = connection.transaction(*commands)
        assert answers is not None, "nothing is watched"
        found = {}
        for (partition, topic_id), (known, next_offset) in zip(
            partitions.items(), answers[3::4], strict=True
        ):
            if known.decode() != topic_id:
                raise SinkMismatch(
                    f"sink {self.context.name!r}: its position {int(next_offset)} in {partition} belongs to "
                    f"the topic with the id {known.decode()}, which was deleted: {partition.topic!r} has the "
                    f"id {topic_id} now",
                    hint="to read the new topic from its beginning: "
                    f"DEL '{self.key(partition)}', and those of its other partitions (and empty the target, "
                    "if it should have the new topic's records only)",
                )
            found[partition] = int(next_offset)
        return found

    def watching(self, parts: Sequence[SinkRows]) -> list[bytes]:
        """The commands that watch and read positions."""
        keys = [self.key(part.partition).encode() for part in parts]
        return [packed(b"WATCH", *keys), *(packed(b"HGET", key, b"next_offset") for key in keys)]

    def compare(self, parts: Sequence[SinkRows], answers: Sequence[bytes | None]) -> None:
        """Raises ``SinkFenced`` where a position is not the start of its rows."""
        for part, found in zip(parts, answers, strict=True):
            if found is None or int(found) != part.start:
                now = "gone" if found is None else f"{int(found)} by now"
                raise SinkFenced(
                    f"sink {self.context.name!r}: the position {part.start} of {part.partition} in "
                    f"{self.key(part.partition)} is {now}: another worker has moved it, or the server lost it"
                )

    def moving(self, parts: Sequence[SinkRows]) -> list[bytes]:
        """The commands that move positions."""
        return [
            packed(b"HSET", self.key(part.partition).encode(), b"next_offset", b"%d" % part.next_offset)
            for part in parts
        ]

    def lost(self, parts: Sequence[SinkRows]) -> SinkUnavailable:
        """The error for a transaction whose positions were written to by another owner."""
        which = ", ".join(f"{part.start} of {part.partition}" for part in parts)
        return SinkFenced(
            f"sink {self.context.name!r}: another worker has claimed or moved the position {which}"
        )
