"""Jobs that take longer than their limit in threads and in the event loop; what closed executors end."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, milliseconds
from streams.events import Event
from streams.jobs.current import CurrentJob
from streams.jobs.executors import Attempt
from streams.jobs.executors.choice import Executors

if TYPE_CHECKING:
    from streams.jobs.job import BaseJob

app = App("limits")
go = threading.Event()


@app.job(name="blocks", timeout=milliseconds(300))
def blocks(number: int) -> int:
    go.wait(60)
    return number


@app.job(name="sleeps", timeout=milliseconds(300))
async def sleeps(duration: float) -> str:
    await asyncio.sleep(duration)
    return "slept"


@app.job(name="raises", timeout=milliseconds(300))
async def raises() -> None:
    raise TimeoutError("of its own")


@app.job(name="cleans_up")
async def cleans_up(number: int) -> None:
    try:
        await asyncio.sleep(600)
    finally:
        CLEANED.append(number)


CLEANED: list[int] = []


@pytest.fixture
def executors():
    made = Executors(2)
    yield made
    go.set()
    made.close()
    go.clear()


def attempt(job: BaseJob[Any, Any], *args: object) -> Attempt:
    current = CurrentJob("0-1", job.name, 1, 0, "limits-jobs-0-1")
    return Attempt(1, job, (args, {}), current, copy_context(), deque())


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_overdue_thread_is_reported_once_and_counted_until_it_ends(executors, caplog):
    caplog.set_level(logging.WARNING)
    logging.getLogger("streams").propagate = True
    late = [attempt(blocks, 1), attempt(blocks, 2)]
    executor = executors.of("thread")
    assert executors.overdue == 0
    executor.submit(late)
    wait_for(lambda: executors.overdue == 2)
    wait_for(lambda: len(reported(caplog)) == 2)
    # It goes on looking, and reports nothing again.
    time_of_looks = time.monotonic() + 1.2
    wait_for(lambda: time.monotonic() > time_of_looks)
    assert [(line["job"], line["timeout"]) for line in reported(caplog)] == [("blocks", 0.3)] * 2
    assert executor.free == 0
    go.set()
    wait_for(lambda: all(each.finished for each in late))
    assert [each.result for each in late] == [b"1", b"2"]
    wait_for(lambda: executors.overdue == 0)


def reported(caplog) -> list[dict[str, Any]]:
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [line for line in lines if line["event"] == Event.JOB_OVERDUE]


def test_a_coroutine_is_cancelled_and_the_error_says_the_limit(executors):
    late, quick, own = attempt(sleeps, 600), attempt(sleeps, 0), attempt(raises)
    executors.of("event_loop").submit([late, quick, own])
    wait_for(lambda: late.finished and quick.finished and own.finished)
    assert isinstance(late.error, TimeoutError)
    assert str(late.error) == "sleeps took longer than its timeout of 0.3 s: it was cancelled"
    assert quick.result == b'"slept"'
    assert str(own.error) == "of its own"


def test_a_closed_executor_lets_coroutines_clean_up(executors):
    CLEANED.clear()
    running = [attempt(cleans_up, 1), attempt(cleans_up, 2)]
    executors.of("event_loop").submit(running)
    wait_for(lambda: all(each.begun for each in running))
    executors.close()
    assert sorted(CLEANED) == [1, 2]
