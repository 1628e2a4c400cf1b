"""A Django project's app and tasks."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.jobs.django_settings")

from asgiref.sync import sync_to_async
from django.db import connection
from django.tasks import task

from streams import App, Limit, Retry, RetryLater, current_job, minutes, seconds
from streams.django import TaskCall, add_tasks

if TYPE_CHECKING:
    from django.tasks import TaskContext

# The tests' broker is shared: the worker that a test starts has the same prefix.
PREFIX = os.environ.setdefault("DJANGO_SHOP_PREFIX", f"t{uuid.uuid4().hex[:8]}")

app = App(f"{PREFIX}-django-shop", job_partitions=1)
add_tasks(app)


def recipient(call: TaskCall) -> str:
    return str(call.kwargs.get("to"))


add_tasks(app, "mail", retry=Retry(2, backoff=seconds(10), jitter=0, on=(OSError,)), key=recipient)
add_tasks(app, "slow", limit=Limit(running=1))
add_tasks(app, "process", executor="process")

done: list[Any] = []


@task
def add(first: int, second: int) -> dict[str, Any]:
    done.append((first, second))
    return {"sum": first + second, "of": (first, second)}


@task(takes_context=True, queue_name="mail", priority=5)
def send(context: TaskContext, *, to: str) -> list[Any]:
    done.append((to, context.attempt))
    if to == "later" and len(done) == 1:
        raise RetryLater(after=minutes(1))
    if to == "busy" and context.attempt == 1:
        raise OSError("not now")
    if to == "nobody":
        raise LookupError(f"no {to}")
    found = context.task_result
    return [found.id == current_job().id, found.status, found.kwargs, found.task.priority, context.attempt]


@task
async def count(text: str) -> int:
    def rows() -> int:
        with connection.cursor() as cursor:
            return int(cursor.execute("select ?", [len(text)]).fetchone()[0])

    return int(await sync_to_async(rows)())


@task
def connect() -> bool:
    connection.ensure_connection()
    done.append(connection.connection)
    return connection.connection is not None


@task(queue_name="process")
def process() -> int:
    return os.getpid()


@task
def unwritable() -> object:
    return object()


def plain() -> None: ...
