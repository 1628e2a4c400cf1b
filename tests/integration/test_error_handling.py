"""Workers whose user code is slow or fails, as processes on a real broker: retries, policies, health."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections import Counter

import pytest

from streams.broker.reading import read_to_end
from streams.records import Output
from tests.integration.test_workers import numbered

pytestmark = pytest.mark.kafka

TWO_SECONDS = (
    "streams.retry({}, backoff=streams.seconds(2), longest_backoff=streams.seconds(2), then=streams.skip)"
)


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
