"""The directory of workers, on the memory broker."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import msgspec
import pytest

from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.errors import BrokerError, BrokerUnreachable, Retriable
from streams.events import Event
from streams.queries.directory import Replica, Replicas
from streams.records import Output, TopicPartition
from tests.support.logs import capture_logs
from tests.support.waiting import wait_until

soon = partial(wait_until, timeout=10.0)


def test_workers_find_each_other_and_learn_of_changes():
    broker = MemoryBroker()
    held = {"one": {"counts": [0, 1], "last": [0]}, "two": {"counts": [2]}}
    with (
        Replicas(broker, "app", "one") as one,
        Replicas(broker, "app", "two") as two,
    ):
        one.start(lambda: Replica(stores=dict(held["one"])), address="one:1")
        two.start(lambda: Replica(stores=dict(held["two"])), address="two:2")
        soon(lambda: one.owners("counts", refresh=True) == {0: "one:1", 1: "one:1", 2: "two:2"})
        assert two.owners("last", refresh=True) == {0: "one:1"}
        assert two.owners("nothing") == {}
        held["one"] = {"counts": [0]}
        held["two"] = {"counts": [1, 2]}
        soon(lambda: one.owners("counts", refresh=True) == {0: "one:1", 1: "two:2", 2: "two:2"})
    with Replicas(broker, "app", "three") as three:
        assert three.owners("counts") == {}


def test_the_latest_owner_counts_whatever_a_killed_worker_has_written():
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


def test_what_is_known_is_used_for_a_second_and_while_the_broker_is_away(monkeypatch):
    # Who follows the topic polls too.
    monkeypatch.setattr("streams.queries.directory.PUBLISH_SECONDS", 3600.0)
    broker = MemoryBroker()
    polls: list[str] = []
    broker.before = polls.append
    with Replicas(broker, "app", "one") as replicas:
        replicas.start(lambda: Replica(stores={"counts": [0]}), address="one:1")
        soon(lambda: replicas.owners("counts", refresh=True) == {0: "one:1"})
        before = polls.count("poll")
        for _ in range(100):
            replicas.owners("counts")
        assert polls.count("poll") == before

        other = Replicas(broker, "app", "two")
        other.start(lambda: Replica(stores={"counts": [1]}), address="two:1")

        def away(step: str) -> None:
            if step == "poll":
                raise Retriable("made to fail")

        topic = TopicPartition("app-replicas", 0)
        soon(lambda: broker.admin().end_offsets([topic])[topic] == 2)
        broker.before = away
        assert replicas.owners("counts", refresh=True) == {0: "one:1"}
        broker.before = None
        assert replicas.owners("counts", refresh=True) == {0: "one:1", 1: "two:1"}
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
        with pytest.raises(BrokerUnreachable, match="could not be read a moment ago"):
            replicas.owners("counts")
        assert len(polls) == 1
        broker.before = None
        assert replicas.owners("counts", refresh=True) == {}


def test_telling_is_tried_again(monkeypatch):
    monkeypatch.setattr("streams.queries.directory.RETRY_SECONDS", 0.01)
    broker = MemoryBroker()
    failures = ["flush"] * 2

    def fail(step: str) -> None:
        if failures and step == failures[0]:
            failures.pop()
            raise Retriable("made to fail")

    broker.before = fail
    with Replicas(broker, "app", "one") as replicas:
        replicas.start(lambda: Replica(stores={"counts": [0]}), address="one:1")
        soon(lambda: replicas.owners("counts", refresh=True) == {0: "one:1"})
    assert not failures


def test_members_are_those_with_tasks_or_with_a_recent_record_of_none(monkeypatch):
    monkeypatch.setattr("streams.queries.directory.ALIVE_SECONDS", 0.6)
    broker = MemoryBroker()
    tasks = {"one": ["0_0"], "two": ["0_1"], "idle": []}

    killed, halted, released = threading.Event(), threading.Event(), threading.Event()

    def start(replicas: Replicas, name: str, member: str) -> None:
        def replica() -> Replica:
            if name == "two" and killed.is_set():
                halted.set()
                released.wait()
            return Replica(member=member, tasks=tasks[name])

        replicas.start(replica, follow=True)

    one, two, idle = (Replicas(broker, "app", name) for name in tasks)
    with one, idle:
        start(one, "one", "1b")
        start(two, "two", "1a")
        start(idle, "idle", "0c")
        soon(lambda: one.members == ("0c", "1a", "1b") == idle.members)
        # As if it was killed, it writes nothing any more; another worker takes over its tasks.
        killed.set()
        assert halted.wait(10.0)
        tasks["one"] = ["0_0", "0_1"]
        soon(lambda: one.members == ("0c", "1b"))
        idle.close()
        soon(lambda: one.members == ("1b",))
    released.set()
    two.close()


# --- what others write into the topic


def write(broker: MemoryBroker, key: bytes | None, value: bytes | None) -> None:
    producer = broker.producer()
    producer.produce(Output("app-replicas", [key], [value], [0], partition=0))
    producer.flush(1)
    producer.close()


def written(broker: MemoryBroker) -> int:
    place = TopicPartition("app-replicas", 0)
    return broker.admin().end_offsets([place])[place]


def encoded(**claim: Any) -> bytes:
    return msgspec.json.encode(Replica(**claim))


GARBAGE: dict[str, tuple[bytes | None, bytes | None]] = {
    "key that is no UTF-8": (b"\xff\xfe", encoded(stores={"counts": [0]})),
    "key that is no UTF-8, deleted": (b"\xff\xfe", None),
    "no key": (None, encoded(stores={"counts": [0]})),
    "empty key": (b"", encoded(stores={"counts": [0]})),
    "no JSON": (b"two", b"\0\xff"),
    "empty": (b"two", b""),
    "no object": (b"two", b"[1,2]"),
    "other types": (b"two", b'{"tasks":7,"stores":[]}'),
    "partitions that are no numbers": (b"two", b'{"stores":{"counts":["0"]}}'),
    "nested deeply": (b"two", b'{"more":' + b"[" * 100_000),
    "large": (b"two", b'{"address":"' + b"a" * 5_000_000 + b'"}'),
    "under a worker's own name": (b"one", b"garbage"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_no_record_ends_the_thread_that_follows_the_topic(monkeypatch, name):
    monkeypatch.setattr("streams.queries.directory.PUBLISH_SECONDS", 0.01)
    monkeypatch.setattr("streams.queries.directory.NEWS_SECONDS", 0.02)
    monkeypatch.setattr("streams.queries.directory.CONTEST_SECONDS", 0.05)
    broker = MemoryBroker(max_record_bytes=10_000_000)
    # As it may have been made by hand: the app's own refuses some of this.
    loose = {"cleanup.policy": "delete", "max.message.bytes": "10000000"}
    broker.admin().create_topics([NewTopic(name="app-replicas", partitions=1, settings=loose)])
    held = {"one": [0], "two": [1]}
    with Replicas(broker, "app", "one") as one, Replicas(broker, "app", "two") as two:
        one.start(lambda: Replica(stores={"counts": held["one"]}), address="one:1")
        two.start(lambda: Replica(stores={"counts": held["two"]}), address="two:1")
        soon(lambda: one.owners("counts", refresh=True) == {0: "one:1", 1: "two:1"})
        with capture_logs() as logs:
            for _ in range(3):
                write(broker, *GARBAGE[name])
            end = written(broker)
            # Both go on following: a change of either is seen by the other one.
            held["one"], held["two"] = [], [0, 1]
            soon(lambda: one.owners("counts", refresh=True) == {0: "two:1", 1: "two:1"})
            soon(lambda: two.owners("counts", refresh=True) == {0: "two:1", 1: "two:1"})
            soon(lambda: written(broker) >= end + 2)
        assert (one.trouble, two.trouble) == (None, None)
        lines = [entry for entry in logs if entry["event"] == Event.RECORDS_SKIPPED]
        assert len(lines) <= 2
        assert all(line["topic"] == "app-replicas" and line["reason"] for line in lines)
    # A newcomer reads all of it from the beginning.
    with Replicas(broker, "app", "three") as three:
        assert three.owners("counts") == {}


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("name", ["other", "one"])
def test_a_false_claim_loses_and_leaves_no_trace(monkeypatch, name, removed):
    monkeypatch.setattr("streams.queries.directory.CONTEST_SECONDS", 0.1)
    broker = MemoryBroker()
    with Replicas(broker, "app", "one") as one, Replicas(broker, "app", "looking") as looking:
        mine = Replica(member="1", tasks=["0_0", "0_1"], stores={"counts": [0, 1]})
        one.start(lambda: mine, address="one:1", follow=True, tasks=["0_0", "0_1"])
        soon(lambda: looking.owners("counts", refresh=True) == {0: "one:1", 1: "one:1"})
        write(
            broker, name.encode(), encoded(address="x:1", member="0", tasks=["0_1"], stores={"counts": [1]})
        )
        assert looking.owners("counts", refresh=True).get(1) == "x:1"
        if removed:
            write(broker, name.encode(), None)
        soon(lambda: looking.owners("counts", refresh=True) == {0: "one:1", 1: "one:1"})
        soon(lambda: one.members == ("1",))
        # It is settled: nothing more is written.
        end = written(broker)
        time.sleep(0.3)
        assert written(broker) == end


def test_claims_to_unknown_tasks_make_no_members():
    broker = MemoryBroker()
    with Replicas(broker, "app", "one") as one:
        one.start(lambda: Replica(member="1", tasks=["0_0"]), follow=True, tasks=["0_0"])
        write(broker, b"of an earlier topology", encoded(member="0", tasks=["7_0", "0_9", "nonsense"]))
        write(broker, b"idle", encoded(member="2"))
        soon(lambda: one.members == ("1", "2"))


def test_a_worker_that_was_replaced_and_does_not_know_it_lets_the_other_claim(monkeypatch):
    monkeypatch.setattr("streams.queries.directory.PUBLISH_SECONDS", 0.01)
    monkeypatch.setattr("streams.queries.directory.CONTEST_SECONDS", 0.02)
    broker = MemoryBroker()
    with Replicas(broker, "app", "old") as old, Replicas(broker, "app", "new") as new:
        old.start(lambda: Replica(tasks=["0_0"], stores={"counts": [0]}), address="old:1")
        soon(lambda: new.owners("counts", refresh=True) == {0: "old:1"})
        time.sleep(0.05)
        new.start(lambda: Replica(tasks=["0_0"], stores={"counts": [0]}), address="new:1")
        soon(lambda: old.owners("counts", refresh=True) == {0: "new:1"})
        end = written(broker)
        time.sleep(0.3)
        assert written(broker) == end
        assert old.owners("counts", refresh=True) == {0: "new:1"}


def test_repeated_claims_are_contested_with_growing_delays(monkeypatch):
    monkeypatch.setattr("streams.queries.directory.PUBLISH_SECONDS", 0.005)
    monkeypatch.setattr("streams.queries.directory.CONTEST_SECONDS", 0.01)
    broker = MemoryBroker()
    with Replicas(broker, "app", "one") as one:
        one.start(lambda: Replica(stores={"counts": [0]}), address="one:1")
        soon(lambda: one.owners("counts", refresh=True) == {0: "one:1"})
        false = 0
        begun = written(broker)
        until = time.monotonic() + 1
        while time.monotonic() < until:
            write(broker, b"liar", encoded(address="x:1", stores={"counts": [0]}))
            false += 1
            time.sleep(0.005)
        # 0.01 s, 0.02 s, … fit into 1 s six times.
        assert 1 <= written(broker) - begun - false <= 8
        # And the last word is the truth.
        soon(lambda: one.owners("counts", refresh=True) == {0: "one:1"})


def test_a_topic_that_was_emptied_or_deleted_has_all_claims_again(monkeypatch):
    monkeypatch.setattr("streams.queries.directory.REFRESH_SECONDS", 0.3)
    monkeypatch.setattr("streams.queries.directory.RETRY_SECONDS", 0.05)
    broker = MemoryBroker()
    place = TopicPartition("app-replicas", 0)
    with Replicas(broker, "app", "one") as one:
        one.start(lambda: Replica(stores={"counts": [0]}), address="one:1")
        soon(lambda: one.owners("counts", refresh=True) == {0: "one:1"})

        def known() -> bool:
            try:
                with Replicas(broker, "app", "newcomer") as newcomer:
                    return newcomer.owners("counts") == {0: "one:1"}
            except BrokerError:
                return False

        broker.admin().delete_records({place: written(broker)})
        soon(known)
        broker.admin().delete_topics([place.topic])
        soon(known)


# --- health


def test_trouble_is_reported_while_the_broker_is_unavailable(monkeypatch):
    monkeypatch.setattr("streams.queries.directory.TROUBLE_SECONDS", 0.5)
    monkeypatch.setattr("streams.queries.directory.PUBLISH_SECONDS", 0.02)
    monkeypatch.setattr("streams.queries.directory.RETRY_SECONDS", 0.02)
    broker = MemoryBroker()

    def away(step: str) -> None:
        if step == "poll":
            raise Retriable("made to fail")

    replicas = Replicas(broker, "app", "one")
    assert (replicas.trouble, replicas.seconds_behind) == (None, 0.0)
    with replicas:
        replicas.start(lambda: Replica(stores={"counts": [0]}), address="one:1")
        soon(lambda: replicas.owners("counts", refresh=True))
        broker.before = away
        trouble = soon(lambda: replicas.trouble)
        assert not trouble.fixed_by_restart
        assert "app-replicas" in str(trouble)
        assert "made to fail" in str(trouble)
        assert replicas.seconds_behind > 0.5
        broker.before = None
        soon(lambda: replicas.trouble is None)


def test_trouble_that_a_restart_fixes_is_a_call_that_does_not_return(monkeypatch):
    monkeypatch.setattr("streams.queries.directory.TROUBLE_SECONDS", 0.1)
    monkeypatch.setattr("streams.queries.directory.ANSWER_SECONDS", 0.1)
    broker = MemoryBroker()
    go_on = threading.Event()
    replicas = Replicas(broker, "app", "one")
    replicas.start(lambda: Replica(stores={"counts": [0]}), address="one:1")
    soon(lambda: replicas.owners("counts", refresh=True))

    def hang(step: str) -> None:
        if step == "poll" and threading.current_thread().name == "streams-replicas":
            go_on.wait(20)

    broker.before = hang
    soon(lambda: replicas.trouble and replicas.trouble.fixed_by_restart)
    begun = time.monotonic()
    # Not even a stop waits for it.
    replicas.close()
    assert time.monotonic() - begun < 5
    go_on.set()


def test_what_the_worker_itself_fails_with_ends_nothing(monkeypatch):
    monkeypatch.setattr("streams.queries.directory.RETRY_SECONDS", 0.02)
    broker = MemoryBroker()
    failures = [RuntimeError("dictionary changed size during iteration")] * 3

    def replica() -> Replica:
        if failures:
            raise failures.pop()
        return Replica(stores={"counts": [0]})

    with Replicas(broker, "app", "one") as one:
        one.start(replica, address="one:1")
        soon(lambda: one.owners("counts", refresh=True) == {0: "one:1"})
        assert one.trouble is None
