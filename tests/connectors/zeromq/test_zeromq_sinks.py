from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from streams import Json, Text, seconds
from streams.connectors.sink import SinkContext, SinkRows
from streams.connectors.zeromq import PubSink, PushSink
from streams.errors import ConfigurationError, SinkUnavailable
from streams.events import Event
from streams.records import TopicPartition
from tests.support.logs import capture_logs
from tests.support.messages import Receiver, free_address
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import Headers

PLACE = TopicPartition("orders", 2)


def context(patience: float = 5.0) -> SinkContext:
    return SinkContext(application="shop", name="out", worker="w", lock_timeout=patience)


def rows(
    values: Sequence[Any],
    *,
    keys: Sequence[Any] | None = None,
    headers: Sequence[Headers | None] | None = None,
    offsets: Sequence[int] | None = None,
) -> SinkRows:
    count = len(values)
    return SinkRows(
        partition=PLACE,
        start=0,
        next_offset=count,
        keys=[None] * count if keys is None else keys,
        values=values,
        timestamps=[0] * count,
        headers=[None] * count if headers is None else headers,
        offsets=range(count) if offsets is None else offsets,
    )


def test_a_message_has_key_value_and_origin():
    address = free_address()
    with Receiver(zmq.PULL, bind=address) as receiver:
        writer = PushSink(connect=address, key=Text(), value=Json()).open(context())
        writer.write([rows([1, None, {"a": 1}], keys=["k", "k", None], offsets=[7, 7, 8])])
        wait_until(lambda: len(receiver.messages) == 3)
        writer.close()
    assert receiver.messages == [
        [b"k", b"1", b"orders/2/7"],
        [b"k", b"", b"orders/2/7/1"],
        [b"", b'{"a":1}', b"orders/2/8"],
    ]


def test_other_frames_are_named():
    address = free_address()
    both: list[Headers | None] = [[("a", b"1"), ("b", None)], None]
    with Receiver(zmq.PULL, bind=address) as receiver:
        for frames in ("value", ["key", "value", "headers"]):
            writer = PushSink(connect=address, key=Text(), value=Text(), frames=frames).open(context())
            writer.write([rows(["x", "y"], keys=["k", "l"], headers=both)])
            writer.close()
        wait_until(lambda: len(receiver.messages) == 4)
    assert receiver.messages == [
        [b"x"],
        [b"y"],
        [b"k", b"x", b"a", b"1", b"b", b""],
        [b"l", b"y"],
    ]


def test_without_a_receiver_nothing_is_sent():
    address = free_address()
    sink = PushSink(connect=address)
    with pytest.raises(SinkUnavailable, match=f"no receiver at {address}"):
        sink.open(context())
    with pytest.raises(SinkUnavailable, match=f"no receiver at {address}"):
        PushSink(bind=address).open(context())
    with Receiver(zmq.PULL, bind=address) as receiver:
        writer = sink.open(context())
        writer.write([rows([1])])
        writer.close()
        wait_until(lambda: receiver.messages)
        assert [message[1] for message in receiver.messages] == [b"1"]


def test_a_push_sink_waits_for_a_receiver_that_takes_no_more_and_then_gives_up():
    address = free_address()
    # A socket that nothing reads: its buffer and the kernel's are full after some megabytes.
    with zmq.Context() as other, other.socket(zmq.PULL) as idle:
        idle.rcvhwm = 5
        idle.bind(address)
        sink = PushSink(connect=address, value=Text(), high_water_mark=5, linger=seconds(0))
        writer = sink.open(context(patience=0.5))
        batch = rows(["x" * 100_000] * 1_000)
        with pytest.raises(SinkUnavailable, match=r"sink 'out' at .* took no message for 0\.5 s"):
            writer.write([batch])
        writer.close()
        # A slow one is waited for: what it takes is progress.
        received: list[bytes] = []
        done = threading.Event()

        def slow() -> None:
            while not done.is_set():
                if idle.poll(20):
                    received.append(idle.recv_multipart()[2])

        reading = threading.Thread(target=slow)
        reading.start()
        writer = sink.open(context(patience=5.0))
        writer.write([batch])
        wait_until(lambda: b"orders/2/999" in received)
        done.set()
        reading.join()
        writer.close()
        assert {b"orders/2/%d" % number for number in range(1_000)} <= set(received)


