"""Features of the in-memory broker alone: a clock, expiring members, injected failures, determinism.

The behaviour that it shares with Kafka is tested in ``tests/contract/test_broker.py``.
"""

from __future__ import annotations

import random
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from streams.broker import BEGINNING, Broker, GroupSettings, NewTopic
from streams.broker.memory import MemoryBroker
from streams.errors import (
    BrokerError,
    FatalBrokerError,
    OutcomeUnknown,
    RecordRefused,
    Retriable,
    TopicError,
    TransactionAborted,
)
from streams.records import Output, TopicPartition
from tests.support.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streams.broker import Consumer
    from streams.broker.memory import MemoryConsumer, MemoryProducer, Step
    from streams.records import Headers


class Recorder:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.events: list[tuple[str, list[int]]] = []

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append(("assigned", [place.partition for place in partitions]))

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append(("revoked", [place.partition for place in partitions]))

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append(("lost", [place.partition for place in partitions]))


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0, tick=0.0)


@pytest.fixture
def broker(clock: Clock) -> MemoryBroker:
    broker = MemoryBroker(clock=clock)
    broker.admin().create_topics([NewTopic(name="source", partitions=4), NewTopic(name="sink", partitions=1)])
    return broker


def place(partition: int) -> TopicPartition:
    return TopicPartition("source", partition)


SINK = TopicPartition("sink", 0)


def settings(**chosen: Any) -> GroupSettings:
    return GroupSettings(group="group", **chosen)


def join(broker: MemoryBroker, **chosen: Any) -> tuple[MemoryConsumer, Recorder]:
    consumer, recorder = broker.consumer(settings(**chosen)), Recorder()
    consumer.subscribe(["source"], recorder)
    consumer.poll(1, 0)
    return consumer, recorder


def transactional(broker: MemoryBroker, transactional_id: str = "worker-0") -> MemoryProducer:
    producer = broker.producer(transactional_id=transactional_id, transaction_timeout=10.0)
    producer.init_transactions(1.0)
    return producer


def rows(topic: str, *values: bytes, partition: int | None = None) -> Output:
    return Output(topic, [None] * len(values), values, [0] * len(values), partition=partition)


def write(broker: MemoryBroker, output: Output) -> None:
    producer = broker.producer()
    producer.produce(output)
    producer.flush(1.0)


def values(broker: Broker, *partitions: TopicPartition) -> list[bytes | None]:
    """All committed records of these partitions."""
    reader = broker.consumer(GroupSettings(group="reader"))
    reader.assign(dict.fromkeys(partitions, BEGINNING))
    found = [value for fetched in reader.poll(1_000_000, 0).fetched for value in fetched.values()]
    reader.close()
    return found


