"""Runs user code over a column so that one failing record fails alone, and a slow one evicts nobody."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

from streams.coroutines.awaitables import any_awaitable, is_awaitable, unawaited
from streams.errors import ProcessingError, RecordRefused, StateError, TopologyError, error_text
from streams.origin import described, place_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.coroutines.event_loop import Calls
    from streams.policy import Action, ErrorPolicy
    from streams.records import Batch, Rows

    Transform = Callable[[Sequence[Any]], Iterable[Any]]

PIECE_SECONDS = 0.1
"""A column is worked through in pieces of about this duration at most, with a look at the group between."""

LARGEST_PIECE = 1024
"""So many slow records may follow fast ones before anybody notices."""


class Interrupted(BaseException):
    """The slice being processed must be given up: its task was revoked, or the worker is stopping.

    Not an ``Exception``, so that user code which catches those lets it pass.
    """


class Surroundings(Protocol):
    """What a guard may ask of the runtime around it while a slice is open."""

    def keep_alive(self) -> None:
        """Serve the group if it is due. Raises ``Interrupted`` when the slice must be given up."""

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        """Let time pass while serving the group, as ``step`` failed. Raises ``Interrupted`` too."""

    def attend(self, calls: Calls) -> None:
        """Wait until these calls have ended, serving the group. Raises ``Interrupted`` too."""

    def failed(self, action: Action, batch: Batch[Any, Any], row: int, step: str, error: Exception) -> None:
        """Take note of a record that ``step`` could not process: to be written as dead letter, or skipped."""


class Guard:
    """One step's user code, in one task.

    ``describe`` is what an error message calls the code: the step and where its function is written.
    ``stopwatch`` counts seconds. With ``plain``, awaitables among the results are failures of their records:
    functions are the user's, and nothing would await what they return. Where no result has been a plain one
    so far, they are a mistake in the program.

    A ``TopologyError`` is such a mistake too: whatever the policy, the worker stops, as the next record would
    meet it as well.
    """

    __slots__ = ("_begun", "_piece", "_plain", "_policy", "_stopwatch", "_surroundings", "describe", "step")

    def __init__(
        self,
        step: str,
        policy: ErrorPolicy,
        surroundings: Surroundings,
        describe: str,
        stopwatch: Callable[[], float] = time.perf_counter,
        *,
        plain: bool = True,
    ) -> None:
        self.step = step
        self._policy = policy
        self._surroundings = surroundings
        self.describe = describe
        self._stopwatch = stopwatch
        self._plain = plain
        self._begun = False
        self._piece = 1

    def each(
        self, transform: Transform, column: Sequence[Any], batch: Batch[Any, Any]
    ) -> tuple[list[Any], Rows | None]:
        """Apply ``transform`` to a column of ``batch``: the results, and the rows they belong to.

        ``transform`` maps a sequence to an iterable with one result an element, in order and one at a time,
        as ``map`` does: where it raises (or ends early), the element after the results so far is the failing
        one. That record gets this step's policy and the rest goes on, each element once. Rows are ``None``
        when every row has a result.
        """
        results: list[Any] = []
        lost: list[int] = []
        total = len(column)
        at = 0
        while at < total:
            first, known = at, len(results)
            stop = min(at + self._piece, total)
            begun = self._stopwatch()
            error: Exception | None = None
            try:
                # On an exception the list keeps what the iterator gave before it: the failing position.
                results.extend(transform(column if stop - at == total else column[at:stop]))
            except StateError:
                # No fault of the record's: the next one would meet it as well.
                raise
            except Exception as raised:  # noqa: BLE001 - user code may raise anything; the policy decides
                error = raised
            at = len(results) + len(lost)
            if self._plain and any_awaitable(results[known:] if known else results):
                self._refuse_awaitables(results, known, lost, first, batch)
            self._begun = self._begun or bool(results)
            if at < stop:
                recovered = self._recover(transform, column, at, batch, error)
                if recovered is None:
                    lost.append(at)
                else:
                    results.append(recovered[0])
                at += 1
            elif at > stop:
                raise ProcessingError(
                    f"{self.describe} gave {at} results for the first {stop} records of a batch",
                    hint="one result a record is needed, in order",
                )
            self._pace(stop, at, self._stopwatch() - begun)
        if not lost:
            return results, None
        gone = set(lost)
        return results, [row for row in range(total) if row not in gone]

    def apply(
        self, transform: Transform, column: Sequence[Any], batch: Batch[Any, Any]
    ) -> tuple[Batch[Any, Any], list[Any]]:
        """As ``each``, but returns the batch with only the rows that have results, and the results."""
        results, rows = self.each(transform, column, batch)
        return (batch if rows is None else batch.select(rows)), results

    def whole(self, function: Callable[[Batch[Any, Any]], Any], batch: Batch[Any, Any]) -> list[Any]:
        """Apply ``function`` to the batch as one; where that raises, to each row alone, under the policy.

        Returns the results in order. The function must be free of effects that a second call would repeat.
        """
        try:
            return [function(batch)]
        except StateError:
            raise
        except Exception:  # noqa: BLE001 - met again below, by the row that causes it
            results, _ = self.each(
                lambda rows: (function(batch.select([row])) for row in rows), range(len(batch)), batch
            )
            return results

    @property
    def retries(self) -> int:
        """How often the policy tries a record again."""
        return self._policy.retries

    @property
    def stops(self) -> bool:
        """Whether the worker stops at a record that fails for good."""
        return self._policy.action == "fail"

    def attend(self, calls: Calls) -> None:
        """Make calls of an async function and wait until they have ended; cancels them when interrupted."""
        begun = self._stopwatch()
        calls.start()
        try:
            self._surroundings.attend(calls)
        except BaseException:
            calls.cancel()
            raise
        finally:
            calls.close()
        if calls.fatal is not None:
            raise calls.fatal
        if self._stopwatch() - begun > PIECE_SECONDS:
            self._surroundings.keep_alive()

    def pause(self, attempt: int, error: Exception) -> None:
        """Wait, as the policy says, before records that failed are tried again; attempts count from 0."""
        self._surroundings.wait(self._policy.delay(attempt), self.step, error)

    def refuse(self, batch: Batch[Any, Any], row: int, error: Exception) -> None:
        """Apply the policy, without retries, to a record that failed outside of ``each``."""
        if self._policy.action == "fail" or isinstance(error, TopologyError):
            if isinstance(error, RecordRefused):
                raise self._refusal(batch, row, error) from error
            raise self._processing_error(batch, row, error) from error
        self._surroundings.failed(self._policy.action, batch, row, self.step, error)

    def _recover(
        self,
        transform: Transform,
        column: Sequence[Any],
        at: int,
        batch: Batch[Any, Any],
        error: Exception | None,
    ) -> tuple[Any] | None:
        """Retry the element, then apply the policy: its result after all, or ``None`` when it is lost."""
        if error is None:
            # A function that raises StopIteration ends ``map`` without a word; it must not end the batch.
            error = RuntimeError("ended before it gave a result for this record (StopIteration?)")
        for attempt in range(0 if isinstance(error, TopologyError) else self._policy.retries):
            self._surroundings.wait(self._policy.delay(attempt), self.step, error)
            try:
                results = list(transform(column[at : at + 1]))
            except StateError:
                raise
            except Exception as raised:  # noqa: BLE001 - as above
                error = raised
            else:
                if len(results) == 1 and not is_awaitable(results[0]):
                    return (results[0],)
                if results:
                    error = unawaited(results[0])
        self.refuse(batch, at, error)
        return None

    def _refuse_awaitables(
        self, results: list[Any], known: int, lost: list[int], first: int, batch: Batch[Any, Any]
    ) -> None:
        """Take awaitables out of the results from ``known`` on, those of the rows from ``first`` on.

        Nothing would ever await them: each is a failure of its record, if the function gives plain results
        too.
        """
        found = results[known:]
        errors: dict[int, Exception] = {
            row: unawaited(result) for row, result in enumerate(found, first) if is_awaitable(result)
        }
        if not self._begun and len(errors) == len(found):
            errors = {row: TopologyError(str(error)) for row, error in errors.items()}
        results[known:] = [result for row, result in enumerate(found, first) if row not in errors]
        lost += errors
        for row, error in errors.items():
            self.refuse(batch, row, error)

    def _pace(self, stop: int, at: int, seconds: float) -> None:
        if seconds > PIECE_SECONDS:
            self._piece = max(1, int(self._piece * PIECE_SECONDS / seconds))
            self._surroundings.keep_alive()
        elif at >= stop and self._piece < LARGEST_PIECE:
            self._piece *= 2

    def _processing_error(self, batch: Batch[Any, Any], row: int, error: Exception) -> ProcessingError:
        record = batch.original(row)
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        where = f" ({frame[0].filename}:{frame[0].lineno})" if frame else ""
        hint = (
            "mend the code or the record and start again: nothing after the last commit was written; "
            "or give the step on_error=dead_letter, on_error=skip or on_error=retry(…)"
        )
        if isinstance(error, TopologyError):
            hint = error.hint or "mend the program and start again: nothing after the last commit was written"
        return ProcessingError(
            f"{self.describe} failed on {came_from(batch, row)}, "
            f"key {preview(record.key)}, value {preview(record.value)}: "
            f"{type(error).__name__}: {error_text(error)}{where}",
            hint=hint,
        )

    def _refusal(self, batch: Batch[Any, Any], row: int, error: RecordRefused) -> ProcessingError:
        """The error for a record that the user's code is done with, and the broker does not take."""
        record = batch.original(row)
        advice = f"{error.hint}; or " if error.hint else ""
        return ProcessingError(
            f"{self.describe} failed on {came_from(batch, row)}, "
            f"key {preview(record.key)}, value {preview(record.value)}: {error.message}",
            hint=f"{advice}give the step on_error=dead_letter or on_error=skip; nothing after the last "
            "commit was written",
        )


def came_from(batch: Batch[Any, Any], row: int) -> str:
    """What an error says of a row: of an input record, topic, partition and offset."""
    read = place_read(batch, row)
    return described(batch, row) + (f" (through {read})" if read else "")


def preview(payload: bytes | None, limit: int = 80) -> str:
    """A payload's first bytes for an error message."""
    if payload is None:
        return "null"
    return repr(payload) if len(payload) <= limit else f"{payload[:limit]!r}… ({len(payload)} bytes)"
