"""What can be done about jobs in the console: the same commands as those of the command line."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from streams.app import queue_if_any
from streams.errors import ConfigurationError, JobUnknown
from streams.jobs.applied_commands import AppliedCommands
from streams.jobs.commands import MOST_JOBS, Action, Command, commands_topic, scope_text
from streams.jobs.fields import end_sentence
from streams.jobs.queue_client import QueueClient
from streams.jobs.reasons import JobState
from streams.jobs.survey import survey
from streams.replay.dead_letters.ended_job import ended_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streams.app import App
    from streams.broker import Broker
    from streams.jobs.job import BaseJob
    from streams.jobs.record import JobId

WAIT_SECONDS: Final = 3.0
"""How long an action waits for the workers to have done it, before it says that they will."""


def declared_jobs(program: App | None) -> Mapping[str, BaseJob[Any, Any]] | None:
    """The jobs that a program declares; ``None`` without the program."""
    queue = None if program is None else queue_if_any(program)
    return None if queue is None else queue.jobs


class JobActions:
    """Commands for the queue of one app, given by ``by``. Methods return what was done, in a sentence.

    They raise ``ConfigurationError`` where there is nothing to do, and ``BrokerError``.
    """

    def __init__(self, broker: Broker, application: str, program: App | None, by: str) -> None:
        self._broker = broker
        self._application = application
        self._program = program
        self._by = by

    def cancel(self, job: JobId) -> str:
        """Cancel a job."""
        with self._client() as client:
            client.command([self._command(Action.CANCEL, jobs=[str(job)])])
            end = client.wait(str(job), WAIT_SECONDS)
        if end is None:
            return f"job {job} is asked to end"
        return f"job {job}: {end_sentence(end)}"

    def retry(self, job: JobId) -> str:
        """Let a job's next attempt begin, or enqueue one that has ended again."""
        unfinished = survey(self._broker, self._application, declared_jobs(self._program))
        waiting = next((item for item in unfinished if item.job.id == job), None)
        with self._client() as client:
            if waiting is None:
                record = ended_record(self._broker, self._application, job, self._program)
                if record is None:
                    raise JobUnknown(f"there is no job {job}, or its result was deleted")
                return f"job {job} is enqueued again, as job {client.enqueue_again(record)}"
            if waiting.case.stage is not JobState.RETRYING:
                raise ConfigurationError(
                    f"job {job} does not wait for another attempt: {waiting.case.sentence()}"
                )
            client.command([self._command(Action.RETRY, jobs=[str(job)])])
        return f"the next attempt of job {job} begins as soon as a worker is free"

    def pause(self, **scope: str | None) -> str:
        """Pause a function, a key, or all jobs."""
        return self._control(Action.PAUSE, "paused", **scope)

    def resume(self, **scope: str | None) -> str:
        """End the pause of a function, a key, or of all jobs."""
        return self._control(Action.RESUME, "resumed", **scope)

    def purge(self, jobs: Sequence[str]) -> str:
        """Cancel these jobs."""
        with self._client() as client:
            client.command(
                [
                    self._command(Action.CANCEL, jobs=list(jobs[at : at + MOST_JOBS]))
                    for at in range(0, len(jobs), MOST_JOBS)
                ]
            )
        return f"{len(jobs):,} jobs are cancelled, unless they end before"

    def _control(self, action: Action, done: str, **scope: str | None) -> str:
        command = self._command(action, **scope)
        with self._client() as client:
            applied = AppliedCommands(self._broker, self._application)
            offset = client.command([command])
        left = applied.wait(offset, WAIT_SECONDS) if applied.expected else 0
        text = f"{scope_text(command.scope)}: {done}"
        if left:
            return f"{text}; {left} partitions of the queue have not applied it yet, and will"
        return text if applied.expected else f"{text}; it is applied when a worker starts"

    def _command(self, action: Action, **fields: Any) -> Command:
        return Command(action, time.time_ns() // 1_000_000, f"{self._by}, console", **fields)

    @contextmanager
    def _client(self) -> Iterator[QueueClient]:
        client = QueueClient(self._application, lambda: self._broker, self._require_queue)
        try:
            yield client
        finally:
            client.close()

    def _require_queue(self, broker: Broker) -> None:
        """The console creates no topics of an app: a worker does, or who enqueues the first job."""
        admin = broker.admin()
        try:
            topics = admin.topics()
        finally:
            admin.close()
        if commands_topic(self._application) not in topics:
            raise ConfigurationError(
                f"app {self._application!r} has no topic for commands yet",
                hint="it is created by the first worker, or when the first job is enqueued",
            )
