"""The contract of every broker.

Tests wait by polling until a condition holds, never for a fixed time, as a real broker may be shared and
slow.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from streams.broker import BEGINNING, END, NewTopic, OutOfRange
from streams.errors import (
    BrokerError,
    OutcomeUnknown,
    RecordRefused,
    RecordsRefused,
    Retriable,
    TopicMissing,
    TransactionAborted,
)
from streams.partitioning import partition_for
from streams.records import Output, TopicPartition
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.broker import Consumer, Producer
    from streams.records import Fetched, Headers
    from tests.contract.conftest import Clients

PATIENCE = 30.0
soon = partial(wait_until, timeout=PATIENCE)
NOW = int(time.time() * 1000)


class Reader:
    """A consumer with the records of its polls, and the listener of its assignment.

    With ``commits`` it commits the records that it has read when partitions are revoked.
    """

    def __init__(self, consumer: Consumer, *, commits: bool = False, max_records: int = 500) -> None:
        self.consumer = consumer
        self.commits = commits
        self.max_records = max_records
        self.fetched: list[Fetched] = []
        self.poll_sizes: list[int] = []
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.offsets: list[int] = []
        self.timestamps: list[int] = []
        self.headers: list[Headers | None] = []
        self.partitions: list[TopicPartition] = []
        self.next_offsets: dict[TopicPartition, int] = {}
        self.ends: list[tuple[TopicPartition, int]] = []
        self.rebalances: list[tuple[str, list[TopicPartition]]] = []
        self.out_of_range: list[tuple[TopicPartition, OutOfRange]] = []
        self.pauses: set[TopicPartition] = set()
        """Partitions to pause when they are assigned."""

    def subscribe(self, *topics: str | re.Pattern[str]) -> Reader:
        self.consumer.subscribe(topics, self)
        return self

    def assign(self, positions: dict[TopicPartition, int]) -> Reader:
        self.consumer.assign(positions)
        return self

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.rebalances.append(("assigned", sorted(partitions)))
        self.consumer.pause(self.pauses.intersection(partitions))

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.rebalances.append(("revoked", sorted(partitions)))
        read = {place: self.next_offsets[place] for place in partitions if place in self.next_offsets}
        if self.commits and read:
            self.consumer.commit(read)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.rebalances.append(("lost", sorted(partitions)))

    def poll(self) -> None:
        polled = self.consumer.poll(self.max_records, 0.05)
        self.fetched += polled.fetched
        self.poll_sizes.append(sum(map(len, polled.fetched)))
        for fetched in polled.fetched:
            place = TopicPartition(fetched.topic, fetched.partition)
            self.keys += fetched.keys()
            self.values += fetched.values()
            self.offsets += fetched.offsets()
            self.timestamps += fetched.timestamps()
            self.headers += fetched.headers() or [None] * len(fetched)
            self.partitions += [place] * len(fetched)
            self.next_offsets[place] = fetched.next_offset
        self.ends += polled.ends.items()
        self.out_of_range += polled.out_of_range.items()

    def holds(self, *partitions: TopicPartition) -> bool:
        return self.consumer.assignment() == set(partitions)

    def is_at_end(self, place: TopicPartition, end: int) -> bool:
        return (place, end) in self.ends


def poll_until(condition: Callable[[], bool], *readers: Reader) -> None:
    """Poll the readers in turns until the condition holds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, [(reader.rebalances, reader.values) for reader in readers]
        for reader in readers:
            reader.poll()


def rows(
    topic: str,
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    partition: int | None = None,
    partitions: Sequence[int] | None = None,
    times: Sequence[int] | None = None,
) -> Output:
    timestamps = times or [NOW + row for row in range(len(values))]
    return Output(
        topic,
        keys or [None] * len(values),
        values,
        timestamps,
        partition=partition,
        partitions=partitions,
    )


def write(producer: Producer, *outputs: Output) -> None:
    for output in outputs:
        producer.produce(output)
    producer.flush(PATIENCE)


def metadata_is(consumer: Consumer, place: TopicPartition, text: str) -> bool:
    """Whether that stands beside the committed offset, and no open transaction may change it."""
    try:
        return consumer.committed_metadata([place]).get(place, "") == text
    except Retriable:
        return False


def numbered(start: int, stop: int) -> list[bytes]:
    return [f"{number:04d}".encode() for number in range(start, stop)]


class TestTopics:
    def test_a_created_topic_is_described(self, clients):
        name = clients.name("created")
        assert clients.admin.create_topics([NewTopic(name=name, partitions=3)]) == {name}
        description = clients.admin.topics()[name]
        assert (description.name, description.partitions) == (name, 3)
        assert description.replication_factor >= 1

    def test_creating_an_existing_topic_leaves_it_as_it_is(self, clients):
        name = clients.topic(partitions=2)
        other = clients.name("other")
        topics = [NewTopic(name=name, partitions=5), NewTopic(name=other, partitions=1)]
        assert clients.admin.create_topics(topics) == {other}
        assert clients.admin.topics()[name].partitions == 2

    def test_a_deleted_topic_is_gone(self, clients):
        name = clients.topic()
        clients.admin.delete_topics([name, clients.name("never-existed")])
        soon(lambda: name not in clients.admin.topics())

    def test_an_illegal_name_is_refused(self, clients):
        with pytest.raises(BrokerError):
            clients.admin.create_topics([NewTopic(name="no spaces", partitions=1)])

    def test_offsets_of_a_missing_topic_are_an_error(self, clients):
        with pytest.raises(BrokerError):
            clients.admin.end_offsets([TopicPartition(clients.name("missing"), 0)])

    def test_offsets_of_an_empty_topic_are_zero(self, clients):
        place = TopicPartition(clients.topic(), 0)
        assert clients.admin.beginning_offsets([place]) == {place: 0}
        assert clients.admin.end_offsets([place]) == {place: 0}

    def test_own_settings_are_those_that_were_made_for_the_topic(self, clients):
        own = {"retention.ms": "1234567", "cleanup.policy": "compact"}
        made, plain = clients.topic(settings=own), clients.topic("plain")
        assert clients.admin.own_settings([made, plain]) == {made: own, plain: {}}
        with pytest.raises(BrokerError):
            clients.admin.own_settings([clients.name("missing")])

    def test_an_offset_for_a_time_is_that_of_the_first_record_then_or_later(self, clients):
        name = clients.topic(partitions=3, settings={"retention.ms": "-1"})
        places = [TopicPartition(name, number) for number in range(3)]
        producer = clients.producer()
        times = [1000, 3000, 2000, 4000]
        producer.produce(Output(name, [None] * 4, [b"v"] * 4, times, partition=0))
        producer.produce(Output(name, [None], [b"v"], [1500], partition=1))
        producer.flush(PATIENCE)

        def at(time: int) -> list[int]:
            found = clients.admin.offsets_for_times(dict.fromkeys(places, time))
            return [found[place] for place in places]

        assert at(0) == [0, 0, 0]
        assert at(1000) == [0, 0, 0]
        assert at(1001) == [1, 0, 0]
        assert at(1501) == [1, 1, 0]
        assert at(2500) == [1, 1, 0]
        assert at(3001) == [3, 1, 0]
        assert at(4001) == [4, 1, 0]
        assert at(-5) == [0, 0, 0]
        assert clients.admin.offsets_for_times({places[0]: 3500, places[1]: 1}) == {
            places[0]: 3,
            places[1]: 0,
        }
        clients.admin.delete_records({places[0]: 2})
        assert at(1000) == [2, 0, 0]

    def test_an_offset_for_a_time_is_one_that_can_be_read(self, clients):
        place = TopicPartition(clients.topic(settings={"retention.ms": "-1"}), 0)
        writer = clients.transactional_producer()
        writer.begin()
        writer.produce(Output(place.topic, [None] * 2, [b"v"] * 2, [1000, 2000]))
        writer.flush(PATIENCE)
        assert clients.admin.offsets_for_times({place: 2000}) == {place: 0}
        assert clients.admin.offsets_for_times({place: 2000}, "read_uncommitted") == {place: 1}
        writer.commit(PATIENCE)
        soon(lambda: clients.admin.offsets_for_times({place: 2000}) == {place: 1})
        # Behind the transaction's marker.
        assert clients.admin.offsets_for_times({place: 2**62}) == {place: 3}


