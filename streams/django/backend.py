"""The backend: puts Django's tasks into the queue, and finds their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core import checks
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import InvalidTask, InvalidTaskBackend, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued
from django.utils import timezone
from django.utils.json import normalize_json
from django.utils.module_loading import import_string

from streams.app import App, queue_if_any
from streams.django.task_call import (
    JOB_PREFIX,
    TaskCall,
    result_of_end,
    result_of_record,
    task_result,
)
from streams.errors import ConfigurationError
from streams.jobs.record import JobEnd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from django.tasks import Task, TaskResult

    from streams.jobs.job import BaseJob


class StreamsBackend(BaseTaskBackend):  # type: ignore[misc]  # Django has no types
    """Enqueues tasks as jobs of an app, which ``OPTIONS`` names: ``{"app": "shop.jobs:app"}``.

    Each of ``QUEUES`` (default: ``default``) is a job that the app has by ``add_tasks``.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, params)
        self._target = self.options.get("app")
        if not isinstance(self._target, str) or ":" not in self._target:
            raise InvalidTaskBackend(
                f"TASKS[{alias!r}] needs the app whose queue it uses, got {self._target!r}: "
                'write "OPTIONS": {"app": "shop.jobs:app"}'
            )

    @property
    def app(self) -> App:
        """The app. Raises ``InvalidTaskBackend`` if there is none of that name."""
        try:
            found = import_string(self._target.replace(":", "."))
        except ImportError as error:
            raise InvalidTaskBackend(
                f"TASKS[{self.alias!r}]: there is no app {self._target!r}: {error}"
            ) from error
        if not isinstance(found, App):
            raise InvalidTaskBackend(
                f"TASKS[{self.alias!r}]: {self._target!r} is {type(found).__name__}, not an App"
            )
        return found

    def job(self, queue_name: str) -> BaseJob[Any, Any]:
        """The job of a queue. Raises ``InvalidTask`` if the app does not have it."""
        app = self.app
        queue = queue_if_any(app)
        job = None if queue is None else queue.jobs.get(JOB_PREFIX + queue_name)
        if job is None:
            raise InvalidTask(f"app {self._target} has no queue {queue_name!r}: {_add(queue_name)}")
        return job

    def enqueue(self, task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskResult:
        """Put a task into the queue; returns once Kafka has acknowledged it, whatever transaction is open.

        Raises ``InvalidTask``, ``TypeError`` for arguments that JSON cannot hold, and ``BrokerError``.
        """
        self.validate_task(task)
        job = self.job(task.queue_name).using(priority=task.priority)
        after = task.run_after
        if after is not None:
            job = job.using(at=after if timezone.is_aware(after) else timezone.make_aware(after))
        call = TaskCall(
            task.module_path,
            normalize_json(args),
            normalize_json(kwargs),
            self.alias,
            task.queue_name,
            task.priority,
            after,
            timezone.now(),
        )
        result = task_result(call, "")
        if result.task.func is not task.func:
            raise InvalidTask(f"{call.task} is another task than this one, and workers would execute it")
        object.__setattr__(result, "id", job.enqueue(call).id)
        # What a receiver raises must not look as if the task was not enqueued.
        task_enqueued.send_robust(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> TaskResult:
        """The result of a task. Raises ``TaskResultDoesNotExist``, also after seven days, ``BrokerError``."""
        queue = queue_if_any(self.app)
        try:
            found = None if queue is None else queue.find(result_id)
        except ConfigurationError:
            found = None
        if found is None or not found.job.startswith(JOB_PREFIX):
            raise TaskResultDoesNotExist(result_id)
        return result_of_end(found) if isinstance(found, JobEnd) else result_of_record(found, result_id)

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """What ``manage.py check`` says: whether the app has the queues."""
        found: list[checks.CheckMessage] = super().check(**kwargs)
        for queue_name in sorted(self.queues):
            try:
                self.job(queue_name)
            except (InvalidTask, InvalidTaskBackend) as error:
                found.append(checks.Error(str(error), obj=f"TASKS[{self.alias!r}]", id="streams.E001"))
        return found


def _add(queue_name: str) -> str:
    return "add_tasks(app)" if queue_name == "default" else f"add_tasks(app, {queue_name!r})"
