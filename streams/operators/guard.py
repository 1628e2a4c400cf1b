"""Runs user code over a column: an error affects only its record, and slow code does not end the session."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from streams.coroutines.awaitables import any_awaitable, is_awaitable, unawaited
from streams.errors import (
    ProcessingError,
    RecordRefused,
    RegistryUnavailable,
    SchemaRegistryError,
    StateError,
    TopologyError,
    error_text,
)
from streams.origin import described, place_read
from streams.records import Column
from streams.serde import nullable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.coroutines.event_loop import Calls
    from streams.operators.runtime import Runtime
    from streams.policy import Action, ErrorPolicy
    from streams.records import Batch, Rows
    from streams.serde import Serde

Transform: TypeAlias = Callable[[Sequence[Any]], Iterable[Any]]

Failed: TypeAlias = "Callable[[Action, Batch[Any, Any], int, str, Exception], None]"
"""Records that a step (by name) could not process a row, which is written as a dead letter or skipped."""

PIECE_SECONDS = 0.1
"""A column is worked through in pieces of about this duration at most, with a look at the group between."""

LARGEST_PIECE = 1024
"""So many slow records may follow fast ones before anybody notices."""

REGISTRY_SECONDS = 1.0
"""How long a step waits before it repeats a request that the schema registry did not answer."""

_NOT_THE_RECORDS = (StateError, SchemaRegistryError)
"""Errors that would happen for the next record too: the worker stops, whatever the policy."""


def _nothing(_: int) -> None:
    return


class Interrupted(BaseException):
    """The slice being processed must be abandoned: its task was revoked, or the worker is stopping.

    Not an ``Exception``, so that user code which catches those does not catch it.
    """


class WholeColumn:
    """A function of a complete column whose result may be a ``Column``, e.g. an array of another library.

    It returns one result per element and has no side effects: if it fails, it is called again for each
    element alone.
    """

    __slots__ = ("function",)

    def __init__(self, function: Transform) -> None:
        self.function = function

    def __call__(self, column: Sequence[Any]) -> Iterable[Any]:
        return self.function(column)

    def one_by_one(self, column: Sequence[Any]) -> Iterator[Any]:
        """The results of a call for each element, as a column of one."""
        for row in range(len(column)):
            results = list(self.function(column[row : row + 1]))
            if len(results) != 1:
                raise ValueError(f"one result per record is needed, got {len(results)}")
            yield results[0]


def column_transform(serde: Serde[Any], method: Transform, some_null: Transform | None = None) -> Transform:
    """A serde's method for columns with nulls, which ``some_null`` handles: by default they stay null."""
    some_null = some_null or nullable(method)
    if not getattr(serde, "whole_columns", False):
        return some_null

    def apply(column: Sequence[Any]) -> Iterable[Any]:
        if isinstance(column, Column) and None not in column:
            return method(column)
        return some_null(column)

    return WholeColumn(apply)


