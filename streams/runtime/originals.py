"""Reads input records again, for dead letters of records that came through an internal topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.broker import GroupSettings
from streams.errors import BrokerError
from streams.events import Event, get_logger
from streams.records import Record, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from streams.broker import Broker, Consumer
    from streams.origin import Origin
    from streams.records import Fetched

SECONDS = 5.0
"""Longest time of one ``read``: the worker does nothing else meanwhile."""

POLL_SECONDS = 0.2

PAUSE_SECONDS = 0.25
"""Wait before another attempt."""

UNREADABLE_SECONDS = 60.0
"""How long a partition that could not be read is not tried again: there may be many dead letters."""

CHUNK_RECORDS = 1_000

FURTHEST = 5_000
"""Distance in offsets beyond which the reader seeks instead of reading on."""


class Originals:
    """Reads single records of input topics, with a separate consumer that is in no group.

    ``reads`` says whether a topic is one of the app's inputs: others are not read, whatever other programs
    wrote to an internal topic. ``clock`` returns seconds, ``pause`` waits for the given seconds.
    """

    def __init__(
        self,
        broker: Broker,
        application: str,
        reads: Callable[[str], bool],
        clock: Callable[[], float],
        pause: Callable[[float], object],
    ) -> None:
        self._broker = broker
        self._application = application
        self._reads = reads
        self._clock = clock
        self._pause = pause
        self._unreadable: dict[TopicPartition, float] = {}
        """Until when partitions are not tried again."""
        self._consumer: Consumer | None = None
        self._log = get_logger()

    def read(self, origins: Collection[Origin]) -> dict[Origin, Record[bytes | None, bytes | None]]:
        """The records at these coordinates, without those that no longer exist or were not read in time."""
        wanted: dict[TopicPartition, dict[int, Origin]] = {}
        now = self._clock()
        for origin in sorted(origins):
            place = TopicPartition(origin.topic, origin.partition)
            if place.partition < 0 or not self._reads(place.topic):
                continue
            if now >= self._unreadable.get(place, now):
                wanted.setdefault(place, {})[origin.offset] = origin
        found: dict[Origin, Record[bytes | None, bytes | None]] = {}
        until = now + SECONDS
        trouble = ""
        for _ in range(round(SECONDS / PAUSE_SECONDS)):
            if not wanted or self._clock() >= until:
                break
            try:
                self._read(wanted, found, until)
            except BrokerError as error:
                trouble = str(error)
                self.close()
                self._pause(PAUSE_SECONDS)
        if wanted:
            self._unreadable |= dict.fromkeys(wanted, self._clock() + UNREADABLE_SECONDS)
            self._log.warning(
                Event.ORIGINALS_UNREAD, partitions=[str(place) for place in wanted], error=trouble or None
            )
        return found

    def close(self) -> None:
        """Release the client."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _read(
        self,
        wanted: dict[TopicPartition, dict[int, Origin]],
        found: dict[Origin, Record[bytes | None, bytes | None]],
        until: float,
    ) -> None:
        if self._consumer is None:
            self._consumer = self._broker.consumer(
                GroupSettings(group=f"{self._application}-originals", protocol="classic")
            )
        consumer = self._consumer
        consumer.assign({place: min(offsets) for place, offsets in wanted.items()})
        try:
            while wanted and self._clock() < until:
                polled = consumer.poll(CHUNK_RECORDS, POLL_SECONDS)
                for fetched in polled.fetched:
                    place = TopicPartition(fetched.topic, fetched.partition)
                    if place in wanted:
                        _take(fetched, wanted[place], found)
                        reached = fetched.next_offset
                        if wanted[place] and min(wanted[place]) - reached > FURTHEST:
                            consumer.seek({place: min(wanted[place])})
                for place, end in polled.ends.items():
                    # An offset before the end that was not delivered is a marker's, or was deleted.
                    for offset in [offset for offset in wanted.get(place, ()) if offset < end]:
                        del wanted[place][offset]
                for place in [place for place, offsets in wanted.items() if not offsets]:
                    del wanted[place]
        finally:
            # Stop fetching until the next call.
            consumer.assign({})


def _take(
    fetched: Fetched,
    wanted: dict[int, Origin],
    found: dict[Origin, Record[bytes | None, bytes | None]],
) -> None:
    """Collect the wanted records; those that were passed without being delivered no longer exist."""
    rows = [row for row, offset in enumerate(fetched.offsets()) if offset in wanted]
    headers = fetched.headers(rows) or [None] * len(rows)
    for key, value, time, offset, header in zip(
        fetched.keys(rows),
        fetched.values(rows),
        fetched.timestamps(rows),
        fetched.offsets(rows),
        headers,
        strict=True,
    ):
        found[wanted.pop(offset)] = Record(key, value, time, header, fetched.topic, fetched.partition, offset)
    for offset in [offset for offset in wanted if offset < fetched.next_offset]:
        del wanted[offset]
