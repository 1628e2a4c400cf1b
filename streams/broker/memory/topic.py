"""A topic: its settings, its logs, and the records that it rejects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.broker import Refusal, TopicDescription
from streams.errors import RecordRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.broker.memory.log import Log
    from streams.records import Output

DEFAULT_TOPIC_SETTINGS = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": "3600000",
}
"""The settings that this broker implements, with the defaults of Kafka 4.0."""

OTHER_TOPIC_SETTINGS = {
    "compression.gzip.level",
    "compression.lz4.level",
    "compression.type",
    "compression.zstd.level",
    "delete.retention.ms",
    "file.delete.delay.ms",
    "flush.messages",
    "flush.ms",
    "follower.replication.throttled.replicas",
    "index.interval.bytes",
    "leader.replication.throttled.replicas",
    "local.retention.bytes",
    "local.retention.ms",
    "max.compaction.lag.ms",
    "message.timestamp.before.max.ms",
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
    "min.insync.replicas",
    "preallocate",
    "remote.copy.disable",
    "remote.log.delete.on.disable",
    "remote.storage.enable",
    "retention.bytes",
    "retention.ms",
    "segment.bytes",
    "segment.index.bytes",
    "segment.jitter.ms",
    "segment.ms",
    "unclean.leader.election.enable",
}
"""The settings of Kafka that this broker accepts and ignores."""

KNOWN_SETTINGS = OTHER_TOPIC_SETTINGS | DEFAULT_TOPIC_SETTINGS.keys()

_RECORD_BYTES = 70
"""The minimum size of a batch of one record without its key, value and headers."""


@dataclass(frozen=True, slots=True)
class MemoryTopic:
    """A topic with its logs, one per partition, and its settings."""

    description: TopicDescription
    settings: dict[str, str]
    logs: list[Log]
    identifier: str = ""
    """The id that no other topic has, not even one of the same name."""

    def refused(self, output: Output, wall_clock: Callable[[], int] | None) -> list[Refusal]:
        """The rows that the topic rejects, and the reasons."""
        settings = DEFAULT_TOPIC_SETTINGS | self.settings
        name, found = output.topic, {}
        if "compact" in settings["cleanup.policy"] and None in output.keys:
            for row, key in enumerate(output.keys):
                if key is None:
                    found[row] = (
                        f"topic {name} is compacted and rejects records without a key (INVALID_RECORD)"
                    )
        ahead = int(settings["message.timestamp.after.max.ms"])
        if wall_clock is not None and settings["message.timestamp.type"] == "CreateTime":
            latest = wall_clock() + ahead
            if max(output.timestamps, default=0) > latest:
                for row, stamp in enumerate(output.timestamps):
                    if stamp > latest:
                        found[row] = (
                            f"topic {name} rejects event times more than {ahead} ms ahead (INVALID_TIMESTAMP)"
                        )
        most = int(settings["max.message.bytes"]) - _RECORD_BYTES
        for row, size in enumerate(record_sizes(output)):
            if size > most:
                found[row] = f"topic {name} rejects a record of {size} bytes (MSG_SIZE_TOO_LARGE)"
        return [Refusal(output, row, RecordRefused(found[row], position=row)) for row in sorted(found)]


def record_sizes(output: Output) -> list[int]:
    """The size of the key, value and headers of each row in bytes."""
    sizes = [
        (0 if key is None else len(key)) + (0 if value is None else len(value))
        for key, value in zip(output.keys, output.values, strict=True)
    ]
    if output.headers is not None:
        for row, headers in enumerate(output.headers):
            for name, value in headers or ():
                sizes[row] += len(name.encode()) + (0 if value is None else len(value))
    return sizes
