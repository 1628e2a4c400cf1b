"""Executes Django's tasks in workers, as jobs."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

import django
import msgspec
from django.apps import apps
from django.db import close_old_connections, reset_queries
from django.tasks import TaskContext, TaskResultStatus
from django.tasks.signals import task_finished, task_started
from django.utils import timezone
from django.utils.json import normalize_json

from streams.django.task_call import (
    JOB_PREFIX,
    UNKNOWN_WORKER,
    Outcome,
    TaskCall,
    task_error,
    task_result,
)
from streams.jobs.current import JobCancelled, current_job
from streams.jobs.failure import error_of_end
from streams.jobs.retry import RetryLater

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.tasks import TaskResult

    from streams.app import App
    from streams.jobs.job import JobOptions


def add_tasks(app: App, queue: str = "default", **options: Unpack[JobOptions]) -> None:
    """Let an app's workers execute the tasks of one of Django's queues.

    ``options`` are those of ``App.job``, but for ``name``, ``priority`` and ``schedule``; functions such as
    ``key`` get a ``TaskCall``. Workers set Django up when they start, by ``DJANGO_SETTINGS_MODULE``.
    """
    refused = options.keys() & {"name", "priority", "schedule"}
    if refused:
        raise TypeError(f"add_tasks() has no option {min(refused)!r}: Django's tasks have it")
    app.resource(_django)
    named: JobOptions = {**options, "name": JOB_PREFIX + queue}
    app.job(**named)(execute)


@contextmanager
def _django() -> Iterator[None]:
    _set_up()
    yield


def _set_up() -> None:
    # Once: it also configures logging.
    if not apps.ready:
        django.setup()


def execute(call: TaskCall) -> Outcome:
    """Execute a task, as Django's request cycle executes a view."""
    _set_up()
    job, now, worker = current_job(), timezone.now(), f"{socket.gethostname()}-{os.getpid()}"
    result = task_result(
        call,
        job.id,
        status=TaskResultStatus.RUNNING,
        started_at=now,
        last_attempted_at=now,
        worker_ids=[*[UNKNOWN_WORKER] * (job.attempt - 1), worker],
    )
    task = result.task
    reset_queries()
    close_old_connections()
    try:
        # Receivers that fail are logged: the task is not executed again for them.
        task_started.send_robust(type(task.get_backend()), task_result=result)
        context = [TaskContext(task_result=result)] if task.takes_context else []
        value = normalize_json(task.call(*context, *result.args, **result.kwargs))
        outcome = Outcome(call, msgspec.Raw(msgspec.json.encode(value)), worker)
    except BaseException as error:
        if _is_final(task, error):
            result.errors.append(task_error(error_of_end(error)))
            _finish(result, TaskResultStatus.FAILED)
        raise
    else:
        _finish(result, TaskResultStatus.SUCCESSFUL, value)
        return outcome
    finally:
        close_old_connections()


def _finish(result: TaskResult, status: TaskResultStatus, value: Any = None) -> None:
    for name, known in (("status", status), ("finished_at", timezone.now()), ("_return_value", value)):
        object.__setattr__(result, name, known)
    task_finished.send_robust(type(result.task.get_backend()), task_result=result)


def _is_final(task: Any, error: BaseException) -> bool:
    """Whether the task is not executed again after it has raised this."""
    job = current_job()
    if job.cancelled or isinstance(error, JobCancelled):
        return True
    if isinstance(error, RetryLater):
        return False
    return not task.get_backend().job(task.queue_name).definition.retry.again(job.attempt, error)
