"""Bounded and shadow runs by the command line, on a real broker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from streams.broker import NewTopic
from tests.replay.inputs import readings, send, written
from tests.support.commands import Done, run_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.broker.kafka import KafkaBroker

pytestmark = pytest.mark.kafka

HERE = Path(__file__).parent
RECORDS = 6_000


@pytest.fixture
def environment(kafka: KafkaBroker, kafka_bootstrap: str, prefix: str, tmp_path: Path) -> dict[str, str]:
    with closing(kafka.admin()) as admin:
        admin.create_topics(
            [
                NewTopic(name=f"{prefix}-in", partitions=4, settings={"retention.ms": "-1"}),
                # Its records would be deleted at once: their times are long past.
                NewTopic(name=f"{prefix}-alerts", partitions=3, settings={"retention.ms": "60000"}),
            ]
        )
    send(kafka, f"{prefix}-in", readings(1, RECORDS, keys=50))
    return {
        **os.environ,
        "REPLAY_PREFIX": prefix,
        "STREAMS_BOOTSTRAP_SERVERS": kafka_bootstrap,
        "STREAMS_STATE_DIR": str(tmp_path / "state"),
    }


@pytest.fixture
def streams(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "streams", *arguments],
            cwd=HERE,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


@pytest.fixture
def ask(environment: dict[str, str]) -> Callable[..., Done]:
    """Run a command that processes nothing, in this process."""

    def call(*arguments: str, code: int = 0) -> Done:
        done = run_streams(*arguments, folder=HERE, environment=environment)
        assert done.returncode == code, done
        return done

    return call


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command in the background."""
    started = []

    def call(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "streams", *arguments]
        started.append(subprocess.Popen(command, cwd=HERE, env=environment, text=True))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.wait()


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


@pytest.mark.parametrize(
    ("workers", "number"), [("1", signal.SIGINT), ("2", signal.SIGTERM), ("2", signal.SIGKILL)]
)
def test_a_run_that_is_ended_leaves_no_process_and_can_be_repeated(
    start: Callable[..., subprocess.Popen[str]],
    streams: Callable[..., subprocess.CompletedProcess[str]],
    kafka: KafkaBroker,
    prefix: str,
    workers: str,
    number: signal.Signals,
):
    arguments = ["replay", "run", "replay_app:app", "--from", "earliest", "--as", "x", "--workers", workers]
    # At this rate the records of one read take more than a minute, which a stop does not wait for.
    process = start(*arguments, "--max-rate", "20")
    deadline = time.monotonic() + 120
    children: list[str] = []
    with closing(kafka.admin()) as admin:
        # Two processes, and the one that tracks what they share.
        while not admin.group_members(f"{prefix}-app-replay-x") or len(children) < 3 * (workers == "2"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    refused = streams(*arguments, code=3)
    assert f"a replay of the name 'x' is running on host {socket.gethostname()}" in refused.stderr
    assert f"(process {process.pid}), since 20" in refused.stderr
    process.send_signal(number)
    code = process.wait(60)
    deadline = time.monotonic() + 60
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else 130)
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)
    with closing(kafka.admin()) as admin:
        assert not [topic for topic in admin.topics() if topic.startswith(prefix) and topic.endswith("-x")]
    streams(*arguments)
    assert sum(map(len, written(kafka, f"{prefix}-alerts-x").values()))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_that_is_killed_is_continued_with_the_results_of_an_undisturbed_one(
    start: Callable[..., subprocess.Popen[str]],
    streams: Callable[..., subprocess.CompletedProcess[str]],
    kafka: KafkaBroker,
    prefix: str,
    tmp_path: Path,
    workers: str,
):
    arguments = ["replay", "run", "replay_app:app", "--from", "earliest"]
    streams(*arguments, "--as", "undisturbed")
    process = start(*arguments, "--as", "x", "--workers", workers, "--max-rate", "3000")
    done = tmp_path / "state" / f"{prefix}-app-replay" / "x" / "done"
    deadline = time.monotonic() + 60
    while not done.exists() or not any(path.suffix == "" for path in done.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    # Records that were written meanwhile are not part of the range.
    send(kafka, f"{prefix}-in", readings(2, 100, keys=50))
    report = json.loads(streams(*arguments, "--as", "x", "--json").stdout)
    assert report["continued"]
    assert report["records"] == RECORDS
    for topic in (f"{prefix}-alerts", f"{prefix}-final"):
        assert written(kafka, f"{topic}-x") == written(kafka, f"{topic}-undisturbed")
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_file()] == []


def test_the_files_of_an_interrupted_run_can_be_deleted(
    start: Callable[..., subprocess.Popen[str]],
    streams: Callable[..., subprocess.CompletedProcess[str]],
    prefix: str,
    tmp_path: Path,
):
    process = start(
        "replay", "run", "replay_app:app", "--from", "earliest", "--as", "x", "--max-rate", "2000"
    )
    folder = tmp_path / "state" / f"{prefix}-app-replay" / "x"
    deadline = time.monotonic() + 60
    while not folder.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert "files of an interrupted replay" in streams("replay", "delete", "replay_app:app", "x").stdout
    assert not folder.exists()
