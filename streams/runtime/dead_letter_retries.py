"""A worker's part in retrying dead letters: it processes what was requested, and commits the outcomes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from streams.errors import ProcessingError
from streams.events import Event, get_logger
from streams.operators.guard import Interrupted
from streams.runtime.pacing import SLICE_SECONDS
from streams.runtime.retried import Retried
from streams.runtime.retry_path import refusal
from streams.runtime.transaction import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.records import TopicPartition
    from streams.runtime.assignment import Assignment
    from streams.runtime.pacing import Pacing
    from streams.runtime.retried import Ordered
    from streams.runtime.retry_requests import RetryRequests
    from streams.runtime.slice import Slice
    from streams.runtime.status import Progress
    from streams.runtime.task import Task
    from streams.runtime.transaction import Transaction
    from streams.topology.graph import Topology


class DeadLetterRetries:
    """The retries of one worker.

    ``commit`` commits the completed slices, ``commit_if_overdue`` only if that is due; ``write`` writes a
    task's outputs. ``may_retry`` says whether all sinks of a partition can be written to, ``stopping``
    whether a stop was requested. ``clock`` returns seconds, ``wall_clock`` milliseconds since the epoch.
    """

    def __init__(
        self,
        requests: RetryRequests,
        topology: Topology,
        assignment: Assignment,
        transaction: Transaction,
        pacing: Pacing,
        at_work: Slice,
        *,
        commit: Callable[[], None],
        commit_if_overdue: Callable[[], None],
        write: Callable[[Task], None],
        may_retry: Callable[[TopicPartition], bool],
        stopping: Callable[[], bool],
        clock: Callable[[], float],
        wall_clock: Callable[[], int],
    ) -> None:
        self._requests = requests
        self._topology = topology
        self._assignment = assignment
        self._transaction = transaction
        self._pacing = pacing
        self._slice = at_work
        self._commit = commit
        self._commit_if_overdue = commit_if_overdue
        self._write = write
        self._may_retry = may_retry
        self._stopping = stopping
        self._clock = clock
        self._wall_clock = wall_clock
        self._log = get_logger()

    # --- processing

    def run(self) -> None:
        """Process dead letters again as requested, for about as long as a slice takes."""
        if self._stopping() or not self._requests.due:
            return
        assignment = self._assignment
        # A partition without a position may have a predecessor whose commit is not decided.
        settled = {
            partition: progress
            for partition, progress in assignment.progress.items()
            if (task := assignment.held.get(partition)) is not None
            and partition in task.positions
            and self._may_retry(partition)
        }
        self._requests.poll(settled)
        until = self._clock() + SLICE_SECONDS
        while not self._transaction.must_rewind and (
            ordered := self._requests.take(settled, self._uncommitted())
        ):
            partition = ordered[0].request.source
            if not self._retry(partition, settled[partition], ordered):
                return
            self._commit_if_overdue()
            if self._clock() >= until or self._stopping():
                return

    def _uncommitted(self) -> set[int]:
        """The requests that are processed, and whose outcomes are not committed yet."""
        return {
            item.offset
            for task in self._assignment.tasks.values()
            for records in (*task.retried, *task.delivered)
            for item in records.ordered
        }

    def _retry(self, partition: TopicPartition, progress: Progress, ordered: Sequence[Ordered]) -> bool:
        """Retry dead letters of one partition and step as a slice. Returns whether that is complete."""
        if self._pacing.would_time_out():
            self._commit()
        if self._transaction.must_rewind or not self._assignment.holds(partition, progress):
            return False
        task, request = self._assignment.held[partition], ordered[0].request
        reason = refusal(self._topology.subtopologies[task.id.subtopology], request.topic, request.step)
        if reason is not None:
            refused = Retried(ordered, (), internal=False)
            for row in range(len(ordered)):
                refused.refuse(row, reason)
            return self._note(task, refused)
        error: ProcessingError | None = None
        self._slice.open(task, (partition, progress))
        try:
            task.retry(ordered)
        except Interrupted:
            return False
        except ProcessingError as raised:
            error = raised
        finally:
            self._slice.close()
            if self._slice.commit_first:
                self._commit()
        if error is not None:
            return self._retry_each(partition, progress, task, ordered, error)
        try:
            # Dead letters of a task with sinks wait for the rows that the sink refuses.
            if not task.delivers:
                self._write(task)
        except UNFINISHED as failure:
            self._transaction.failed(failure)
            return False
        except Interrupted:
            return False
        self._transaction.processed()
        return True

    def _retry_each(
        self,
        partition: TopicPartition,
        progress: Progress,
        task: Task,
        ordered: Sequence[Ordered],
        error: ProcessingError,
    ) -> bool:
        """Retry dead letters one by one, as one of them fails in a step that stops workers.

        It stays a dead letter: what is retried must not stop the worker again and again.
        """
        if len(ordered) > 1:
            return all(self._retry(partition, progress, [item]) for item in ordered)
        step, cause = ordered[0].request.step, error.__cause__
        failed = Retried(ordered, (step,), internal=False)
        failed.fail(0, step, cause if isinstance(cause, Exception) else error)
        return self._note(task, failed)

    def _note(self, task: Task, records: Retried) -> bool:
        """Note the outcome of records that left no results."""
        task.retried.append(records)
        self._transaction.processed()
        return True

    # --- commits

    def write_outcomes(self) -> list[Retried]:
        """Write the outcomes of what was retried since the last commit, and return that.

        What goes to a sink has its outcome in the next commit, as this one's transaction in Kafka comes
        before that of the sink.
        """
        retried = [
            records
            for task in self._assignment.tasks.values()
            for records in (task.delivered if task.delivers else task.retried)
        ]
        for output in self._requests.outcomes(retried, self._wall_clock()):
            self._transaction.write_changes(output)
        return retried

    def committed(self, retried: Sequence[Retried]) -> None:
        """The outcomes of these are committed."""
        if retried:
            self._requests.handled(retried)
            results = Counter(
                str(outcome.result) for records in retried for _, outcome in records.outcomes(0)
            )
            self._log.info(Event.DEAD_LETTERS_RETRIED, results=dict(results))

    def commit_delivered(self) -> None:
        """Commit the outcomes of dead letters whose rows a sink has committed.

        Soon, as after a crash these would be written again.
        """
        if not self._transaction.must_rewind and any(
            task.delivered for task in self._assignment.tasks.values()
        ):
            self._transaction.processed()
            self._commit()

    def doubt(self) -> None:
        """It is not known whether the last outcomes were committed."""
        self._requests.doubt()

    def close(self) -> None:
        """Release the clients."""
        self._requests.close()
