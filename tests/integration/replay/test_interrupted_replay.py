"""Bounded runs that are ended or killed, and what is left of them, on a real broker."""

from __future__ import annotations

import json
import signal
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.replay.inputs import readings, send, written

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from streams.broker.kafka import KafkaBroker
from tests.integration.replay.conftest import RECORDS

pytestmark = pytest.mark.kafka


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
