"""Reads the queues of Celery's programs into the queue of an app, and reports results to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import msgspec

from streams.app import ends_of_jobs, queue_if_any
from streams.celery.calls import Calls
from streams.celery.refusal import TaskRefused
from streams.celery.result import result_of_end, result_of_refusal
from streams.durations import days
from streams.errors import ConfigurationError, TopologyError
from streams.jobs.record import Ending, JobEnd, JobRecord, jobs_topic, partition_key
from streams.policy import dead_letter
from streams.serde import Bytes, Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from streams.app import App
    from streams.celery.message import TaskMessage
    from streams.connectors.sink import SinkConnector
    from streams.dsl.stream import Stream
    from streams.jobs.job import BaseJob
    from streams.records import Record

    Jobs: TypeAlias = Mapping[str, BaseJob[Any, Any]]

RESULT_EXPIRES = days(1)
"""How long Celery keeps a result, unless its configuration says otherwise."""

PRIORITY_STEPS = (0, 3, 6, 9)
"""The lists that Celery's programs have for a queue in Redis, unless they set ``priority_steps``."""

_PRIORITY_STEP = {"redis": -10, "amqp": 10}
"""What a step of the broker's priorities is worth: in Redis 0 is the first, in RabbitMQ the last."""

_BROKERS = {
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "redis+socket": "redis",
    "amqp": "amqp",
    "amqps": "amqp",
}


def read_celery(
    app: App,
    broker: str,
    *,
    queues: Sequence[str] = ("celery",),
    results: str | None = None,
    result_expires: timedelta = RESULT_EXPIRES,
    result_key_prefix: str = "",
    key_prefix: str = "",
    priority_steps: Sequence[int] = PRIORITY_STEPS,
    store: str = "celery",
) -> None:
    """Execute the tasks that Celery's programs send as jobs of the same names.

    ::

        @app.job(name="shop.tasks.send_receipt")
        def send_receipt(order: int, *, copy: bool = False) -> str: ...


        read_celery(app, "redis://127.0.0.1:6379/0", results="redis://127.0.0.1:6379/1")

    ``broker`` is the URL of the Redis or RabbitMQ that has the ``queues``, whose messages are taken, each
    exactly once (from RabbitMQ as far as the ids of tasks tell them apart).
    What cannot be a job becomes a dead letter: tasks of other names, arguments that do not fit, and all
    content but JSON, which is not read.

    ``results`` is the URL of the Redis in which the callers look for results: they are written there for
    ``result_expires``. A task whose message is refused has failed, for its caller.

    ``key_prefix`` and ``result_key_prefix`` are ``global_keyprefix`` of Celery's transport options for a
    broker and for results in Redis, ``priority_steps`` those of the broker. ``store`` names the positions.

    Raises ``ConfigurationError`` for URLs and names that cannot be, ``TopologyError`` if the app has no jobs.
    """
    queue = queue_if_any(app)
    if queue is None:
        raise TopologyError(
            f"app {app.name!r} has no jobs that could execute tasks",
            hint="declare them above read_celery(…): @app.job(name='the name of the task')",
        )
    kind = _kind(broker)
    if isinstance(queues, str) or not queues or not all(queues):
        raise ConfigurationError(
            f"read_celery() takes a list of the queues' names, got {queues!r:.80}", hint="queues=['celery']"
        )
    calls = Calls(queue.jobs, None if results is None else store, _PRIORITY_STEP[kind])
    sink = None if results is None else _sink(results, result_key_prefix, result_expires)
    for each in queues:
        name = f"{store}-{re.sub('[^A-Za-z0-9._-]+', '-', each)}"
        if kind == "redis":
            messages = _from_redis(app, broker, each, name, key_prefix=key_prefix, steps=priority_steps)
        else:
            messages = _from_rabbitmq(app, broker, each, name)
        _read(app, messages, calls, sink, name)
    if sink is not None:
        _report(app, queue.jobs, sink, store)


