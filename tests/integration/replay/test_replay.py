"""Bounded and shadow runs by the command line, on a real broker."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.replay.conftest import RECORDS
from tests.replay.inputs import readings, written

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from streams.broker.kafka import KafkaBroker
    from tests.support.commands import Done

pytestmark = pytest.mark.kafka


def test_one_and_three_workers_write_equal_bytes_beside_the_app(
    streams: Callable[..., subprocess.CompletedProcess[str]],
    ask: Callable[..., Done],
    kafka: KafkaBroker,
    prefix: str,
    tmp_path: Path,
):
    app = "replay_app:app"
    one = streams("replay", "run", app, "--from", "earliest", "--as", "one", "--json")
    report = json.loads(one.stdout)
    assert report["records"] == RECORDS
    assert any(item.startswith("peek 'peek'") for item in report["left_out"])
    assert "effect" not in one.stdout
    streams("replay", "run", app, "--from", "earliest", "--as", "three", "--workers", "3")
    for topic in (f"{prefix}-alerts", f"{prefix}-final"):
        first, second = written(kafka, f"{topic}-one"), written(kafka, f"{topic}-three")
        assert first == second
        assert sum(map(len, first.values())) == report["results"][topic]["records"] > 100
    streams("replay", "run", app, "--from", "1970-01-01T00:00:10Z", "--as", "one", "--workers", "2")
    assert sum(map(len, written(kafka, f"{prefix}-alerts-one").values())) < report["records"]
    with closing(kafka.admin()) as admin:
        assert admin.committed_offsets(f"{prefix}-app") == {}
        assert f"{prefix}-final" not in admin.topics()
    listed = [json.loads(line) for line in ask("replay", "list", app, "--json").stdout.splitlines()]
    assert {item["name"]: item["state"] for item in listed} == {"one": "complete", "three": "complete"}
    ask("replay", "delete", app, "one")
    with closing(kafka.admin()) as admin:
        assert not [topic for topic in admin.topics() if topic.endswith("-one")]
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_file()] == []


def test_a_shadow_run_says_what_differs_and_ends_with_1(
    streams: Callable[..., subprocess.CompletedProcess[str]], kafka: KafkaBroker, prefix: str, tmp_path: Path
):
    with closing(kafka.admin()) as admin:
        before = set(admin.topics())
    against = ["--against", "replay_app:app", "--from", "earliest"]
    page = tmp_path / "report.html"
    arguments = ["replay_app:new", *against, "--workers", "2", "--report", str(page), "--json"]
    done = streams("replay", "shadow", *arguments, code=1)
    found: dict[str, Any] = json.loads(done.stdout)
    topics = {topic["topic"]: topic for topic in found["topics"]}
    expected = sum(50 < value["size"] <= 60 for _, value, _ in readings(1, RECORDS, keys=50))
    assert topics[f"{prefix}-alerts"]["missing"] == expected
    assert not topics[f"{prefix}-alerts"]["changed"]
    assert not topics[f"{prefix}-final"]["missing"]
    assert page.read_text().startswith("<!doctype html>")
    same = streams("replay", "shadow", "replay_app:app", *against)
    assert "equal" in same.stdout
    with closing(kafka.admin()) as admin:
        assert set(admin.topics()) == before


def test_a_dry_run_prints_the_plan_and_bad_input_is_refused(
    ask: Callable[..., Done], kafka: KafkaBroker, prefix: str
):
    app = "replay_app:app"
    plan = ask("replay", "run", app, "--from", "earliest", "--as", "x", "--dry-run", "--json")
    partitions = json.loads(plan.stdout)["partitions"]
    assert sum(item["end"] - item["begin"] for item in partitions.values()) == RECORDS
    with closing(kafka.admin()) as admin:
        assert f"{prefix}-app-replays" not in admin.topics()
    wrong = ask("replay", "run", app, "--from", "yesterday", "--as", "x", code=2)
    assert "'yesterday' is not a position" in wrong.stderr
    wrong = ask("replay", "run", app, "--from", "earliest", "--as", "a/b", code=2)
    assert "cannot name a replay" in wrong.stderr
    wrong = ask("replay", "delete", app, "x", code=2)
    assert "has no replay of the name 'x'" in wrong.stderr


def test_the_rate_is_limited(
    streams: Callable[..., subprocess.CompletedProcess[str]], kafka: KafkaBroker, prefix: str
):
    begun = time.monotonic()
    streams("replay", "run", "replay_app:app", "--from", "earliest", "--as", "slow", "--max-rate", "3000")
    assert time.monotonic() - begun > RECORDS / 3000 * 0.9
