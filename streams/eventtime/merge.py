"""Records of several partitions, in the order of their event times: how tasks with joins take their input."""

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
    """What waits of one partition: slices, and where the first of them begins."""

    rank: int
    slices: deque[Fetched] = field(default_factory=deque)
    times: Sequence[int] = ()
    """The event times of the first slice, once they were needed."""
    at: int = 0
    size: int = 0
    end: int | None = None
    """The partition's end, when nothing came since it was reached."""


class InputQueue:
    """Takes what was polled of a task's partitions and gives it out by lowest event time.

    Records of one partition keep their order, whatever their times. Where a partition has nothing waiting,
    the others wait, unless it is at its end: so the order depends on the records alone, as long as they are
    there. ``ranks`` decides between equal times, and then the partition; ``times`` finds the event times of a
    slice, and is called when what was added before it has been taken.
    """

    def __init__(self, ranks: dict[TopicPartition, int], times: Callable[[Fetched], Sequence[int]]) -> None:
        # Each has a rank of its own: between equals, the order would depend on how they were polled.
        ordered = sorted(ranks, key=lambda partition: (ranks[partition], partition))
        self._lanes = {partition: _Lane(rank) for rank, partition in enumerate(ordered)}
        self._times = times

    def add(self, fetched: Fetched) -> None:
        """Put records behind those of their partition."""
        lane = self._lanes[TopicPartition(fetched.topic, fetched.partition)]
        lane.slices.append(fetched)
        lane.size += len(fetched)
        lane.end = None

    def at_end(self, partition: TopicPartition, offset: int) -> None:
        """Nothing comes after what was added, up to that end."""
        self._lanes[partition].end = offset

    def size(self, partition: TopicPartition) -> int:
        """How many records of the partition wait."""
        return self._lanes[partition].size

    def ends(self) -> dict[TopicPartition, int]:
        """The partitions that are at their ends and have nothing waiting, with those ends."""
        return {
            partition: lane.end
            for partition, lane in self._lanes.items()
            if lane.end is not None and not lane.slices
        }

    def peek(self, limit: int) -> Fetched | None:
        """The next records, of one partition, at most ``limit``; ``None`` when there are none to be had yet.

        They stay until ``taken``.
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
        """The records that ``peek`` gave were processed."""
        lane = self._lanes[TopicPartition(fetched.topic, fetched.partition)]
        lane.at += len(fetched)
        lane.size -= len(fetched)
        if lane.at == len(lane.slices[0]):
            lane.slices.popleft()
            lane.at, lane.times = 0, ()

    def clear(self) -> None:
        """Forget everything: the input is read again."""
        for lane in self._lanes.values():
            lane.slices.clear()
            lane.at = lane.size = 0
            lane.times, lane.end = (), None

    def _head(self, lane: _Lane) -> tuple[int, int]:
        """The first record's place in the order: by time, tables before streams, then as declared."""
        if not lane.times:
            lane.times = self._times(lane.slices[0])
        return lane.times[lane.at], lane.rank
