"""How long quotas have held back clients, from what brokers say in their answers."""

from __future__ import annotations

import pytest
from confluent_kafka import ThrottleEvent

from streams.broker.kafka.throttle_times import ThrottleTimes
from streams.broker.throttling import Throttled
from tests.support.clock import Clock


def event(seconds: float, broker: int = 1) -> ThrottleEvent:
    return ThrottleEvent(f"b:9092/{broker}", broker, seconds)


def test_the_time_is_counted_as_it_passes():
    clock = Clock(tick=0.0)
    times = ThrottleTimes(clock)
    times.callback("producer")(event(4.0))
    assert times.read() == [Throttled("producer", "1", 0.0)]
    clock.advance(3)
    assert times.read() == [Throttled("producer", "1", 3.0)]
    clock.advance(30)
    assert times.read() == [Throttled("producer", "1", 4.0)]


def test_clients_that_are_held_back_at_the_same_time_count_once():
    clock = Clock(tick=0.0)
    times = ThrottleTimes(clock)
    for _ in range(3):
        times.callback("consumer")(event(2.0))
        clock.advance(1)
    clock.advance(10)
    (found,) = times.read()
    assert found.seconds == pytest.approx(4.0)


def test_brokers_and_kinds_of_clients_are_told_apart():
    times = ThrottleTimes(Clock(tick=0.0))
    times.callback("consumer")(event(2.0))
    times.callback("producer")(event(2.0))
    times.callback("producer")(event(2.0, broker=2))
    assert {(item.role, item.broker) for item in times.read()} == {
        ("consumer", "1"),
        ("producer", "1"),
        ("producer", "2"),
    }


def test_a_hold_ends_with_the_connection_that_the_client_gives_up():
    clock = Clock(tick=0.0)
    times = ThrottleTimes(clock)
    times.callback("producer")(event(300.0))
    clock.advance(300)
    assert times.read() == [Throttled("producer", "1", 10.0)]


def test_a_connection_to_a_broker_that_is_not_known_is_not_counted():
    times = ThrottleTimes(Clock(tick=0.0))
    times.callback("producer")(event(3.0, broker=-1))
    assert times.read() == []


def test_the_programs_own_callback_is_called_too():
    seen: list[ThrottleEvent] = []
    ThrottleTimes(Clock()).callback("producer", seen.append)(event(3.0))
    assert [item.throttle_time for item in seen] == [3.0]
