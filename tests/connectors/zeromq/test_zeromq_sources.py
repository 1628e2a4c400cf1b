from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
import zmq

from streams import Json, Text
from streams.connectors.source import SourceContext
from streams.connectors.zeromq import CurveClient, CurveServer, PullSource, SubSource
from streams.errors import ConfigurationError, SourceUnavailable
from tests.support.messages import Sender, free_address
from tests.support.source_reading import Reading
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.connectors.source import SourceBatch
    from streams.records import Headers


def batches_of(reading: Reading, count: int) -> list[SourceBatch]:
    """What is read until there are so many messages."""
    found: list[SourceBatch] = []

    def read() -> bool:
        if (batch := reading.reader.read(0.1)) is not None:
            found.append(batch)
        return sum(len(item.records) for item in found) >= count

    wait_until(read)
    return found


def sending(sender: Sender, message: list[bytes], reading: Reading, until: Callable[[], bool]) -> None:
    """Send a message again and again until what is read says so."""

    def attempt() -> bool:
        sender.send(message)
        return reading.step() and until()

    wait_until(attempt)


@pytest.fixture
def address() -> str:
    return free_address()


@pytest.fixture
def sender(address: str) -> Iterator[Sender]:
    with Sender(zmq.PUSH, bind=address) as sender:
        yield sender


def test_messages_are_received_in_batches_with_numbers(address, sender):
    with Reading(PullSource(connect=address, value=Json(int), max_rows=10)) as reading:
        sender.send(*([str(number).encode()] for number in range(25)))
        assert reading.until(25) == list(range(25))
        assert reading.offsets == list(range(25))
        reading.restart()
        sender.send([b"25"])
        assert reading.until(26)[-1] == 25
        # Numbers continue over restarts, so that errors name one message each.
        assert reading.offsets[-1] == 25


def test_keys_values_and_headers_are_frames(address, sender):
    source = PullSource(connect=address, key=Text(), value=Json(), frames=("key", "value", "origin"))
    with Reading(source) as reading:
        sender.send([b"a", b"1", b"t/0/5"], [b"2"], [b"b", b"3"])
        batches = batches_of(reading, 3)
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    headers: list[Headers | None] = []
    for batch in batches:
        keys += batch.records.keys()
        values += batch.records.values()
        headers += batch.records.headers() or [None] * len(batch.records)
    assert keys == [b"a", None, b"b"]
    assert values == [b"1", b"2", b"3"]
    assert headers == [[("origin", b"t/0/5")], None, None]


def test_a_value_that_cannot_be_read_is_left_to_the_serde(address, sender):
    class Order(msgspec.Struct):
        id: int

    with Reading(PullSource(connect=address, value=Json(Order))) as reading:
        sender.send([b'{"id": 1}'], [b"\xff"], [b""], [b'{"id": 2}'])
        assert reading.until(4) == [Order(1), "DecodeError", "DecodeError", Order(2)]


def test_a_batch_has_a_limit_of_bytes(address, sender):
    with Reading(PullSource(connect=address, value=Text(), high_water_mark=2_000)) as reading:
        sender.send(*([b"x" * 100_000] for _ in range(400)))
        sizes = [len(batch.records) for batch in batches_of(reading, 400)]
        # It is full at 4 MiB, and receives 100 messages before it counts.
        assert max(sizes) <= 100


def test_a_message_that_is_too_long_ends_the_connection_and_later_ones_arrive(address):
    source = PullSource(bind=address, value=Text(), max_message_bytes=1_000)
    with Reading(source) as reading, Sender(zmq.PUSH, connect=address) as sender:
        sender.send([b"a"])
        assert reading.until(1) == ["a"]
        sender.send([b"x" * 2_000])
        sending(sender, [b"b"], reading, lambda: "b" in reading.values)
        assert set(reading.values) == {"a", "b"}


def test_a_long_message_of_a_program_that_it_connects_to_is_read(address, sender):
    with Reading(PullSource(connect=address, value=Text(), max_message_bytes=1_000)) as reading:
        sender.send([b"x" * 2_000], [b"b"])
        assert reading.until(2) == ["x" * 2_000, "b"]


def test_it_connects_again_once_the_other_side_has_the_same_security_settings(address):
    """libzmq itself does not: an error of the protocol ends a connection for good."""
    _, secret = zmq.curve_keypair()
    with Reading(PullSource(connect=address, value=Json(int))) as reading:
        with Sender(zmq.PUSH, bind=address, curve_secret=secret):
            wait_until(lambda: reading.reader.health().metrics["failed_handshakes"])
            assert "senders are not connected: the other side" in reading.reader.health().problem
        with Sender(zmq.PUSH, bind=address) as sender:
            wait_until(lambda: reading.step() or reading.reader.health().metrics["connections"])
            sender.send([b"1"])
            assert reading.until(1) == [1]
            assert reading.reader.health().problem == ""


def test_read_waits_for_messages_and_ends_when_it_is_closed(address):
    reader = Reading(PullSource(bind=address, value=Json())).reader
    begun = time.monotonic()
    timer = threading.Timer(0.1, reader.close)
    timer.start()
    assert reader.read(30.0) is None
    assert time.monotonic() - begun < 20
    timer.join()
    assert reader.read(0.0) is None