class TestRecords:
    def test_records_come_back_as_they_were_written(self, clients):
        topic = clients.topic()
        headers = [[("trace", b"1"), ("trace", None), ("kind", b"x")], None, None]
        timestamps = [NOW, NOW - 5000, NOW + 7]
        write(
            clients.producer(),
            Output(topic, [b"k", None, b"k"], [b"one", b"", None], timestamps, headers),
        )
        place = TopicPartition(topic, 0)
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: len(reader.values) >= 3, reader)
        assert reader.keys == [b"k", None, b"k"]
        assert reader.values == [b"one", b"", None]
        assert reader.timestamps == timestamps
        assert reader.offsets == [0, 1, 2]
        assert [list(entry) if entry else None for entry in reader.headers] == headers
        assert reader.next_offsets == {place: 3}

    def test_records_without_headers_have_no_header_column(self, clients):
        topic = clients.topic()
        write(clients.producer(), Output(topic, [b"key"], [b"one"], [NOW - 5000]))
        reader = Reader(clients.consumer()).assign({TopicPartition(topic, 0): BEGINNING})
        poll_until(lambda: bool(reader.fetched), reader)
        assert reader.fetched[0].headers() is None
        assert reader.timestamps == [NOW - 5000]

    def test_a_poll_brings_no_more_than_requested_and_loses_nothing(self, clients):
        topic = clients.topic()
        write(clients.producer(), rows(topic, numbered(0, 25)))
        reader = Reader(clients.consumer(), max_records=10).assign({TopicPartition(topic, 0): BEGINNING})
        poll_until(lambda: len(reader.values) >= 25, reader)
        assert max(reader.poll_sizes) <= 10
        assert reader.values == numbered(0, 25)

    def test_keys_go_where_java_clients_put_them(self, clients):
        topic = clients.topic(partitions=5)
        keys = [f"user-{number}".encode() for number in range(200)]
        write(clients.producer(), rows(topic, keys, keys=keys))
        places = [TopicPartition(topic, partition) for partition in range(5)]
        reader = Reader(clients.consumer()).assign(dict.fromkeys(places, BEGINNING))
        poll_until(lambda: len(reader.values) >= 200, reader)
        assert {key: place.partition for key, place in zip(reader.keys, reader.partitions, strict=True)} == {
            key: partition_for(key, 5) for key in keys
        }

    def test_records_of_one_key_keep_their_order(self, clients):
        topic = clients.topic(partitions=3)
        producer = clients.producer()
        for number in range(30):
            producer.produce(rows(topic, numbered(number, number + 1), keys=[b"same"]))
        producer.flush(PATIENCE)
        place = TopicPartition(topic, partition_for(b"same", 3))
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: len(reader.values) >= 30, reader)
        assert reader.values == numbered(0, 30)

    def test_records_without_key_all_arrive(self, clients):
        topic = clients.topic(partitions=3)
        write(clients.producer(), rows(topic, numbered(0, 50)))
        places = [TopicPartition(topic, partition) for partition in range(3)]
        reader = Reader(clients.consumer()).assign(dict.fromkeys(places, BEGINNING))
        poll_until(lambda: len(reader.values) >= 50, reader)
        assert sorted(value for value in reader.values if value) == numbered(0, 50)

    def test_a_partition_given_by_the_writer_wins_over_the_key(self, clients):
        topic = clients.topic(partitions=4)
        partition = (partition_for(b"key", 4) + 1) % 4
        write(clients.producer(), rows(topic, [b"one"], keys=[b"key"], partition=partition))
        place = TopicPartition(topic, partition)
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: bool(reader.values), reader)
        assert reader.partitions == [place]

    def test_each_row_goes_to_the_partition_that_it_names_whatever_its_key(self, clients):
        topic = clients.topic(partitions=3)
        keys: list[bytes | None] = [b"key", b"key", None, b"key", None, b"key"]
        chosen = [0, 1, 2, 2, 1, 0]
        write(clients.producer(), rows(topic, numbered(0, 6), keys=keys, partitions=chosen))
        places = [TopicPartition(topic, number) for number in range(3)]
        reader = Reader(clients.consumer()).assign(dict.fromkeys(places, BEGINNING))
        poll_until(lambda: len(reader.values) >= 6, reader)
        found = sorted(
            (value or b"", fetched.partition) for fetched in reader.fetched for value in fetched.values()
        )
        assert found == list(zip(numbered(0, 6), chosen, strict=True))

    @pytest.mark.parametrize("transactional", [False, True])
    def test_a_row_for_a_partition_that_the_topic_lacks_is_refused_and_the_rest_can_be_written(
        self, clients, transactional
    ):
        topic = clients.topic(partitions=2)
        producer = clients.transactional_producer() if transactional else clients.producer()
        if transactional:
            producer.begin()
        output = rows(topic, numbered(0, 5), partitions=[1, 2, 0, 7, 1])
        for position in (1, 1):
            with pytest.raises(RecordRefused, match=f"{topic} has no partition [27]") as refused:
                producer.produce(output)
            assert refused.value.position == position
            output = output.rest(position + 1)
        producer.produce(output)
        if transactional:
            producer.commit(PATIENCE)
        else:
            producer.flush(PATIENCE)
        places = [TopicPartition(topic, number) for number in range(2)]
        reader = Reader(clients.consumer()).assign(dict.fromkeys(places, BEGINNING))
        poll_until(lambda: len(reader.values) >= 3, reader)
        assert sorted(value or b"" for value in reader.values) == [numbered(0, 5)[row] for row in (0, 2, 4)]

    def test_rows_with_partitions_keep_their_headers(self, clients):
        topic = clients.topic(partitions=2)
        headers: list[Headers | None] = [[("h", b"1"), ("h", None)], None]
        output = Output(topic, [b"k", b"k"], [b"one", b"two"], [NOW, NOW], headers, partitions=[1, 1])
        write(clients.producer(), output)
        reader = Reader(clients.consumer()).assign({TopicPartition(topic, 1): BEGINNING})
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == [b"one", b"two"]
        assert reader.headers == headers

    def test_a_record_too_large_is_refused_and_the_rest_can_be_written(self, clients):
        topic = clients.topic()
        producer = clients.producer()
        values = [b"before", bytes(61_000_000), b"after"]
        with pytest.raises(RecordRefused) as refused:
            producer.produce(rows(topic, values))
        assert refused.value.position == 1
        write(producer, rows(topic, values[2:]))
        reader = Reader(clients.consumer()).assign({TopicPartition(topic, 0): BEGINNING})
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == [b"before", b"after"]

    def test_rows_for_a_missing_topic_are_refused(self, clients):
        with pytest.raises(TopicMissing) as refused:
            clients.producer().produce(rows(clients.name("missing"), [b"one", b"two"]))
        assert refused.value.topic == clients.name("missing")
        assert refused.value.position == 0

    def test_a_refused_record_leaves_the_transaction_usable(self, clients):
        topic = clients.topic()
        producer = clients.transactional_producer()
        producer.begin()
        with pytest.raises(RecordRefused):
            producer.produce(rows(topic, [b"before", bytes(61_000_000)]))
        producer.produce(rows(topic, [b"after"]))
        producer.commit(PATIENCE)
        reader = Reader(clients.consumer()).assign({TopicPartition(topic, 0): BEGINNING})
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == [b"before", b"after"]


