"""Reads when the next records of partitions were appended, by the records' own timestamps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from streams.broker import GroupSettings
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.broker import Broker, Consumer

POLL_SECONDS = 0.2


class OldestRecords:
    """Reads single records with a consumer that is in no group, which is only open while it reads."""

    def __init__(self, broker: Broker, application: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._broker = broker
        self._application = application
        self._clock = clock

    def read(
        self, offsets: Mapping[TopicPartition, int], timeout: float, stopped: Callable[[], bool]
    ) -> dict[TopicPartition, int | None]:
        """The timestamp of the first record at or after each offset, in milliseconds since the epoch.

        ``None`` where no visible record follows (only markers, aborted records or an open transaction);
        partitions that were not read within ``timeout`` seconds are left out. Raises ``BrokerError``.
        """
        found: dict[TopicPartition, int | None] = {}
        if not offsets:
            return found
        consumer = self._broker.consumer(
            GroupSettings(group=f"{self._application}-monitoring", protocol="classic")
        )
        try:
            consumer.assign(offsets)
            until = self._clock() + timeout
            while len(found) < len(offsets) and self._clock() < until and not stopped():
                self._take(consumer, found)
        finally:
            consumer.close()
        return found

    @staticmethod
    def _take(consumer: Consumer, found: dict[TopicPartition, int | None]) -> None:
        polled = consumer.poll(1_000, POLL_SECONDS)
        done = []
        for fetched in polled.fetched:
            partition = TopicPartition(fetched.topic, fetched.partition)
            if partition not in found and len(fetched):
                found[partition] = fetched.timestamps([0])[0]
                done.append(partition)
        for partition in polled.ends:
            if partition not in found:
                found[partition] = None
                done.append(partition)
        # What follows need not be fetched.
        consumer.pause(done)
