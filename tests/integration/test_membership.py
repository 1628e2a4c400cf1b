"""Ownership of tasks over failures and joins, on a real broker: standby replicas, lost notifications."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient

from streams.broker import GroupSettings, NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from tests.conftest import QUICK_GROUPS
from tests.integration.test_state import FAR, check, records, restored

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from streams.records import TopicPartition

pytestmark = pytest.mark.kafka


def tasks_of(*partitions: int) -> frozenset[str]:
    """The tasks of these partitions in the counting app's two subtopologies."""
    return frozenset(f"{number}_{partition}" for number in range(2) for partition in partitions)


REPLICAS = {
    tasks_of(0, 1): tasks_of(),
    tasks_of(2): tasks_of(0, 1, 3),
    tasks_of(3): tasks_of(2),
}
"""The tasks of each of three workers, and the replicas that it keeps: what it owns if another one leaves."""


def owned_and_copied(worker) -> tuple[frozenset[str], set[str]]:
    """The tasks of a worker that are restored, and those of which it now has a complete replica."""
    owned: set[str] = set()
    copied: set[str] = set()
    for event in worker.events(
        "restored", "partitions revoked", "partitions lost", "standby ready", "standby stopped"
    ):
        if event["event"] == "restored":
            owned.add(event["task"])
            copied.discard(event["task"])
        elif event["event"] == "standby ready":
            copied.add(event["task"])
        elif event["event"] == "standby stopped":
            copied.discard(event["task"])
        else:
            gone = {name.rpartition("-")[2] for name in event["partitions"]}
            owned = {task for task in owned if task.rpartition("_")[2] not in gone}
    return frozenset(owned), copied


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_killed_workers_task_continues_from_another_workers_standby_replica(count, protocol):
    settings = {
        "standby_replicas": 1,
        "group_protocol": protocol,
        "session_timeout": 6,
        "transaction_timeout": 3,
    }
    sent = records(0, 8_000, keys=2_000)
    count.send(sent)
    workers = [count.start(**settings)]
    # Replicas begin when nothing more is written to the changelogs: one that is ready has read everything.
    count.wait_until_consumed()
    workers += [count.start(**settings) for _ in range(2)]

    def settled() -> bool:
        # Replicas of an earlier assignment, with two workers, do not count.
        return dict(map(owned_and_copied, workers)) == REPLICAS

    count.wait_for(settled, 60, "all tasks are restored, with a replica where they would move")
    before = [restored(worker) for worker in workers]
    workers[0].kill()
    more = records(8_000, 9_000, keys=2_000)
    closing = [(f"key-{number}", FAR) for number in range(2_000)]
    count.send(more + closing)
    count.wait_until_consumed()
    check(count, sent + more + closing)
    again = sum(map(restored, workers)) - sum(before)
    assert again < 200
    for worker in workers[1:]:
        assert worker.stop() == 0


class Member:
    """A member of a group that uses the Kafka client directly."""

    def __init__(self, broker: KafkaBroker) -> None:
        self.held: set[TopicPartition] = set()
        self.consumer = broker.consumer(GroupSettings(group="group", protocol="consumer"))
        self.consumer.subscribe(["topic"], self)

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        self.held |= set(partitions)

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        self.held -= set(partitions)

    lost = revoked


def poll_until(condition: Callable[[], bool], members: Sequence[Member], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        for member in members:
            member.consumer.poll(100, 0.02)
    return condition()


def test_a_member_that_missed_a_revocation_joins_again(tmp_path):
    # The coordinator hangs for longer than the heartbeat's time-out, just when a member has joined and the
    # other one has not been notified: the notification is lost.
    with LocalKafka.start(tmp_path, heap_mb=384, properties=QUICK_GROUPS, java_options=QUICK_JAVA) as cluster:
        broker = KafkaBroker({"bootstrap.servers": cluster.bootstrap_servers})
        broker.admin().create_topics([NewTopic(name="topic", partitions=8)])
        watcher = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
        old = Member(broker)
        assert poll_until(lambda: len(old.held) == 8, [old], 60)
        new = Member(broker)
        deadline = time.monotonic() + 60
        while len(watcher.describe_consumer_groups(["group"])["group"].result().members) < 2:
            assert time.monotonic() < deadline
            new.consumer.poll(1, 0)
        node = cluster.node(1)
        node.pause()
        poll_until(lambda: False, [old, new], 1.6)
        node.resume()
        # Before its poll deadline, which is five minutes, the coordinator would do nothing.
        assert poll_until(lambda: len(old.held) == len(new.held) == 4, [old, new], 90)
        assert not old.held & new.held
        for member in (old, new):
            member.consumer.close()
