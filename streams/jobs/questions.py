"""What other threads want to know of the unfinished jobs of one partition: why each does not run."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from streams.jobs.fields import unfinished_fields
from streams.jobs.job_store import StoredState
from streams.jobs.reasons import Case, JobState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.jobs.buckets import Buckets
    from streams.jobs.control import Control
    from streams.jobs.input_progress import InputProgress
    from streams.jobs.job import BaseJob
    from streams.jobs.job_store import JobStore
    from streams.jobs.queue_partition import QueuePartition
    from streams.jobs.queued_job import QueuedJob
    from streams.jobs.turns import Turns
    from streams.jobs.unfinished_jobs import UnfinishedJobs


class Questions:
    """Questions by any thread, which are answered in the task's thread, within a slice.

    It holds those that were not answered, and changes nothing; a question outlives what is undone.
    """

    def __init__(
        self,
        jobs: Mapping[str, BaseJob[Any, Any]],
        store: JobStore,
        input_progress: InputProgress,
        unfinished: UnfinishedJobs,
        turns: Turns,
        buckets: Buckets,
        control: Control,
        partition: QueuePartition,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._input = input_progress
        self._unfinished = unfinished
        self._turns = turns
        self._buckets = buckets
        self._control = control
        self._partition = partition
        self._asked: deque[tuple[int, Future[dict[str, Any] | None]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._asked)

    def ask(self, offset: int) -> Future[dict[str, Any] | None]:
        """The fields of a job that has not ended, else ``None``; from any thread. See ``fields``."""
        answer: Future[dict[str, Any] | None] = Future()
        self._asked.append((offset, answer))
        return answer

    def answer(self, now: int) -> None:
        """Answer all of them, in the task's thread."""
        while self._asked:
            offset, answer = self._asked.popleft()
            answer.set_result(self._fields(offset, now))

    def _fields(self, offset: int, now: int) -> dict[str, Any] | None:
        job, identifier = self._unfinished.find(offset), self._partition.id(offset)
        if job is not None:
            return unfinished_fields(identifier, job.timestamp, self._case(job, now))
        if not self._input.is_to_come(offset):
            return None
        return {"id": identifier, "state": JobState.WAITING.value, "why": "no worker has read it yet"}

    def _case(self, job: QueuedJob, now: int, *, alone: bool = False) -> Case:
        """Why a job does not run; with ``alone``, whatever its key says."""
        record, offset = job.record, job.offset
        known = self._jobs.get(record.job)
        case = Case(record, now, JobState.WAITING, tries=job.tries, registered=known is not None)
        case.most_tries = None if known is None else known.definition.retry.tries
        case.cancelled = self._control.cancelled.get(offset)
        stored = self._store.find(offset)
        if stored is not None:
            case.error, case.failed_at = stored.error, stored.failed_at
        if offset in self._unfinished.running:
            attempt = self._unfinished.running[offset][1]
            if attempt.begun:
                case.stage, case.began = JobState.RUNNING, attempt.begun
                case.progress = attempt.current.progress
            return case
        if stored is not None and stored.due:
            delayed = stored.state is StoredState.DELAYED
            case.stage, case.due = JobState.DELAYED if delayed else JobState.RETRYING, stored.due
            return case
        paused = self._control.pause_of(record)
        if paused is not None:
            case.pause = paused, self._control.pauses[paused]
        bucket = self._buckets.of(record)
        if bucket is not None:
            opens = bucket.opens()
            case.opens, case.ahead = opens or 0.0, bucket.most if opens is None else None
        head = None if record.key is None else self._turns.holder(record.key)
        if head is not None and head != offset and not alone:
            holder = self._unfinished.find(head)
            if holder is not None:
                case.holder = self._partition.id(head), self._case(holder, now, alone=True).does()
        return case
