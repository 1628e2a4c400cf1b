"""The step that calls an async function, for many records at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from streams.coroutines.event_loop import Calls
from streams.operators import Operator, fan_out

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from streams.operators import Binding, Children, Forward
    from streams.operators.guard import Guard
    from streams.records import Batch

SLICE_ROUNDS = 4
"""A slice has so many records for each call that may be in flight, so that one slow call holds up little."""


@dataclass(frozen=True, slots=True)
class MapAsync(Operator):
    """Replaces each value by what an async function makes of it; results go on in the order of the input.

    ``timeout`` is seconds for each call, or ``None``. With ``one_call_per_key``, calls for records of one key
    come one after another, in order; records without a key have no order among themselves.
    """

    kind: ClassVar[str] = "map_async"
    awaits: ClassVar[bool] = True

    function: Callable[[Any], Awaitable[Any]]
    concurrency: int
    timeout: float | None
    one_call_per_key: bool

    @property
    def code(self) -> object:
        return self.function

    @property
    def least_slice(self) -> int:
        """So many records a slice needs for that many calls to be in flight."""
        return SLICE_ROUNDS * self.concurrency

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard = fan_out(children), step.guard

        def run(batch: Batch[Any, Any]) -> None:
            kept, values = self._apply(guard, batch)
            if values:
                forward(kept.with_values(values))

        return run

    def _apply(self, guard: Guard, batch: Batch[Any, Any]) -> tuple[Batch[Any, Any], list[Any]]:
        """The rows that have a result, and the results, once every row has one or met the error policy.

        Rows that may be retried are called again together, after one wait.
        """
        keys = _hashable(batch.keys) if self.one_call_per_key else None
        results: dict[int, Any] = {}
        failed: dict[int, Exception] = {}
        attempts: Counter[int] = Counter()
        waiting = list(range(len(batch)))
        while waiting:
            calls = Calls(
                self.function,
                batch.values,
                waiting,
                keys,
                concurrency=self.concurrency,
                timeout=self.timeout,
                holds=lambda row: attempts[row] < guard.retries,
                stops=guard.stops,
            )
            guard.attend(calls)
            again: dict[int, Exception] = {}
            for row, (result, error) in calls.outcomes.items():
                if error is None:
                    results[row] = result
                elif attempts[row] < guard.retries:
                    again[row] = error
                else:
                    failed[row] = error
            if failed and guard.stops:
                # What came before it in the batch matters, as it may fail too and is the one to report then.
                waiting = [row for row in waiting if row < min(failed)]
            waiting = [row for row in waiting if row not in results and row not in failed]
            if again and waiting:
                guard.pause(max(attempts[row] for row in again), again[min(again)])
                attempts.update(again.keys())
        for row in sorted(failed):
            guard.refuse(batch, row, failed[row])
        rows = sorted(results)
        kept = batch if len(rows) == len(batch) else batch.select(rows)
        return kept, [results[row] for row in rows]


def _hashable(keys: Sequence[Any]) -> Sequence[Any]:
    """Keys that are equal where these are: as text, where they cannot be hashed."""
    try:
        set(keys)
    except TypeError:
        return [None if key is None else repr(key) for key in keys]
    return keys