class TestWaiting:
    def test_a_poll_without_time_to_wait_returns_at_once(self, broker):
        consumer, _ = join(broker)
        consumer.poll(1, 0)
        assert not any(consumer.poll(1, 0))

    def test_a_waiting_poll_is_woken_by_a_commit(self, broker):
        reader = broker.consumer(settings())
        reader.assign({SINK: 0})
        reader.poll(10, 0)
        producer = transactional(broker)
        producer.begin()
        producer.produce(rows("sink", b"one"))
        waiting = threading.Event()
        broker.before = lambda step: waiting.set() if step == "poll" else None
        found = []
        thread = threading.Thread(target=lambda: found.append(reader.poll(10, 60.0)))
        started = time.monotonic()
        thread.start()
        assert waiting.wait(10)
        producer.commit(1.0)
        thread.join(10)
        assert time.monotonic() - started < 10
        assert found[0].fetched[0].values() == [b"one"]
        assert found[0].ends == {SINK: 2}

    def test_a_waiting_poll_is_woken_when_a_partition_is_released(self, broker):
        first, _ = join(broker)
        second, recorder = join(broker)
        thread = threading.Thread(target=lambda: second.poll(10, 60.0))
        thread.start()
        first.close()
        thread.join(10)
        assert not thread.is_alive()
        assert recorder.events[0][0] == "assigned"

    def test_a_waiting_poll_notices_that_a_transaction_timed_out(self):
        broker = MemoryBroker()
        broker.admin().create_topics([NewTopic(name="sink", partitions=1)])
        producer = broker.producer(transactional_id="worker-0", transaction_timeout=0.05)
        producer.init_transactions(1.0)
        producer.begin()
        producer.produce(rows("sink", b"open"))
        write(broker, rows("sink", b"behind"))
        reader = broker.consumer(settings())
        reader.assign({SINK: 0})
        assert reader.poll(10, 0).ends == {SINK: 0}
        (fetched,) = reader.poll(10, 60.0).fetched
        assert fetched.values() == [b"behind"]

    def test_a_simulation_waits_by_its_own_clock(self, clock):
        waits = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            clock.advance(seconds)
            write(simulated, rows("sink", b"meanwhile"))

        simulated = MemoryBroker(clock=clock, wait=wait)
        simulated.admin().create_topics([NewTopic(name="sink", partitions=1)])
        reader = simulated.consumer(settings())
        reader.assign({SINK: 0})
        assert reader.poll(10, 30.0).ends == {SINK: 0}
        (fetched,) = reader.poll(10, 30.0).fetched
        assert fetched.values() == [b"meanwhile"]
        assert waits == [pytest.approx(30.0, abs=1.0)]
        assert clock.now == waits[0]

    def test_waiting_in_a_poll_does_not_use_up_the_poll_deadline(self, clock):
        def wait(seconds: float) -> None:
            clock.advance(seconds)
            waiting.append(simulated.consumer(settings()).committed([]))

        waiting: list[object] = []
        simulated = MemoryBroker(clock=clock, wait=wait)
        simulated.admin().create_topics([NewTopic(name="source", partitions=1)])
        consumer, recorder = join(simulated, poll_deadline=10.0)
        consumer.poll(1, 0)
        consumer.poll(1, 500.0)
        consumer.poll(1, 0)
        assert waiting
        assert recorder.events == [("assigned", [0])]


class TestDeterminism:
    def test_the_same_calls_give_the_same_records(self):
        def run() -> list[tuple[int, list[bytes | None]]]:
            broker = MemoryBroker(clock=Clock(0.0, tick=0.0))
            broker.admin().create_topics([NewTopic(name="source", partitions=4)])
            for number in range(10):
                write(broker, rows("source", *(f"{number}-{row}".encode() for row in range(number))))
            consumer, _ = join(broker)
            found = []
            for _ in range(20):
                found += [(part.partition, list(part.values())) for part in consumer.poll(7, 0).fetched]
            return found

        assert run() == run()

    def test_rows_without_key_take_turns(self, broker):
        producer = broker.producer()
        producer.produce(rows("source", b"a", b"b"))
        producer.produce(rows("source", b"c", b"d", b"e"))
        producer.flush(1.0)
        assert [values(broker, place(partition)) for partition in range(4)] == [
            [b"a", b"e"],
            [b"b"],
            [b"c"],
            [b"d"],
        ]

    def test_partitions_with_a_backlog_take_turns(self, broker):
        for partition in range(4):
            write(broker, rows("source", *[b"x"] * 100, partition=partition))
        consumer, _ = join(broker)
        served = [consumer.poll(10, 0).fetched[0].partition for _ in range(8)]
        assert served == [0, 1, 2, 3, 0, 1, 2, 3]


