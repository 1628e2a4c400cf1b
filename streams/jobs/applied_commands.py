"""Waits until the workers have applied a command: each partition of the queue stores how far it has come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from streams.broker.reading import follow
from streams.jobs.job_store import STORE, command_position_of
from streams.records import TopicPartition
from streams.state.changelog import changelog_topic, entry_key
from streams.state.definition import StoreDefinition

if TYPE_CHECKING:
    from streams.broker import Broker
    from streams.records import Fetched


class AppliedCommands:
    """What the partitions of a queue apply from its creation on. To be created before the command is given.

    Raises ``BrokerError``.
    """

    def __init__(self, broker: Broker, application: str) -> None:
        self._broker = broker
        topic = changelog_topic(application, StoreDefinition(name=STORE))
        admin = broker.admin()
        try:
            existing = admin.topics()
            count = existing[topic].partitions if topic in existing else 0
            self._starts = dict(admin.end_offsets([TopicPartition(topic, number) for number in range(count)]))
            self._workers = bool(admin.group_members(application))
        finally:
            admin.close()

    @property
    def expected(self) -> bool:
        """Whether there are workers that apply commands."""
        return bool(self._starts) and self._workers

    def wait(self, offset: int, seconds: float) -> int:
        """Wait for the command at that offset; return how many partitions have not applied it in time.

        Raises ``BrokerError``.
        """
        missing = {place.partition for place in self._starts}
        deadline = time.monotonic() + seconds

        def stopped() -> bool:
            return not missing or time.monotonic() >= deadline

        for fetched in follow(self._broker, self._starts, stopped):
            if any(position > offset for position in _positions(fetched)):
                missing.discard(fetched.partition)
        return len(missing)


def _positions(fetched: Fetched) -> list[int]:
    """The positions in the commands that these records of the store's changelog set."""
    headers = fetched.headers() or [None] * len(fetched)
    entries = zip(fetched.keys(), fetched.values(), headers, strict=True)
    found = [
        command_position_of(entry_key(key, own), value)
        for key, value, own in entries
        if key is not None and value is not None
    ]
    return [position for position in found if position is not None]
