"""Topics that change under a worker: deleted, with more partitions, with a truncated changelog."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams import App, Text
from streams.broker import GroupSettings, NewTopic
from streams.broker.memory.cluster import Cluster
from streams.errors import StateError, TopicError
from streams.events import Event
from streams.monitoring.partition_counts import PartitionCounts
from streams.records import Output, TopicPartition
from streams.runtime.cleanup import TOPICS_SECONDS
from streams.state.memory import MemoryDatabases
from tests.support.clock import Clock
from tests.support.cluster import MemoryCluster
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from streams.runtime.worker import Worker
    from streams.state.store import Databases

ROUNDS = 400
KEYS = [f"key {number}".encode() for number in range(40)]


class Place(MemoryCluster):
    """A cluster with an app that counts keys, and its worker's disk."""

    def __init__(self, partitions: int = 2) -> None:
        super().__init__({"in": partitions, "counts": partitions}, Clock(tick=0.001))
        self.app = App("app")
        self.app.stream("in", key=Text(), value=Text()).group_by_key().count("counted").to("counts")
        self.databases: Databases = MemoryDatabases()

    def worker(self, partitions: dict[str, int] | None = None) -> Worker:
        counts = self.prepare(self.app, create_outputs=False, dead_letter_topic="letters")
        worker = self.make_worker(
            self.app, "app-0", partitions=partitions or counts, databases=self.databases
        )
        worker.start()
        return worker

    def send(self) -> None:
        self.write(Output("in", KEYS, KEYS, [0] * len(KEYS)))

    def rounds(self, worker: Worker, rounds: int = ROUNDS) -> None:
        for _ in range(rounds):
            worker.run_once()
            self.clock.advance(0.1)

    def process(self) -> None:
        self.send()
        worker = self.worker()
        self.rounds(worker)
        worker.close()

    def empty_changelog(self) -> None:
        self.admin.delete_topics(["app-counted-changelog"])


def test_an_input_topic_that_is_deleted_ends_the_worker():
    place = Place()
    worker = place.worker()
    place.rounds(worker)
    place.admin.delete_topics(["in"])
    with pytest.raises(TopicError, match="no longer exist: in"):
        place.rounds(worker)


def test_an_output_topic_that_stays_away_ends_the_worker_and_nothing_is_committed_or_dead():
    place = Place()
    worker = place.worker()
    place.rounds(worker)
    place.admin.delete_topics(["counts"])
    place.send()
    with pytest.raises(TopicError, match="topic counts no longer exists"):
        place.rounds(worker)
    assert not place.admin.committed_offsets("app")
    assert not sum(
        place.admin.end_offsets([TopicPartition("letters", number) for number in range(2)]).values()
    )


def test_an_output_topic_that_is_back_within_seconds_is_waited_for():
    place = Place()
    worker = place.worker()
    place.rounds(worker)
    place.admin.delete_topics(["counts"])
    place.send()
    for _ in range(5):
        worker.run_once()
    assert not place.admin.committed_offsets("app")
    place.admin.create_topics([NewTopic(name="counts", partitions=2)])
    place.rounds(worker)
    worker.close()
    counts = [TopicPartition("counts", number) for number in range(2)]
    # One for each key, and a transaction's marker in each partition.
    assert sum(place.admin.end_offsets(counts).values()) == len(KEYS) + 2


def test_a_topic_that_is_back_within_seconds_is_no_trouble():
    place = Place()
    worker = place.worker()
    place.rounds(worker)
    place.admin.delete_topics(["in"])
    worker.run_once()
    place.clock.advance(1.5 * TOPICS_SECONDS)
    worker.run_once()
    place.admin.create_topics([NewTopic(name="in", partitions=2)])
    place.rounds(worker)


def test_partitions_that_were_added_to_the_input_of_a_store_end_the_worker():
    place = Place(partitions=3)
    worker = place.worker(partitions={"in": 2})
    with pytest.raises(TopicError, match="in had 2 partitions when this worker began and has more now"):
        place.rounds(worker)


def test_a_worker_that_learns_of_more_partitions_commits_nothing_more(monkeypatch):
    place = Place()
    worker = place.worker()
    place.send()
    place.rounds(worker)
    counts = PartitionCounts(worker, place.broker)
    counts.check()
    place.rounds(worker, 2)
    committed = place.admin.committed_offsets("app")
    assert sum(committed.values()) >= len(KEYS)
    # The group does not know it yet: its coordinator is told later, and members release partitions first.
    monkeypatch.setattr(Cluster, "topics_changed", lambda _: None)
    place.broker.add_partitions("in", 3)
    place.send()
    counts.check()
    with pytest.raises(TopicError, match="in had 2 partitions when this worker began and has more now"):
        place.rounds(worker, 2)
    assert place.admin.committed_offsets("app") == committed


def test_more_partitions_of_a_topic_without_state_are_read():
    place = Place()
    app = App("copies")
    app.stream("in", key=Text(), value=Text()).to("counts")
    partitions = place.prepare(app, create_outputs=False, dead_letter_topic="letters")
    worker = place.make_worker(app, "copies-0", partitions=partitions)
    worker.start()
    place.rounds(worker, 5)
    place.broker.add_partitions("in", 3)
    PartitionCounts(worker, place.broker).check()
    place.send()
    place.rounds(worker)
    counts = [TopicPartition("counts", number) for number in range(2)]
    assert sum(place.admin.end_offsets(counts).values()) >= len(KEYS)


def test_a_store_whose_changelog_was_deleted_does_not_begin_empty_in_the_middle_of_its_input():
    place = Place()
    place.process()
    place.empty_changelog()
    worker = place.worker()
    with pytest.raises(StateError, match=r"includes app-counted-changelog-\d up to offset"):
        # An end before the checkpoint is only accepted after a minute.
        place.rounds(worker, 2 * ROUNDS)


def test_a_store_that_begins_empty_in_the_middle_of_its_input_is_warned_of():
    place = Place()
    with capture_logs() as logs:
        place.process()
    assert Event.STORE_BEGINS_EMPTY not in [log["event"] for log in logs]
    # Committed by others, the offsets do not tell that there was a store.
    place.broker.consumer(GroupSettings(group="app")).commit(place.admin.committed_offsets("app"))
    place.empty_changelog()
    place.databases = MemoryDatabases()
    with capture_logs() as logs:
        place.process()
    assert Event.STORE_BEGINS_EMPTY in [log["event"] for log in logs]


def test_a_store_that_begins_anew_with_its_input_is_rebuilt():
    place = Place()
    place.process()
    databases = place.databases
    place = Place()
    place.databases = databases
    place.process()
