"""Workers as processes on a real broker: partitions, kills, stops, topics, broker restarts."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from streams.broker.kafka import KafkaBroker
from streams.broker.reading import read_to_end
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from streams.records import Output

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kafka

# Short enough that a killed worker's partitions move within a test, and its transaction ends before.
SESSION = {"group_protocol": "classic", "session_timeout": 6, "transaction_timeout": 3}


def numbered(start: int, stop: int) -> list[str]:
    return [f"value-{number}" for number in range(start, stop)]


def held(worker) -> list[str]:
    """The partitions that a worker holds, from its log."""
    now: list[str] = []
    changes = sorted(
        worker.events("partitions assigned") + worker.events("partitions revoked"),
        key=lambda event: event["timestamp"],
    )
    for event in changes:
        if event["event"] == "partitions assigned":
            now += event["partitions"]
        else:
            now = [partition for partition in now if partition not in event["partitions"]]
    return now


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_replicas_share_the_partitions_and_a_third_joins_and_leaves(copy, protocol):
    first, second = copy.start(group_protocol=protocol), copy.start(group_protocol=protocol)
    copy.wait_for(lambda: sorted(map(len, (held(first), held(second)))) == [2, 2], 60, "two partitions each")
    copy.produce(numbered(0, 5_000))
    third = copy.start(group_protocol=protocol)
    copy.wait_for(lambda: held(third), 60, "the third has a partition")
    copy.produce(numbered(5_000, 10_000))
    copy.wait_until_consumed()
    assert third.stop() == 0
    copy.wait_for(lambda: len(held(first) + held(second)) == 4, 60, "the two have all again")
    copy.produce(numbered(10_000, 12_000))
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(numbered(0, 12_000))
    assert first.stop() == 0
    assert second.stop() == 0


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_exactly_once_holds_when_a_worker_is_killed_in_mid_stream(copy, protocol):
    copy.environment["COPY_SLOW_SECONDS"] = "0.0005"
    copy.produce(numbered(0, 16_000))
    workers = [copy.start(**SESSION | {"group_protocol": protocol}) for _ in range(3)]
    copy.wait_for(lambda: copy.lag() < 13_000, 60, "under way")
    workers[0].kill()
    copy.produce(numbered(16_000, 18_000))
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(numbered(0, 18_000))


def test_at_least_once_loses_nothing_when_a_worker_is_killed(copy):
    copy.environment["COPY_SLOW_SECONDS"] = "0.0005"
    copy.produce(numbered(0, 8_000))
    workers = [copy.start(guarantee="at_least_once", **SESSION) for _ in range(2)]
    copy.wait_for(lambda: copy.lag() < 6_000, 60, "under way")
    workers[0].kill()
    copy.wait_until_consumed()
    assert set(copy.outputs()) == set(numbered(0, 8_000))


def test_a_stop_signal_commits_what_was_processed_and_leaves_within_ten_seconds(copy):
    copy.environment["COPY_SLOW_SECONDS"] = "0.001"
    copy.produce(numbered(0, 20_000))
    worker = copy.start(commit_interval=3600, transaction_timeout=60)
    copy.wait_for(lambda: worker.events("partitions assigned"), 60, "assigned")
    begun = time.monotonic()
    while time.monotonic() - begun < 2:
        assert worker.process.poll() is None
    stopping = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - stopping < 10
    done = 20_000 - copy.lag()
    assert 0 < done < 20_000
    assert copy.outputs().total() == done
    copy.environment.clear()
    again = copy.start()
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(numbered(0, 20_000))
    assert again.stop() == 0


def test_workers_of_one_command_are_restarted_when_they_die(copy):
    command = copy.start("--workers", "2", **SESSION)
    copy.wait_for(lambda: len(command.events("worker started")) == 2, 60, "both are running")
    copy.produce(numbered(0, 1_000))
    copy.wait_until_consumed()
    victim = command.events("worker process started")[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    copy.wait_for(lambda: len(command.events("worker process started")) == 3, 30, "restarted")
    copy.produce(numbered(1_000, 2_000))
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(numbered(0, 2_000))
    assert command.stop(20) == 0


def test_more_workers_than_partitions_is_refused_before_anything_starts(copy):
    command = copy.start("--workers", "5")
    assert command.wait() == 3
    assert "5 workers, but the largest input topic" in command.log.read_text()


def test_missing_topics_are_named_before_the_group_is_joined(make_copy, kafka_bootstrap):
    copy = make_copy(kafka_bootstrap)
    worker = copy.start()
    assert worker.wait() == 3
    assert f"input topics do not exist: {copy.input}" in worker.log.read_text()
    assert f"streams topics create {copy.input}" in worker.log.read_text()


def test_a_missing_output_topic_is_created_only_when_requested(make_copy, kafka_bootstrap):
    copy = make_copy(kafka_bootstrap)
    copy.create_topics()
    copy.broker.admin().delete_topics([copy.output])
    copy.wait_for(lambda: copy.output not in copy.broker.admin().topics(), 30, "deleted")
    worker = copy.start()
    assert worker.wait() == 3
    assert f"output topics do not exist: {copy.output}" in worker.log.read_text()
    worker = copy.start("--create-topics")
    copy.produce(["a", "b"])
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(["a", "b"])
    assert worker.stop() == 0


def test_a_pattern_reads_several_topics(copy, topic):
    other = topic("in-other")
    copy.environment["COPY_PATTERN"] = f"{copy.prefix}-in.*"
    copy.produce(["from the first"])
    producer = copy.broker.producer()
    producer.produce(Output(other, [None], [b"from the other"], [1]))
    producer.flush(10)
    worker = copy.start()
    copy.wait_for(lambda: copy.outputs().total() == 2, 60, "both copied")
    assert copy.outputs() == Counter(["from the first", "from the other"])
    assert worker.stop() == 0


def test_the_broker_restarts_while_workers_run(make_copy, tmp_path: Path):
    # A broker that offers only the older group protocol, to see the fallback too.
    properties = {"group.coordinator.rebalance.protocols": "classic"}
    with LocalKafka.start(tmp_path / "kafka", properties=properties, java_options=QUICK_JAVA) as kafka:
        copy = make_copy(kafka.bootstrap_servers)
        copy.create_topics()
        copy.environment["COPY_SLOW_SECONDS"] = "0.001"
        worker = copy.start(transaction_timeout=3)
        copy.produce(numbered(0, 4_000))
        copy.wait_for(lambda: copy.lag() < 4_000, 60, "under way")
        kafka.node(1).kill()
        kafka.node(1).start()
        copy.produce(numbered(4_000, 5_000))
        copy.wait_until_consumed()
        assert copy.outputs() == Counter(numbered(0, 5_000))
        assert worker.stop() == 0


def test_headers_and_times_are_carried_through(copy):
    producer = copy.broker.producer()
    producer.produce(
        Output(
            copy.input, [b"k"] * 2, [b"one", b"two"], [123_456, 234_567], [[("a", b"1"), ("a", None)], None]
        )
    )
    producer.flush(10)
    worker = copy.start()
    copy.wait_until_consumed()
    (fetched,) = read_to_end(KafkaBroker({"bootstrap.servers": copy.servers}), [copy.output])
    assert fetched.timestamps() == [123_456, 234_567]
    assert fetched.headers() == [[("a", b"1"), ("a", None)], None]
    assert fetched.keys() == [b"k", b"k"]
    assert worker.stop() == 0
