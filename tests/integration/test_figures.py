"""A worker's report of itself, on a real broker."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from streams.records import Output
from tests.integration.conftest import HERE
from tests.support.commands import run_streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import Copy, WorkerProcess

pytestmark = pytest.mark.kafka


class Reported:
    """A worker whose ``/status`` is read."""

    def __init__(self, copy: Copy, worker: WorkerProcess) -> None:
        self._copy = copy
        copy.wait_for(lambda: worker.events("http listening"), 60, "the port is open")
        self._url = worker.events("http listening")[0]["url"]

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._url}/status", timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def command(self) -> str:
        """What ``streams status`` prints."""
        environment = {
            **os.environ,
            "COPY_PREFIX": self._copy.prefix,
            "STREAMS_BOOTSTRAP_SERVERS": self._copy.servers,
        }
        shown = run_streams("status", "copy_app:app", folder=HERE, environment=environment)
        assert shown.returncode == 0, shown
        return " ".join(shown.stdout.split())

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], what: str, seconds: float = 60) -> Any:
        seen: list[dict[str, Any]] = []

        def holds() -> bool:
            seen.append(self.status())
            return condition(seen[-1])

        self._copy.wait_for(holds, seconds, what, lambda: seen[-1])
        return seen[-1]


def append(copy: Copy, partition: int, count: int, *, age: float = 0.0) -> None:
    """Records with a timestamp that is so many seconds ago."""
    moment = time.time_ns() // 1_000_000 - round(age * 1000)
    producer = copy.broker.producer()
    values: list[bytes | None] = [b"v"] * count
    producer.produce(Output(copy.input, [None] * count, values, [moment] * count, partition=partition))
    producer.flush(30)
    producer.close()


def test_what_waits_is_measured_from_when_it_was_appended(copy: Copy) -> None:
    worker = copy.start(http_port=0)
    reported = Reported(copy, worker)
    idle = reported.wait_for(
        lambda found: found["condition"] == "keeping up" and len(found["partitions"]) == 4, "it keeps up"
    )
    assert idle["waiting_seconds"] == 0
    assert {item["reason"] for item in idle["rebalances"]} == {"joined"}

    # Events of last year have not waited for a year.
    append(copy, 0, 100, age=365 * 86_400)
    copy.wait_until_consumed()
    drained = reported.wait_for(lambda found: found["waiting_seconds"] == 0, "all is processed")
    assert drained["condition"] == "keeping up"
    assert all(item["lag"] == 0 for item in drained["partitions"])
    assert worker.stop() == 0


def test_what_waited_before_the_worker_began_has_its_own_time(copy: Copy) -> None:
    append(copy, 0, 400, age=300)
    copy.environment["COPY_SLOW_SECONDS"] = "0.02"
    worker = copy.start(http_port=0)
    reported = Reported(copy, worker)
    late = reported.wait_for(lambda found: (found["waiting_seconds"] or 0) > 250, "records wait")
    assert late["waiting_seconds"] == pytest.approx(300, abs=60)
    assert late["partitions"][0]["topic"] == copy.input
    # A step that takes nearly all of the time is named with its share, and no longer than it does.
    # Meanwhile there is always something to do, however long the worker has taken to begin.
    measured: set[int] = set()

    def named(found: dict[str, Any]) -> bool:
        # More than it processes from one measurement to the next.
        if found["measured"] not in measured and sum(item["lag"] or 0 for item in found["partitions"]) < 200:
            append(copy, 0, 100, age=300)
        measured.add(found["measured"])
        return bool(found["bottlenecks"])

    busy = reported.wait_for(named, "a cause is named")
    shown = reported.command()
    assert "copy: " in shown
    assert "of the worker's time" in shown
    assert "1 worker runs" in shown
    (cause, *_) = busy["bottlenecks"]
    assert cause["cause"] == "step"
    assert cause["share"] > 0.7
    assert "of the worker's time" in cause["sentence"]
    copy.wait_until_consumed()
    reported.wait_for(
        lambda found: not found["bottlenecks"] and found["condition"] == "keeping up", "the cause is gone"
    )
    assert worker.stop() == 0


def test_a_partition_with_most_records_is_named(copy: Copy) -> None:
    copy.environment["COPY_SLOW_SECONDS"] = "0.005"
    worker = copy.start(http_port=0)
    reported = Reported(copy, worker)
    reported.wait_for(lambda found: len(found["partitions"]) == 4, "the partitions are measured")
    for partition in (0, 1, 3):
        append(copy, partition, 30)
    append(copy, 2, 3_000)
    busy = reported.wait_for(
        lambda found: any(item["cause"] == "partition" for item in found["bottlenecks"]), "it is named"
    )
    wanted = reported.wait_for(lambda found: found["workers_wanted"] is not None, "what it needs is known")
    assert 0 < wanted["workers_useful"] <= wanted["workers_wanted"]
    shown = reported.command()
    assert " wanted, " in shown
    assert " useful" in shown
    named = next(item for item in busy["bottlenecks"] if item["cause"] == "partition")
    assert named["subject"] == f"{copy.input}-2"
    assert named["share"] > 0.9
    assert worker.stop(30) == 0
