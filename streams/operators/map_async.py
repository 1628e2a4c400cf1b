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
"""Records of a slice per concurrent call, so that a slow call delays only a small part of the slice."""


@dataclass(frozen=True, slots=True)
class MapAsync(Operator):
    """Replaces each value by the result of an async function; results keep the order of the input.

    ``timeout`` is in seconds for each call, or ``None``. With ``one_call_per_key``, calls for records of one
    key run one after another, in order; calls for records without a key run in any order.
    """

    kind: ClassVar[str] = "map_async"
    one_to_one: ClassVar[bool] = True
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
        """The number of records that a slice needs to keep ``concurrency`` calls in flight."""
        return SLICE_ROUNDS * self.concurrency

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard = fan_out(children), step.guard

        def run(batch: Batch[Any, Any]) -> None:
            kept, values = self._apply(guard, batch)
            if values:
                forward(kept.with_values(values))

        return run

    def _apply(self, guard: Guard, batch: Batch[Any, Any]) -> tuple[Batch[Any, Any], list[Any]]:
        """The rows that have a result, and the results; the policy applies to the others.

        Failed rows are retried together, after one wait.
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
                # Earlier rows of the batch may still fail, and then the first of them is the one to report.
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
    """Hashable keys, equal for equal keys: as text if they cannot be hashed."""
    try:
        set(keys)
    except TypeError:
        return [None if key is None else repr(key) for key in keys]
    return keys
