"""A reader that follows committed records during faults, and reads topics afterwards."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from streams.broker import BEGINNING, GroupSettings
from streams.broker.reading import read_to_end
from streams.errors import BrokerError
from streams.records import TopicPartition
from tests.faults.verdicts import Row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.broker import Broker
    from streams.records import Fetched


def rows_of(fetched: Fetched) -> list[Row]:
    decode = msgspec.json.decode
    return [
        Row(fetched.partition, offset, (key or b"").decode(), decode(value) if value else None, time)
        for offset, key, value, time in zip(
            fetched.offsets(), fetched.keys(), fetched.values(), fetched.timestamps(), strict=True
        )
    ]


def read(broker: Broker, topic: str) -> list[Row]:
    """All committed records of a topic, each partition's in order."""
    return [row for fetched in read_to_end(broker, [topic]) for row in rows_of(fetched)]


class Watch:
    """Reads committed records of some topics from their beginning, on a separate thread, poll by poll."""

    def __init__(self, broker: Broker, partitions: Mapping[str, int]) -> None:
        self._broker = broker
        self._places = [
            TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)
        ]
        self.polls: dict[str, list[list[Row]]] = defaultdict(list)
        self.failure: BaseException | None = None
        self._reached = dict.fromkeys(self._places, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-watch", daemon=True)
        self._thread.start()

    def is_at(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Whether it has read up to these ends; raises the error that ended the reading."""
        if self.failure is not None:
            raise self.failure
        return all(self._reached[place] >= end for place, end in ends.items() if place in self._reached)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        try:
            consumer = self._broker.consumer(GroupSettings(group="faults-watch", protocol="classic"))
            consumer.assign(dict.fromkeys(self._places, BEGINNING))
            while not self._stop.is_set():
                try:
                    polled = consumer.poll(10_000, 0.2)
                except BrokerError:
                    # The client continues by itself when brokers are available again.
                    continue
                for fetched in polled.fetched:
                    self.polls[fetched.topic].append(rows_of(fetched))
                    self._reached[TopicPartition(fetched.topic, fetched.partition)] = fetched.next_offset
                self._reached |= polled.ends
            consumer.close()
        except BaseException as error:  # noqa: BLE001 - raised again where somebody waits for this reader
            self.failure = error
