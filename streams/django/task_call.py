"""What a job of a Django task contains, and the task's result in Django's terms."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from django.conf import settings
from django.tasks import Task, TaskResult, TaskResultStatus
from django.tasks.base import TaskError
from django.tasks.exceptions import InvalidTask
from django.utils.module_loading import import_string
from django.utils.timezone import make_naive

from streams.jobs.record import Ending, JobRecord

if TYPE_CHECKING:
    from streams.jobs.record import JobEnd, JobError

JOB_PREFIX = "django-tasks."
"""A queue of Django's is the job of this name and the queue's."""

UNKNOWN_WORKER = "unknown"
"""The id of the workers of attempts that are only counted."""


class TaskCall(msgspec.Struct, frozen=True):
    """A call of a Django task, as the queue contains it."""

    task: str
    """Module and name of the task."""
    args: list[Any]
    kwargs: dict[str, Any]
    backend: str
    """The alias of the backend."""
    queue: str
    priority: int
    run_after: datetime | None
    enqueued_at: datetime


class Outcome(msgspec.Struct, frozen=True):
    """The result of the job of a task that has succeeded."""

    call: TaskCall
    value: msgspec.Raw
    worker: str


class _Arguments(msgspec.Struct):
    call: TaskCall


_arguments = msgspec.json.Decoder(_Arguments).decode
_outcome = msgspec.json.Decoder(Outcome).decode
_record = msgspec.json.Decoder(JobRecord).decode


def load_task(call: TaskCall) -> Task:
    """The task as it was enqueued. Raises ``InvalidTask`` if this program does not have it."""
    try:
        found = import_string(call.task)
    except ImportError as error:
        raise InvalidTask(f"task {call.task} cannot be imported: {error}") from error
    if not isinstance(found, Task):
        raise InvalidTask(f"{call.task} is {type(found).__name__}: it is not decorated with @task")
    return replace(
        found,
        priority=call.priority,
        queue_name=call.queue,
        backend=call.backend,
        run_after=call.run_after,
    )


def task_result(call: TaskCall, identifier: str, **known: Any) -> TaskResult:
    """The result of a task that waits, but for what is ``known``. Raises ``InvalidTask``."""
    fields: dict[str, Any] = dict.fromkeys(("started_at", "finished_at", "last_attempted_at"))
    fields |= {"status": TaskResultStatus.READY, "errors": [], "worker_ids": []}
    return TaskResult(
        task=load_task(call),
        id=identifier,
        enqueued_at=call.enqueued_at,
        args=call.args,
        kwargs=call.kwargs,
        backend=call.backend,
        **(fields | known),
    )


def task_error(error: JobError) -> TaskError:
    """An exception as Django's results have it."""
    return TaskError(exception_class_path=error.path, traceback=error.traceback)


def result_of_record(record: JobRecord, identifier: str) -> TaskResult:
    """The result of a task that has not ended. Raises ``InvalidTask``."""
    return task_result(_arguments(record.arguments).call, identifier)


def result_of_end(end: JobEnd) -> TaskResult:
    """The result of a task that has ended. Raises ``InvalidTask``."""
    began = _time(end.began) if end.began else None
    times = {"started_at": began, "last_attempted_at": began, "finished_at": _time(end.ended)}
    workers = [UNKNOWN_WORKER] * end.tries
    if end.ending is not Ending.SUCCEEDED:
        return task_result(
            _arguments(_record(end.record).arguments).call,
            end.id,
            status=TaskResultStatus.FAILED,
            errors=[] if end.error is None else [task_error(end.error)],
            worker_ids=workers,
            **times,
        )
    outcome = _outcome(end.result)
    workers[-1] = outcome.worker
    result = task_result(
        outcome.call, end.id, status=TaskResultStatus.SUCCESSFUL, worker_ids=workers, **times
    )
    object.__setattr__(result, "_return_value", msgspec.json.decode(outcome.value))
    return result


def _time(milliseconds: int) -> datetime:
    time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return time if settings.USE_TZ else make_naive(time)
