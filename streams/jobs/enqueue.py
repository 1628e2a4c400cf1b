"""The step that makes calls of jobs, which are written to their queue in the step's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from streams.coroutines.awaitables import settled
from streams.jobs.job import Call
from streams.operators import Operator, fan_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streams.operators import Binding, Children, Forward
    from streams.records import Batch


@dataclass(frozen=True, slots=True)
class MakeCalls(Operator):
    """Calls ``function`` with each value, and forwards the call that it returns, if any, as a record."""

    kind: ClassVar[str] = "enqueue"
    one_to_one: ClassVar[bool] = True

    job: str
    """Its name, for errors."""
    topic: str
    """The topic of its queue."""
    function: Callable[[Any], Call[Any] | None]

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, clock = fan_out(children), step.guard, step.wall_clock
        account = step.account
        make = partial(_records, self, clock)

        def run(batch: Batch[Any, Any]) -> None:
            made, records = guard.apply(make, batch.values, batch)
            rows = [row for row, record in enumerate(records) if record is not None]
            if len(rows) < len(records):
                account.filtered(len(records) - len(rows))
            if not rows:
                return
            keys, values, times = zip(*(records[row] for row in rows), strict=True)
            forward(made.select(rows).with_keys(keys).with_values(values).with_timestamps(times))

        return run


def _records(
    step: MakeCalls,
    clock: Callable[[], int],
    values: Sequence[Any],
) -> Iterator[tuple[str | None, bytes, int] | None]:
    now = clock()
    for value in values:
        call: object = settled(step.function(value))
        if call is None:
            yield None
            continue
        if not isinstance(call, Call) or call.job.topic != step.topic:
            raise TypeError(
                f"enqueue({step.job}, …): the function must return {step.job}.call(…), or None, "
                f"got {call!r:.80}"
            )
        yield call.partition_key, call.payload(now), now
