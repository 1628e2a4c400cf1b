"""``streams size`` on workers and topics of a real broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from streams.records import Output
from tests.integration.conftest import HERE

if TYPE_CHECKING:
    from tests.integration.conftest import Copy

pytestmark = pytest.mark.kafka


def size(copy: Copy, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COPY_PREFIX": copy.prefix, "STREAMS_BOOTSTRAP_SERVERS": copy.servers}
    return subprocess.run(
        [sys.executable, "-m", "streams", "size", "copy_app:app", *arguments],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def send(copy: Copy, partition: int, count: int) -> None:
    """Records of the last minute, evenly."""
    now = time.time_ns() // 1_000_000
    producer = copy.broker.producer()
    values: list[bytes | None] = [b"v"] * count
    times = [now - 60_000 * (count - number) // count for number in range(count)]
    producer.produce(Output(copy.input, [None] * count, values, times, partition=partition))
    producer.flush(30)
    producer.close()


def test_the_hot_task_is_named_and_workers_without_a_port_are_refused(copy: Copy) -> None:
    refused = size(copy)
    assert refused.returncode == 2
    assert "has published an HTTP port" in refused.stderr

    copy.environment["COPY_SLOW_SECONDS"] = "0.002"
    send(copy, 0, 30)
    send(copy, 1, 1_500)
    worker = copy.start(http_port=0)
    copy.wait_for(lambda: worker.events("http listening"), 60, "the port is open")
    copy.wait_until_consumed()
    (listening,) = worker.events("http listening")
    measured = size(copy, "--over", "60s", "--measure", "1s", "--json", "--url", listening["url"])
    assert measured.returncode == 0, measured.stderr
    found: dict[str, Any] = json.loads(measured.stdout)
    assert found["since_start"] is True
    assert found["workers"] == 1
    hot, *others = found["tasks"]
    assert hot["task"] == "0_1"
    # A record takes two milliseconds and what the worker needs for it.
    assert hot["microseconds"] > 2_000
    assert hot["records_per_second"] > 10 * max(item["records_per_second"] for item in others)
    assert hot["busy"] == pytest.approx(hot["records_per_second"] * hot["microseconds"] / 1e6, rel=0.01)
    assert found["jobs"] is None

    # If a worker is to be busy for a twentieth of its time only, that task alone is too much.
    shown = size(copy, "--over", "60s", "--measure", "1s", "--busy", "0.05", "--url", listening["url"])
    assert shown.returncode == 0, shown.stderr
    assert "task 0_1 alone takes" in " ".join(shown.stdout.split())
    assert worker.stop() == 0


def test_a_worker_that_does_not_answer_is_said(copy: Copy) -> None:
    unanswered = size(copy, "--url", "127.0.0.1:1", "--measure", "1s")
    assert unanswered.returncode == 9
    assert "no worker of" in unanswered.stderr
    assert "127.0.0.1:1" in unanswered.stderr
