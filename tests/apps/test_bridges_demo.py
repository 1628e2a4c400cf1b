"""A small run of ``make demo-bridges``, on the session's broker, and what its comparison finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from apps.bridges.promise import BRIDGES, Account, Bridge, Guarantee
from streams.devstack.kafka.ports import free_ports
from tests.support.processes import running
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


def environment(kafka_bootstrap: str) -> dict[str, str]:
    return os.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap, "PYTHONPATH": str(ROOT)}


@pytest.mark.kafka
def test_every_bridge_keeps_its_promise_and_nothing_is_left_running(tmp_path, kafka_bootstrap):
    process = subprocess.Popen(
        [sys.executable, "-m", "apps.bridges.demo", "--messages", "500", "--seconds", "4"],
        cwd=tmp_path,
        env=environment(kafka_bootstrap),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        state = tmp_path / "build" / "demo-bridges-state"
        wait_until((state / "push").exists, 120, what="messages that are sent")
        started = psutil.Process(process.pid).children(recursive=True)
        # A Valkey, two workers, four ZeroMQ programs.
        assert len(started) >= 7
        output, _ = process.communicate(timeout=280)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    assert "Every bridge has kept its promise." in output
    report = json.loads((tmp_path / "build" / "demo-bridges-report.json").read_text())
    assert report["promises_kept"]
    assert report["bridges"].keys() | report["without"].keys() >= {bridge.name for bridge in BRIDGES}
    for bridge in report["bridges"].values():
        assert bridge["sent"] == 500
        assert bridge["as_promised"]
        if bridge["guarantee"] == "exactly once":
            assert (bridge["arrived"], bridge["doubled"], bridge["lost"]) == (500, 0, 0)
    assert len(report["survived"]) >= 4
    assert running(started) == []
    assert not state.exists()


@pytest.mark.kafka
def test_nothing_is_left_running_after_ctrl_c(tmp_path, kafka_bootstrap):
    process = subprocess.Popen(
        [sys.executable, "-m", "apps.bridges.demo"],
        cwd=tmp_path,
        env=environment(kafka_bootstrap),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        log = tmp_path / "build" / "demo-bridges-worker-1.log"
        wait_until(log.exists, 120, what="a worker that is started")
        started = psutil.Process(process.pid).children(recursive=True)
        # As a terminal does: to all processes of the group.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 130, output
        assert output.decode().rstrip().endswith("Stopped.")
        assert running(started) == []
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("kind", "lines"), [("pub", ""), ("push", "20\n"), ("pull", ""), ("sub", "")])
def test_a_zeromq_program_without_a_peer_ends_with_the_demo(tmp_path, kind, lines):
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "apps.bridges.zeromq_side", kind, f"tcp://127.0.0.1:{port}", kind]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=lines.encode(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


def problems(guarantee: Guarantee, numbers: list[int]) -> list[str]:
    return Account(Bridge("from-x", "X → Kafka", guarantee), 20, numbers).problems


ALL = list(range(20))


@pytest.mark.parametrize("guarantee", Guarantee)
def test_messages_that_arrive_once_are_what_every_bridge_promises(guarantee):
    assert problems(guarantee, ALL) == []


@pytest.mark.parametrize(
    ("guarantee", "numbers", "found"),
    [
        (Guarantee.EXACTLY_ONCE, [each for each in ALL if each != 7], ["1 lost, e.g. 7"]),
        (Guarantee.EXACTLY_ONCE, [*ALL, 7], ["1 came twice, e.g. 7"]),
        (Guarantee.AT_LEAST_ONCE, [each for each in ALL if each != 7], ["1 lost, e.g. 7"]),
        (Guarantee.AT_LEAST_ONCE, [*ALL, 7], []),
        (Guarantee.AT_MOST_ONCE, [each for each in ALL if each != 7], []),
        (Guarantee.AT_MOST_ONCE, [*ALL, 7], ["1 came twice, e.g. 7"]),
        (Guarantee.AT_MOST_ONCE, ALL[:-1], ["1 lost while nothing failed, e.g. 19"]),
        (Guarantee.BEST_EFFORT, [*ALL[:7], *ALL[8:], 8], []),
        (Guarantee.BEST_EFFORT, ALL[1:], ["1 lost while nothing failed, e.g. 0"]),
        (Guarantee.BEST_EFFORT, [*ALL, 20], ["1 messages that were never sent, e.g. 20"]),
    ],
)
def test_a_broken_promise_is_found(guarantee, numbers, found):
    assert problems(guarantee, numbers) == found
