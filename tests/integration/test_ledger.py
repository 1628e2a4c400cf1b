"""Whether workers on a real broker account for all records: transactions, kills, moves, dead letters."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import HERE, Copy
from tests.support.commands import run_streams

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Count, WorkerProcess

pytestmark = pytest.mark.kafka

SESSION = {"group_protocol": "classic", "session_timeout": 6, "transaction_timeout": 3}
"""Short enough that a killed worker's partitions move within a test."""


def status_of(app: Copy, worker: WorkerProcess) -> dict[str, Any]:
    app.wait_for(lambda: worker.events("http listening"), 60, "the port is open")
    url = worker.events("http listening")[0]["url"]
    with urllib.request.urlopen(f"{url}/status", timeout=10) as response:
        found: dict[str, Any] = json.load(response)
        return found


def total(figures: list[dict[str, Any]], name: str) -> int:
    return sum(item[name] for item in figures)


def wait_for_figures(app: Copy, worker: WorkerProcess, topic: str, read: int) -> list[dict[str, Any]]:
    """The ledger of a worker that has read so many records of a topic, checked after that."""
    seen: list[Any] = []

    def holds() -> bool:
        seen.append(status_of(app, worker))
        assert seen[-1]["differences"] == []
        return total([item for item in seen[-1]["ledger"] if item["topic"] == topic], "read") == read

    app.wait_for(holds, 60, "the ledger has all records", lambda: seen[-1]["ledger"])
    figures: list[dict[str, Any]] = seen[-1]["ledger"]
    return figures


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_all_records_are_accounted_for_up_to_the_acknowledgements(copy: Copy, guarantee: str) -> None:
    copy.environment["COPY_ON_ERROR"] = "streams.dead_letter"
    worker = copy.start(http_port=0, guarantee=guarantee, dead_letter_limit=1.0)
    copy.produce([f"{'poison' if number % 10 == 0 else 'value'}-{number}" for number in range(3_000)])
    copy.wait_until_consumed()
    figures = wait_for_figures(copy, worker, copy.input, 3_000)
    assert (total(figures, "written"), total(figures, "dead_letters")) == (2_700, 300)
    assert {item["difference"] for item in figures} == {0}
    environment = {
        **os.environ,
        "COPY_PREFIX": copy.prefix,
        "STREAMS_BOOTSTRAP_SERVERS": copy.servers,
    }
    # A worker may have published its address a moment later than it has processed all records.
    url = worker.events("http listening")[0]["url"]
    shown = run_streams(
        "status", "copy_app:app", "--json", "--url", url, folder=HERE, environment=environment
    )
    assert shown.returncode == 0, shown
    assert json.loads(shown.stdout)["differences"] == []
    assert worker.stop() == 0
    assert sum(copy.outputs().values()) == 2_700


def test_partitions_that_move_to_another_worker_and_back_leave_no_difference(count: Count) -> None:
    """With stores, windows and a repartition topic; one worker is killed."""
    first = count.start(http_port=0, **SESSION)
    count.send([(f"key-{number % 50}", number) for number in range(2_000)])
    count.wait_until_consumed()
    second = count.start(http_port=0, **SESSION)
    count.wait_for(lambda: second.events("restored"), 90, "the second has tasks")
    count.send([(f"key-{number % 50}", 2_000 + number) for number in range(2_000)])
    count.wait_until_consumed()
    for worker in (first, second):
        assert status_of(count, worker)["differences"] == []
    second.kill()
    count.send([(f"key-{number % 50}", 4_000 + number) for number in range(2_000)])
    count.wait_until_consumed()
    seen: list[Any] = []

    def settled() -> bool:
        seen.append(status_of(count, first))
        return bool(total(seen[-1]["ledger"], "held"))

    # The observer checks each second.
    count.wait_for(settled, 60, "the stores have taken records in", lambda: seen[-1]["ledger"])
    assert seen[-1]["differences"] == []
    assert {item["difference"] for item in seen[-1]["ledger"]} == {0}
    assert first.stop() == 0


class Faulty(Copy):
    """The app with a fault."""

    name = "ledger"


def test_a_loss_is_an_alert_that_names_the_step_and_the_offsets(
    kafka_bootstrap: str, prefix: str, tmp_path: Path
) -> None:
    app = Faulty(kafka_bootstrap, prefix, tmp_path)
    app.environment["LEDGER_FAULT"] = "1"
    app.create_topics(partitions=1)
    try:
        worker = app.start(http_port=0)
        app.produce(["kept", "filtered", "kept"])
        wait_for_figures(app, worker, app.input, 3)
        app.produce(["lost", "kept", "lost"])
        seen: list[Any] = []

        def fires() -> bool:
            seen.append(status_of(app, worker))
            return bool(seen[-1]["alerts"])

        app.wait_for(fires, 60, "the alert fires", lambda: seen[-1])
        sentence = f"2 records of {app.input}-0, offsets 3 to 5, task 0_0: missing in step 'choose'"
        assert [item["sentence"] for item in seen[-1]["differences"]] == [sentence]
        (alert,) = seen[-1]["alerts"]
        assert (alert["alert"], alert["subject"]) == ("StreamsLedgerDifference", app.input)
        assert alert["sentence"] == (
            f"2 records of {app.input} are not accounted for in app {app.group}: {sentence}."
        )
        environment = {**os.environ, "LEDGER_PREFIX": prefix, "STREAMS_BOOTSTRAP_SERVERS": kafka_bootstrap}
        shown = run_streams("status", "ledger_app:app", folder=HERE, environment=environment)
        assert shown.returncode == 0, shown
        assert sentence in " ".join(shown.stdout.split())
        assert worker.stop() == 0
    finally:
        app.end()
