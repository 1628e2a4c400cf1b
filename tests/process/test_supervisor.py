"""Supervised processes: real ones, small."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from streams.errors import (
    AccessDenied,
    ConfigurationError,
    DeadLetterLimitExceeded,
    OffsetOutOfRange,
    ProcessingError,
    StateError,
    WorkersFailed,
)
from streams.process import supervisor
from streams.process.supervisor import Supervisor
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

soon = partial(wait_until, timeout=30.0)


def command(folder: Path, body: str) -> list[str]:
    """A worker's program: it takes the next number as ``starts``, then does what ``body`` says."""
    script = folder / "worker.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, pathlib, signal, sys, time
        folder = pathlib.Path({str(folder)!r})
        starts = 1
        while True:
            # Made by one process only, however many start at the same time.
            try:
                with (folder / f"start-{{starts}}").open("x") as file:
                    file.write(str(os.getpid()))
                break
            except FileExistsError:
                starts += 1

        def wait():
            # Of a signal right before a long sleep, Python only learns after it.
            for _ in range(1200):
                time.sleep(0.05)
        """)
        + textwrap.dedent(body)
    )
    return [sys.executable, str(script)]


def starts(folder: Path) -> int:
    return len(list(folder.glob("start-*")))


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError,
        ProcessingError,
        DeadLetterLimitExceeded,
        StateError,
        AccessDenied,
        OffsetOutOfRange,
    ],
)
def test_an_error_that_a_restart_cannot_fix_ends_the_command_with_its_code(tmp_path, error):
    code = error.exit_code
    assert Supervisor(command(tmp_path, f"sys.exit({code})"), 1).run() == code
    assert starts(tmp_path) == 1


def test_a_worker_that_dies_is_restarted(tmp_path):
    body = """
    if starts < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(5)
    """
    assert Supervisor(command(tmp_path, body), 1).run() == 5
    assert starts(tmp_path) == 3


def test_a_worker_that_dies_too_often_ends_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "RESTARTS", 2)
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.01)
    with pytest.raises(WorkersFailed, match=r"worker 0 died 3 times within 60 s, last with exit code 9"):
        Supervisor(command(tmp_path, "sys.exit(9)"), 1).run()


def test_one_worker_that_ends_for_good_stops_the_others(tmp_path):
    body = """
    if starts == 1:
        while len(list(folder.glob("start-*"))) < 2:
            time.sleep(0.01)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "stopped").touch(), sys.exit(0)))
    wait()
    """
    # The other one may be stopped before it handles signals, which ends it as well.
    assert Supervisor(command(tmp_path, body), 2).run() == 2


SUPERVISING = """
import sys
from streams.process.supervisor import Supervisor
sys.exit(Supervisor(sys.argv[1:], 2).run())
"""

FOLLOWING = """
import threading
from streams.process.supervisor import follow_supervisor
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
follow_supervisor(int(sys.argv[sys.argv.index("--supervised-by") + 1]))
(folder / f"ready-{os.getpid()}").touch()
stopped.wait(60)
(folder / f"stopped-{os.getpid()}").touch()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_no_worker_outlives_the_command_however_it_ends(tmp_path, number, code):
    process = subprocess.Popen([sys.executable, "-c", SUPERVISING, *command(tmp_path, FOLLOWING)])
    soon(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    os.kill(process.pid, number)
    assert process.wait(30) == code
    soon(lambda: len(list(tmp_path.glob("stopped-*"))) == 2)


def test_restarts_wait_longer_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "RESTARTS", 3)
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.2)
    monkeypatch.setattr(supervisor, "LONGEST_BACKOFF_SECONDS", 0.4)
    body = """
    (folder / f"at-{time.monotonic()}").touch()
    sys.exit(1)
    """
    with pytest.raises(WorkersFailed, match="died 4 times"):
        Supervisor(command(tmp_path, body), 1).run()
    times = sorted(float(path.name.removeprefix("at-")) for path in tmp_path.glob("at-*"))
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(waits) == 3
    assert all(wait >= least for wait, least in zip(waits, (0.2, 0.4, 0.4), strict=True))


def test_a_worker_that_dies_does_not_disturb_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.01)
    # The second to start lives through it all; the others die at once, and the last ends the command.
    body = """
    if starts == 2:
        (folder / "living").touch()
        signal.signal(signal.SIGTERM, lambda *_: ((folder / "stopped").touch(), sys.exit(0)))
        (folder / "listening").touch()
        wait()
    deadline = time.monotonic() + 30
    while starts > 2 and not (folder / "listening").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    if starts == 1:
        while len(list(folder.glob("start-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    sys.exit(5 if starts == 4 else 1)
    """
    assert Supervisor(command(tmp_path, body), 2).run() == 5
    assert starts(tmp_path) == 4
    assert (tmp_path / "stopped").exists()


def test_a_worker_that_will_not_stop_is_killed_after_the_time_given(tmp_path):
    body = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if starts == 1:
        time.sleep(60)
    while len(list(folder.glob("start-*"))) < 2:
        time.sleep(0.01)
    sys.exit(2)
    """
    begun = time.monotonic()
    assert Supervisor(command(tmp_path, body), 2, stop_timeout=0.5).run() == 2
    assert time.monotonic() - begun < 20
    for path in tmp_path.glob("start-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_the_signal_handlers_of_the_program_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    Supervisor(command(tmp_path, "sys.exit(4)"), 1).run()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_stop_requested_by_the_program_ends_all_with_code_0(tmp_path):
    body = """
    signal.signal(signal.SIGTERM, lambda *_: ((folder / f"stopped-{os.getpid()}").touch(), sys.exit(0)))
    (folder / f"ready-{os.getpid()}").touch()
    wait()
    """
    running = Supervisor(command(tmp_path, body), 3)

    def stop_when_ready() -> None:
        soon(lambda: len(list(tmp_path.glob("ready-*"))) == 3)
        running.request_stop()

    thread = threading.Thread(target=stop_when_ready)
    thread.start()
    assert running.run() == 0
    thread.join()
    assert len(list(tmp_path.glob("stopped-*"))) == 3