def test_messages_are_complete_while_receivers_come_and_go():
    """A connection that ends in the middle of a message costs no frame of another one."""
    address, count = free_address(), 100
    own: Headers = [(f"h{number}", b"%d" % number) for number in range(300)]
    values = [f"value {number}" for number in range(count)]
    # Many frames: connections end between two of them a few times in this test.
    batch = rows(values, keys=values, headers=[own] * count)
    pairs = [frame for name, value in own for frame in (name.encode(), value)]
    expected = [[value.encode(), value.encode(), *pairs] for value in values]
    sink = PushSink(
        bind=address,
        key=Text(),
        value=Text(),
        frames=["key", "value", "headers"],
        high_water_mark=10,
        linger=seconds(0),
    )
    ended = threading.Event()
    found: list[list[bytes]] = []
    with Receiver(zmq.PULL, connect=address) as steady:
        writer = sink.open(context(patience=60))

        def send() -> None:
            while not ended.is_set():
                assert writer.write([batch]) == []
                writer.commit()

        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send)
            for _ in range(20):
                with Receiver(zmq.PULL, connect=address, high_water_mark=10) as passing:
                    wait_until(lambda: passing.messages)
                found += passing.messages
            ended.set()
            sending.result()
        writer.close()
    for message in steady.messages + found:
        assert message == expected[int(message[0].split()[1])]


def test_a_publisher_drops_what_its_subscriber_does_not_take():
    address = free_address()
    with zmq.Context() as other, other.socket(zmq.SUB) as idle:
        idle.rcvhwm = 5
        idle.subscribe(b"")
        idle.bind(address)
        sink = PubSink(connect=address, value=Text(), subscribers=1, high_water_mark=5, linger=seconds(10))
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(sink.open, context(patience=0.5))
            # A socket subscribes while its program calls it.
            wait_until(lambda: idle.poll(10) or opening.done())
            writer = opening.result()
        assert writer.write([rows(["x" * 100_000] * 1_000)]) == []
        writer.commit()
        received = []
        while idle.poll(1_000):
            received.append(idle.recv_multipart()[2])
        writer.close()
    assert 10 <= len(received) < 1_000
    # What came first is there; the rest was dropped, and nobody was told.
    assert received[0] == b"orders/2/0"


def test_rows_wait_for_the_wanted_subscriptions():
    address = free_address()
    sink = PubSink(bind=address, value=Text(), subscribers=2)
    with Receiver(zmq.SUB, connect=address) as one:
        with pytest.raises(SinkUnavailable, match="1 of 2 wanted subscriptions"):
            sink.open(context())
        with Receiver(zmq.SUB, connect=address) as other:
            writer = sink.open(context())
            writer.write([rows(["a"])])
            writer.commit()
            wait_until(lambda: one.messages and other.messages)
        # One is gone: what follows would not reach it.

        def refused() -> bool:
            try:
                writer.write([rows(["b"])])
            except SinkUnavailable:
                return True
            writer.commit()
            return False

        wait_until(refused)
        writer.close()


def test_subscribers_get_what_begins_with_their_prefix():
    address = free_address()
    with Receiver(zmq.SUB, connect=address, subscribe=b"EUR") as receiver:
        writer = PubSink(bind=address, key=Text(), subscribers=1).open(context())
        writer.write([rows([1, 2, 3], keys=["USD", "EUR.de", "EUR"])])
        wait_until(lambda: len(receiver.messages) == 2)
        writer.close()
    assert [message[0] for message in receiver.messages] == [b"EUR.de", b"EUR"]


def test_messages_that_are_left_at_the_end_are_reported():
    address = free_address()
    with zmq.Context() as other, other.socket(zmq.PULL) as idle:
        idle.rcvhwm = 1
        idle.bind(address)
        sink = PushSink(connect=address, value=Text(), high_water_mark=500, linger=seconds(0.2))
        writer = sink.open(context())
        writer.write([rows(["x" * 100_000] * 300)])
        writer.commit()
        with capture_logs() as logs:
            writer.close()
    (entry,) = [entry for entry in logs if entry["event"] == Event.MESSAGES_DISCARDED]
    assert (entry["sink"], entry["linger"]) == (f"sink 'out' at {address}", 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "PushSink needs either connect= or bind="),
        ({"connect": "tcp://a:1", "frames": ["key"]}, "has no 'value'"),
        ({"connect": "tcp://a:1", "max_rows": 0}, "max_rows must be positive"),
        ({"connect": "ipc://relative"}, "is no address"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigurationError, match=message):
        PushSink(**options)
