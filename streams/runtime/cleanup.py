"""Housekeeping of a worker: purges repartition topics, deletes unused state, checks that topics exist."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from streams.errors import BrokerError, TopicError
from streams.events import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from streams.broker import Admin, Broker
    from streams.config import Settings
    from streams.records import TopicPartition
    from streams.state.store import Databases
    from streams.topology.graph import Topology

PURGE_SECONDS = 30.0
"""How often consumed records of repartition topics are deleted."""

KEPT_SECONDS = 7 * 24 * 3600.0
"""How long records of an internal topic before a sink are kept after they reached it.

A target that is restored from a backup continues from its older position.
"""

SAMPLE_SECONDS = 3600.0
"""How often the positions of these topics are noted, to delete what is before them later."""

TIDY_SECONDS = 1.0
"""Shortest time between searches for state of tasks that moved to other workers."""

TOPICS_SECONDS = 15.0
"""Time after the last revocation until the worker checks, twice, that its topics exist.

The request waits for brokers that do not answer, so it is made when the cause of the rebalance is over.
"""


class Cleanup:
    """The housekeeping of one worker. Each job does nothing until it is due; ``clock`` returns seconds."""

    def __init__(
        self,
        topology: Topology,
        broker: Broker,
        databases: Databases,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._inputs = {topic for topic in topology.input_topics if isinstance(topic, str)}
        self._repartitions = {
            topic for topic, kind in topology.repartitions.items() if not kind.kept and not kind.compacted
        } | {topic for topic, kind in topology.own_topics.items() if kind.purged}
        self._kept = {topic for topic, kind in topology.repartitions.items() if kind.kept}
        self._broker = broker
        self._databases = databases
        self._settings = settings
        self._clock = clock
        self._log = get_logger()
        self._admin: Admin | None = None
        self._consumed: dict[TopicPartition, int] = {}
        self._reached: deque[tuple[float, dict[TopicPartition, int]]] = deque()
        """Positions in the topics before sinks, and when these were reached."""
        self._purged = clock()
        # Tasks may come back after a restart: wait before their state is considered unused.
        self._tidy_at = clock() + settings.state_cleanup_delay
        self._topics_at = float("inf")
        self._missing: set[str] = set()

    @property
    def purged_topics(self) -> Collection[str]:
        """The topics from which it deletes records, once they are committed; from any thread."""
        return self._repartitions | self._kept

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Delete the consumed records of repartition topics, if due."""
        for partition, offset in offsets.items():
            if partition.topic in self._repartitions:
                self._consumed[partition] = offset
        now = self._clock()
        if self._kept:
            self._keep_for_a_while(offsets, now)
        if not self._consumed or now - self._purged < PURGE_SECONDS:
            return
        self._purged = now
        consumed, self._consumed = self._consumed, {}
        try:
            self._opened_admin().delete_records(consumed)
        except BrokerError as error:
            # The next purge deletes these too.
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))

    def _keep_for_a_while(self, offsets: Mapping[TopicPartition, int], now: float) -> None:
        own = {partition: offset for partition, offset in offsets.items() if partition.topic in self._kept}
        if own:
            if not self._reached or now - self._reached[-1][0] >= SAMPLE_SECONDS:
                self._reached.append((now, {}))
            self._reached[-1][1].update(own)
        while self._reached and now - self._reached[0][0] >= KEPT_SECONDS:
            self._consumed |= self._reached.popleft()[1]

    def revoked(self) -> None:
        """Note a revocation: the topic may have been deleted, which is checked later."""
        self._topics_at = self._clock() + TOPICS_SECONDS

    def check_topics(self, matched: Collection[str]) -> set[str]:
        """The deleted topics among those that patterns ``matched``.

        The group just revokes the partitions of a deleted topic, which would go unnoticed. Raises
        ``TopicError`` if an input topic that the program names was deleted.
        """
        now = self._clock()
        if now < self._topics_at:
            return set()
        try:
            existing = self._opened_admin().topics()
        except BrokerError as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            self._topics_at = self._clock() + TOPICS_SECONDS
            return set()
        missing, before = self._inputs.union(matched) - existing.keys(), self._missing
        # A broker that has just started may not know all topics yet, so a second check must agree.
        self._topics_at = now + TOPICS_SECONDS if missing else float("inf")
        self._missing = missing
        gone = missing & before
        if gone & self._inputs:
            raise TopicError(
                f"input topics no longer exist: {', '.join(sorted(gone & self._inputs))}",
                hint="create them again and restart; their unprocessed records are lost",
            )
        return gone

    def partition_counts(self, topics: Collection[str]) -> dict[str, int]:
        """Partition counts of these topics, as far as they exist. Raises ``BrokerError``."""
        existing = self._opened_admin().topics()
        return {topic: existing[topic].partitions for topic in topics if topic in existing}

    def delete_unused_state(self) -> None:
        """Delete the state of tasks that moved to other workers and did not come back, if due."""
        if self._clock() < self._tidy_at:
            return
        delay = self._settings.state_cleanup_delay
        self._tidy_at = self._clock() + max(TIDY_SECONDS, delay / 10)
        for store, partition in self._databases.delete_unused(delay):
            self._log.info(Event.STATE_DELETED, store=store, partition=partition)

    def close(self) -> None:
        """Release the client."""
        if self._admin is not None:
            self._admin.close()

    def _opened_admin(self) -> Admin:
        if self._admin is None:
            self._admin = self._broker.admin()
        return self._admin
