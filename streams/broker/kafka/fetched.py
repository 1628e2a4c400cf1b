"""The records that a consumer of a Kafka cluster reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from confluent_kafka import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import Headers, Rows


class KafkaFetched:
    """``Fetched`` on the client's own messages: a column is only built when it is read."""

    __slots__ = ("_messages", "partition", "topic")

    def __init__(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        self.topic = topic
        self.partition = partition
        self._messages = messages

    @property
    def next_offset(self) -> int:
        return cast("int", self._messages[-1].offset()) + 1

    def __len__(self) -> int:
        return len(self._messages)

    def _at(self, rows: Rows | None) -> Sequence[Message]:
        messages = self._messages
        return messages if rows is None else [messages[row] for row in rows]

    def keys(self, rows: Rows | None = None) -> list[bytes | None]:
        return list(map(Message.key, self._at(rows)))

    def values(self, rows: Rows | None = None) -> list[bytes | None]:
        return list(map(Message.value, self._at(rows)))

    def timestamps(self, rows: Rows | None = None) -> list[int]:
        # A record without a timestamp has the type 0 (not available) and the value -1 or 0.
        return [stamp if kind else -1 for kind, stamp in map(Message.timestamp, self._at(rows))]

    def offsets(self, rows: Rows | None = None) -> list[int]:
        return cast("list[int]", list(map(Message.offset, self._at(rows))))

    def headers(self, rows: Rows | None = None) -> list[Headers | None] | None:
        headers = cast("list[Headers | None]", list(map(Message.headers, self._at(rows))))
        return headers if any(headers) else None

    def slice(self, start: int, stop: int) -> KafkaFetched:
        return KafkaFetched(self.topic, self.partition, self._messages[start:stop])