def _read(
    app: App, messages: Stream[Any, TaskMessage], calls: Calls, sink: SinkConnector | None, name: str
) -> None:
    """Make jobs of one queue's messages; report those that are refused."""
    verdicts = messages.map_records(calls.judge, on_error=dead_letter, name=f"{name}-read")
    jobs = verdicts.map_records(_job_record, key=Text(), on_error=dead_letter, name=f"{name}-accept")
    jobs.to(jobs_topic(app.name), key=Text(), value=Bytes(), on_error=dead_letter, name=f"{name}-enqueue")
    if sink is None:
        return
    refused = verdicts.filter(_is_waited_for, on_error=dead_letter, name=f"{name}-refused")
    failures = refused.map_records(_failure, key=Text(), on_error=dead_letter, name=f"{name}-failures")
    failures.sink(sink, store=f"{name}-failures", key=Text(), value=Bytes(), on_error=dead_letter)


def _report(app: App, jobs: Jobs, sink: SinkConnector, store: str) -> None:
    """Write the results of tasks to where their callers look for them."""

    def is_own(end: JobEnd) -> bool:
        # The result of a task that was left out is that of the one which was not.
        return end.reply_to == store and end.ending is not Ending.DUPLICATE

    def result(record: Record[str, JobEnd]) -> Record[str, bytes]:
        end = record.value
        return record.with_(key=end.correlation_id or "", value=result_of_end(end, jobs))

    own = ends_of_jobs(app).filter(is_own, on_error=dead_letter, name=f"{store}-ends")
    written = own.map_records(result, key=Text(), on_error=dead_letter, name=f"{store}-results")
    written.sink(sink, store=f"{store}-results", key=Text(), value=Bytes(), on_error=dead_letter)


def _job_record(record: Record[Any, JobRecord | TaskRefused]) -> Record[Any, bytes]:
    found = record.value
    if isinstance(found, TaskRefused):
        raise found
    # Without a key, any partition will do.
    return record.with_(key=partition_key(found), value=msgspec.json.encode(found), headers=None)


def _is_waited_for(found: JobRecord | TaskRefused) -> bool:
    return isinstance(found, TaskRefused) and found.task_id is not None


def _failure(record: Record[Any, Any]) -> Record[str, bytes]:
    refused: TaskRefused = record.value
    assert refused.task_id is not None
    return record.with_(key=refused.task_id, value=result_of_refusal(refused, record.timestamp), headers=None)


def _from_redis(
    app: App, url: str, queue: str, name: str, *, key_prefix: str, steps: Sequence[int]
) -> Stream[Any, TaskMessage]:
    from streams.celery.redis_queue import redis_task_queue  # noqa: PLC0415 - needs an extra

    connector = redis_task_queue(url, queue, key_prefix=key_prefix, steps=steps)
    return app.source(connector, store=name, on_error=dead_letter)


def _from_rabbitmq(app: App, url: str, queue: str, name: str) -> Stream[Any, TaskMessage]:
    from streams.celery.rabbitmq_queue import rabbitmq_task_queue, task_message  # noqa: PLC0415 - as above

    messages = app.source(rabbitmq_task_queue(url, queue), store=name, on_error=dead_letter)
    return messages.map_records(task_message, on_error=dead_letter, name=f"{name}-messages")


def _sink(results: str, key_prefix: str, expires: timedelta) -> SinkConnector:
    from streams.connectors.redis import RedisSink  # noqa: PLC0415 - needs an extra

    # As Celery separates them.
    between = "_" if key_prefix and key_prefix[-1] not in ":_-." else ""
    keys = f"{key_prefix}{between}celery-task-meta-"
    return RedisSink(results, strings=keys, expires=expires, publish=True)


def _kind(broker: str) -> str:
    """The kind of a broker. Raises ``ConfigurationError``, which shows nothing of the URL but its scheme."""
    scheme = urlsplit(broker).scheme
    kind = _BROKERS.get(scheme)
    if kind is None:
        raise ConfigurationError(
            f"read_celery() reads from Redis and RabbitMQ, got a URL that begins with {scheme!r:.20}",
            hint="redis://HOST:PORT/DATABASE, or amqp://USER@HOST:PORT/VHOST",
        )
    return kind
