"""Django's tasks as jobs, in the driver."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("django", reason="Django's tasks need Django 6, and that Python 3.12 or later")

import django
from django.tasks import TaskResultStatus, default_task_backend, task, task_backends
from django.tasks.exceptions import (
    InvalidTask,
    InvalidTaskBackend,
    TaskResultDoesNotExist,
    TaskResultMismatch,
)
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import override_settings

from streams import App
from streams.django import StreamsBackend, add_tasks
from streams.testing import TopologyDriver
from tests.jobs import django_shop
from tests.jobs.django_shop import add, app, connect, count, send, unwritable

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = 1_800_000_000_000

django.setup()


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    django_shop.done.clear()


@pytest.fixture
def driver() -> Iterator[TopologyDriver]:
    with TopologyDriver(app, clock=NOON, check_dead_letters=False) as driver:
        yield driver


@pytest.fixture
def signals() -> Iterator[list[tuple[str, str, Any]]]:
    seen: list[tuple[str, str, Any]] = []
    receivers = []
    for signal, name in ((task_enqueued, "enqueued"), (task_started, "started"), (task_finished, "finished")):

        def receive(sender, task_result, name=name, **_more):
            assert sender is StreamsBackend
            seen.append((name, task_result.id, task_result.status))

        signal.connect(receive)
        receivers.append((signal, receive))
    yield seen
    for signal, receive in receivers:
        signal.disconnect(receive)


def test_a_task_is_executed_and_its_result_is_what_django_promises(driver, signals):
    before = datetime.now(UTC)
    result = add.enqueue(1, second=2)
    assert result.status == TaskResultStatus.READY
    assert (result.args, result.kwargs, result.backend) == ([1], {"second": 2}, "default")
    assert result.attempts == 0
    with pytest.raises(ValueError, match="not finished"):
        result.return_value  # noqa: B018 - a property
    assert django_shop.done == [(1, 2)]

    result.refresh()
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert result.return_value == {"sum": 3, "of": [1, 2]}
    assert result.attempts == 1
    assert "unknown" not in result.worker_ids
    assert before <= result.enqueued_at <= datetime.now(UTC)
    noon = datetime.fromtimestamp(NOON / 1000, UTC)
    assert [result.started_at, result.last_attempted_at, result.finished_at] == [noon] * 3
    again = add.get_result(result.id)
    assert again == result
    with pytest.raises(TaskResultMismatch):
        send.get_result(result.id)
    assert [(name, status) for name, _, status in sorted(signals)] == [
        ("enqueued", TaskResultStatus.READY),
        ("finished", TaskResultStatus.SUCCESSFUL),
        ("started", TaskResultStatus.RUNNING),
    ]
    assert {identifier for _, identifier, _ in signals} == {result.id}


def test_a_failed_task_has_its_exception_and_is_a_dead_letter(driver, signals):
    result = send.enqueue(to="nobody")
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    (error,) = result.errors
    assert error.exception_class is LookupError
    assert error.traceback.startswith("Traceback (most recent call last):")
    assert 'raise LookupError(f"no {to}")' in error.traceback
    assert error.traceback.endswith("LookupError: no nobody\n")
    assert (result.attempts, result.started_at) == (1, result.finished_at)
    assert result.kwargs == {"to": "nobody"}
    with pytest.raises(ValueError, match="failed"):
        result.return_value  # noqa: B018 - a property
    assert [name for name, _, _ in signals] == ["started", "finished", "enqueued"]
    assert len(driver.dead_letters()) == 1

    result = unwritable.enqueue()
    result.refresh()
    assert [error.exception_class for error in result.errors] == [TypeError]


def test_the_context_counts_attempts_and_only_the_last_one_is_finished(driver, signals):
    result = send.enqueue(to="busy")
    assert [name for name, _, _ in signals] == ["started", "enqueued"]
    result.refresh()
    assert (result.status, result.errors) == (TaskResultStatus.READY, [])
    driver.advance(timedelta(seconds=10))
    assert django_shop.done == [("busy", 1), ("busy", 2)]
    assert [name for name, _, _ in signals] == ["started", "enqueued", "started", "finished"]
    result.refresh()
    assert result.return_value == [True, "RUNNING", {"to": "busy"}, 5, 2]
    assert result.attempts == 2
    assert result.worker_ids[0] == "unknown"


def test_a_task_that_is_put_off_has_not_failed(driver, signals):
    result = send.enqueue(to="later")
    driver.advance(timedelta(minutes=1))
    assert [name for name, _, _ in signals] == ["started", "enqueued", "started", "finished"]
    result.refresh()
    assert result.attempts == 1


def test_options_of_a_call_decide_when_it_is_executed():
    with TopologyDriver(app, clock=NOON, run_jobs=False) as driver:
        due = datetime.fromtimestamp(NOON / 1000, UTC) + timedelta(days=90)
        later = add.using(run_after=due).enqueue(0, 0)
        slow = add.using(queue_name="slow")
        results = [slow.using(priority=priority).enqueue(priority, 1) for priority in (1, -10, 0, 100)]
        assert slow.get_result(results[1].id).task == slow.using(priority=-10)
        other = send.enqueue(to="ann")
        (mail,) = driver.enqueued(app_job("mail"))
        assert (mail.id, mail.key) == (other.id, "ann")
        driver.run_due()
        assert [first for first, _ in django_shop.done if first != "ann"] == [1, 100, 0, -10]
        later.refresh()
        assert (later.status, later.task.run_after) == (TaskResultStatus.READY, due)
        assert add.get_result(later.id).task.run_after == due
        driver.advance(timedelta(days=90) - timedelta(milliseconds=1))
        driver.run_due()
        assert (0, 0) not in django_shop.done
        driver.advance(timedelta(milliseconds=1))
        driver.run_due()
        assert django_shop.done[-1] == (0, 0)


def app_job(queue: str) -> Any:
    return default_task_backend.job(queue)


def test_async_tasks_and_async_callers(driver):
    async def call() -> Any:
        result = await count.aenqueue("four")
        return await count.aget_result(result.id)

    found = asyncio.run(call())
    assert (found.status, found.return_value) == (TaskResultStatus.SUCCESSFUL, 4)


def test_connections_are_closed_as_after_a_request(driver):
    result = connect.enqueue()
    assert connect.get_result(result.id).return_value is True
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        django_shop.done[0].execute("select 1")


def test_what_cannot_be_executed_fails_where_it_is_enqueued(driver):
    with pytest.raises(TypeError):
        add.enqueue(object(), 1)
    with pytest.raises(TypeError, match="cannot be enqueued"):
        add.enqueue(float("nan"), 1)
    with pytest.raises(InvalidTask, match="Queue 'other' is not valid"):
        add.using(queue_name="other")
    with pytest.raises(InvalidTask, match="is function: it is not decorated"):
        task(django_shop.plain).enqueue()
    for text in ("0-99", "no-id", ""):
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(text)
    assert driver.enqueued(app_job("default")) == []


def test_a_receiver_that_fails_does_not_fail_the_task(driver):
    def receive(**_all):
        raise RuntimeError("receiver")

    for signal in (task_enqueued, task_started, task_finished):
        signal.connect(receive)
    try:
        result = add.enqueue(1, 2)
    finally:
        for signal in (task_enqueued, task_started, task_finished):
            signal.disconnect(receive)
    assert add.get_result(result.id).status == TaskResultStatus.SUCCESSFUL


def test_a_task_that_does_not_exist_any_more_is_a_dead_letter(monkeypatch):
    gone = task(django_shop.plain)
    monkeypatch.setattr(django_shop, "plain", gone)
    with TopologyDriver(app, clock=NOON, run_jobs=False, check_dead_letters=False) as waiting:
        gone.enqueue()
        monkeypatch.setattr(django_shop, "plain", None)
        waiting.run_due()
        (letter,) = waiting.dead_letters()
        assert b"not decorated with @task" in b" ".join(value or b"" for _, value in letter.headers or [])


def test_the_checks_name_what_is_missing():
    assert default_task_backend.check() == []

    def problem(**params: Any) -> str:
        with override_settings(TASKS={"default": {"BACKEND": "streams.django.StreamsBackend", **params}}):
            return " ".join(str(each.msg) for each in task_backends["default"].check())

    target = {"app": "tests.jobs.django_shop:app"}
    assert "add_tasks(app, 'other')" in problem(QUEUES=["other"], OPTIONS=target)
    assert "there is no app" in problem(OPTIONS={"app": "tests.jobs.nothing:app"})
    assert "not an App" in problem(OPTIONS={"app": "tests.jobs.django_shop:plain"})
    with pytest.raises(InvalidTaskBackend, match='"OPTIONS"'):
        problem()
    with pytest.raises(TypeError, match="'priority'"):
        add_tasks(App("shop"), priority=3)
