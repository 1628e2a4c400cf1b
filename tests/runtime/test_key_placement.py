"""Keys that producers did not partition by murmur2: reported at the start, and found by queries."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings, strategies as st

from streams import App, Text
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.errors import HeldElsewhere
from streams.events import Event
from streams.partitioning import partition_for
from streams.records import Output
from streams.runtime.key_placement import check_key_placement, placement_of, sample_placements
from tests.queries.test_query import PARTITIONS, Site, soon
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEYS = [f"user-{number}" for number in range(40)]

CRC32 = "CRC32 (librdkafka's default)"
FNV1A = "FNV-1a (Sarama's default)"


def crc32(key: bytes, partitions: int = PARTITIONS) -> int:
    return zlib.crc32(key) % partitions


def send(
    broker: MemoryBroker,
    topic: str,
    keys: list[str],
    place: Callable[[bytes, int], int],
    partitions: int = PARTITIONS,
) -> None:
    producer = broker.producer()
    for text in keys:
        key = text.encode()
        producer.produce(Output(topic, [key], [b"1"], [1_000], partition=place(key, partitions)))
    producer.flush(5)
    producer.close()


def test_the_hashes_are_those_of_the_clients():
    # The published hash of this text, 0xBF9CF968, is a negative number of 32 bits: Sarama drops the sign.
    found = placement_of("t", {b"foobar": [((1 << 32) - 0xBF9CF968) % 1_009]}, 1_009)
    assert found.fitting == {FNV1A}
    # CRC-32's check value.
    found = placement_of("t", {b"123456789": [0xCBF43926 % 1_009]}, 1_009)
    assert found.fitting == {CRC32}


@settings(max_examples=100)
@given(
    st.dictionaries(st.binary(min_size=1, max_size=12), st.integers(0, 1 << 40), min_size=1, max_size=20),
    st.integers(2, 12),
)
@example({b"a": 0, b"b": 0}, 2)
def test_a_placement_fits_what_explains_every_key(keys, partitions):
    by_murmur2 = {key: [partition_for(key, partitions)] for key in keys}
    assert "murmur2" in placement_of("t", by_murmur2, partitions).fitting
    assert placement_of("t", by_murmur2, partitions).elsewhere == 0
    by_crc32 = {key: [crc32(key, partitions)] for key in keys}
    found = placement_of("t", by_crc32, partitions)
    assert CRC32 in found.fitting
    assert found.elsewhere == sum(by_crc32[key] != by_murmur2[key] for key in keys)
    anywhere = {key: [number % partitions] for key, number in keys.items()}
    found = placement_of("t", anywhere, partitions)
    assert found.elsewhere == sum(anywhere[key] != by_murmur2[key] for key in keys)
    assert (found.elsewhere == 0) == ("murmur2" in found.fitting)
    twice = {key: [number % partitions, (number + 1) % partitions] for key, number in keys.items()}
    assert placement_of("t", twice, partitions).elsewhere == len(keys)


def test_a_sample_is_the_last_records_of_some_partitions():
    broker = MemoryBroker()
    admin = broker.admin()
    admin.create_topics([NewTopic(name="many", partitions=100), NewTopic(name="empty", partitions=3)])
    producer = broker.producer()
    for number in range(100):
        keys: list[bytes | None] = [b"%d-%d" % (number, row) for row in range(50)]
        producer.produce(Output("many", [*keys, None, b""], [b"x"] * 52, [1] * 52, partition=number))
    producer.flush(5)
    (found,) = sample_placements(broker, {"many": 100, "empty": 3}).values()
    assert found.topic == "many"
    # 16 records, one of them without a key and one with an empty one, of every fourth partition.
    assert found.sampled == 25 * 14
    assert found.elsewhere > 300


def counting() -> App:
    app = App("app")
    app.stream("in", key=Text(), value=Text()).group_by_key().count("counts").to("out")
    return app


@pytest.mark.parametrize("place", [crc32, partition_for])
def test_a_topic_that_was_placed_by_crc32_is_named_with_the_reason(place):
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name="in", partitions=4)])
    send(broker, "in", KEYS, place)
    with capture_logs() as logs:
        found = check_key_placement(counting().topology, broker, {"in": 4})
    if place is partition_for:
        assert not logs
        assert found == set()
        return
    (event,) = logs
    assert (event["event"], event["log_level"]) == (Event.KEYS_ELSEWHERE, "warning")
    assert (event["topic"], event["sampled"], event["placed_by"]) == ("in", 40, CRC32)
    assert event["elsewhere"] == sum(crc32(k.encode()) != partition_for(k.encode(), 4) for k in KEYS)
    assert "partitioner=murmur2_random" in event["hint"]
    assert found == {"in"}


def test_where_placement_does_not_matter_nothing_is_read():
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name="in", partitions=4), NewTopic(name="one", partitions=1)])
    send(broker, "in", KEYS, crc32)
    app = App("app")
    app.stream("in", key=Text(), value=Text()).to("out")
    app.stream("one", key=Text(), value=Text()).group_by_key().count("counts").to("out")
    with capture_logs() as logs:
        assert check_key_placement(app.topology, broker, {"in": 4, "one": 1}) == set()
    assert not logs


@pytest.mark.parametrize(
    ("clicks", "users", "apart"),
    [
        (crc32, partition_for, True),
        (partition_for, crc32, True),
        (crc32, crc32, False),
        (partition_for, partition_for, False),
    ],
)
def test_a_join_of_topics_that_were_placed_differently_is_named(clicks, users, apart):
    app = App("app")
    table = app.table("users", key=Text(), value=Text())
    stream = app.stream("clicks", key=Text(), value=Text())
    stream.join(table, lambda click, user: click + user).to("out", value=Text())
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name=name, partitions=4) for name in ("clicks", "users")])
    send(broker, "clicks", KEYS, clicks)
    send(broker, "users", KEYS, users)
    with capture_logs() as logs:
        check_key_placement(app.topology, broker, {"clicks": 4, "users": 4})
    events = [entry for entry in logs if entry["event"] == Event.JOINED_KEYS_APART]
    assert bool(events) == apart
    if apart:
        assert set(events[0]["topics"]) == {"clicks", "users"}
        assert set(events[0]["topics"].values()) == {CRC32, "murmur2"}
        assert ".repartition(name)" in events[0]["hint"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for runner in site.runners:
        runner.stop()


def answers(runner: Any, keys: list[str]) -> list[tuple[int, int | None]]:
    found = []
    for key in keys:
        status, answer = runner.get(f"/stores/totals/keys/{key}")
        found.append((status, answer["value"]["visits"] if status == 200 else None))
    return found


@pytest.mark.parametrize("kind", ["before the start", "after the start", "mixed producers"])
def test_every_key_is_found_directly_and_over_any_worker(site, kind):
    placed, stray = (KEYS[:20], KEYS[20:]) if kind == "mixed producers" else ([], KEYS)
    if kind == "before the start":
        send(site.broker, "numbers", stray, crc32)
    one, two = site.start(), site.start()
    site.wait_until_held(one, two)
    if kind != "before the start":
        send(site.broker, "numbers", stray, crc32)
        send(site.broker, "numbers", placed, partition_for)
    site.wait_until_counted(one, len(KEYS))
    site.wait_until_counted(two, len(KEYS))
    for runner in (one, two):
        assert answers(runner, KEYS) == [(200, 1)] * len(KEYS)
        for key in KEYS:
            status, answer = runner.get(f"/stores/by-window/windows/{key}")
            assert (status, [window["value"] for window in answer["windows"]]) == (200, [1])
        assert answers(runner, ["nobody"]) == [(404, None)]
        assert runner.get("/stores/by-window/windows/nobody") == (200, {"key": "nobody", "windows": []})
    # A request with a partition is sent to that partition only.
    key = next(key for key in stray if crc32(key.encode()) != partition_for(key.encode(), PARTITIONS))
    path = f"/stores/totals/keys/{key}?partition="
    assert one.get(f"{path}{crc32(key.encode())}")[0] == 200
    assert one.get(f"{path}{partition_for(key.encode(), PARTITIONS)}")[0] == 404
    here = set(site.held(one))
    for key in KEYS:
        number = crc32(key.encode()) if key in stray else partition_for(key.encode(), PARTITIONS)
        if number in here:
            assert one.app.query("totals", key).visits == 1
            assert len(one.app.query_windows("by-window", key)) == 1
        else:
            with pytest.raises(HeldElsewhere):
                one.app.query("totals", key)
            with pytest.raises(HeldElsewhere):
                one.app.query_windows("by-window", key)


def test_a_worker_that_holds_everything_knows_that_a_key_is_not_there(site):
    send(site.broker, "numbers", KEYS, crc32)
    one = site.start()
    site.wait_until_held(one)
    site.wait_until_counted(one, len(KEYS))
    assert one.app.query("totals", "nobody") is None
    assert one.app.query_windows("by-window", "nobody") == []
    assert all(one.app.query("totals", key).visits == 1 for key in KEYS)


def test_where_keys_lie_where_they_should_a_missing_one_is_missing_at_once(site):
    send(site.broker, "numbers", KEYS, partition_for)
    one, two = site.start(), site.start()
    site.wait_until_held(one, two)
    site.wait_until_counted(one, len(KEYS))
    missing = [f"nobody-{number}" for number in range(20)]
    here = set(site.held(one))
    for key in missing:
        if partition_for(key.encode(), PARTITIONS) in here:
            assert one.app.query("totals", key) is None
    assert answers(one, missing) == [(404, None)] * 20
    soon(lambda: answers(two, KEYS) == [(200, 1)] * len(KEYS))
