"""What each step of a task takes: its own time, without that of the steps to which it forwards."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.operators import Forward
    from streams.records import Batch
    from streams.runtime.counts import Counts

P = ParamSpec("P")


class StepTimes:
    """Measures the steps of one task, once for each batch. Steps call each other, so times are nested.

    Time in which a step waits (for an async call, before a retry) is the step's: it is what keeps the
    records downstream of it waiting.
    """

    def __init__(self, counts: Counts) -> None:
        self._seconds = counts.step_seconds
        self._records = counts.step_records
        self._nested = 0.0
        """How long the measured calls took that the current one has made."""
        self._current: tuple[str, float] | None = None
        """The step that is called, and since when."""

    def current(self) -> tuple[str, float] | None:
        """The step that is called now, and its own time in this call, in seconds; from any thread."""
        current, nested = self._current, self._nested
        if current is None:
            return None
        step, begun = current
        return step, max(0.0, perf_counter() - begun - nested)

    def counted(self, step: str, forward: Forward, entrance: tuple[list[int], int]) -> Forward:
        """The same function; the records that reach it and its own time are counted for the step.

        ``entrance`` is the list and the place in which the ledger counts records before they enter.
        """
        entered, place = entrance
        records = self._records
        records[step] = 0
        measured = self.measured(step, forward)

        def run(batch: Batch[Any, Any]) -> None:
            count = len(batch)
            entered[place] += count
            measured(batch)
            records[step] += count

        return run

    def measured(self, step: str, call: Callable[P, None]) -> Callable[P, None]:
        """The same function; its own time is counted for the step."""
        seconds = self._seconds
        seconds.setdefault(step, 0.0)

        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            outer, self._nested = self._nested, 0.0
            caller, begun = self._current, perf_counter()
            self._current = step, begun
            try:
                call(*args, **kwargs)
            finally:
                self._current = caller
                elapsed = perf_counter() - begun
                seconds[step] += elapsed - self._nested
                self._nested = outer + elapsed

        return run