class Guard:
    """One step's user code, in one task.

    ``describe`` names the code in error messages: the step, and where its function is defined. ``failed``
    receives the rows at which the policy does not stop. With ``plain``, an awaitable result is a failure of
    its record, because nothing would await it; if there has been no plain result yet, it is a mistake in the
    program.

    A ``TopologyError`` is a mistake in the program too: the worker stops whatever the policy, because every
    record would raise it.
    """

    __slots__ = (
        "_begun",
        "_failed",
        "_piece",
        "_plain",
        "_policy",
        "_runtime",
        "_stopwatch",
        "describe",
        "resumed",
        "step",
    )

    def __init__(
        self,
        step: str,
        policy: ErrorPolicy,
        runtime: Runtime,
        failed: Failed,
        describe: str,
        *,
        plain: bool = True,
        resumed: Callable[[int], None] = _nothing,
    ) -> None:
        self.step = step
        self._policy = policy
        self._runtime = runtime
        self._failed = failed
        self.describe = describe
        self._stopwatch = runtime.stopwatch
        self._plain = plain
        self.resumed = resumed
        """Counts rows that go on although the policy was applied to them."""
        self._begun = False
        self._piece = 1

    def each(
        self, transform: Transform, column: Sequence[Any], batch: Batch[Any, Any]
    ) -> tuple[Sequence[Any], Rows | None]:
        """Apply ``transform`` to a column of ``batch``; return the results and the rows that they belong to.

        ``transform`` maps a sequence to an iterable with one result per element, in order and one at a time,
        as ``map`` does: if it raises (or ends early), the element after the results so far has failed. This
        step's policy applies to that record, and the rest is processed, each element once. Rows are ``None``
        when every row has a result.

        The result of a ``WholeColumn`` for the complete column is returned unchanged; only if it fails are
        elements processed one by one.
        """
        if isinstance(transform, WholeColumn):
            complete = self._complete(transform, column)
            if complete is not None:
                return complete, None
            transform = transform.one_by_one
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
                # On an exception the list has the results before it, which gives the failing position.
                results.extend(transform(column if stop - at == total else column[at:stop]))
            except _NOT_THE_RECORDS:
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
                    f"{self.describe} returned {at} results for the first {stop} records of a batch",
                    hint="return one result per record, in order",
                )
            self._pace(stop, at, self._stopwatch() - begun)
        if not lost:
            return results, None
        gone = set(lost)
        return results, [row for row in range(total) if row not in gone]

    def apply(
        self, transform: Transform, column: Sequence[Any], batch: Batch[Any, Any]
    ) -> tuple[Batch[Any, Any], Sequence[Any]]:
        """As ``each``, but returns the batch with only the rows that have results, and the results."""
        results, rows = self.each(transform, column, batch)
        return (batch if rows is None else batch.select(rows)), results

    def whole(self, function: Callable[[Batch[Any, Any]], Any], batch: Batch[Any, Any]) -> list[Any]:
        """Apply ``function`` to the complete batch; if it raises, to each row alone, with the policy.

        Returns the results in order. The function must have no side effects that a second call would repeat.
        """
        try:
            return [function(batch)]
        except _NOT_THE_RECORDS:
            raise
        except Exception:  # noqa: BLE001 - raised again below, for the row that causes it
            results, _ = self.each(
                lambda rows: (function(batch.select([row])) for row in rows), range(len(batch)), batch
            )
            return list(results)

    @property
    def retries(self) -> int:
        """How often the policy retries a record."""
        return self._policy.retries

    @property
    def stops(self) -> bool:
        """Whether the worker stops at a record that fails after all retries."""
        return self._policy.action == "fail"

    def attend(self, calls: Calls) -> None:
        """Call an async function for several records and wait for the calls; cancel them when interrupted."""
        begun = self._stopwatch()
        calls.start()
        try:
            self._runtime.attend(calls)
        except BaseException:
            calls.cancel()
            raise
        finally:
            calls.close()
        if calls.fatal is not None:
            raise calls.fatal
        if self._stopwatch() - begun > PIECE_SECONDS:
            self._runtime.keep_alive()

    def pause(self, attempt: int, error: Exception) -> None:
        """Wait for the policy's delay before failed records are retried; attempts count from 0."""
        self._runtime.wait(self._policy.delay(attempt), self.step, error)

    def refuse(self, batch: Batch[Any, Any], row: int, error: Exception) -> None:
        """Apply the policy, without retries, to a record that failed outside of ``each``."""
        if self._policy.action == "fail" or isinstance(error, TopologyError):
            if isinstance(error, RecordRefused):
                raise self._refusal(batch, row, error) from error
            raise self._processing_error(batch, row, error) from error
        self._failed(self._policy.action, batch, row, self.step, error)

    def _complete(self, transform: WholeColumn, column: Sequence[Any]) -> Sequence[Any] | None:
        """One result per element for the complete column, or ``None`` if elements must be run one by one."""
        begun = self._stopwatch()
        try:
            results = transform(column)
            if not isinstance(results, Sequence):
                results = list(results)
        except _NOT_THE_RECORDS:
            raise
        except Exception:  # noqa: BLE001 - raised again for the row that causes it
            return None
        if self._stopwatch() - begun > PIECE_SECONDS:
            self._runtime.keep_alive()
        if len(results) != len(column):
            return None
        # A column of another class holds no awaitables; anything else may hold some.
        if self._plain and not isinstance(results, Column) and any_awaitable(results):
            for awaitable in filter(is_awaitable, results):
                # Closed only, as the per-element call returns it again with its record.
                unawaited(awaitable)
            return None
        return results

    def _recover(
        self,
        transform: Transform,
        column: Sequence[Any],
        at: int,
        batch: Batch[Any, Any],
        error: Exception | None,
    ) -> tuple[Any] | None:
        """Retry the element, then apply the policy: its result, or ``None`` if it failed for good."""
        if error is None:
            # A function that raises StopIteration ends ``map`` silently; it must not end the batch.
            error = RuntimeError("ended without a result for this record; did it raise StopIteration?")
        attempt = 0
        allowed = 0 if isinstance(error, TopologyError) else self._policy.retries
        while isinstance(error, RegistryUnavailable) or attempt < allowed:
            if isinstance(error, RegistryUnavailable):
                # Nothing is wrong with the record: it waits for as long as the registry does not answer.
                self._runtime.wait(REGISTRY_SECONDS, self.step, error)
            else:
                self._runtime.wait(self._policy.delay(attempt), self.step, error)
                attempt += 1
            try:
                results = list(transform(column[at : at + 1]))
            except _NOT_THE_RECORDS:
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
        """Remove awaitables from the results from ``known`` on, which belong to the rows from ``first`` on.

        Nothing would await them: each is a failure of its record, if the function returns plain results too.
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
            self._runtime.keep_alive()
        elif at >= stop and self._piece < LARGEST_PIECE:
            self._piece *= 2

    def _processing_error(self, batch: Batch[Any, Any], row: int, error: Exception) -> ProcessingError:
        record = batch.original(row)
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        where = f" ({frame[0].filename}:{frame[0].lineno})" if frame else ""
        hint = (
            "fix the code or the record and start again: nothing after the last commit was written; "
            "or give the step on_error=dead_letter, on_error=skip or on_error=retry(…)"
        )
        if isinstance(error, TopologyError):
            hint = error.hint or "fix the program and start again: nothing after the last commit was written"
        return ProcessingError(
            f"{self.describe} failed on {came_from(batch, row)}, "
            f"key {preview(record.key)}, value {preview(record.value)}: "
            f"{type(error).__name__}: {error_text(error)}{where}",
            hint=hint,
        )

    def _refusal(self, batch: Batch[Any, Any], row: int, error: RecordRefused) -> ProcessingError:
        """The error for a processed record that the broker has rejected."""
        record = batch.original(row)
        advice = f"{error.hint}; or " if error.hint else ""
        return ProcessingError(
            f"{self.describe} failed on {came_from(batch, row)}, "
            f"key {preview(record.key)}, value {preview(record.value)}: {error.message}",
            hint=f"{advice}give the step on_error=dead_letter or on_error=skip; nothing after the last "
            "commit was written",
        )


def came_from(batch: Batch[Any, Any], row: int) -> str:
    """The origin of a row for an error message: topic, partition and offset of an input record."""
    read = place_read(batch, row)
    return described(batch, row) + (f" (through {read})" if read else "")


def preview(payload: bytes | None, limit: int = 80) -> str:
    """A payload's first bytes for an error message."""
    if payload is None:
        return "null"
    return repr(payload) if len(payload) <= limit else f"{payload[:limit]!r}… ({len(payload)} bytes)"
