"""The admin client: topics, settings, offsets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from streams.broker import GroupMember, TopicDescription
from streams.broker.memory.log import Log
from streams.broker.memory.topic import KNOWN_SETTINGS, MemoryTopic
from streams.errors import TopicError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.broker import Isolation, NewTopic
    from streams.broker.memory.cluster import Cluster
    from streams.records import TopicPartition

_LEGAL_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class MemoryAdmin:
    """``Admin`` of a ``MemoryBroker``. Partitions that do not exist raise ``TopicError``."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def topics(self) -> dict[str, TopicDescription]:
        with self._cluster.locked():
            return {name: topic.description for name, topic in self._cluster.topics.items()}

    def partition_count(self, topic: str) -> int | None:
        with self._cluster.locked():
            found = self._cluster.topics.get(topic)
            return None if found is None else found.description.partitions

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        with self._cluster.locked():
            return {
                name: topic.identifier
                for name in topics
                if (topic := self._cluster.topics.get(name)) is not None
            }

    def create_topics(self, topics: Collection[NewTopic]) -> set[str]:
        for topic in topics:
            if not _LEGAL_TOPIC.fullmatch(topic.name) or topic.partitions < 1:
                raise TopicError(
                    f"topic {topic.name!r} with {topic.partitions} partitions cannot be created",
                    hint="a name has 1 to 249 characters of a-z A-Z 0-9 . _ -, a topic at least 1 partition",
                )
        created = set()
        with self._cluster.locked():
            for topic in topics:
                if topic.name in self._cluster.topics:
                    continue
                replication = 1 if topic.replication_factor is None else topic.replication_factor
                unknown = sorted(topic.settings.keys() - KNOWN_SETTINGS)
                if unknown:
                    raise TopicError(f"creating topic {topic.name}: unknown setting {unknown[0]}")
                wished = {name: value for name, value in topic.wished.items() if name in KNOWN_SETTINGS}
                description = TopicDescription(topic.name, topic.partitions, replication)
                logs = [Log() for _ in range(topic.partitions)]
                self._cluster.topics[topic.name] = MemoryTopic(
                    description,
                    wished | dict(topic.settings),
                    logs,
                    identifier=f"topic-{next(self._cluster.topic_numbers)}",
                )
                created.add(topic.name)
            self._cluster.topics_changed()
        return created

    def delete_topics(self, names: Collection[str]) -> None:
        with self._cluster.locked():
            for name in names:
                self._cluster.topics.pop(name, None)
            for group in self._cluster.groups.values():
                group.offsets = {p: offset for p, offset in group.offsets.items() if p.topic not in names}
                group.metadata = {p: text for p, text in group.metadata.items() if p.topic not in names}
            self._cluster.topics_changed()

    def delete_records(self, offsets: Mapping[TopicPartition, int]) -> None:
        with self._cluster.locked():
            for partition, offset in offsets.items():
                log = self._cluster.existing_log(partition)
                log.start = max(log.start, min(offset, log.next_offset))

    def require_rights(self, rights: Mapping[str, Collection[str]]) -> None:
        """Do nothing: all clients have all rights."""

    def settings(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        with self._cluster.locked():
            missing = [topic for topic in topics if topic not in self._cluster.topics]
            if missing:
                raise TopicError(f"settings of topic {missing[0]}: the topic does not exist")
            return {topic: dict(self._cluster.topics[topic].settings) for topic in topics}

    def end_offsets(
        self, partitions: Collection[TopicPartition], isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        with self._cluster.locked():
            return {p: self._cluster.reported_end(p, isolation) for p in partitions}

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        with self._cluster.locked():
            return {p: self._cluster.existing_log(p).start for p in partitions}

    def without_leader(self, topics: Collection[str]) -> set[TopicPartition]:  # noqa: ARG002 - the protocol's
        return set()

    def offsets_for_times(
        self, times: Mapping[TopicPartition, int], isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        with self._cluster.locked():
            return {p: self._cluster.existing_log(p).first_at(time, isolation) for p, time in times.items()}

    def committed_offsets(
        self, group: str, partitions: Collection[TopicPartition] | None = None
    ) -> dict[TopicPartition, int]:
        with self._cluster.locked():
            offsets = self._cluster.group(group).offsets
            return {
                place: offset
                for place, offset in offsets.items()
                if partitions is None or place in partitions
            }

    def own_settings(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        return self.settings(topics)

    def committed_metadata(
        self, group: str, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, str]:
        with self._cluster.locked():
            metadata = self._cluster.group(group).metadata
            return {place: text for place in partitions if (text := metadata.get(place))}

    def group_members(self, group: str) -> list[GroupMember]:
        with self._cluster.locked():
            found = self._cluster.group(group)
            return [
                GroupMember(
                    member.name,
                    "memory",
                    "/127.0.0.1",
                    member.settings.instance_id,
                    tuple(sorted(place for place, owner in found.owners.items() if owner is member)),
                )
                for member in found.members.values()
            ]

    def close(self) -> None:
        """Do nothing: there is no connection."""