class TestGroup:
    def test_members_get_contiguous_ranges_in_the_order_of_joining(self, broker):
        broker.admin().create_topics([NewTopic(name="wide", partitions=5)])
        consumers = [broker.consumer(settings()) for _ in range(2)]
        for consumer in consumers:
            consumer.subscribe(["wide"], Recorder())
        for consumer in consumers * 2:
            consumer.poll(1, 0)
        assert [sorted(p.partition for p in consumer.assignment()) for consumer in consumers] == [
            [0, 1, 2],
            [3, 4],
        ]

    def test_a_member_keeps_what_stays_its_own(self, broker):
        first, recorder = join(broker)
        join(broker)
        first.poll(1, 0)
        assert recorder.events == [("assigned", [0, 1, 2, 3]), ("revoked", [2, 3])]

    def test_a_partition_moves_only_after_its_owner_let_go(self, broker):
        first, _ = join(broker)
        second, recorder = join(broker)
        second.poll(1, 0)
        assert recorder.events == []
        first.poll(1, 0)
        second.poll(1, 0)
        assert recorder.events == [("assigned", [2, 3])]

    def test_a_partition_is_released_even_if_the_callback_fails(self, broker):
        class Failing(Recorder):
            def revoked(self, partitions: Sequence[TopicPartition]) -> None:
                raise RuntimeError("flush failed")

        first = broker.consumer(settings())
        first.subscribe(["source"], Failing())
        first.poll(1, 0)
        second, recorder = join(broker)
        with pytest.raises(RuntimeError, match="flush failed"):
            first.poll(1, 0)
        second.poll(1, 0)
        assert recorder.events == [("assigned", [2, 3])]

    def test_a_poll_that_changes_the_assignment_brings_no_records(self, broker):
        write(broker, rows("source", b"one", partition=0))
        consumer = broker.consumer(settings())
        consumer.subscribe(["source"], Recorder())
        assert not any(consumer.poll(10, 0))
        assert len(consumer.poll(10, 0).fetched) == 1

    def test_a_topic_created_later_is_assigned_then(self, broker):
        consumer, recorder = broker.consumer(settings()), Recorder()
        consumer.subscribe(["later", re.compile("pattern-.*")], recorder)
        consumer.poll(1, 0)
        assert recorder.events == []
        broker.admin().create_topics(
            [NewTopic(name="later", partitions=1), NewTopic(name="pattern-later", partitions=1)]
        )
        consumer.poll(1, 0)
        assert consumer.assignment() == {TopicPartition("later", 0), TopicPartition("pattern-later", 0)}

    def test_a_pattern_does_not_reach_internal_topics(self, broker):
        broker.admin().create_topics([NewTopic(name="__internal", partitions=1)])
        consumer = broker.consumer(settings())
        consumer.subscribe([re.compile(".*")], Recorder())
        consumer.poll(1, 0)
        assert {partition.topic for partition in consumer.assignment()} == {"source", "sink"}

    def test_a_deleted_topic_is_revoked_and_its_offsets_are_forgotten(self, broker):
        consumer, recorder = join(broker)
        consumer.commit({place(0): 7})
        broker.admin().delete_topics(["source"])
        consumer.poll(1, 0)
        assert recorder.events[-1] == ("revoked", [0, 1, 2, 3])
        assert broker.admin().committed_offsets("group") == {}

    def test_another_subscription_replaces_the_first(self, broker):
        consumer, recorder = join(broker)
        consumer.subscribe(["sink"], recorder)
        consumer.poll(1, 0)
        assert consumer.assignment() == {SINK}

    def test_a_missed_poll_deadline_costs_the_partitions(self, broker, clock):
        slow, slow_recorder = join(broker, poll_deadline=10.0)
        clock.advance(10.0)
        other, recorder = join(broker)
        assert recorder.events == [("assigned", [0, 1, 2, 3])]
        slow.poll(1, 0)
        assert slow_recorder.events == [("assigned", [0, 1, 2, 3]), ("lost", [0, 1, 2, 3])]
        other.poll(1, 0)
        slow.poll(1, 0)
        assert slow_recorder.events[-1] == ("assigned", [2, 3])

    def test_keep_alive_keeps_the_poll_deadline(self, broker, clock):
        slow, recorder = join(broker, poll_deadline=10.0)
        for _ in range(5):
            clock.advance(9.0)
            slow.keep_alive()
        assert recorder.events == [("assigned", [0, 1, 2, 3])]

    def test_a_callback_may_take_the_complete_poll_deadline_but_not_longer(self, broker, clock):
        class Slow(Recorder):
            def __init__(self, consumer: MemoryConsumer, seconds: float) -> None:
                super().__init__()
                self.consumer = consumer
                self.seconds = seconds

            def revoked(self, partitions: Sequence[TopicPartition]) -> None:
                clock.advance(self.seconds)
                self.consumer.commit(dict.fromkeys(partitions, 1))

        consumer = broker.consumer(settings(poll_deadline=10.0))
        listener = Slow(consumer, 9.0)
        consumer.subscribe(["source"], listener)
        consumer.poll(1, 0)
        clock.advance(9.0)
        join(broker)
        consumer.poll(1, 0)
        assert broker.admin().committed_offsets("group") == {place(2): 1, place(3): 1}
        listener.seconds = 10.0
        for _ in range(2):
            join(broker)
        with pytest.raises(TransactionAborted):
            consumer.poll(1, 0)

    def test_an_expired_members_partitions_go_to_others_at_once(self, broker):
        frozen, frozen_recorder = join(broker)
        other, recorder = join(broker)
        broker.expire(frozen)
        other.poll(1, 0)
        assert recorder.events == [("assigned", [0, 1, 2, 3])]
        frozen.keep_alive()
        assert frozen_recorder.events[-1] == ("lost", [0, 1, 2, 3])
        assert frozen.assignment() == set()

    def test_closing_an_expired_member_loses_its_partitions(self, broker):
        consumer, recorder = join(broker)
        broker.expire(consumer)
        consumer.close()
        assert recorder.events[-1] == ("lost", [0, 1, 2, 3])

    def test_a_member_alone_gets_its_partitions_back_after_it_expired(self, broker):
        consumer, recorder = join(broker)
        broker.expire(consumer)
        consumer.poll(1, 0)
        assert [kind for kind, _ in recorder.events] == ["assigned", "lost", "assigned"]


