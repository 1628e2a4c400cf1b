"""The brokers of the contract tests, and clients that are closed after each test."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from streams.broker import Broker, Consumer, GroupSettings, NewTopic, Producer
from streams.broker.memory import MemoryBroker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Broker:
    if request.param == "memory":
        return MemoryBroker()
    from streams.broker.kafka import KafkaBroker  # noqa: PLC0415  # the memory tests need no client library

    return KafkaBroker(
        {"bootstrap.servers": request.getfixturevalue("kafka_bootstrap")},
        # New topics are noticed soon.
        consumer={"topic.metadata.refresh.interval.ms": 1000},
    )


class Clients:
    """Creates clients whose topics, groups and transactional ids belong to a single test."""

    def __init__(self, broker: Broker) -> None:
        self.prefix = f"contract-{uuid.uuid4().hex[:12]}"
        self.admin = broker.admin()
        self._broker = broker
        self._made: list[Consumer | Producer] = []

    def name(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def topic(self, name: str = "topic", *, partitions: int = 1, **settings: Any) -> str:
        topic = self.name(name)
        self.admin.create_topics([NewTopic(name=topic, partitions=partitions, **settings)])
        return topic

    def consumer(self, group: str = "group", **settings: Any) -> Consumer:
        consumer = self._broker.consumer(GroupSettings(group=self.name(group), **settings))
        self._made.append(consumer)
        return consumer

    def producer(self) -> Producer:
        producer = self._broker.producer()
        self._made.append(producer)
        return producer

    def transactional_producer(self, transactional_id: str = "worker-0") -> Producer:
        producer = self._broker.producer(transactional_id=self.name(transactional_id))
        self._made.append(producer)
        producer.init_transactions(30.0)
        return producer

    def close(self) -> None:
        for client in reversed(self._made):
            client.close()
        self.admin.close()


@pytest.fixture
def clients(broker: Broker) -> Iterator[Clients]:
    clients = Clients(broker)
    yield clients
    clients.close()
