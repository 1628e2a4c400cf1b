"""Sources whose event times come from values: records that wait for others are decoded once, and rightly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from streams import App, Json, Text, fail, skip
from streams.errors import ProcessingError
from streams.eventtime.merge import InputQueue
from streams.operators.decoded import DECODED_AT_ONCE
from streams.records import FetchedLists, TopicPartition
from streams.runtime.task import Task, TaskId
from streams.state.memory import MemoryDatabases
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ORDERS, PRICES = TopicPartition("orders", 0), TopicPartition("prices", 0)


class Counting(Json[Any]):
    """JSON that counts what is read from it."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Any]:
        self.read += len(payloads)
        return super().deserialize(payloads)


def merged_app(orders: Counting, function: Callable[[Any], Any], time_of: Callable[[Any], Any]) -> App:
    """Two inputs that one task merges by event time; that of the orders stands in their values."""
    app = App("shop")
    stream = app.stream("orders", key=Text(), value=orders, timestamp=time_of, on_error=skip)
    merged = stream.merge(app.stream("prices", key=Text(), value=Json()))
    merged.map(function, on_error=fail).to("out")
    return app


class Bench:
    """A task of such an app, whose input waits in a queue as a worker's does."""

    def __init__(self, function: Callable[[Any], Any] = lambda order: order, *, table: bool = False) -> None:
        self.serde = Counting()
        self.asked = 0
        if table:
            app = App("shop")
            app.table("orders", key=Text(), value=self.serde, timestamp=self.time_of, on_error=skip).to("out")
        else:
            app = merged_app(self.serde, function, self.time_of)
        self.driver = TopologyDriver(app)
        (subtopology,) = app.topology.subtopologies
        self.task = Task(
            TaskId(0, 0),
            subtopology,
            self.driver,
            application="shop",
            dead_letter_topic="letters",
            database=MemoryDatabases().open(["orders"], 0),
        )
        self.queue = InputQueue({ORDERS: 0, PRICES: 1}, self.task.event_times)

    def time_of(self, order: Any) -> Any:
        self.asked += 1
        return order["time"]

    def send(self, values: Sequence[bytes | None]) -> None:
        count = len(values)
        fetched = FetchedLists("orders", 0, [b"k"] * count, list(values), [7] * count, range(count))
        for piece in self.task.timed(fetched):
            self.queue.add(piece)
        self.queue.at_end(ORDERS, count)
        self.queue.at_end(PRICES, 0)

    def run(self, limit: int = 1000) -> list[tuple[bytes | None, int]]:
        while (fetched := self.queue.peek(limit)) is not None:
            self.task.process(fetched)
            self.queue.taken(fetched)
        self.task.prepare()
        return [
            (value, time)
            for output in self.task.take()
            for value, time in zip(output.values, output.timestamps, strict=True)
        ]


payloads = st.lists(
    st.one_of(
        st.integers(0, 50).map(lambda time: b'{"time":%d}' % time),
        st.sampled_from([None, b"no json", b"{}", b'{"time":-1}', b'{"time":1.5}', b'{"time":"1"}', b"[]"]),
    ),
    max_size=20,
)


@given(payloads, st.integers(1, 7), st.booleans())
def test_records_that_waited_are_processed_like_those_that_did_not(values, limit, table):
    bench = Bench(table=table)
    bench.send(values)
    waited = bench.run(limit)
    for value in values:
        bench.driver.send_bytes("orders", value, key=b"k", timestamp=7)
    assert waited == [
        (None if record.value is None else msgspec.json.encode(record.value), record.timestamp)
        for record in bench.driver.read("out")
    ]
    assert bench.task.counts.skipped == bench.driver.skipped()


def test_each_value_is_decoded_once_and_its_event_time_is_extracted_once():
    bench = Bench()
    count = 2 * DECODED_AT_ONCE + 10
    bench.send([b'{"time":%d}' % time for time in range(count)])
    assert len(bench.run()) == count
    assert (bench.serde.read, bench.asked) == (count, count)


def test_no_more_values_are_held_decoded_than_one_piece():
    bench = Bench()
    bench.send([b'{"time":%d}' % time for time in range(5 * DECODED_AT_ONCE)])
    assert bench.queue.peek(1) is not None
    assert bench.serde.read == DECODED_AT_ONCE


def test_a_slice_that_is_processed_again_begins_with_fresh_values():
    failing = True

    def change(order: Any) -> Any:
        order["changed"] = order.get("changed", 0) + 1
        if failing and order["time"] == 2:
            raise RuntimeError("the slice fails")
        return order

    bench = Bench(change)
    bench.send([b'{"time":%d}' % time for time in range(3)])
    with pytest.raises(ProcessingError, match="the slice fails"):
        bench.run()
    failing = False
    assert [msgspec.json.decode(value or b"")["changed"] for value, _ in bench.run()] == [1, 1, 1]