class TestFencedCommits:
    def test_an_expired_member_cannot_commit(self, broker):
        consumer, _ = join(broker)
        membership = consumer.group_metadata()
        broker.expire(consumer)
        with pytest.raises(TransactionAborted, match="no longer a member"):
            consumer.commit({place(0): 1})
        producer = transactional(broker)
        producer.begin()
        with pytest.raises(TransactionAborted, match="no longer a member"):
            producer.send_offsets({place(0): 1}, membership)
        assert broker.admin().committed_offsets("group") == {}

    def test_a_member_cannot_commit_what_it_does_not_hold(self, broker):
        first, _ = join(broker)
        join(broker)
        first.poll(1, 0)
        first.commit({place(1): 1})
        with pytest.raises(TransactionAborted, match="source-2"):
            first.commit({place(1): 2, place(2): 1})
        assert broker.admin().committed_offsets("group") == {place(1): 1}

    def test_a_membership_is_stale_after_a_rebalance_even_for_what_was_kept(self, broker):
        first, _ = join(broker)
        membership = first.group_metadata()
        join(broker)
        first.poll(1, 0)
        producer = transactional(broker)
        producer.begin()
        with pytest.raises(TransactionAborted, match="epoch"):
            producer.send_offsets({place(0): 1}, membership)

    def test_a_failed_transaction_can_only_be_aborted(self, broker):
        consumer, _ = join(broker)
        membership = consumer.group_metadata()
        broker.expire(consumer)
        producer = transactional(broker)
        producer.begin()
        with pytest.raises(TransactionAborted):
            producer.send_offsets({place(0): 1}, membership)
        with pytest.raises(TransactionAborted):
            producer.commit(1.0)
        producer.abort(1.0)
        producer.begin()
        producer.commit(1.0)

    def test_outsiders_cannot_commit_for_a_group_with_members(self, broker):
        join(broker)
        with pytest.raises(TransactionAborted, match="members"):
            broker.consumer(settings()).commit({place(0): 1})

    def test_offsets_of_an_open_transaction_hide_the_committed_ones(self, broker):
        consumer, _ = join(broker)
        consumer.commit({place(0): 1})
        producer = transactional(broker)
        producer.begin()
        producer.send_offsets({place(0): 2}, consumer.group_metadata())
        with pytest.raises(Retriable, match="source-0"):
            consumer.committed([place(0)])
        assert consumer.committed([place(1)]) == {}
        assert broker.admin().committed_offsets("group") == {place(0): 1}
        producer.abort(1.0)
        assert consumer.committed([place(0)]) == {place(0): 1}