HOUR = 3_600_000


class TestRefusedRecords:
    """Records that the broker refuses after they were queued, for their content."""

    ATTEMPTS = 4
    """If neither broker nor client names the record, the producer has to find it by writing in parts."""

    def spoilt(self, clients: Clients, reason: str) -> Output:
        """An output whose third row the broker refuses."""
        now = time.time_ns() // 1_000_000
        if reason == "ahead":
            topic = clients.topic("ahead")
            return rows(topic, [b"same"] * 5, times=[now, now + HOUR // 2, now + 3 * HOUR, now, now - HOUR])
        if reason == "no key":
            topic = clients.topic("compacted", settings={"cleanup.policy": "compact"})
            return rows(topic, numbered(0, 5), keys=[b"k", b"k", None, b"k", b"k"])
        topic = clients.topic("small", settings={"max.message.bytes": "10000"})
        return rows(topic, [b"a", b"b", bytes(20_000), b"c", b"d"])

    @pytest.mark.parametrize("reason", ["ahead", "no key", "too large"])
    def test_a_transaction_with_one_can_only_abort_and_which_row_it_was_is_found(self, clients, reason):
        spoilt = self.spoilt(clients, reason)
        producer = clients.transactional_producer()
        found: list[int] = []
        for _ in range(self.ATTEMPTS):
            producer.begin()
            try:
                producer.produce(spoilt)
                producer.commit(PATIENCE)
            except RecordRefused as error:
                found = [error.position]
            except TransactionAborted:
                pass
            producer.abort(PATIENCE)
            found = found or [refusal.row for refusal in producer.take_refused()]
            if found:
                break
        assert found == [2]
        assert producer.take_refused() == []
        producer.begin()
        producer.produce(rows(spoilt.topic, [b"good"], keys=[b"k"]))
        producer.commit(PATIENCE)
        reader = Reader(clients.consumer()).assign({TopicPartition(spoilt.topic, 0): BEGINNING})
        poll_until(lambda: bool(reader.values), reader)
        assert reader.values == [b"good"]

    @pytest.mark.parametrize("reason", ["ahead", "no key", "too large"])
    def test_a_flush_fails_and_which_row_it_was_is_found(self, clients, reason):
        spoilt = self.spoilt(clients, reason)
        producer = clients.producer()
        found: list[int] = []
        for _ in range(self.ATTEMPTS):
            try:
                producer.produce(spoilt)
                producer.flush(PATIENCE)
            except RecordRefused as error:
                found = [error.position]
            except RecordsRefused:
                found = [refusal.row for refusal in producer.take_refused()]
            if found:
                break
        assert found == [2]
        producer.produce(rows(spoilt.topic, [b"good"], keys=[b"k"]))
        producer.flush(PATIENCE)

    @pytest.mark.parametrize("reason", ["ahead", "no key", "too large"])
    def test_what_a_topic_was_found_to_refuse_is_refused_at_once_from_then_on(self, clients, reason):
        spoilt = self.spoilt(clients, reason)
        producer = clients.transactional_producer()
        for _ in range(self.ATTEMPTS):
            producer.begin()
            with suppress(RecordRefused, TransactionAborted):
                producer.produce(spoilt)
                producer.commit(PATIENCE)
            producer.abort(PATIENCE)
            producer.take_refused()
        producer.begin()
        with pytest.raises(RecordRefused) as refused:
            producer.produce(spoilt)
        assert refused.value.position == 2
        producer.produce(spoilt.rest(3))
        producer.commit(PATIENCE)

    def test_batches_of_a_topic_with_a_low_limit_become_small_enough(self, clients):
        topic = clients.topic("narrow", settings={"max.message.bytes": "2000"})
        values = [b"%06d" % number * 20 for number in range(200)]
        producer = clients.transactional_producer()
        for _ in range(3):
            producer.begin()
            producer.produce(rows(topic, values))
            try:
                producer.commit(PATIENCE)
            except TransactionAborted:
                producer.abort(PATIENCE)
                assert producer.take_refused() == []
            else:
                break
        reader = Reader(clients.consumer()).assign({TopicPartition(topic, 0): BEGINNING})
        poll_until(lambda: len(reader.values) >= 200, reader)
        assert reader.values == values

    def test_a_topic_takes_any_time_and_size_that_it_was_made_for(self, clients):
        wished = {"max.message.bytes": "30000000", "message.timestamp.after.max.ms": str(2**63 - 1)}
        topic = clients.topic("wide", wished=wished)
        written = rows(topic, [b"late", bytes(20_000_000)], times=[4_102_444_800_000, 1])
        write(clients.producer(), written)
        reader = Reader(clients.consumer()).assign({TopicPartition(topic, 0): BEGINNING})
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert [len(value or b"") for value in reader.values] == [4, 20_000_000]

    def test_a_wish_that_the_broker_does_not_know_is_left_out(self, clients):
        wished = {"retention.ms": "86400000", "message.of.no.such.setting": "1"}
        topic = clients.topic("wishes", wished=wished)
        found = clients.admin.settings([topic])[topic]
        assert found["retention.ms"] == "86400000"
        assert "message.of.no.such.setting" not in found


class TestReader:
    def test_reads_from_a_given_offset(self, clients):
        topic = clients.topic()
        write(clients.producer(), rows(topic, numbered(0, 5)))
        reader = Reader(clients.consumer()).assign({TopicPartition(topic, 0): 3})
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == numbered(3, 5)

    def test_reads_from_the_end_only_what_comes_later(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        producer = clients.producer()
        write(producer, rows(topic, numbered(0, 3)))
        reader = Reader(clients.consumer()).assign({place: END})
        poll_until(lambda: reader.is_at_end(place, 3), reader)
        write(producer, rows(topic, numbered(3, 5)))
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == numbered(3, 5)

    def test_a_new_assignment_replaces_the_old_one(self, clients):
        topic = clients.topic(partitions=2)
        first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
        producer = clients.producer()
        write(producer, rows(topic, [b"first"], partition=0), rows(topic, [b"second"], partition=1))
        reader = Reader(clients.consumer()).assign({first: BEGINNING})
        poll_until(lambda: len(reader.values) >= 1, reader)
        reader.assign({second: BEGINNING})
        assert reader.holds(second)
        write(producer, rows(topic, [b"first again"], partition=0))
        poll_until(lambda: reader.is_at_end(second, 1), reader)
        assert reader.values == [b"first", b"second"]

    def test_an_end_is_reported_once_until_something_moves(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        producer = clients.producer()
        write(producer, rows(topic, numbered(0, 3)))
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: bool(reader.ends), reader)
        for _ in range(5):
            reader.poll()
        assert reader.ends == [(place, 3)]
        write(producer, rows(topic, numbered(3, 4)))
        poll_until(lambda: len(reader.ends) >= 2, reader)
        assert reader.ends == [(place, 3), (place, 4)]
        assert reader.values == numbered(0, 4)

    def test_the_end_is_reported_again_after_a_seek(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 3)))
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: reader.is_at_end(place, 3), reader)
        reader.consumer.seek({place: 3})
        poll_until(lambda: reader.ends.count((place, 3)) >= 2, reader)
        assert reader.values == numbered(0, 3)

    def test_the_end_behind_records_that_are_not_visible_is_reported(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        producer = clients.transactional_producer()
        producer.begin()
        write(producer, rows(topic, numbered(0, 3)))
        producer.commit(PATIENCE)
        producer.begin()
        write(producer, rows(topic, numbered(3, 60)))
        producer.abort(PATIENCE)
        # The records, and a marker for each transaction, which is written a moment later.
        end = 62
        soon(lambda: clients.admin.end_offsets([place])[place] == end)
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: reader.is_at_end(place, end), reader)
        reader.consumer.seek({place: 1})
        poll_until(lambda: reader.ends.count((place, end)) >= 2, reader)
        reader.consumer.seek({place: 20})
        poll_until(lambda: reader.ends.count((place, end)) >= 3, reader)
        assert reader.values == [*numbered(0, 3), *numbered(1, 3)]

    def test_an_empty_partition_is_at_its_end(self, clients):
        place = TopicPartition(clients.topic(), 0)
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: bool(reader.ends), reader)
        assert reader.ends == [(place, 0)]

    def test_the_known_end_is_the_partitions_end_once_reached(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 3)))
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: reader.is_at_end(place, 3), reader)
        assert reader.consumer.known_ends([place]) == {place: 3}

    def test_a_seek_back_delivers_again(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 5)))
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: len(reader.values) >= 5, reader)
        reader.consumer.seek({place: 2})
        poll_until(lambda: len(reader.values) >= 8, reader)
        assert reader.values == numbered(0, 5) + numbered(2, 5)

    def test_a_seek_discards_what_was_fetched(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 20)))
        reader = Reader(clients.consumer(), max_records=1).assign({place: BEGINNING})
        poll_until(lambda: len(reader.values) >= 2, reader)
        reader.consumer.seek({place: 15})
        poll_until(lambda: len(reader.values) >= 7, reader)
        assert reader.values == numbered(0, 2) + numbered(15, 20)

    def test_a_paused_partition_delivers_nothing_until_resumed(self, clients):
        topic = clients.topic(partitions=2)
        quiet, busy = TopicPartition(topic, 0), TopicPartition(topic, 1)
        producer = clients.producer()
        reader = Reader(clients.consumer()).assign({quiet: BEGINNING, busy: BEGINNING})
        poll_until(lambda: len(reader.ends) >= 2, reader)
        reader.consumer.pause([quiet])
        write(producer, rows(topic, [b"quiet"], partition=0), rows(topic, [b"busy"], partition=1))
        poll_until(lambda: bool(reader.values), reader)
        for _ in range(5):
            reader.poll()
        assert reader.values == [b"busy"]
        reader.consumer.resume([quiet])
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == [b"busy", b"quiet"]


