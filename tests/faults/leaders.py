"""Leaders of partitions: what they report of a partition's end, and from which offset on each has led it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import confluent_kafka
from confluent_kafka import IsolationLevel, KafkaException
from confluent_kafka.admin import AdminClient, OffsetSpec

from streams.errors import BrokerError
from tests.faults.verdicts import LeaderEpoch

if TYPE_CHECKING:
    from collections.abc import Collection

    from confluent_kafka.admin import ListOffsetsResultInfo

    from streams.devstack.kafka import LocalKafka
    from streams.records import TopicPartition

ANSWER_SECONDS = 3.0

_LATEST: OffsetSpec = OffsetSpec.latest()


class Leaders:
    """The leaders of a cluster's partitions."""

    def __init__(self, kafka: LocalKafka) -> None:
        self._kafka = kafka
        self._client = self._connect()

    def ends(self, places: Collection[TopicPartition]) -> dict[TopicPartition, ListOffsetsResultInfo]:
        """The end of each partition with the epoch of the leader that reports it, open transactions included.

        Raises ``BrokerError`` when a leader does not answer.
        """
        asked = {confluent_kafka.TopicPartition(*place): place for place in places}
        answers = self._client.list_offsets(
            dict.fromkeys(asked, _LATEST),
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=ANSWER_SECONDS,
        )
        try:
            ends = {asked[partition]: answer.result() for partition, answer in answers.items()}
        except KafkaException as error:
            # A client that waits for a broker that hangs keeps waiting.
            self._client = self._connect()
            raise BrokerError(f"the ends of {len(asked)} partitions: {error}") from error
        # The client returns -1001 instead of an error if a broker does not answer.
        if any(end.offset < 0 for end in ends.values()):
            self._client = self._connect()
            raise BrokerError(f"the ends of {len(asked)} partitions: a leader does not answer")
        return ends

    def epochs(self, place: TopicPartition) -> list[LeaderEpoch]:
        """Every leader epoch in which records of the partition were appended, from a replica's own file.

        All replicas in sync have the same; of those that differ, the one that knows the latest epoch counts.
        """
        known = [
            [LeaderEpoch(*map(int, line.split())) for line in file.read_text().splitlines()[2:]]
            for status in self._kafka.status()
            for file in self._kafka.node(status.number).folder.glob(f"data/{place}/leader-epoch-checkpoint")
        ]
        return max(known, key=lambda found: found[-1:], default=[])

    def _connect(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self._kafka.bootstrap_servers, "log_level": 3})