class TestInstanceIds:
    def test_a_restarted_member_gets_its_partitions_back(self, broker):
        first, _ = join(broker, instance_id="a")
        other, recorder = join(broker, instance_id="b")
        for consumer in (first, other):
            consumer.poll(1, 0)
        first.close()
        other.poll(1, 0)
        assert recorder.events == [("assigned", [2, 3])]
        _, restarted = join(broker, instance_id="a")
        assert restarted.events == [("assigned", [0, 1])]

    def test_partitions_of_a_member_that_stays_away_go_to_others(self, broker, clock):
        first, _ = join(broker, instance_id="a", session_timeout=30.0)
        first.close()
        other, recorder = join(broker, instance_id="b")
        clock.advance(29.0)
        other.poll(1, 0)
        assert recorder.events == []
        clock.advance(1.0)
        other.poll(1, 0)
        assert recorder.events == [("assigned", [0, 1, 2, 3])]

    def test_an_instance_id_belongs_to_one_living_member(self, broker):
        join(broker, instance_id="a")
        with pytest.raises(FatalBrokerError, match="'a'"):
            join(broker, instance_id="a")


class TestTransactions:
    def test_a_transaction_that_times_out_is_aborted_and_fences_its_producer(self, broker, clock):
        producer = transactional(broker)
        producer.begin()
        producer.produce(rows("sink", b"late"))
        clock.advance(10.0)
        write(broker, rows("sink", b"other"))
        assert values(broker, SINK) == [b"other"]
        calls: list[Callable[[], None]] = [
            lambda: producer.commit(1.0),
            lambda: producer.abort(1.0),
            lambda: producer.produce(rows("sink", b"more")),
            lambda: producer.send_offsets({}, broker.consumer(settings()).group_metadata()),
            producer.begin,
        ]
        for call in calls:
            with pytest.raises(OutcomeUnknown):
                call()
        successor = transactional(broker)
        successor.begin()
        successor.produce(rows("sink", b"successor"))
        successor.commit(1.0)
        assert values(broker, SINK) == [b"other", b"successor"]

    def test_the_timeout_starts_with_the_first_use(self, broker, clock):
        producer = transactional(broker)
        producer.begin()
        clock.advance(100.0)
        producer.produce(rows("sink", b"one"))
        clock.advance(9.0)
        producer.commit(1.0)
        assert values(broker, SINK) == [b"one"]

    def test_offsets_of_a_transaction_that_timed_out_are_dropped(self, broker, clock):
        consumer, _ = join(broker)
        producer = transactional(broker)
        producer.begin()
        producer.send_offsets({place(0): 2}, consumer.group_metadata())
        clock.advance(10.0)
        assert consumer.committed([place(0)]) == {}


