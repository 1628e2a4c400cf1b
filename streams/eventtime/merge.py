"""Merge the records of several partitions by event time, for tasks with joins."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.records import Fetched


@dataclass(slots=True)
class _Lane:
    """The waiting slices of one partition, and the position in the first of them."""

    rank: int
    slices: deque[Fetched] = field(default_factory=deque)
    times: Sequence[int] = ()
    """The event times of the first slice, computed on demand."""
    at: int = 0
    size: int = 0
    end: int | None = None
    """The partition's end offset, if it was reached and no records arrived since."""


class InputQueue:
    """Queues the polled records of a task's partitions, and returns them by lowest event time.

    Records of one partition keep their order, whatever their times. While a partition without waiting records
    is not at its end, the others wait: so the order depends only on the records, if they are available.
    ``ranks`` decides between equal times, and then the partition. ``times`` returns the event times of a
    slice, and is called once all records added before it have been taken.
    """

    def __init__(self, ranks: dict[TopicPartition, int], times: Callable[[Fetched], Sequence[int]]) -> None:
        # Ranks are made unique: with equal ranks, the order would depend on the order of polls.
        ordered = sorted(ranks, key=lambda partition: (ranks[partition], partition))
        self._lanes = {partition: _Lane(rank) for rank, partition in enumerate(ordered)}
        self._times = times

    def add(self, fetched: Fetched) -> None:
        """Append records to those of their partition."""
        lane = self._lanes[TopicPartition(fetched.topic, fetched.partition)]
        lane.slices.append(fetched)
        lane.size += len(fetched)
        lane.end = None

    def at_end(self, partition: TopicPartition, offset: int) -> None:
        """Note that the partition's end was reached: no records follow those that were added."""
        self._lanes[partition].end = offset

    def size(self, partition: TopicPartition) -> int:
        """The number of waiting records of the partition."""
        return self._lanes[partition].size

    def ends(self) -> dict[TopicPartition, int]:
        """The partitions at their ends and without waiting records, with their end offsets."""
        return {
            partition: lane.end
            for partition, lane in self._lanes.items()
            if lane.end is not None and not lane.slices
        }

    def peek(self, limit: int) -> Fetched | None:
        """The next records, of one partition, at most ``limit``; ``None`` if none can be processed yet.

        They stay in the queue until ``taken``.
        """
        if any(not lane.slices and lane.end is None for lane in self._lanes.values()):
            return None
        ready = sorted((lane for lane in self._lanes.values() if lane.slices), key=self._head)
        if not ready:
            return None
        first = ready[0]
        bound = self._head(ready[1]) if len(ready) > 1 else None
        fetched, times = first.slices[0], first.times
        start, stop = first.at, min(len(fetched), first.at + limit)
        if bound is not None:
            rank = first.rank
            stop = next((row for row in range(start + 1, stop) if (times[row], rank) > bound), stop)
        return fetched if start == 0 and stop == len(fetched) else fetched.slice(start, stop)

    def taken(self, fetched: Fetched) -> None:
        """Remove the records that ``peek`` returned, after they were processed."""
        lane = self._lanes[TopicPartition(fetched.topic, fetched.partition)]
        lane.at += len(fetched)
        lane.size -= len(fetched)
        if lane.at == len(lane.slices[0]):
            lane.slices.popleft()
            lane.at, lane.times = 0, ()

    def clear(self) -> None:
        """Remove all records, because the input will be read again."""
        for lane in self._lanes.values():
            lane.slices.clear()
            lane.at = lane.size = 0
            lane.times, lane.end = (), None

    def _head(self, lane: _Lane) -> tuple[int, int]:
        """The sort key of the first record: its time, then its rank (tables before streams)."""
        if not lane.times:
            lane.times = self._times(lane.slices[0])
        return lane.times[lane.at], lane.rank
