"""Partitions that stop at exact offsets, as if the log ended there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams.broker import BEGINNING, GroupSettings, NewTopic
from streams.broker.memory import MemoryBroker
from streams.records import Output, TopicPartition
from streams.runtime.input_gate import InputGate

if TYPE_CHECKING:
    from collections.abc import Collection

    from streams.broker import NamePattern, RebalanceListener

P0, P1 = TopicPartition("in", 0), TopicPartition("in", 1)


class Reader:
    """A gate on two partitions of ten records each, with a marker of a transaction after each pair."""

    def __init__(self, limit: int = 100) -> None:
        self.broker = MemoryBroker()
        self.broker.admin().create_topics([NewTopic(name="in", partitions=2)])
        self.write(10)
        consumer = self.broker.consumer(GroupSettings(group="g", protocol="classic"))
        self.gate = InputGate(consumer)
        self.gate.assign({P0: BEGINNING, P1: BEGINNING})
        self.limit = limit
        self.ends: dict[TopicPartition, int] = {}

    def write(self, count: int) -> None:
        producer = self.broker.producer(transactional_id="writer")
        producer.init_transactions(1)
        for number in range(0, count, 2):
            producer.begin()
            for partition in (0, 1):
                values = [str(number).encode(), str(number + 1).encode()]
                producer.produce(Output("in", [None] * 2, values, [0] * 2, partition=partition))
            producer.commit(1)
        producer.close()

    def read(self) -> dict[TopicPartition, list[int]]:
        """The offsets that several polls return."""
        found: dict[TopicPartition, list[int]] = {}
        for _ in range(10):
            polled = self.gate.poll(self.limit, 0)
            for item in polled.fetched:
                found.setdefault(TopicPartition(item.topic, item.partition), []).extend(item.offsets())
            self.ends |= polled.ends
        return found


ALL = [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
"""The offsets of records: each third one is a marker."""


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 14])
def test_limit_is_the_end(size: int, limit: int) -> None:
    reader = Reader(size)
    reader.gate.limit(P0, 0, limit)
    found = reader.read()
    while more := reader.read():
        for place, offsets in more.items():
            found[place] += offsets
    assert found.get(P0, []) == [offset for offset in ALL if offset < limit]
    assert found[P1] == ALL
    assert reader.ends == {P0: limit, P1: 15}
    assert reader.gate.stopped_at(P0) == limit
    assert reader.gate.known_ends([P1]) == {P1: 15}
    assert reader.gate.known_ends([P0]).get(P0, limit) == limit
    reader.gate.limit(P0, limit, 9)
    assert reader.read().get(P0, []) == [offset for offset in ALL if limit <= offset < 9]
    reader.gate.lift()
    reader.limit = 100
    assert reader.read().get(P0, []) == [offset for offset in ALL if offset >= max(limit, 9)]
    assert reader.ends[P0] == 15


def test_stop_where_it_is() -> None:
    reader = Reader(100)
    assert reader.read()[P0] == ALL
    reader.gate.stop(P0, 15)
    reader.write(4)
    assert reader.read() == {P1: [15, 16, 18, 19]}
    # The end of the log is reported again after a limit was there.
    reader.gate.lift()
    assert reader.read() == {P0: [15, 16, 18, 19]}
    assert reader.ends[P0] == 21


def test_stop_before_the_position_is_known() -> None:
    reader = Reader(100)
    reader.gate.stop(P0, None)
    assert P0 not in reader.read()
    assert reader.ends[P0] == 0
    assert reader.gate.stopped_at(P0) == 0
    reader.gate.forget([P0])
    reader.gate.seek({P0: 4})
    reader.gate.stop(P0, None)
    reader.gate.seek({P0: 6})
    assert reader.read() == {}
    assert reader.gate.stopped_at(P0) == 6


def test_reading_again_before_the_limit() -> None:
    reader = Reader(100)
    reader.gate.limit(P0, 0, 7)
    assert reader.read()[P0] == [0, 1, 3, 4, 6]
    reader.gate.seek({P0: 3})
    assert reader.gate.stopped_at(P0) is None
    assert reader.read() == {P0: [3, 4, 6]}
    assert reader.ends[P0] == 7


def test_callers_pauses_are_kept() -> None:
    reader = Reader(100)
    reader.gate.pause([P0, P1])
    reader.gate.hold([P0])
    reader.gate.resume([P0, P1])
    assert reader.read().keys() == {P1}
    reader.gate.pause([P0])
    reader.gate.release()
    assert reader.read() == {}
    reader.gate.stop(P0, 0)
    reader.gate.resume([P0])
    assert reader.read() == {}
    reader.gate.lift()
    assert reader.read() == {P0: ALL}


class Joined:
    """Holds what is assigned, as a worker of a pair does."""

    gate: InputGate

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        self.gate.hold(partitions)

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        self.gate.forget(partitions)

    lost = revoked


def test_nothing_is_delivered_of_held_partitions() -> None:
    reader = Reader(100)
    joined = Joined()
    joined.gate = reader.gate = InputGate(
        reader.broker.consumer(GroupSettings(group="g", offset_reset="earliest"))
    )
    topics: Collection[str | NamePattern] = ["in"]
    listener: RebalanceListener = joined
    reader.gate.subscribe(topics, listener)
    assert reader.read() == {}
    assert reader.gate.held == {P0, P1}
    reader.gate.release()
    assert reader.read() == {P0: ALL, P1: ALL}