class TestFaults:
    @pytest.mark.parametrize(("step", "committed"), [("commit.before", []), ("commit.after", [b"one"])])
    def test_a_commit_can_be_left_unanswered_before_or_after_it_happened(self, broker, step, committed):
        producer = transactional(broker)
        producer.begin()
        producer.produce(rows("sink", b"one"))

        def fail(now: Step) -> None:
            if now == step:
                raise OutcomeUnknown("no answer")

        broker.before = fail
        with pytest.raises(OutcomeUnknown, match="no answer"):
            producer.commit(1.0)
        broker.before = None
        transactional(broker)
        assert values(broker, SINK) == committed

    def test_a_member_can_expire_between_sending_offsets_and_committing(self, broker):
        consumer, _ = join(broker)
        producer = transactional(broker)

        def expire(step: Step) -> None:
            if step == "commit.before":
                broker.expire(consumer)

        broker.before = expire
        producer.begin()
        producer.send_offsets({place(0): 3}, consumer.group_metadata())
        producer.commit(1.0)
        assert broker.admin().committed_offsets("group") == {place(0): 3}

    def test_a_leader_that_was_replaced_answers_with_the_end_that_it_knows(self, broker):
        write(broker, rows("sink", b"0", b"1"))
        broker.replace_leader(SINK, answers=2)
        write(broker, rows("sink", b"2"))
        admin = broker.admin()
        assert admin.end_offsets([SINK], "read_uncommitted") == {SINK: 2}
        assert admin.end_offsets([SINK]) == {SINK: 2}
        assert admin.end_offsets([SINK]) == {SINK: 3}
        assert values(broker, SINK) == [b"0", b"1", b"2"]

    def test_metadata_that_a_broker_would_not_take_is_refused(self, broker):
        consumer, _ = join(broker)
        with pytest.raises(FatalBrokerError, match="offset of source-0 has more than 4096 bytes"):
            consumer.commit({place(0): 1}, {place(0): "x" * 4097})
        producer = transactional(broker)
        producer.begin()
        with pytest.raises(FatalBrokerError, match="offset of source-0 has more than 4096 bytes"):
            producer.send_offsets({place(0): 1}, consumer.group_metadata(), {place(0): "x" * 4097})
        assert broker.admin().committed_offsets("group") == {}

    def test_every_step_is_announced(self, broker):
        steps: list[Step] = []
        broker.before = steps.append
        consumer, _ = join(broker)
        consumer.keep_alive()
        consumer.commit({place(0): 1})
        consumer.committed([place(0)])
        producer = transactional(broker)
        producer.begin()
        producer.produce(rows("sink", b"one"))
        producer.flush(1.0)
        producer.send_offsets({place(0): 2}, consumer.group_metadata())
        producer.commit(1.0)
        producer.begin()
        producer.abort(1.0)
        assert steps == [
            "poll",
            "keep_alive",
            "commit_offsets.before",
            "commit_offsets.after",
            "committed",
            "init_transactions",
            "begin",
            "produce",
            "flush",
            "send_offsets",
            "commit.before",
            "commit.after",
            "begin",
            "abort",
        ]


class TestLogs:
    def test_truncated_records_are_gone(self, broker):
        write(broker, rows("sink", b"0", b"1", b"2"))
        broker.truncate(SINK, 2)
        assert broker.admin().beginning_offsets([SINK]) == {SINK: 2}
        assert values(broker, SINK) == [b"2"]

    @pytest.mark.parametrize(("reset", "expected"), [("earliest", [b"2"]), ("latest", [])])
    def test_a_position_that_was_truncated_is_reset(self, broker, reset, expected):
        write(broker, rows("sink", b"0", b"1", b"2"))
        broker.truncate(SINK, 2)
        reader = broker.consumer(settings(offset_reset=reset))
        reader.assign({SINK: 1})
        polled = reader.poll(10, 0)
        assert [value for part in polled.fetched for value in part.values()] == expected
        assert polled.ends == {SINK: 3}

    def test_a_plain_producers_rows_are_written_by_flush_and_dropped_by_close(self, broker):
        producer = broker.producer()
        producer.produce(rows("sink", b"flushed"))
        assert values(broker, SINK) == []
        producer.flush(1.0)
        producer.produce(rows("sink", b"dropped"))
        producer.close()
        assert values(broker, SINK) == [b"flushed"]

    def test_headers_count_towards_the_size_of_a_record(self):
        broker = MemoryBroker(max_record_bytes=10)
        broker.admin().create_topics([NewTopic(name="sink", partitions=1)])
        producer = broker.producer()
        headers: list[Headers | None] = [[("name", b"123")], [("name", b"1234")]]
        output = Output("sink", [b"k", b"k"], [b"v2", b"v2"], [0, 0], headers)
        with pytest.raises(RecordRefused) as refused:
            producer.produce(output)
        assert refused.value.position == 1

    def test_settings_of_a_topic_are_kept(self, broker):
        topic = NewTopic(name="changelog", partitions=1, settings={"cleanup.policy": "compact"})
        broker.admin().create_topics([topic])
        assert broker.topic_settings("changelog") == {"cleanup.policy": "compact"}

    @pytest.mark.parametrize("seed", range(10))
    def test_readers_see_every_committed_record_once_however_transactions_interleave(self, broker, seed):
        chance = random.Random(seed)
        producers = [transactional(broker, f"worker-{slot}") for slot in range(3)]
        pending: dict[MemoryProducer, list[bytes]] = {}
        everything, committed = [], set()
        reader = broker.consumer(settings())
        reader.assign({SINK: 0})
        read: list[tuple[int, bytes | None]] = []

        def poll() -> None:
            for part in reader.poll(chance.randrange(1, 5), 0).fetched:
                read.extend(zip(part.offsets(), part.values(), strict=True))

        for number in range(300):
            producer = chance.choice(producers)
            event = chance.random()
            if producer in pending and event < 0.3:
                if event < 0.15:
                    committed.update(pending.pop(producer))
                    producer.commit(1.0)
                else:
                    pending.pop(producer)
                    producer.abort(1.0)
            else:
                if producer not in pending:
                    producer.begin()
                    pending[producer] = []
                value = str(number).encode()
                producer.produce(rows("sink", value))
                pending[producer].append(value)
                everything.append(value)
            poll()
        for producer, uncommitted in pending.items():
            producer.commit(1.0)
            committed.update(uncommitted)
        for _ in range(300):
            poll()
        offsets = [offset for offset, _ in read]
        assert offsets == sorted(set(offsets))
        assert [value for _, value in read] == [value for value in everything if value in committed]
        everyone = broker.consumer(settings(isolation="read_uncommitted"))
        everyone.assign({SINK: 0})
        assert everyone.poll(1000, 0).fetched[0].values() == everything


