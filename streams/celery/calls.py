"""Makes calls of an app's jobs of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import msgspec

from streams.celery.refusal import MISFIT, NOT_REGISTERED, TaskRefused
from streams.celery.task import Task, headers_of, read_task
from streams.errors import TopologyError, error_text
from streams.jobs.job import enqueued

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.celery.message import TaskMessage
    from streams.jobs.job import BaseJob
    from streams.jobs.record import JobRecord
    from streams.records import Record


@dataclass(frozen=True, slots=True)
class Calls:
    """Makes jobs of messages. ``jobs`` are those of the app, by name."""

    jobs: Mapping[str, BaseJob[Any, Any]]
    reply_to: str | None
    """The bridge that reports results, if there is a place for them."""
    priority_step: int
    """What one step of the broker's priorities is worth in those of jobs."""

    def judge(self, record: Record[Any, TaskMessage]) -> Record[Any, JobRecord | TaskRefused]:
        """What becomes of a message: a job, or the reason why it is none."""
        message = record.value
        try:
            return record.with_(value=self._job(message, record.timestamp))
        except TaskRefused as refused:
            headers = headers_of(message)
            error = TaskRefused(f"{_named(headers.name, headers.id)}: {refused}", refused.kind)
            error.__cause__ = refused.__cause__
            if self.reply_to is not None and not headers.ignore_result:
                error.task_id = headers.id
            return record.with_(value=error)

    def _job(self, message: TaskMessage, now: int) -> JobRecord:
        task = read_task(message)
        job = self.jobs.get(task.name)
        if job is None:
            raise _unknown(task.name, self.jobs)
        options: dict[str, Any] = {}
        if message.priority:
            wanted = job.definition.priority + message.priority * self.priority_step
            options["priority"] = max(-100, min(100, wanted))
        if task.eta is not None and task.eta > now:
            options["at"] = datetime.fromtimestamp(task.eta / 1000, UTC)
        made = enqueued(_called(job, task, options), now)
        return msgspec.structs.replace(
            made,
            expires=made.expires if task.expires is None else task.expires,
            correlation_id=task.id,
            reply_to=None if headers_of(message).ignore_result else self.reply_to,
        )


def _called(job: BaseJob[Any, Any], task: Task, options: dict[str, Any]) -> Any:
    try:
        args, kwargs = job.arguments.converted(task.args, task.kwargs)
        return job.using(**options).call(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise TaskRefused(f"its arguments do not fit {job.name}: {error}", MISFIT) from error
    except TopologyError:
        raise
    except Exception as error:  # functions of the job's options, such as its key, may raise anything
        raise TaskRefused(
            f"no call of {job.name} can be made of it: {type(error).__name__}: {error_text(error)}"
        ) from error


def _unknown(name: str, jobs: Mapping[str, BaseJob[Any, Any]]) -> TaskRefused:
    close = get_close_matches(name, jobs, 1)
    which = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(jobs)) or 'none'}"
    return TaskRefused(f"the app has no job of this name; {which}", NOT_REGISTERED)


def _named(name: str | None, identifier: str | None) -> str:
    return f"task {name or '(no name)'}[{identifier or 'no id'}]"
