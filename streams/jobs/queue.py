"""The part of the queue that one task has: which of its jobs run, wait, are delayed or done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.jobs.admission import Admission
from streams.jobs.attempts import Attempts
from streams.jobs.buckets import Buckets
from streams.jobs.control import Control
from streams.jobs.endings import Endings
from streams.jobs.executors.inline import InlineExecutor
from streams.jobs.input_progress import InputProgress
from streams.jobs.job_store import StoredState
from streams.jobs.order import NEVER
from streams.jobs.outcomes import SliceOutcomes
from streams.jobs.questions import Questions
from streams.jobs.queue_numbers import QueueNumbers
from streams.jobs.queue_partition import QueuePartition
from streams.jobs.queue_state import QueueState
from streams.jobs.turns import Turns
from streams.jobs.unfinished_jobs import UnfinishedJobs
from streams.jobs.unfinished_occurrences import UnfinishedOccurrences

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from streams.jobs.commands import CommandLog, CommandNote
    from streams.jobs.executors.choice import Executors
    from streams.jobs.job import BaseJob
    from streams.jobs.job_store import JobStore
    from streams.jobs.outcomes import Outcomes
    from streams.jobs.queued_job import QueuedJob
    from streams.jobs.scheduler import Scheduler
    from streams.records import TopicPartition
    from streams.tracing.spans import JobSpans

MOST_OPEN = 10_000
"""How many unfinished records are kept in memory before the input is paused, or jobs go to the store."""

MOST_BEHIND = 100_000
"""How many offsets the committed one may be behind before the jobs that hold it back go to the store."""

LONGEST_OPEN_MILLISECONDS = 600_000
"""How long a record may hold back the committed offset before its job goes to the store."""

LOOK_MILLISECONDS = 1_000
"""How often jobs that hold back the committed offset are looked at."""


class JobQueue:
    """Implements ``operators.background.BackgroundWork`` for the jobs of one partition.

    The unfinished jobs are in the store, or their records are not committed (``UnfinishedJobs``). The order
    of jobs (``Turns``) and all copies of what is stored can be made of both at any time, and are when a slice
    or a transaction was undone (``_rebuild``): at the next change, as the stores are not as before yet when
    the task reports it.
    """

    def __init__(
        self,
        store: JobStore,
        jobs: Mapping[str, BaseJob[Any, Any]],
        executors: Executors | InlineExecutor,
        outcomes: Outcomes,
        *,
        topic: str,
        partition: int,
        clock: Callable[[], int],
        commands: CommandLog | None = None,
        scheduler: Scheduler | None = None,
        spans: JobSpans | None = None,
    ) -> None:
        place = QueuePartition(topic, partition)
        self._store = store
        self._jobs = jobs
        self._executors = executors
        self._inline = executors if isinstance(executors, InlineExecutor) else None
        self._partition = partition
        self._clock = clock
        self._scheduler = scheduler
        self._state = QueueState.RECOVERING
        self._next_look = clock() + LOOK_MILLISECONDS
        self._changed = False
        """Whether something was undone, so that the order is to be made again."""
        self.ended_counts = executors.ended_counts
        """How many jobs have ended in this worker, by function and ending."""

        self._control = control = Control(store, commands, partition)
        self._outcomes = slice_outcomes = SliceOutcomes(outcomes, place, executors.ended_counts)
        self._input = InputProgress(store)
        self._unfinished = unfinished = UnfinishedJobs(store, slice_outcomes, clock)
        self._occurrences = occurrences = UnfinishedOccurrences(store)
        buckets = Buckets(store, jobs)
        self._turns = turns = Turns(unfinished, jobs, executors, buckets, clock)
        self._endings = endings = Endings(
            store, unfinished, occurrences, turns, control, executors, slice_outcomes, place
        )
        self._admission = Admission(
            store, unfinished, occurrences, turns, control, endings, slice_outcomes, place
        )
        self._attempts = Attempts(
            jobs, unfinished, turns, buckets, control, endings, executors, place, spans=spans
        )
        self._questions = Questions(jobs, store, self._input, unfinished, turns, buckets, control, place)
        if self._input.is_complete:
            self._become(QueueState.RUNNING)
        self._rebuild()

    # --- the task's view: see BackgroundWork

    def has_finished(self) -> bool:
        if self._unfinished.ended or self._changed or self._questions or self._has_recovered():
            return True
        if self._state is not QueueState.STOPPING and self._control.has_news:
            return True
        if self._inline is not None and self._inline.waiting:
            return True
        running = self._state is QueueState.RUNNING
        if running and self._turns.can_begin():
            return True
        now = self._clock()
        return self._wakes() <= now or (running and self._turns.can_begin_together(now))

    def is_running(self) -> bool:
        return bool(self._unfinished.running)

    def wait_milliseconds(self) -> int:
        return max(0, self._wakes() - self._clock())

    def due_milliseconds(self) -> int | None:
        if self._state is not QueueState.RUNNING or (due := self._next_time()) == NEVER:
            return None
        return max(0, due - self._clock())

    def is_full(self) -> bool:
        # What is read again was in memory before, and nothing begins before all of it is.
        return len(self._unfinished.open) >= MOST_OPEN and self._state is not QueueState.RECOVERING

    def first_unfinished(self, partition: TopicPartition) -> int | None:  # noqa: ARG002 - it reads one only
        first, expected = next(iter(self._unfinished.open), None), self._input.first_expected
        if expected is None or first is None:
            return first if expected is None else expected
        return min(first, expected)

    def reached(self, partition: TopicPartition, end: int) -> None:  # noqa: ARG002 - it reads one only
        self._input.reached(end)

    def confirm(self, until: float) -> None:
        self._executors.confirm(until)

    def stop(self) -> None:
        self._become(QueueState.STOPPING)
        for attempt in self._executors.withdraw(self._unfinished.ended):
            for each in attempt.members:
                del self._unfinished.running[each.offset]

    def close(self) -> None:
        """The task ends: what has not begun is begun by the next owner of the partition."""
        self.stop()
        self._executors.leave(attempt for _, attempt in self._unfinished.running.values())

    def end_slice(self) -> None:
        self._unfinished.end_slice()
        self._outcomes.end_slice()

    def committed(self) -> None:
        self._unfinished.committed()
        self._outcomes.committed()
        self._turns.committed()

    def drop_slice(self) -> None:
        self._unfinished.drop_slice()
        self._outcomes.drop_slice()
        self._undone()

    def drop(self) -> None:
        self._unfinished.drop()
        self._outcomes.drop()
        self._turns.drop()
        self._undone()

    # --- the view of other threads

    @property
    def partition(self) -> int:
        """The partition of the queue that it has."""
        return self._partition

    def ask(self, offset: int) -> Future[dict[str, Any] | None]:
        """The fields of a job that has not ended, else ``None``; from any thread. See ``fields``."""
        return self._questions.ask(offset)

    def numbers(self) -> QueueNumbers:
        """How many jobs there are now; from any thread."""
        return QueueNumbers.of(self._unfinished, self._store, self._control)

    @property
    def next_instants(self) -> dict[str, int]:
        """The next instants of the schedules that it decides; from any thread. See ``Scheduler``."""
        return {} if self._scheduler is None else self._scheduler.next_instants()

    @property
    def missed_instants(self) -> dict[str, int]:
        """When it found that instants of a schedule were missed; from any thread. See ``Scheduler``."""
        return {} if self._scheduler is None else dict(self._scheduler.missed)

    @property
    def places(self) -> int:
        """How many jobs the worker executes at once, in all tasks; from any thread."""
        return self._executors.places

    @property
    def seconds(self) -> dict[str, float]:
        """How long the attempts of each function took that have ended in this worker; from any thread."""
        return dict(self._executors.seconds)

    @property
    def overdue(self) -> int:
        """How many jobs of the worker, in all tasks, run longer than their time limit; from any thread."""
        return self._executors.overdue

    # --- within slices

    def admit(self, jobs: Sequence[QueuedJob]) -> None:
        """Take jobs whose records were read, in the order of their offsets."""
        if self._changed:
            self._rebuild()
        now = self._clock()
        if self._state is not QueueState.STOPPING:
            self._control.apply(self, now)
        if jobs and self._input.position is None:
            self._forget_cancelled(jobs[0].offset)
        taken = self._input.take(jobs)
        self._unfinished.open.update([(job.offset, job) for job in taken])
        self._enter(taken, now)
        if self._has_recovered():
            self._recovered()
        self._make_room()
        self._pump(now)
        self._forward()

    def collect(self) -> None:
        """Take outcomes, release what is due, and begin what can begin."""
        if self._changed:
            self._rebuild()
        if self._inline is not None:
            self._inline.run()
        # Not those that end meanwhile: they would be recorded with a time before their end.
        outcomes = self._unfinished.ended
        ended = len(outcomes)
        now = self._clock()
        for _ in range(ended):
            self._attempts.settle(outcomes.popleft(), now)
        if self._has_recovered():
            self._recovered()
        if self._state is not QueueState.STOPPING:
            self._control.apply(self, now)
        if self._state is QueueState.RUNNING:
            self._release_due(now)
            if self._scheduler is not None and self._scheduler.wakes() <= now:
                self._outcomes.scheduled(*self._scheduler.decide(now))
        if now >= self._next_look:
            self._look(now)
        self._questions.answer(now)
        self._pump(now)
        self._forward()

    def store_progress(self) -> None:
        """Store which records are unfinished, before a commit."""
        self._input.put(self._unfinished.open)

    def _enter(self, jobs: Sequence[QueuedJob], now: int) -> None:
        """Let jobs that are not in the store take their places, if they are executed now."""
        recovering = self._state is QueueState.RECOVERING
        for job in jobs:
            admitted = self._admission.admit(job, now)
            if admitted is not None and not recovering:
                self._turns.enter(admitted)

    def _release_due(self, now: int) -> None:
        """Let jobs whose time has come take their place."""
        for job, waited in self._unfinished.release(now):
            if job.offset in self._unfinished.running:
                # Its release was undone while it ran: it has its place.
                continue
            if waited is StoredState.DELAYED:
                self._turns.enter(job)
            else:
                self._turns.enter_again(job)

    def _pump(self, now: int) -> None:
        # What was cancelled or paused must not begin.
        if self._state is QueueState.RUNNING and not self._control.has_news:
            self._turns.pump(self._attempts.begin, now)

    def _forward(self) -> None:
        self._store.put_counts()
        self._outcomes.forward()

    # --- commands: see control.Controlled

    def cancel(self, offset: int, note: CommandNote, now: int) -> None:
        if offset in self._unfinished.running:
            self._control.note_cancelled(offset, note)
            self._attempts.ask_to_end(self._unfinished.running[offset][1])
            return
        job = self._unfinished.find(offset)
        if job is not None:
            self._endings.cancel(job, note, now)
        elif self._input.is_to_come(offset):
            self._control.note_cancelled(offset, note)

    def retry_now(self, offset: int, now: int) -> None:
        self._unfinished.retry_now(offset, now)

    def ready_again(self, offset: int, rank: int) -> None:
        self._turns.make_ready(offset, rank)

    def _forget_cancelled(self, first: int) -> None:
        """Jobs before the first record that is read, and not known, had ended when they were cancelled."""
        for offset in list(self._control.cancelled):
            if offset < first and self._unfinished.find(offset) is None:
                self._control.note_end(offset)

    # --- memory

    def _make_room(self) -> None:
        """Put jobs that wait for others into the store where there are too many, so that reading goes on."""
        if not self.is_full():
            return
        for offset in [*self._turns.waiting_for_others(), *self._control.held()]:
            job = self._unfinished.open.get(offset)
            if job is not None and offset not in self._unfinished.running:
                self._unfinished.to_store(job, StoredState.WAITING)

    def _look(self, now: int) -> None:
        """Put jobs that hold back the committed offset for long into the store."""
        self._next_look = now + LOOK_MILLISECONDS
        position = self._input.position
        if self._state is QueueState.RECOVERING or position is None:
            return
        for offset, job in list(self._unfinished.open.items()):
            if position - offset <= MOST_BEHIND and now - job.timestamp <= LONGEST_OPEN_MILLISECONDS:
                break
            self._unfinished.to_store(job, StoredState.WAITING)

    def _undone(self) -> None:
        self._input.read_again()
        # The stores are not as before yet.
        self._changed = True

    def _rebuild(self) -> None:
        """Make the order of jobs of what is in the store, not committed, or running."""
        self._changed = False
        self._store.reload()
        self._control.reload()
        self._turns.forget()
        self._occurrences.forget()
        if self._scheduler is not None:
            self._scheduler.forget()
        now = self._clock()
        for job, retrying in self._unfinished.in_order():
            if not job.stored:
                # It may have been in the store in what was undone.
                self._enter([job], now)
            elif not retrying:
                self._turns.enter(job)
            elif self._holds_key(job):
                self._turns.keep_key(job)

    def _holds_key(self, job: QueuedJob) -> bool:
        known = self._jobs.get(job.record.job)
        return known is None or known.definition.on_failure == "wait"

    def _has_recovered(self) -> bool:
        """Whether all unfinished records that still exist are read again."""
        return self._state is QueueState.RECOVERING and self._input.is_complete

    def _recovered(self) -> None:
        # Those that were not read were deleted.
        self._input.complete()
        self._become(QueueState.RUNNING)
        self._rebuild()

    # --- time

    def _wakes(self) -> int:
        """When there is something to do without an outcome, in milliseconds since the epoch."""
        if self._state is not QueueState.RUNNING:
            return NEVER
        if self._unfinished.open:
            return min(self._next_time(), self._next_look)
        return self._next_time()

    def _next_time(self) -> int:
        """When anything is due by its time, or can begin since the last commit."""
        due = min(self._unfinished.due.next, self._turns.next_time())
        return due if self._scheduler is None else min(due, self._scheduler.wakes())

    def _become(self, state: QueueState) -> None:
        assert self._state.may_become(state), (
            f"a queue that is {self._state.value} cannot become {state.value}"
        )
        self._state = state
