"""``streams jobs schedules`` on a broker in memory."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from streams import App, Cron, Every, minutes
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.cli import job_schedules
from streams.cli.jobs import jobs_cli
from streams.jobs.occurrence import Decision, Occurrence, occurrences_topic
from streams.records import Output


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def app(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> App:
    app = App("shop")
    monkeypatch.setattr(app, "broker", lambda **_: broker)
    monkeypatch.setattr(job_schedules, "load_app", lambda _target: app)
    return app


def call(*words: str) -> Result:
    return CliRunner().invoke(jobs_cli, ["schedules", "shop:app", *words])


def declare(app: App) -> None:
    @app.job(name="report", schedule=Cron("30 2 * * *", zone="Europe/Berlin"))
    def report(kind: str = "daily") -> None: ...

    app.schedule(report.call("often"), Every(minutes(5), overlap="queue"), name="often")


def test_rules_next_instants_and_the_last_decision(app: App, broker: MemoryBroker) -> None:
    declare(app)
    instant = 1_790_000_000_000
    broker.admin().create_topics([NewTopic(name=occurrences_topic("shop"), partitions=1)])
    producer = broker.producer()
    last = Occurrence("often", instant, Decision.RELEASED, instant + 20, "", job="3-17")
    producer.produce(
        Output(occurrences_topic("shop"), [b"often"], [msgspec.json.encode(last)], [instant], None)
    )
    producer.flush(1)
    result = call("--json", "--next", "2")
    assert result.exit_code == 0, result.output
    report, often = (json.loads(line) for line in result.output.splitlines())
    assert (report["name"], report["rule"], report["last"]) == ("report", "30 2 * * * Europe/Berlin", None)
    assert (often["job"], often["overlap"], often["last"]["job"]) == ("report", "queue", "3-17")
    now = time.time_ns() // 1_000_000
    coming: list[Any] = often["next"]
    assert len(coming) == 2
    assert coming[1] - coming[0] == 300_000
    assert now - 1_000 < coming[0] <= now + 300_000
    shown = call()
    assert shown.exit_code == 0, shown.output
    assert "nothing yet" in shown.output
    assert "3-17" in shown.output


def test_an_app_without_jobs_or_schedules(app: App) -> None:
    assert call().exit_code == 1

    @app.job(name="report")
    def report() -> None: ...

    result = call("--json")
    assert (result.exit_code, result.output) == (0, "")
