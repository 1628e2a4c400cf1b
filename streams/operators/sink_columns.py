"""The columns that a sink writes in place of its records' own: partitions, headers and event times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from streams.coroutines.awaitables import settled
from streams.errors import TopologyError
from streams.operators.single_records import records_of, taken_headers
from streams.operators.stateless import LATEST, no_event_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.operators.guard import Guard
    from streams.records import Batch, Headers, Record

Of: TypeAlias = "Callable[[Record[Any, Any]], Any]"
"""A user's function of a record of the stream."""

LARGEST_PARTITION = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class SinkColumns:
    """The user's choices for one sink; by default keys determine partitions, and records the rest."""

    partition: int | Of | None = None
    headers: tuple[tuple[str, bytes | None], ...] | Of | None = None
    timestamp: Of | None = None

    @classmethod
    def chosen(cls, step: str, partition: Any, headers: Any, timestamp: Any) -> SinkColumns | None:
        """The choices for the step, if there are any. Raises ``TopologyError`` for an invalid one."""
        if partition is None and headers is None and timestamp is None:
            return None
        if headers is not None and not callable(headers):
            try:
                headers = tuple(taken_headers(headers) or ())
            except (TypeError, ValueError) as error:
                raise TopologyError(f"step {step!r}: headers=: {error}") from error
        if partition is not None and not callable(partition):
            try:
                _checked_partition(partition)
            except ValueError as error:
                raise TopologyError(f"step {step!r}: partition=: {error}") from error
        if timestamp is not None and not callable(timestamp):
            raise TopologyError(
                f"step {step!r}: timestamp= takes a function of the record, got {timestamp!r:.80}"
            )
        return cls(partition, headers, timestamp)

    def apply(self, guard: Guard, batch: Batch[Any, Any]) -> tuple[Batch[Any, Any], Sequence[int] | None]:
        """The batch with the headers and event times to write, and the partitions if they are chosen.

        The policy applies to rows on which a function fails; they are not in the result.
        """
        partition, headers, timestamp = self.partition, self.headers, self.timestamp
        functions = [item if callable(item) else None for item in (partition, timestamp, headers)]
        partitions: list[int] | None = None
        if any(functions):
            call = partial(_columns, functions, records_of(batch))
            batch, made = guard.apply(partial(map, call), range(len(batch)), batch)
            columns = zip(*made, strict=True) if made else ((), (), ())
            placed, times, named = map(list, columns)
            if callable(partition):
                partitions = placed
            if timestamp is not None:
                batch = batch.with_timestamps(times)
            if callable(headers):
                batch = batch.with_headers(named)
        if isinstance(partition, int):
            partitions = [partition] * len(batch)
        if isinstance(headers, tuple):
            batch = batch.with_headers([list(headers)] * len(batch))
        return batch, partitions


def _columns(
    functions: Sequence[Of | None], record_at: Callable[[int], Record[Any, Any]], row: int
) -> tuple[int, int, Headers | None]:
    place, time, name = functions
    # Headers are last, as their function may add to those of the record.
    record = record_at(row)
    partition = 0 if place is None else _checked_partition(settled(place(record)))
    timestamp = 0 if time is None else _checked_time(time(record))
    return partition, timestamp, None if name is None else taken_headers(name(record))


def _checked_partition(partition: Any) -> int:
    if type(partition) is not int or not 0 <= partition <= LARGEST_PARTITION:
        raise ValueError(f"a partition is a whole number from 0, got {partition!r:.80}")
    return partition


def _checked_time(time: Any) -> int:
    if type(time) is not int or not 0 <= time < LATEST:
        raise no_event_time(time)
    return time