class TestGroup:
    def test_a_member_alone_is_assigned_everything(self, clients):
        topic = clients.topic(partitions=3)
        places = [TopicPartition(topic, partition) for partition in range(3)]
        reader = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: reader.holds(*places), reader)
        assert [kind for kind, _ in reader.rebalances] == ["assigned"] * len(reader.rebalances)
        assert sorted(place for _, held in reader.rebalances for place in held) == places

    def test_closing_revokes_what_is_held(self, clients):
        topic = clients.topic(partitions=2)
        places = [TopicPartition(topic, partition) for partition in range(2)]
        reader = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: reader.holds(*places), reader)
        reader.consumer.close()
        assert reader.rebalances[-1] == ("revoked", places)

    def test_a_successor_continues_after_what_was_committed(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 10)))
        first = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: len(first.values) >= 10, first)
        assert first.consumer.committed([place]) == {}
        first.consumer.commit({place: 4})
        assert first.consumer.committed([place]) == {place: 4}
        assert clients.admin.committed_offsets(clients.name("group")) == {place: 4}
        first.consumer.close()
        second = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: len(second.values) >= 6, second)
        assert second.values == numbered(4, 10)

    def test_the_metadata_of_a_committed_offset_lasts_until_the_next_commit_of_its_partition(self, clients):
        topic = clients.topic(partitions=2)
        places = [TopicPartition(topic, number) for number in range(2)]
        first = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: first.holds(*places), first)
        assert first.consumer.committed_metadata(places) == {}
        first.consumer.commit(dict.fromkeys(places, 1), {place: f"of {place}" for place in places})
        assert first.consumer.committed_metadata(places) == {place: f"of {place}" for place in places}
        first.consumer.commit({places[0]: 1})
        first.consumer.commit({places[1]: 2}, {places[1]: "é" * 2_000})
        assert first.consumer.committed_metadata(places) == {places[1]: "é" * 2_000}
        assert first.consumer.committed(places) == {places[0]: 1, places[1]: 2}
        first.consumer.close()
        # Who is no member of the group may ask too.
        assert clients.consumer().committed_metadata(places[1:]) == {places[1]: "é" * 2_000}

    def test_the_metadata_of_committed_offsets_is_also_read_without_a_member(self, clients):
        places = [TopicPartition(clients.topic(partitions=3), number) for number in range(3)]
        member = clients.consumer()
        member.commit(dict.fromkeys(places[:2], 0), {places[0]: "note"})
        group = clients.name("group")
        soon(lambda: clients.admin.committed_metadata(group, places) == {places[0]: "note"})
        assert clients.admin.committed_metadata(clients.name("other"), places) == {}
        assert clients.admin.committed_metadata(group, []) == {}

    @pytest.mark.parametrize("protocol", ["consumer", "classic"])
    def test_the_members_of_a_group_are_known_until_they_leave(self, clients, protocol):
        topic, group = clients.topic(partitions=2), clients.name("group")
        assert clients.admin.group_members(group) == []
        readers = [Reader(clients.consumer(protocol=protocol, instance_id=name)) for name in ("a", "b")]
        for reader in readers:
            reader.subscribe(topic)

        def described() -> bool:
            for reader in readers:
                reader.poll()
            found = clients.admin.group_members(group)
            return sorted(member.partitions for member in found) == [
                (TopicPartition(topic, 0),),
                (TopicPartition(topic, 1),),
            ]

        soon(described)
        found = clients.admin.group_members(group)
        assert sorted(str(member.instance) for member in found) == ["a", "b"]
        assert all(member.name and member.client and "127.0.0.1" in member.host for member in found)
        assert all(member.host in str(member) and member.name in str(member) for member in found)

    def test_positions_are_known_before_anything_is_read(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 10)))
        first = Reader(clients.consumer())
        first.pauses = {place}
        assert first.consumer.positions([place]) == {}
        first.subscribe(topic)
        poll_until(lambda: first.holds(place), first)
        assert first.consumer.positions([place])[place] in (BEGINNING, 0)
        first.consumer.commit({place: 4})
        first.consumer.close()
        second = Reader(clients.consumer())
        second.pauses = {place}
        second.subscribe(topic)
        poll_until(lambda: second.holds(place), second)
        assert second.consumer.positions([place, TopicPartition(topic, 1)]) == {place: 4}
        second.consumer.resume([place])
        poll_until(lambda: len(second.values) >= 6, second)
        assert second.consumer.positions([place]) == {place: 10}
        second.consumer.seek({place: 7})
        assert second.consumer.positions([place]) == {place: 7}

    def test_a_partition_that_is_kept_loses_and_repeats_nothing(self, clients):
        """Other members join and leave; there are always records waiting, so some are in flight each time."""

        class Keeper(Reader):
            def revoked(self, partitions: Sequence[TopicPartition]) -> None:
                super().revoked(partitions)
                for place in partitions:
                    self.next_offsets.pop(place, None)

            def poll(self) -> None:
                before, have = dict(self.next_offsets), len(self.fetched)
                super().poll()
                for fetched in self.fetched[have:]:
                    place = TopicPartition(fetched.topic, fetched.partition)
                    # Nothing is committed: a new owner begins at the partition's beginning.
                    expected = before.get(place, 0) if place in self.next_offsets else 0
                    if place in before and fetched.offsets()[0] == 0:
                        # Revoked and assigned again within the poll.
                        expected = 0
                    assert fetched.offsets() == list(range(expected, expected + len(fetched))), place

        def alone_again(keeper: Reader, wanted: int) -> bool:
            return len(keeper.consumer.assignment()) == 4 and len(keeper.values) >= wanted

        topic = clients.topic(partitions=4)
        producer = clients.producer()
        for partition in range(4):
            write(producer, rows(topic, numbered(0, 3_000), partition=partition))
        keeper = Keeper(clients.consumer(), max_records=20).subscribe(topic)
        poll_until(lambda: len(keeper.consumer.assignment()) == 4, keeper)
        for _ in range(3):
            guest = Keeper(clients.consumer(), max_records=20).subscribe(topic)
            poll_until(partial(bool, guest.values), keeper, guest)
            guest.consumer.close()
            poll_until(partial(alone_again, keeper, len(keeper.values) + 100), keeper)

    def test_a_group_that_committed_nothing_has_no_offsets(self, clients):
        assert clients.admin.committed_offsets(clients.name("nobody")) == {}

    def test_groups_do_not_share_offsets(self, clients):
        topic = clients.topic()
        write(clients.producer(), rows(topic, numbered(0, 3)))
        one = Reader(clients.consumer("one"), commits=True).subscribe(topic)
        poll_until(lambda: len(one.values) >= 3, one)
        one.consumer.close()
        other = Reader(clients.consumer("other")).subscribe(topic)
        poll_until(lambda: len(other.values) >= 3, other)
        assert other.values == numbered(0, 3)

    def test_the_end_is_reported_after_an_assignment(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 3)))
        first = Reader(clients.consumer(), commits=True).subscribe(topic)
        poll_until(lambda: first.is_at_end(place, 3), first)
        first.consumer.close()
        second = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: second.is_at_end(place, 3), second)
        assert second.values == []

    def test_latest_starts_a_new_group_at_the_end(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        producer = clients.producer()
        write(producer, rows(topic, numbered(0, 3)))
        reader = Reader(clients.consumer(offset_reset="latest")).subscribe(topic)
        poll_until(lambda: reader.is_at_end(place, 3), reader)
        write(producer, rows(topic, numbered(3, 5)))
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == numbered(3, 5)

    @pytest.mark.parametrize("protocol", ["consumer", "classic"])
    @pytest.mark.parametrize("committed", [2, 9])
    def test_a_committed_offset_that_the_log_does_not_have_is_reported_until_a_seek(
        self, clients, protocol, committed
    ):
        topic = clients.topic(partitions=3)
        places = [TopicPartition(topic, partition) for partition in range(3)]
        for place in places:
            write(clients.producer(), rows(topic, numbered(0, 6), partition=place.partition))
        # Of three partitions one has no committed offset, one has a good one, and one has this one.
        clients.consumer().commit({places[1]: 5, places[2]: committed})
        clients.admin.delete_records({places[2]: 4})
        reader = Reader(clients.consumer(reports_out_of_range=True, protocol=protocol)).subscribe(topic)
        poll_until(lambda: bool(reader.out_of_range) and len(reader.values) >= 7, reader)
        assert reader.out_of_range == [(places[2], OutOfRange(committed, 4, 6))]
        assert Counter(reader.values) == Counter([*numbered(0, 6), b"0005"])
        reader.consumer.seek({places[2]: 4})
        poll_until(lambda: reader.is_at_end(places[2], 6), reader)
        assert Counter(reader.values) == Counter([*numbered(0, 6), b"0005", *numbered(4, 6)])
        assert len(reader.out_of_range) == 1

    @pytest.mark.parametrize("protocol", ["consumer", "classic"])
    def test_a_position_that_is_deleted_while_it_is_read_is_reported(self, clients, protocol):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 10)))
        reader = Reader(clients.consumer(reports_out_of_range=True, protocol=protocol)).subscribe(topic)
        poll_until(lambda: reader.is_at_end(place, 10), reader)
        clients.admin.delete_records({place: 8})
        reader.consumer.pause([place])
        reader.consumer.seek({place: 3})
        reader.consumer.resume([place])
        poll_until(lambda: bool(reader.out_of_range), reader)
        assert reader.out_of_range == [(place, OutOfRange(3, 8, 10))]
        assert reader.out_of_range[0][1].lost == 5
        reader.consumer.pause([place])
        reader.consumer.seek({place: 10})
        reader.consumer.resume([place])
        write(clients.producer(), rows(topic, numbered(10, 12)))
        poll_until(lambda: reader.is_at_end(place, 12), reader)
        assert reader.values == numbered(0, 12)
        assert reader.rebalances == [("assigned", [place])]

    @pytest.mark.parametrize("protocol", ["consumer", "classic"])
    def test_partitions_paused_when_they_are_assigned_wait_also_without_a_committed_offset(
        self, clients, protocol
    ):
        topic = clients.topic(partitions=2)
        places = [TopicPartition(topic, partition) for partition in range(2)]
        for place in places:
            write(clients.producer(), rows(topic, numbered(0, 3), partition=place.partition))
        reader = Reader(clients.consumer(reports_out_of_range=True, protocol=protocol))
        reader.pauses = {places[1]}
        reader.subscribe(topic)
        poll_until(lambda: reader.is_at_end(places[0], 3), reader)
        for _ in range(10):
            reader.poll()
        assert set(reader.partitions) == {places[0]}
        reader.consumer.resume([places[1]])
        poll_until(lambda: reader.is_at_end(places[1], 3), reader)
        assert reader.values == [*numbered(0, 3), *numbered(0, 3)]

    def test_a_group_whose_topic_was_created_again_begins_at_its_beginning(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 5)))
        clients.consumer().commit({place: 5})
        clients.admin.delete_topics([topic])
        soon(lambda: topic not in clients.admin.topics())
        soon(lambda: bool(clients.admin.create_topics([NewTopic(name=topic, partitions=1)])))
        write(clients.producer(), rows(topic, numbered(5, 12)))
        reader = Reader(clients.consumer(reports_out_of_range=True)).subscribe(topic)
        poll_until(lambda: bool(reader.out_of_range) or len(reader.values) >= 7, reader)
        assert reader.values == numbered(5, 12)

    def test_a_pattern_subscribes_to_topics_whose_full_name_matches(self, clients):
        topics = [clients.topic(name) for name in ("orders-a", "orders-b", "orders-a-old")]
        pattern = re.compile(re.escape(clients.prefix) + "-orders-(a|b)")
        reader = Reader(clients.consumer()).subscribe(pattern)
        poll_until(lambda: reader.holds(*(TopicPartition(topic, 0) for topic in topics[:2])), reader)

    @pytest.mark.parametrize("protocol", ["consumer", "classic"])
    def test_a_pattern_subscribes_to_what_python_matches_whatever_its_flags(self, clients, protocol):
        names = [
            "Orders-eu",
            "orders-us",
            "orders-us-test",
            "ORDERS-asia",
            "x",
            "x-y",
            "trades.1",
            "tradesX1",
        ]
        topics = {name: clients.topic(name) for name in names}
        prefix = re.escape(clients.prefix)
        patterns = [
            # Flags as arguments, a lookahead, comments and insignificant spaces.
            re.compile(
                rf"""{prefix}-orders -  # any of them
                (?! .* -test $)         # but those for tests
                \w+""",
                re.IGNORECASE | re.VERBOSE,
            ),
            # An alternative that must match the full name, and an escaped dot.
            re.compile(rf"{prefix}-x|{prefix}-trades\.\d"),
            # Inline flags; a lookbehind; lines.
            re.compile(rf"(?im)^{prefix.upper()}-x-y(?<=-y)$"),
        ]
        reader = Reader(clients.consumer(protocol=protocol)).subscribe(*patterns)
        wanted = {
            TopicPartition(topic, 0)
            for topic in topics.values()
            if any(pattern.fullmatch(topic) for pattern in patterns)
        }
        assert wanted == {
            TopicPartition(topics[name], 0)
            for name in ("Orders-eu", "orders-us", "ORDERS-asia", "x", "x-y", "trades.1")
        }
        poll_until(lambda: reader.holds(*wanted), reader)
        assert [kind for kind, _ in reader.rebalances] == ["assigned"]

    @pytest.mark.parametrize("protocol", ["consumer", "classic"])
    def test_topics_that_come_and_go_join_and_leave_a_pattern(self, clients, protocol):
        pattern = re.compile(re.escape(clients.prefix) + "-log-.*")
        readers = [Reader(clients.consumer(protocol=protocol)).subscribe(pattern) for _ in range(2)]

        def held() -> set[TopicPartition]:
            return {place for reader in readers for place in reader.consumer.assignment()}

        def has_read(count: int) -> bool:
            # Nothing is committed: partitions that move to the other member are read again.
            return {value for reader in readers for value in reader.values} == set(numbered(0, count))

        for _ in range(3):
            for reader in readers:
                reader.poll()
        assert held() == set()
        first = clients.topic("log-a", partitions=2)
        write(clients.producer(), rows(first, numbered(0, 4), partition=0))
        places = {TopicPartition(first, number) for number in range(2)}
        poll_until(lambda: all(len(reader.consumer.assignment()) == 1 for reader in readers), *readers)
        assert held() == places
        poll_until(lambda: has_read(4), *readers)
        second = clients.topic("log-b")
        clients.topic("other")
        poll_until(lambda: held() == places | {TopicPartition(second, 0)}, *readers)
        write(clients.producer(), rows(first, numbered(4, 6), partition=0), rows(second, numbered(6, 8)))
        poll_until(lambda: has_read(8), *readers)
        clients.admin.delete_topics([first])
        poll_until(lambda: held() == {TopicPartition(second, 0)}, *readers)
        write(clients.producer(), rows(second, numbered(8, 10)))
        poll_until(lambda: has_read(10), *readers)

    def test_co_partitioned_topics_are_assigned_together(self, clients):
        topics = [clients.topic(name, partitions=4) for name in ("left", "right")]
        readers = [Reader(clients.consumer()).subscribe(*topics) for _ in range(2)]
        poll_until(lambda: all(len(r.consumer.assignment()) == 4 for r in readers), *readers)
        for reader in readers:
            numbers = {
                topic: {place.partition for place in reader.consumer.assignment() if place.topic == topic}
                for topic in topics
            }
            assert len(numbers[topics[0]]) == 2
            assert numbers[topics[0]] == numbers[topics[1]]

    def test_every_record_goes_to_one_member_while_members_come_and_go(self, clients):
        topic = clients.topic(partitions=6)
        producer = clients.producer()
        readers = [Reader(clients.consumer(), commits=True).subscribe(topic) for _ in range(2)]

        def held() -> list[int]:
            return sorted(len(reader.consumer.assignment()) for reader in readers)

        def read() -> int:
            return sum(len(reader.values) for reader in readers)

        poll_until(lambda: held() == [3, 3], *readers)
        write(producer, rows(topic, numbered(0, 60), keys=numbered(0, 60)))
        poll_until(lambda: read() >= 60, *readers)

        third = Reader(clients.consumer(), commits=True).subscribe(topic)
        readers.append(third)
        poll_until(lambda: held() == [2, 2, 2], *readers)
        write(producer, rows(topic, numbered(60, 120), keys=numbered(60, 120)))
        poll_until(lambda: read() >= 120, *readers)
        assert third.values

        third.consumer.close()
        readers.remove(third)
        poll_until(lambda: held() == [3, 3], *readers)
        write(producer, rows(topic, numbered(120, 180), keys=numbered(120, 180)))
        readers_values = [*readers, third]
        poll_until(lambda: sum(len(reader.values) for reader in readers_values) >= 180, *readers)
        assert sorted(v for reader in readers_values for v in reader.values if v) == numbered(0, 180)
        assert not any(kind == "lost" for reader in readers_values for kind, _ in reader.rebalances)

    def test_what_is_committed_while_revoked_is_not_read_again(self, clients):
        topic = clients.topic(partitions=2)
        write(
            clients.producer(),
            rows(topic, numbered(0, 10), partition=0),
            rows(topic, numbered(10, 20), partition=1),
        )
        first = Reader(clients.consumer(), commits=True).subscribe(topic)
        poll_until(lambda: len(first.values) >= 20, first)
        assert clients.admin.committed_offsets(clients.name("group")) == {}
        second = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: bool(second.ends), first, second)
        ((kind, (moved,)),) = [event for event in first.rebalances if event[0] != "assigned"]
        assert kind == "revoked"
        assert second.holds(moved)
        assert second.values == []
        assert clients.admin.committed_offsets(clients.name("group")) == {moved: 10}

    def test_what_a_member_keeps_is_not_interrupted_by_a_rebalance(self, clients):
        topic = clients.topic(partitions=2)
        first = Reader(clients.consumer(protocol="auto")).subscribe(topic)
        poll_until(lambda: len(first.consumer.assignment()) == 2, first)
        second = Reader(clients.consumer(protocol="auto")).subscribe(topic)
        poll_until(lambda: len(second.consumer.assignment()) == 1, first, second)
        (kept,) = first.consumer.assignment()
        moved = [place for kind, places in first.rebalances if kind == "revoked" for place in places]
        assert kept not in moved

    def test_keep_alive_delivers_nothing_and_loses_nothing(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        producer = clients.producer()
        reader = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: reader.is_at_end(place, 0), reader)
        write(producer, rows(topic, numbered(0, 20)))
        for _ in range(20):
            reader.consumer.keep_alive()
        poll_until(lambda: len(reader.values) >= 20, reader)
        assert reader.values == numbered(0, 20)

    def test_keep_alive_takes_part_in_rebalances(self, clients):
        topic = clients.topic(partitions=2)
        first = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: len(first.consumer.assignment()) == 2, first)
        second = Reader(clients.consumer()).subscribe(topic)

        def second_has_one() -> bool:
            first.consumer.keep_alive()
            return len(second.consumer.assignment()) == 1

        poll_until(second_has_one, second)
        assert len(first.consumer.assignment()) == 1

    def test_an_assignment_starts_unpaused(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        first = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: first.holds(place), first)
        first.consumer.pause([place])
        first.consumer.close()
        write(clients.producer(), rows(topic, [b"one"]))
        second = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: bool(second.values), second)

    def test_a_member_can_pause_what_it_is_being_assigned(self, clients):
        topic = clients.topic(partitions=2)
        paused, running = TopicPartition(topic, 0), TopicPartition(topic, 1)
        write(
            clients.producer(),
            rows(topic, [b"paused"], partition=0),
            rows(topic, numbered(0, 5), partition=1),
        )

        class Restoring(Reader):
            def assigned(self, partitions: Sequence[TopicPartition]) -> None:
                super().assigned(partitions)
                self.consumer.pause([paused])

        reader = Restoring(clients.consumer())
        reader.subscribe(topic)
        poll_until(lambda: reader.is_at_end(running, 5), reader)
        for _ in range(5):
            reader.poll()
        assert reader.values == numbered(0, 5)
        reader.consumer.resume([paused])
        poll_until(lambda: len(reader.values) >= 6, reader)
        assert reader.values[5:] == [b"paused"]

    def test_a_member_can_seek_in_what_it_is_being_assigned(self, clients):
        topic = clients.topic()
        write(clients.producer(), rows(topic, numbered(0, 5)))

        class Rewinding(Reader):
            def assigned(self, partitions: Sequence[TopicPartition]) -> None:
                super().assigned(partitions)
                self.consumer.seek({TopicPartition(topic, 0): 3})

        reader = Rewinding(clients.consumer())
        reader.subscribe(topic)
        poll_until(lambda: reader.is_at_end(TopicPartition(topic, 0), 5), reader)
        assert reader.values == numbered(3, 5)

    def test_offsets_can_be_committed_for_a_group_without_members(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        write(clients.producer(), rows(topic, numbered(0, 5)))
        clients.consumer().commit({place: 3})
        reader = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == numbered(3, 5)


class TestTransactions:
    def test_records_and_offsets_are_committed_as_one(self, clients):
        source, sink = clients.topic("source"), clients.topic("sink")
        place = TopicPartition(source, 0)
        write(clients.producer(), rows(source, numbered(0, 3)))
        member = Reader(clients.consumer()).subscribe(source)
        poll_until(lambda: len(member.values) >= 3, member)
        watcher = Reader(clients.consumer("watchers")).assign({TopicPartition(sink, 0): BEGINNING})

        producer = clients.transactional_producer()
        producer.begin()
        write(producer, rows(sink, numbered(0, 3)))
        producer.send_offsets({place: 3}, member.consumer.group_metadata())
        poll_until(lambda: bool(watcher.ends), watcher)
        assert watcher.values == []
        assert clients.admin.committed_offsets(clients.name("group")) == {}

        producer.commit(PATIENCE)
        poll_until(lambda: len(watcher.values) >= 3, watcher)
        assert watcher.values == numbered(0, 3)
        soon(lambda: clients.admin.committed_offsets(clients.name("group")) == {place: 3})

    def test_the_metadata_of_offsets_is_committed_with_them(self, clients):
        place = TopicPartition(clients.topic(), 0)
        member = Reader(clients.consumer()).subscribe(place.topic)
        poll_until(lambda: member.holds(place), member)
        producer = clients.transactional_producer()
        for text, committed in (("one", True), ("two", False), ("three", True)):
            producer.begin()
            producer.send_offsets({place: len(text)}, member.consumer.group_metadata(), {place: text})
            producer.commit(PATIENCE) if committed else producer.abort(PATIENCE)
            expected = text if committed else "one"
            soon(partial(metadata_is, member.consumer, place, expected))
        producer.begin()
        producer.send_offsets({place: 9}, member.consumer.group_metadata())
        producer.commit(PATIENCE)
        soon(lambda: metadata_is(member.consumer, place, ""))

    def test_an_aborted_transaction_leaves_no_records_and_no_offsets(self, clients):
        source, sink = clients.topic("source"), clients.topic("sink")
        place = TopicPartition(source, 0)
        write(clients.producer(), rows(source, numbered(0, 3)))
        member = Reader(clients.consumer()).subscribe(source)
        poll_until(lambda: len(member.values) >= 3, member)
        producer = clients.transactional_producer()
        producer.begin()
        write(producer, rows(sink, [b"aborted"]))
        producer.send_offsets({place: 3}, member.consumer.group_metadata())
        producer.abort(PATIENCE)

        producer.begin()
        producer.produce(rows(sink, [b"committed"]))
        producer.commit(PATIENCE)
        reader = Reader(clients.consumer("watchers")).assign({TopicPartition(sink, 0): BEGINNING})
        poll_until(lambda: bool(reader.values), reader)
        assert reader.values == [b"committed"]
        write(clients.producer(), rows(sink, [b"later"]))
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == [b"committed", b"later"]
        assert clients.admin.committed_offsets(clients.name("group")) == {}

    def test_markers_have_an_offset_and_the_end_is_after_them(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        producer = clients.transactional_producer()
        for values in (numbered(0, 3), numbered(3, 4)):
            producer.begin()
            producer.produce(rows(topic, values))
            producer.commit(PATIENCE)
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: reader.is_at_end(place, 6), reader)
        assert reader.offsets == [0, 1, 2, 4]
        assert clients.admin.end_offsets([place]) == {place: 6}

    def test_a_reader_passes_over_aborted_records_at_the_end(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        producer = clients.transactional_producer()
        producer.begin()
        write(producer, rows(topic, numbered(0, 3)))
        producer.abort(PATIENCE)
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: reader.is_at_end(place, 4), reader)
        assert reader.values == []

    def test_uncommitted_reads_see_open_and_aborted_records(self, clients):
        topic = clients.topic()
        producer = clients.transactional_producer()
        producer.begin()
        write(producer, rows(topic, [b"aborted"]))
        producer.abort(PATIENCE)
        producer.begin()
        write(producer, rows(topic, [b"open"]))
        consumer = clients.consumer(isolation="read_uncommitted")
        reader = Reader(consumer).assign({TopicPartition(topic, 0): BEGINNING})
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == [b"aborted", b"open"]
        producer.abort(PATIENCE)

    def test_an_open_transaction_hides_what_comes_after_it(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        transactional, plain = clients.transactional_producer(), clients.producer()
        transactional.begin()
        write(transactional, rows(topic, [b"first"]))
        write(plain, rows(topic, [b"second"]))
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: reader.is_at_end(place, 0), reader)
        assert reader.values == []
        assert clients.admin.end_offsets([place]) == {place: 0}
        assert clients.admin.end_offsets([place], "read_uncommitted") == {place: 2}
        transactional.commit(PATIENCE)
        poll_until(lambda: len(reader.values) >= 2, reader)
        assert reader.values == [b"first", b"second"]

    def test_transactions_of_several_producers_end_on_their_own(self, clients):
        topic = clients.topic()
        place = TopicPartition(topic, 0)
        kept, dropped = (clients.transactional_producer(name) for name in ("kept", "dropped"))
        kept.begin()
        dropped.begin()
        for number in range(3):
            write(kept, rows(topic, [f"kept {number}".encode()]))
            write(dropped, rows(topic, [f"dropped {number}".encode()]))
        kept.commit(PATIENCE)
        dropped.abort(PATIENCE)
        reader = Reader(clients.consumer()).assign({place: BEGINNING})
        poll_until(lambda: reader.is_at_end(place, 8), reader)
        assert reader.values == [b"kept 0", b"kept 1", b"kept 2"]
        assert reader.offsets == [0, 2, 4]

    def test_what_the_broker_has_acknowledged_is_counted_by_topic_until_it_is_taken(self, clients):
        first, second = clients.topic("first"), clients.topic("second")
        producer = clients.transactional_producer()
        assert not any(producer.take_acknowledged().values())
        for commits in (True, False, True):
            producer.begin()
            producer.produce(rows(first, numbered(0, 3)))
            producer.produce(rows(second, numbered(0, 2)))
            producer.produce(rows(first, numbered(3, 4)))
            if commits:
                producer.commit(PATIENCE)
                assert producer.take_acknowledged() == {first: 4, second: 2}
            else:
                producer.abort(PATIENCE)
                # Some may have been acknowledged before; the next transaction counts its own.
                producer.take_acknowledged()
            assert not any(producer.take_acknowledged().values())

    def test_a_row_that_is_refused_at_once_is_not_acknowledged(self, clients):
        topic = clients.topic()
        producer = clients.transactional_producer()
        producer.begin()
        with pytest.raises(RecordRefused):
            producer.produce(rows(topic, [b"before", bytes(61_000_000), b"after"]))
        producer.produce(rows(topic, [b"after"]))
        producer.commit(PATIENCE)
        assert producer.take_acknowledged() == {topic: 2}

    def test_without_transactions_rows_are_acknowledged_by_a_flush(self, clients):
        topic = clients.topic()
        producer = clients.producer()
        producer.produce(rows(topic, numbered(0, 3)))
        producer.flush(PATIENCE)
        assert producer.take_acknowledged() == {topic: 3}
        producer.produce(rows(topic, numbered(3, 5)))
        producer.flush(PATIENCE)
        assert producer.take_acknowledged() == {topic: 2}

    def test_a_transaction_may_be_empty(self, clients):
        topic = clients.topic()
        producer = clients.transactional_producer()
        producer.begin()
        producer.commit(PATIENCE)
        producer.begin()
        producer.abort(PATIENCE)
        producer.begin()
        producer.produce(rows(topic, [b"one"]))
        producer.commit(PATIENCE)
        reader = Reader(clients.consumer()).assign({TopicPartition(topic, 0): BEGINNING})
        poll_until(lambda: bool(reader.values), reader)

    def test_a_newer_producer_fences_an_older_one_and_ends_its_transaction(self, clients):
        source, sink = clients.topic("source"), clients.topic("sink")
        member = Reader(clients.consumer()).subscribe(source)
        poll_until(lambda: member.holds(TopicPartition(source, 0)), member)
        older = clients.transactional_producer("same")
        older.begin()
        write(older, rows(sink, [b"older"]))
        older.send_offsets({TopicPartition(source, 0): 7}, member.consumer.group_metadata())
        newer = clients.transactional_producer("same")
        newer.begin()
        newer.produce(rows(sink, [b"newer"]))
        newer.commit(PATIENCE)
        with pytest.raises(OutcomeUnknown):
            older.commit(PATIENCE)
        reader = Reader(clients.consumer("watchers")).assign({TopicPartition(sink, 0): BEGINNING})
        poll_until(lambda: bool(reader.values), reader)
        assert reader.values == [b"newer"]
        assert clients.admin.committed_offsets(clients.name("group")) == {}

    def test_a_producer_fenced_while_idle_cannot_write_any_more(self, clients):
        topic = clients.topic()
        older = clients.transactional_producer("same")
        clients.transactional_producer("same")

        def transaction() -> None:
            older.begin()
            older.produce(rows(topic, [b"older"]))
            older.commit(PATIENCE)

        # The client decides which of the calls fails.
        with pytest.raises(OutcomeUnknown):
            transaction()

    def test_a_producer_fenced_in_the_middle_of_writing_gets_an_error(self, clients):
        first, second = clients.topic("first"), clients.topic("second")
        older = clients.transactional_producer("same")
        older.begin()
        write(older, rows(first, [b"older"]))
        clients.transactional_producer("same")

        def go_on() -> bool:
            older.produce(rows(second, [b"older"]))
            return False

        with pytest.raises(OutcomeUnknown):
            soon(go_on)

    def test_a_producer_fenced_while_it_waits_for_deliveries_gets_an_error(self, clients):
        topic = clients.topic()
        older = clients.transactional_producer("same")
        older.begin()
        write(older, rows(topic, [b"older"]))
        clients.transactional_producer("same")

        def go_on() -> None:
            older.produce(rows(topic, [b"older"]))
            older.flush(PATIENCE)

        with pytest.raises(OutcomeUnknown):
            go_on()

    def test_a_member_that_left_cannot_commit_offsets_in_a_transaction(self, clients):
        source, sink = clients.topic("source"), clients.topic("sink")
        place = TopicPartition(source, 0)
        write(clients.producer(), rows(source, numbered(0, 3)))
        member = Reader(clients.consumer()).subscribe(source)
        poll_until(lambda: len(member.values) >= 3, member)
        membership = member.consumer.group_metadata()
        member.consumer.close()
        producer = clients.transactional_producer()
        producer.begin()
        producer.produce(rows(sink, [b"stale"]))
        with pytest.raises(TransactionAborted):
            producer.send_offsets({place: 3}, membership)
        producer.abort(PATIENCE)

        producer.begin()
        producer.produce(rows(sink, [b"fresh"]))
        producer.commit(PATIENCE)
        reader = Reader(clients.consumer("watchers")).assign({TopicPartition(sink, 0): BEGINNING})
        poll_until(lambda: bool(reader.values), reader)
        assert reader.values == [b"fresh"]
        assert clients.admin.committed_offsets(clients.name("group")) == {}

    def test_a_membership_from_before_a_rebalance_cannot_commit_what_moved_away(self, clients):
        topic = clients.topic(partitions=2)
        first = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: len(first.consumer.assignment()) == 2, first)
        membership = first.consumer.group_metadata()
        second = Reader(clients.consumer()).subscribe(topic)
        poll_until(lambda: len(second.consumer.assignment()) == 1, first, second)
        (moved,) = second.consumer.assignment()
        producer = clients.transactional_producer()
        producer.begin()
        with pytest.raises(TransactionAborted):
            producer.send_offsets({moved: 1}, membership)
        producer.abort(PATIENCE)

    def test_a_transaction_can_be_committed_while_partitions_are_revoked(self, clients):
        source, sink = clients.topic("source"), clients.topic("sink")
        place = TopicPartition(source, 0)
        write(clients.producer(), rows(source, numbered(0, 3)))
        producer = clients.transactional_producer()

        class Worker(Reader):
            def revoked(self, partitions: Sequence[TopicPartition]) -> None:
                super().revoked(partitions)
                producer.begin()
                producer.produce(rows(sink, [b"result"]))
                producer.send_offsets({place: 3}, self.consumer.group_metadata())
                producer.commit(PATIENCE)

        worker = Worker(clients.consumer())
        worker.subscribe(source)
        poll_until(lambda: len(worker.values) >= 3, worker)
        worker.consumer.close()
        soon(lambda: clients.admin.committed_offsets(clients.name("group")) == {place: 3})

    def test_a_new_owner_waits_for_offsets_that_may_still_be_committed(self, clients):
        source = clients.topic("source")
        place = TopicPartition(source, 0)
        plain = clients.producer()
        write(plain, rows(source, numbered(0, 3)))
        first = Reader(clients.consumer()).subscribe(source)
        poll_until(lambda: len(first.values) >= 3, first)
        producer = clients.transactional_producer()
        producer.begin()
        producer.send_offsets({place: 3}, first.consumer.group_metadata())
        first.consumer.close()

        second = Reader(clients.consumer()).subscribe(source)
        poll_until(lambda: second.holds(place), second)
        for _ in range(5):
            second.poll()
        assert second.consumer.positions([place]) == {}
        producer.commit(PATIENCE)
        write(plain, rows(source, numbered(3, 4)))
        poll_until(lambda: bool(second.values), second)
        assert second.values == numbered(3, 4)