class TestMisuse:
    def test_calls_out_of_order_are_fatal(self, broker):
        plain, early = broker.producer(), broker.producer(transactional_id="worker-0")
        open_already, none_open = transactional(broker, "worker-1"), transactional(broker, "worker-2")
        open_already.begin()
        reader, member = broker.consumer(settings()), broker.consumer(settings())
        reader.assign({SINK: 0})
        member.subscribe(["source"], Recorder())
        calls: list[Callable[[], Any]] = [
            lambda: plain.init_transactions(1.0),
            plain.begin,
            early.begin,
            open_already.begin,
            lambda: none_open.commit(1.0),
            lambda: none_open.abort(1.0),
            lambda: none_open.produce(rows("sink", b"one")),
            lambda: reader.subscribe(["source"], Recorder()),
            lambda: member.assign({SINK: 0}),
            lambda: reader.seek({place(0): 0}),
        ]
        for call in calls:
            with pytest.raises(FatalBrokerError):
                call()

    def test_closed_clients_do_nothing_any_more(self, broker):
        consumer, _ = join(broker)
        producer = broker.producer()
        for client in (consumer, producer):
            client.close()
            client.close()
        with pytest.raises(FatalBrokerError, match="closed"):
            consumer.poll(1, 0)
        with pytest.raises(FatalBrokerError, match="closed"):
            producer.produce(rows("sink", b"one"))

    def test_partitions_that_do_not_exist_are_topic_errors(self, broker):
        with pytest.raises(TopicError):
            broker.producer().produce(rows("sink", b"one", partition=1))
        reader = broker.consumer(settings())
        reader.assign({TopicPartition("sink", 1): 0})
        with pytest.raises(TopicError):
            reader.poll(1, 0)


