"""The directory of workers, on the memory broker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.errors import BrokerUnreachable, Retriable
from streams.records import Output
from streams.replicas import Replica, Replicas

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_for(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_workers_find_each_other_and_learn_of_changes():
    broker = MemoryBroker()
    held = {"one": {"counts": [0, 1], "last": [0]}, "two": {"counts": [2]}}
    with (
        Replicas(broker, "app", "one") as one,
        Replicas(broker, "app", "two") as two,
    ):
        one.start(lambda: Replica(stores=dict(held["one"])), address="one:1")
        two.start(lambda: Replica(stores=dict(held["two"])), address="two:2")
        wait_for(lambda: one.owners("counts", anew=True) == {0: "one:1", 1: "one:1", 2: "two:2"})
        assert two.owners("last", anew=True) == {0: "one:1"}
        assert two.owners("nothing") == {}
        held["one"] = {"counts": [0]}
        held["two"] = {"counts": [1, 2]}
        wait_for(lambda: one.owners("counts", anew=True) == {0: "one:1", 1: "two:2", 2: "two:2"})
    with Replicas(broker, "app", "three") as three:
        assert three.owners("counts") == {}


def test_who_took_over_last_counts_whatever_a_killed_worker_said():
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name="app-replicas", partitions=1)])
    producer = broker.producer()
    for name, value in (
        (b"dead", b'{"address":"dead:1","stores":{"counts":[0,1]}}'),
        (b"new", b'{"address":"new:1","stores":{"counts":[1]}}'),
        (b"unreachable", b'{"stores":{"counts":[2]}}'),
    ):
        producer.produce(Output("app-replicas", [name], [value], [0]))
    producer.produce(Output("app-replicas", [b"other"], [b"no json"], [0]))
    producer.flush(1)
    with Replicas(broker, "app", "one") as replicas:
        assert replicas.owners("counts") == {0: "dead:1", 1: "new:1"}


def test_what_is_known_is_used_for_a_second_and_while_the_broker_is_away():
    broker = MemoryBroker()
    polls: list[str] = []
    broker.before = polls.append
    with Replicas(broker, "app", "one") as replicas:
        replicas.start(lambda: Replica(stores={"counts": [0]}), address="one:1")
        wait_for(lambda: replicas.owners("counts", anew=True) == {0: "one:1"})
        before = polls.count("poll")
        for _ in range(100):
            replicas.owners("counts")
        assert polls.count("poll") == before

        other = Replicas(broker, "app", "two")
        other.start(lambda: Replica(stores={"counts": [1]}), address="two:1")

        def away(step: str) -> None:
            if step == "poll":
                raise Retriable("made to fail")

        wait_for(lambda: broker.admin().end_offsets([replicas._topic])[replicas._topic] == 2)
        broker.before = away
        assert replicas.owners("counts", anew=True) == {0: "one:1"}
        broker.before = None
        assert replicas.owners("counts", anew=True) == {0: "one:1", 1: "two:1"}
        other.close()


def test_a_broker_that_never_answered_is_not_waited_for_by_everybody():
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name="app-replicas", partitions=1)])
    polls: list[str] = []

    def away(step: str) -> None:
        if step == "poll":
            polls.append(step)
            raise Retriable("made to fail")

    broker.before = away
    with Replicas(broker, "app", "one") as replicas:
        with pytest.raises(Retriable):
            replicas.owners("counts")
        with pytest.raises(BrokerUnreachable, match="could not be read just now"):
            replicas.owners("counts")
        assert len(polls) == 1
        broker.before = None
        assert replicas.owners("counts", anew=True) == {}


def test_telling_is_tried_again(monkeypatch):
    monkeypatch.setattr("streams.replicas.RETRY_SECONDS", 0.01)
    broker = MemoryBroker()
    failures = ["flush"] * 2

    def fail(step: str) -> None:
        if failures and step == failures[0]:
            failures.pop()
            raise Retriable("made to fail")

    broker.before = fail
    with Replicas(broker, "app", "one") as replicas:
        replicas.start(lambda: Replica(stores={"counts": [0]}), address="one:1")
        wait_for(lambda: replicas.owners("counts", anew=True) == {0: "one:1"})
    assert not failures


def test_members_are_those_that_hold_tasks_or_said_lately_that_they_hold_none(monkeypatch):
    monkeypatch.setattr("streams.replicas.ALIVE_SECONDS", 0.6)
    broker = MemoryBroker()
    tasks = {"one": ["0_0"], "two": ["0_1"], "idle": []}

    def start(replicas: Replicas, name: str, member: str) -> None:
        replicas.start(lambda: Replica(member=member, tasks=tasks[name]), follow=True)

    one, two, idle = (Replicas(broker, "app", name) for name in tasks)
    with one, idle:
        start(one, "one", "1b")
        start(two, "two", "1a")
        start(idle, "idle", "0c")
        wait_for(lambda: one.members == ("0c", "1a", "1b") == idle.members)
        # As if it was killed, it tells nothing any more; another takes its tasks over.
        two._stop.set()
        assert two._thread is not None
        two._thread.join()
        tasks["one"] = ["0_0", "0_1"]
        wait_for(lambda: one.members == ("0c", "1b"))
        idle.close()
        wait_for(lambda: one.members == ("1b",))
    two.close()
