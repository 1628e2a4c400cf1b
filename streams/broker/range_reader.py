"""Reads parts of partitions, forwards or backwards through a topic, without joining a group."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from streams.broker import BEGINNING, GroupSettings, Isolation
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType
    from typing import Self

    from streams.broker import Broker
    from streams.records import Fetched

CHUNK_RECORDS: Final = 2_000
"""Records of one poll: few enough that a deadline is noticed soon."""

POLL_SECONDS: Final = 0.2


class RangeReader:
    """One client that reads any number of ranges, one call after the other. Not thread-safe."""

    def __init__(self, broker: Broker, isolation: Isolation = "read_committed") -> None:
        self._consumer = broker.consumer(
            GroupSettings(group="streams-reading", isolation=isolation, protocol="classic")
        )

    def read(
        self,
        ranges: Mapping[TopicPartition, tuple[int, int]],
        deadline: float,
        reached: dict[TopicPartition, int] | None = None,
    ) -> Generator[Fetched, None, None]:
        """Read each partition from its first offset up to, without, its second one, until ``deadline``.

        ``deadline`` is a time of ``time.monotonic``. ``reached`` is given, for each partition, the offset
        before which all was read. The second offsets must be readable: at most the end for the isolation.
        Raises ``BrokerError``.
        """
        waiting = {place: stop for place, (start, stop) in ranges.items() if start < stop}
        positions = {} if reached is None else reached
        positions.update({place: start for place, (start, _) in ranges.items()})
        if not waiting:
            return
        self._consumer.assign({place: max(ranges[place][0], BEGINNING) for place in waiting})
        # What a range before has paused stays paused across assignments.
        self._consumer.resume(waiting.keys())
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            polled = self._consumer.poll(CHUNK_RECORDS, min(POLL_SECONDS, left))
            complete = []
            for fetched in polled.fetched:
                place = TopicPartition(fetched.topic, fetched.partition)
                stop = waiting.get(place)
                if stop is None:
                    continue
                inside = fetched
                if fetched.next_offset >= stop:
                    inside = fetched.slice(0, bisect_left(fetched.offsets(), stop))
                    complete.append(place)
                    del waiting[place]
                positions[place] = min(fetched.next_offset, stop)
                if len(inside):
                    yield inside
            for place, end in polled.ends.items():
                # Behind the last record there may be markers only.
                if end >= waiting.get(place, end + 1):
                    positions[place] = waiting.pop(place)
                    complete.append(place)
            if complete and waiting:
                self._consumer.pause(complete)

    def close(self) -> None:
        """Close the client."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
