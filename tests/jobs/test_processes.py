"""Jobs in processes of their own: results, exceptions, deaths, time limits, and their end with the worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from contextvars import copy_context

import pytest

from streams import App, seconds
from streams.errors import JobFailed, TopologyError
from streams.jobs.current import CurrentJob, JobCancelled
from streams.jobs.executors import Attempt, processes
from streams.jobs.executors.choice import Executors
from streams.process.identity import ProcessIdentity
from tests.jobs import process_app

TIME = seconds(60)


@pytest.fixture(scope="module", autouse=True)
def worker():
    stop = threading.Event()
    forks: list[None] = []
    os.register_at_fork(before=lambda: forks.append(None))
    thread = threading.Thread(target=lambda: process_app.app.run(broker=process_app.BROKER, stop=stop))
    thread.start()
    yield
    stop.set()
    thread.join()
    assert not forks, "a fork has the locks of librdkafka without its threads"


def wait_for(condition, what: str, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_a_function_runs_in_a_new_program_that_is_used_again():
    found = [process_app.where.enqueue(number).result(timeout=TIME) for number in range(4)]
    assert [each["number"] for each in found] == [0, 1, 2, 3]
    assert len({each["pid"] for each in found} - {os.getpid()}) <= 2
    assert len({each["id"] for each in found}) == 4
    first = found[0]
    assert first["key"] == f"processes-jobs-{first['id']}"
    assert first["attempt"] == 1
    assert first["command"].startswith("-c")
    assert first["stdin"]
    assert first["session"]


def test_exceptions_keep_their_class_for_retries_and_their_texts():
    assert process_app.refuses.enqueue("refused").result(timeout=TIME) == 3
    with pytest.raises(JobFailed, match="ValueError: wrong") as failed:
        process_app.refuses.enqueue("value").result(timeout=TIME)
    assert failed.value.tries == 1
    assert failed.value.error_type == "ValueError"


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
def test_a_process_that_dies_is_a_failure_and_the_next_attempt_gets_a_new_one(how):
    assert process_app.dies.enqueue(how).result(timeout=TIME) > 0


def test_a_job_over_its_time_is_ended_with_what_it_has_started(tmp_path):
    started = tmp_path / "started"
    with pytest.raises(JobFailed, match=r"timeout of 1 s"):
        process_app.hangs.enqueue(str(started)).result(timeout=TIME)
    for pid in map(int, started.read_text().split()):
        wait_for(lambda pid=pid: ProcessIdentity.of(pid).status() is None, f"{pid} has ended")


def test_retry_later_is_no_failure():
    assert process_app.later.enqueue().result(timeout=TIME) == "attempt 1"


def test_resources_are_not_there_and_the_error_says_so():
    with pytest.raises(JobFailed, match="connection"):
        process_app.uses_resource.enqueue().result(timeout=TIME)


def test_items_of_a_batch_succeed_and_fail_alone():
    handles = [process_app.together.enqueue(number) for number in (2, 3, 4)]
    assert handles[0].result(timeout=TIME) == "2 of 3"
    assert handles[2].result(timeout=TIME) == "4 of 3"
    with pytest.raises(JobFailed, match="3 is odd"):
        handles[1].result(timeout=TIME)


def test_signals_of_the_terminal_and_of_service_managers_do_not_end_a_job(tmp_path):
    handle = process_app.waits.enqueue(str(tmp_path), 60)
    wait_for((tmp_path / "begun").exists, "it begins")
    pid = int((tmp_path / "begun").read_text())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    (tmp_path / "go").touch()
    assert handle.result(timeout=TIME) == "done"


def test_progress_and_cancellation_reach_the_other_side(tmp_path):
    executors = Executors(1)
    current = CurrentJob("0-1", process_app.waits.name, 1, 0, "processes-jobs-0-1")
    arguments = (str(tmp_path), 60.0)
    attempt = Attempt(1, process_app.waits, (arguments, {}), current, copy_context(), deque())
    attempt.payload = process_app.waits.arguments.encode(arguments, {})
    executors.of("process").submit([attempt])
    wait_for(lambda: current.progress, "it reports")
    assert current.progress == f"waiting in {(tmp_path / 'begun').read_text()}"
    current.cancelled = True
    wait_for(lambda: attempt.finished, "it ends")
    assert isinstance(attempt.error, JobCancelled)
    assert "in check_cancelled" in str(attempt.error.__cause__)
    executors.close()


def test_functions_that_no_other_process_can_find_are_refused():
    app = App("local")

    with pytest.raises(TopologyError, match="process of its own"):

        @app.job(name="inner", executor="process")
        def inner() -> None: ...


SCRIPT = """
    import os, sys, threading, time
    from pathlib import Path
    from streams import App, seconds
    from streams.broker.memory import MemoryBroker

    class MemoryApp(App):
        def broker(self):
            return BROKER

    BROKER = MemoryBroker()
    app = MemoryApp(
        "script", job_partitions=1, state_store="memory", state_dir=sys.argv[1], shutdown_timeout=3
    )

    @app.job(executor="process")
    def work(folder: str, forever: bool) -> str:
        if forever:
            Path(folder, "pid").write_text(str(os.getpid()))
        while forever:
            pass
        return __name__

    if __name__ == "__main__":
        handle = work.enqueue(sys.argv[1], False)

        def then():
            Path(sys.argv[1], "result").write_text(handle.result(timeout=seconds(60)))
            work.enqueue(sys.argv[1], True)

        threading.Thread(target=then, daemon=True).start()
        app.run(broker=BROKER)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path)], cwd=tmp_path)
    yield process, tmp_path
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_scripts_own_functions_run_and_their_processes_end_with_it(script, number):
    process, folder = script
    wait_for(lambda: (folder / "result").exists() and (folder / "result").read_text(), "the first job ends")
    assert (folder / "result").read_text() == "__mp_main__"
    wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), "the second job begins")
    child = ProcessIdentity.of(int((folder / "pid").read_text()))
    assert child.status() is not None
    process.send_signal(number)
    assert process.wait(30) == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    wait_for(lambda: child.status() is None, "no orphan", 10)


def test_a_script_that_runs_its_app_when_it_is_imported_is_told_so(tmp_path):
    unguarded = textwrap.dedent(SCRIPT).replace('if __name__ == "__main__":', "if True:")
    (tmp_path / "script.py").write_text(unguarded)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    found = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            found += line
            if "is run in a process that executes its jobs" in line:
                break
        process.kill()
    assert "is run in a process that executes its jobs" in found


def test_a_module_that_takes_too_long_to_import_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "START_SECONDS", 0.0)
    with pytest.raises(JobFailed, match="has not imported"):
        process_app.waits.enqueue(str(tmp_path), 0).result(timeout=TIME)
