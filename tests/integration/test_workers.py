"""Workers as processes on a real broker: partitions, kills, stops, slow code, failing records, broker
restarts.
"""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from streams.broker.kafka import KafkaBroker
from streams.broker.reading import read_to_end
from streams.devstack.kafka import LocalKafka
from streams.records import Output

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kafka

# Short enough that a killed worker's partitions move within a test, and its transaction ends before.
SESSION = {"group_protocol": "classic", "session_timeout": 6, "transaction_timeout": 3}
TWO_SECONDS = (
    "streams.retry({}, backoff=streams.seconds(2), longest_backoff=streams.seconds(2), then=streams.skip)"
)


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


def test_a_function_slower_in_sum_than_the_poll_deadline_is_not_evicted(copy):
    copy.environment["COPY_SLOW_SECONDS"] = "0.2"
    copy.produce(numbered(0, 24))
    worker = copy.start(poll_deadline=2, group_protocol="consumer")
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(numbered(0, 24))
    assert len(worker.events("partitions assigned")) == 1
    assert not worker.events("partitions lost")
    assert worker.stop() == 0


def test_retries_that_wait_longer_than_the_poll_deadline_keep_the_membership(copy):
    copy.environment["COPY_ON_ERROR"] = (
        "streams.retry(2, backoff=streams.seconds(1.5), longest_backoff=streams.seconds(1.5), "
        "then=streams.skip)"
    )
    copy.produce(["before", "poison", "after"])
    worker = copy.start(poll_deadline=2, group_protocol="consumer")
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(["before", "after"])
    assert len(worker.events("record retried")) == 2
    assert len(worker.events("partitions assigned")) == 1
    assert not worker.events("partitions lost")
    assert worker.stop() == 0


def test_a_worker_stops_in_time_while_a_record_is_being_retried(copy):
    copy.environment["COPY_ON_ERROR"] = "streams.retry(1000, backoff=streams.seconds(30), then=streams.skip)"
    copy.produce(["before", "poison"])
    worker = copy.start()
    copy.wait_for(lambda: worker.events("record retried"), 60, "retrying")
    begun = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - begun < 10


def test_a_revocation_while_a_record_is_being_retried_neither_loses_nor_repeats(copy):
    copy.environment["COPY_ON_ERROR"] = TWO_SECONDS.format(1000)
    copy.produce(["poison", *numbered(0, 100)])
    first = copy.start(group_protocol="consumer")
    copy.wait_for(lambda: first.events("record retried"), 60, "retrying")
    # A worker that skips the failing record takes over some of the partitions, then all of them.
    copy.environment["COPY_ON_ERROR"] = "streams.skip"
    second = copy.start(group_protocol="consumer")
    copy.wait_for(lambda: second.events("partitions assigned"), 60, "shared")
    assert first.stop() == 0
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(numbered(0, 100))
    assert second.stop() == 0


def test_policy_fail_ends_the_worker_with_coordinates_and_keeps_what_was_before(copy):
    producer = copy.broker.producer()
    values = [b"good", b"poison-1", b"never"]
    producer.produce(Output(copy.input, [b"k"] * 3, values, [1, 2, 3], partition=2))
    producer.flush(10)
    worker = copy.start(max_poll_records=1)
    assert worker.wait() == 4
    text = worker.log.read_text()
    for part in (
        "step 'map-work'",
        f"{copy.input}-2 offset 1",
        "b'poison-1'",
        "ValueError: cannot swallow",
        "copy_app.py:",
    ):
        assert part in text
    assert copy.outputs() == Counter(["good"])


def test_policy_dead_letter_keeps_the_original_and_its_coordinates(copy):
    copy.environment["COPY_ON_ERROR"] = "streams.dead_letter"
    producer = copy.broker.producer()
    producer.produce(
        Output(
            copy.input,
            [b"k", b"k", None],
            [b"good", b"poison-1", b"\xff not text"],
            [1_000, 2_000, 3_000],
            [None, [("trace", b"7")], None],
            partition=1,
        )
    )
    producer.flush(10)
    worker = copy.start()
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(["good"])
    letters = {
        value: (key, dict(headers or ()))
        for fetched in read_to_end(copy.broker, [copy.dead_letters])
        for key, value, headers in zip(fetched.keys(), fetched.values(), fetched.headers() or (), strict=True)
    }
    assert set(letters) == {b"poison-1", b"\xff not text"}
    key, headers = letters[b"poison-1"]
    assert key == b"k"
    assert headers == {
        "trace": b"7",
        "__streams.errors.topic": copy.input.encode(),
        "__streams.errors.partition": b"1",
        "__streams.errors.offset": b"1",
        "__streams.errors.timestamp": b"2000",
        "__streams.errors.application": copy.group.encode(),
        "__streams.errors.step": b"map-work",
        "__streams.errors.exception": b"ValueError",
        "__streams.errors.message": b"cannot swallow poison-1",
    }
    assert worker.stop() == 0


def test_policy_skip_continues_without_the_record(copy):
    copy.environment["COPY_ON_ERROR"] = "streams.skip"
    copy.produce(["good", "poison", "better"])
    worker = copy.start()
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(["good", "better"])
    assert worker.stop() == 0


def test_too_large_a_share_of_dead_letters_stops_the_worker(copy):
    copy.environment["COPY_ON_ERROR"] = "streams.dead_letter"
    copy.produce([f"poison-{number}" for number in range(500)])
    worker = copy.start(dead_letter_limit=0.2, dead_letter_window=50)
    assert worker.wait() == 5
    assert "became dead letters" in worker.log.read_text()


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


def test_health_turns_bad_while_a_partition_with_lag_makes_no_progress(copy):
    copy.environment["COPY_ON_ERROR"] = TWO_SECONDS.format(3)
    worker = copy.start(http_port=0, stall_timeout=1)
    copy.wait_for(lambda: worker.events("http listening"), 60, "listening")
    url = worker.events("http listening")[0]["url"]

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(url + path, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    copy.wait_for(lambda: status("/readyz") == 200, 30, "ready")
    copy.produce(["poison", "after"], keyed=False)
    copy.wait_for(lambda: status("/readyz") == 503, 30, "not ready while it hangs")
    copy.wait_for(lambda: worker.events("partition stalled"), 30, "the stall is logged")
    copy.wait_until_consumed()
    copy.wait_for(lambda: status("/healthz") == 200, 30, "healthy again")
    with urllib.request.urlopen(url + "/metrics", timeout=5) as response:
        metrics = response.read().decode()
    assert "streams_records_in_total 2.0" in metrics
    assert "streams_records_out_total 1.0" in metrics
    assert 'streams_skipped_total{step="map-work"} 1.0' in metrics
    assert 'streams_stage_seconds_total{stage="poll"}' in metrics
    assert "streams_commit_seconds_count" in metrics
    assert worker.stop() == 0


def test_the_broker_restarts_while_workers_run(make_copy, tmp_path: Path):
    # A broker that offers only the older group protocol, to see the fallback too.
    properties = {"group.coordinator.rebalance.protocols": "classic"}
    with LocalKafka.start(tmp_path / "kafka", properties=properties) as kafka:
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