def test_health_says_which_senders_are_missing(address):
    addresses = [address, free_address()]
    with Reading(PullSource(connect=addresses, value=Json(int))) as reading:
        assert reading.reader.health().problem.startswith("2 of 2 senders are not connected")
        with Sender(zmq.PUSH, bind=addresses[0]) as one:
            wait_until(lambda: reading.reader.health().problem.startswith("1 of 2"))
            with Sender(zmq.PUSH, bind=addresses[1]):
                wait_until(lambda: reading.reader.health().problem == "")
            wait_until(lambda: reading.reader.health().problem.startswith("1 of 2"))
            one.send([b"1"], [b"2"])
            wait_until(lambda: reading.step(commit=False))
            metrics = reading.reader.health().metrics
            assert (metrics["connections"], metrics["failed_handshakes"]) == (1, 0)
            assert metrics["received"] == metrics["uncommitted"] > 0


def test_a_source_that_is_bound_is_well_without_senders(address):
    with Reading(PullSource(bind=address, value=Json(int))) as reading:
        assert reading.reader.health().problem == ""
        with Sender(zmq.PUSH, connect=address) as sender:
            sender.send([b"1"])
            assert reading.until(1) == [1]


def test_an_address_in_use_is_tried_again(address):
    source = PullSource(bind=address, value=Json())
    context = SourceContext(application="shop", name="in", task=0, position=b"")
    reader = source.open(context)
    with pytest.raises(SourceUnavailable, match=f"cannot be bound to {address}: Address already in use"):
        source.open(context)
    reader.close()
    source.open(context).close()


def test_a_subscriber_gets_what_it_subscribes_to_with_the_first_frame_as_key(address):
    source = SubSource(connect=address, key=Text(), value=Json(), subscribe=["order", b"stock"])
    with Sender(zmq.PUB, bind=address) as publisher, Reading(source) as reading:
        sending(publisher, [b"order", b"0"], reading, lambda: True)
        publisher.send([b"colour", b"1"], [b"stock.eu", b"2"], [b"order", b"3"], [b"orde", b"4"])
        wait_until(lambda: reading.step() and reading.values[-2:] == [2, 3])
        assert set(reading.values) == {0, 2, 3}


def test_the_buffer_of_a_source_is_bounded_and_its_sender_waits(address):
    """What a source does not read stays with the sender, up to what the kernel takes."""
    size = 100_000
    source = PullSource(connect=address, value=Text(), high_water_mark=5)
    with Sender(zmq.PUSH, bind=address, high_water_mark=5) as sender, Reading(source) as reading:
        wait_until(lambda: reading.reader.health().metrics["connections"] == 1)
        sent = sender.send_until_it_waits(b"x" * size, seconds=1.0)
        # Both buffers, and some megabytes in the kernel's buffers of the connection.
        assert 10 <= sent < 1_000
        assert len(reading.until(sent)) == sent
        assert sender.send_until_it_waits(b"x" * size, seconds=1.0) >= 1


def test_what_a_killed_reader_has_received_is_lost_and_is_at_most_its_buffers(address, sender):
    with Reading(PullSource(connect=address, value=Json(int), max_rows=10, high_water_mark=20)) as reading:
        sender.send(*([str(number).encode()] for number in range(30)))
        wait_until(lambda: reading.step() and len(reading.values) >= 10)
        kept = len(reading.values)
        # The next batch is read and not committed, as by a worker that is killed.
        wait_until(lambda: reading.step(commit=False))
        reading.restart()
        sender.send(*([str(number).encode()] for number in range(1_000, 1_005)))
        wait_until(lambda: reading.step() and reading.values[-1] == 1_004)
        assert reading.values[:kept] == list(range(kept))
        lost = 30 - sum(value < 30 for value in reading.values)
        assert 10 <= lost <= 20


def test_tasks_share_the_messages_of_a_sender(address, sender):
    source = PullSource(connect=address, value=Json(int), tasks=2)
    with Reading(source) as one, Reading(source) as other:
        for reading in (one, other):
            wait_until(lambda: reading.reader.health().metrics["connections"] == 1)  # noqa: B023 - called at once
        sender.send(*([str(number).encode()] for number in range(100)))
        wait_until(lambda: (one.step(), other.step(), len(one.values) + len(other.values) == 100)[2])
        assert sorted(one.values + other.values) == list(range(100))
        assert min(len(one.values), len(other.values)) > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs either connect= or bind="),
        ({"connect": "tcp://a:1", "bind": "tcp://b:1"}, "needs either connect= or bind="),
        ({"connect": []}, "has no address"),
        ({"connect": "tcp://a"}, "is no address"),
        ({"connect": "tcp://*:1"}, "needs the host"),
        ({"bind": "tcp://*:0"}, "needs a port"),
        ({"connect": "http://a:1"}, "is no address"),
        ({"bind": "tcp://*:1", "tasks": 2}, "2 tasks cannot share bind="),
        ({"connect": "tcp://a:1", "high_water_mark": 0}, "high_water_mark must be positive"),
        (
            {"connect": "tcp://a:1", "curve": CurveServer(secret_key="env:A", clients="any")},
            "is a CurveClient",
        ),
        (
            {"bind": "tcp://*:1", "curve": CurveClient(secret_key="env:A", server_key="env:B")},
            "a CurveServer",
        ),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigurationError, match=message):
        PullSource(value=Json(), **options)