class Copier:
    """A worker that copies ``source`` to ``sink`` exactly once, and may freeze at each ``yield``."""

    def __init__(self, broker: MemoryBroker, slot: int) -> None:
        self.broker = broker
        self.slot = slot
        self.consumer: Consumer = broker.consumer(settings(poll_deadline=100.0))

    def run(self) -> Iterator[None]:
        self.consumer.subscribe(["source"], Recorder())
        producer = transactional(self.broker, f"worker-{self.slot}")
        yield
        while True:
            fetched = self.consumer.poll(5, 0).fetched
            yield
            try:
                producer.begin()
                for part in fetched:
                    producer.produce(Output("sink", part.keys(), part.values(), part.timestamps()))
                    yield
                offsets = {TopicPartition(part.topic, part.partition): part.next_offset for part in fetched}
                producer.send_offsets(offsets, self.consumer.group_metadata())
                yield
                producer.commit(1.0)
            except BrokerError as error:
                if not isinstance(error, TransactionAborted):
                    producer = transactional(self.broker, f"worker-{self.slot}")
                else:
                    try:
                        producer.abort(1.0)
                    except OutcomeUnknown:
                        producer = transactional(self.broker, f"worker-{self.slot}")
                yield from self.rewind()
            yield

    def rewind(self) -> Iterator[None]:
        while True:
            yield
            held = self.consumer.assignment()
            try:
                committed = self.consumer.committed(held)
            except Retriable:
                continue
            self.consumer.seek({partition: committed.get(partition, 0) for partition in held})
            return


@pytest.mark.parametrize("seed", range(25))
def test_copying_is_exactly_once_whatever_stops_the_workers(broker, clock, seed):
    chance = random.Random(seed)
    expected = sorted(f"{number:04d}".encode() for number in range(300))
    for number in range(0, 300, 10):
        write(broker, rows("source", *expected[number : number + 10]))
    copiers = [Copier(broker, slot) for slot in range(3)]
    runs = [copier.run() for copier in copiers]

    def sometimes_fail(step: Step) -> None:
        if step in ("commit.before", "commit.after") and chance.random() < 0.05:
            raise OutcomeUnknown("no answer")

    broker.before = sometimes_fail
    for _ in range(20_000):
        slot = chance.randrange(3)
        event = chance.random()
        if event < 0.01:
            broker.expire(copiers[slot].consumer)
        elif event < 0.015:
            clock.advance(11.0)
        elif event < 0.02:
            # Killed: the group notices after a while, or not before its successor is there.
            if chance.random() < 0.5:
                broker.expire(copiers[slot].consumer)
            copiers[slot] = Copier(broker, slot)
            runs[slot] = copiers[slot].run()
        clock.advance(0.01)
        for _ in range(chance.randrange(6)):
            next(runs[slot])
        if len(values(broker, SINK)) >= len(expected):
            break
    broker.before = None
    for copier in copiers:
        broker.expire(copier.consumer)
        transactional(broker, f"worker-{copier.slot}")
    assert sorted(value for value in values(broker, SINK) if value) == expected


def test_workers_in_threads_copy_exactly_once_while_members_come_and_go():
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name="source", partitions=4), NewTopic(name="sink", partitions=1)])
    expected = sorted(f"{number:04d}".encode() for number in range(2000))
    failures: list[BaseException] = []
    done = threading.Event()

    def work(slot: int, transactions: float) -> None:
        """Copy in this number of transactions, then leave."""
        try:
            consumer = broker.consumer(settings())
            producer = transactional(broker, f"worker-{slot}")
            consumer.subscribe(["source"], Recorder())
            while transactions > 0 and not done.is_set():
                fetched = consumer.poll(20, 0.05).fetched
                if not fetched:
                    continue
                producer.begin()
                for part in fetched:
                    producer.produce(Output("sink", part.keys(), part.values(), part.timestamps()))
                offsets = {TopicPartition(part.topic, part.partition): part.next_offset for part in fetched}
                producer.send_offsets(offsets, consumer.group_metadata())
                producer.commit(1.0)
                transactions -= 1
            consumer.close()
        except BaseException as error:  # noqa: BLE001  # asserted on by the test
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(slot, transactions))
        for slot, transactions in enumerate([float("inf"), 5, 10, 20])
    ]
    for thread in threads:
        thread.start()
    for number in range(0, 2000, 100):
        write(broker, rows("source", *expected[number : number + 100]))
    give_up = time.monotonic() + 30
    while len(values(broker, SINK)) < 2000 and time.monotonic() < give_up and not failures:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert sorted(value for value in values(broker, SINK) if value) == expected
