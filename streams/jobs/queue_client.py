"""Puts jobs into a queue from any program, and waits for their results."""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from streams.jobs.commands import commands_topic
from streams.jobs.ends_reader import EndsReader
from streams.jobs.handle import Handle
from streams.jobs.lookup import look_up
from streams.jobs.record import JobId, ends_topic, jobs_topic
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.broker import Appender, Broker
    from streams.jobs.commands import Command
    from streams.jobs.job import Call
    from streams.jobs.record import JobEnd, JobRecord
    from streams.tracing.spans import JobSpans

ENQUEUE_SECONDS = 30.0
"""How long to wait until Kafka has acknowledged jobs."""


class QueueClient:
    """The connection of one program to an app's queue, opened when it is first used. Any thread may use it.

    ``prepare`` creates the queue's topics where they do not exist. ``spans`` are those of jobs, with the
    setting ``tracing``.
    """

    def __init__(
        self,
        application: str,
        broker: Callable[[], Broker],
        prepare: Callable[[Broker], None],
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        spans: JobSpans | None = None,
    ) -> None:
        self._application = application
        self._spans = spans
        self._make_broker = broker
        self._prepare = prepare
        self._clock = clock
        self._lock = threading.Lock()
        self._broker: Broker | None = None
        self._appender: Appender | None = None
        self._reader: EndsReader | None = None

    @property
    def topic(self) -> str:
        """The queue's topic."""
        return jobs_topic(self._application)

    def enqueue(self, calls: Sequence[Call[Any]]) -> list[Handle[Any]]:
        """Put calls into the queue, each for itself. Raises ``BrokerError``."""
        return self._append(calls, together=False)

    def enqueue_many(self, calls: Sequence[Call[Any]]) -> list[Handle[Any]]:
        """Put calls into the queue in one transaction. Raises ``BrokerError``."""
        return self._append(calls, together=True) if calls else []

    def enqueue_again(self, record: JobRecord) -> str:
        """Put a job that has ended into the queue as a new one, due now; return its id.

        Raises ``BrokerError``.
        """
        again = msgspec.structs.replace(record, due=None, expires=None)
        key = record.limit or record.key or record.unique
        now = self._clock()
        output = Output(
            self.topic, [None if key is None else key.encode()], [msgspec.json.encode(again)], [now], None
        )
        (place,) = self._opened_appender().append(output, ENQUEUE_SECONDS)
        return str(JobId(place.partition, place.offset))

    def command(self, commands: Sequence[Command]) -> int:
        """Give commands to all workers; returns the last one's offset once they are acknowledged.

        Raises ``BrokerError``.
        """
        output = Output(
            commands_topic(self._application),
            [None] * len(commands),
            [msgspec.json.encode(command) for command in commands],
            [command.at for command in commands],
            None,
            partition=0,
        )
        return self._opened_appender().append(output, ENQUEUE_SECONDS)[-1].offset

    def wait(self, identifier: str, timeout: float) -> JobEnd | None:
        """Wait for the end of a job; ``None`` if it has not ended within ``timeout`` seconds."""
        with self._lock:
            if self._reader is None:
                self._reader = EndsReader(self._opened(), ends_topic(self._application))
            reader = self._reader
        return reader.wait(identifier, timeout)

    def enqueued(self, identifier: str) -> bool:
        """Whether a job of this id was enqueued at any time."""
        job = JobId.parse(identifier)
        with self._lock:
            broker = self._opened()
        admin = broker.admin()
        try:
            partition = TopicPartition(self.topic, job.partition)
            ends = admin.end_offsets([partition], "read_uncommitted")
        finally:
            admin.close()
        return job.offset < ends.get(partition, 0)

    def find(self, identifier: str) -> JobRecord | JobEnd | None:
        """How a job has ended, or else its record; ``None`` if there is none, or its result was deleted.

        Raises ``ConfigurationError`` for a text that is no id, ``BrokerError``.
        """
        job = JobId.parse(identifier)
        with self._lock:
            broker = self._opened()
        return look_up(broker, self._application, job)

    def close(self) -> None:
        """Close the connection; it is opened again if it is used again."""
        with self._lock:
            appender, self._appender = self._appender, None
            reader, self._reader = self._reader, None
            self._broker = None
        if appender is not None:
            appender.close()
        if reader is not None:
            reader.close()

    def _append(self, calls: Sequence[Call[Any]], *, together: bool) -> list[Handle[Any]]:
        now = self._clock()
        output = Output(
            self.topic,
            [None if call.partition_key is None else call.partition_key.encode() for call in calls],
            [call.payload(now) for call in calls],
            [now] * len(calls),
            None,
        )
        appender = self._opened_appender()
        write = appender.append_together if together else appender.append
        if self._spans is None:
            places = write(output, ENQUEUE_SECONDS)
        else:
            with self._spans.send(self.topic, len(calls)) as headers:
                output.headers = [headers] * len(calls) if headers else None
                places = write(output, ENQUEUE_SECONDS)
        return [
            Handle(str(JobId(place.partition, place.offset)), call.job.name, self, call.job.result.decode)
            for place, call in zip(places, calls, strict=True)
        ]

    def _opened_appender(self) -> Appender:
        with self._lock:
            broker = self._opened()
            if self._appender is None:
                self._appender = broker.appender(f"{self._application}-enqueue-{uuid.uuid4()}")
            return self._appender

    def _opened(self) -> Broker:
        if self._broker is None:
            broker = self._make_broker()
            self._prepare(broker)
            self._broker = broker
        return self._broker
