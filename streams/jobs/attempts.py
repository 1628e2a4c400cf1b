"""Begins attempts at the jobs of one partition, and takes their outcomes."""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from streams.jobs.current import CurrentJob, JobCancelled
from streams.jobs.endings import cancelled_by
from streams.jobs.executors import Attempt
from streams.jobs.executors.choice import kind_of
from streams.jobs.failure import job_error
from streams.jobs.job_store import StoredState
from streams.jobs.record import Ending
from streams.jobs.retry import RetryLater

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.jobs.buckets import Buckets
    from streams.jobs.control import Control
    from streams.jobs.endings import Endings
    from streams.jobs.executors.choice import Executors
    from streams.jobs.executors.inline import InlineExecutor
    from streams.jobs.job import BaseJob
    from streams.jobs.queue_partition import QueuePartition
    from streams.jobs.queued_job import QueuedJob
    from streams.jobs.turns import Turns
    from streams.jobs.unfinished_jobs import UnfinishedJobs
    from streams.tracing.spans import JobSpans


class Attempts:
    """From a job's turn to the outcome of its attempt: it ends, or waits for the next one.

    It holds nothing: the attempts are in ``UnfinishedJobs``, where taking an outcome is undone, so that it is
    taken again.
    """

    def __init__(
        self,
        jobs: Mapping[str, BaseJob[Any, Any]],
        unfinished: UnfinishedJobs,
        turns: Turns,
        buckets: Buckets,
        control: Control,
        endings: Endings,
        executors: Executors | InlineExecutor,
        partition: QueuePartition,
        *,
        spans: JobSpans | None = None,
    ) -> None:
        self._spans = spans
        self._jobs = jobs
        self._unfinished = unfinished
        self._turns = turns
        self._buckets = buckets
        self._control = control
        self._endings = endings
        self._executors = executors
        self._partition = partition

    def begin(self, job: QueuedJob, rank: int, now: int) -> Attempt | None:
        """Begin a job, unless it has to wait for its limit or cannot be executed."""
        record, offset = job.record, job.offset
        idempotency_key = self._partition.idempotency_key(offset)
        left = self._executors.adopt(idempotency_key, job.failed_at, self._unfinished.ended)
        if left is not None:
            # It has begun before, whatever would hold it back now.
            self._take_over(job, left, now)
            return None
        if offset in self._control.cancelled and self._endings.end_if_cancelled(job, now):
            return None
        if record.expires is not None and now >= record.expires:
            before = "it began" if not job.tries else f"attempt {job.tries + 1}"
            expired = f"job {self._partition.id(offset)} expired at {record.expires} before {before}"
            self._endings.fail(job, TimeoutError(expired), now, Ending.EXPIRED)
            return None
        paused = self._control.pause_of(record)
        if paused is not None:
            self._control.hold(paused, offset, rank)
            return None
        known = self._jobs.get(record.job)
        if known is None:
            names = ", ".join(sorted(self._jobs)) or "none"
            unknown = f"no function is registered as {record.job!r}; there are: {names}"
            self._endings.fail(job, LookupError(unknown), now)
            return None
        bucket = None if record.limit is None else self._buckets.of(record)
        if bucket is not None:
            opens = bucket.opens()
            if opens is None or opens > now:
                self._turns.wait_for_limit(job, rank, opens)
                return None
        try:
            arguments = known.arguments.decode(record.arguments)
        except (ValueError, TypeError) as error:
            misfit = f"the arguments do not fit {record.job}: {error}"
            self._endings.fail(job, ValueError(misfit), now)
            return None
        if bucket is not None:
            self._buckets.begin(record, now)
        attempt = Attempt(
            offset,
            known,
            arguments,
            CurrentJob(
                self._partition.id(offset),
                record.job,
                job.tries + 1,
                record.scheduled or job.due or record.due or job.timestamp,
                idempotency_key,
                correlation_id=record.correlation_id,
            ),
            copy_context(),
            self._unfinished.ended,
            payload=bytes(record.arguments),
            failed_before=job.failed_at,
        )
        if self._spans is not None:
            attempt.span = self._spans.execution(
                job=record.job,
                identifier=attempt.current.id,
                attempt=attempt.current.attempt,
                topic=self._partition.topic,
                headers=job.headers,
            )
        self._unfinished.running[offset] = job, attempt
        return attempt

    def _take_over(self, job: QueuedJob, attempt: Attempt, now: int) -> None:
        """Continue an attempt that was left running when the partition was given away."""
        self._unfinished.running[job.offset] = job, attempt
        bucket = self._buckets.of(job.record)
        if bucket is not None:
            bucket.begin(now)
        if job.offset in self._control.cancelled:
            self.ask_to_end(attempt)

    def ask_to_end(self, attempt: Attempt) -> None:
        """End an attempt whose job was cancelled, as far as that is possible from outside."""
        attempt.current.cancelled = True
        self._executors.of(kind_of(attempt.job)).cancel(attempt)

    def settle(self, attempt: Attempt, now: int) -> None:
        """Take the outcome of an attempt."""
        job = self._unfinished.settle(attempt)
        if job is None:
            return
        if attempt.span is not None:
            attempt.span.link()
        record, spent = job.record, self._executors.seconds
        spent[record.job] = spent.get(record.job, 0.0) + attempt.seconds
        if record.limit is not None and not attempt.counted and self._buckets.end(record, attempt.begun):
            self._turns.look_at_limit(record.limit, now)
        attempt.counted = True
        # The job is older where its outcomes were undone, the attempt where it was left running here.
        error, tries = attempt.error, max(attempt.current.attempt, job.tries + 1)
        if error is None:
            self._endings.succeed(job, attempt, tries, now)
            return
        retry = attempt.job.definition.retry
        if isinstance(error, JobCancelled) or attempt.current.cancelled:
            note = self._control.cancelled.get(job.offset)
            why = error if note is None else cancelled_by(note)
            self._endings.fail(job, why, now, Ending.CANCELLED, attempt=attempt, tries=tries)
        elif isinstance(error, RetryLater):
            # This attempt does not count.
            self._later(job._replace(tries=tries - 1), error, now)
        elif retry.again(tries, error):
            alone = attempt.job.definition.on_failure == "continue"
            self._again(job._replace(tries=tries), error, now + retry.delay(tries), alone=alone)
        else:
            self._endings.fail(job, error, now, attempt=attempt, tries=tries)

    def _later(self, job: QueuedJob, error: RetryLater, now: int) -> None:
        due = error.due(now)
        if job.record.limit is not None and not error.alone:
            self._buckets.close(job.record, due)
        self._again(job, error, due, alone=error.alone)

    def _again(self, job: QueuedJob, error: BaseException, due: int, *, alone: bool) -> None:
        """A job is executed again at ``due``; its key stays closed, unless it waits ``alone``."""
        self._unfinished.to_store(job, StoredState.RETRYING, due, job_error(error))
        if alone:
            self._turns.leave(job)
