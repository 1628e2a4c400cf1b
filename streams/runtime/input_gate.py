"""A consumer whose partitions can be stopped at exact offsets, as if the log ended there."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from streams.broker import Consumer, NamePattern, Polled, RebalanceListener
    from streams.records import Fetched


class InputGate:
    """A ``Consumer`` with a limit for each partition: records from there on are not delivered.

    A limit looks like the end of the log: it is reported as an end when it is reached, and lag is counted up
    to it. So whatever waits for an end (merging by event time, commits, idle windows) works as at a real one.
    Partitions that the caller pauses stay paused: the gate only pauses others in addition.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._paused: set[TopicPartition] = set()
        """Paused by the caller."""
        self._held: set[TopicPartition] = set()
        """Nothing of these is delivered until ``release``."""
        self._limits: dict[TopicPartition, int | None] = {}
        self._stopped: dict[TopicPartition, int] = {}
        """The partitions that have reached their limits."""
        self._ends: dict[TopicPartition, int] = {}
        """Limits to report as ends with the next poll."""

    # --- limits

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver nothing of these until ``release``. May be called in a rebalance."""
        self._held |= set(partitions)
        self._consumer.pause(partitions)

    def release(self) -> None:
        """End the effect of ``hold``."""
        held, self._held = self._held, set()
        self._consumer.resume(sorted(place for place in held if not self._blocked(place)))

    @property
    def held(self) -> set[TopicPartition]:
        """The partitions that wait for ``release``."""
        return set(self._held)

    def limited(self, partition: TopicPartition) -> bool:
        """Whether the partition has a limit."""
        return partition in self._limits

    def stopped_at(self, partition: TopicPartition) -> int | None:
        """The limit of a partition that has reached it."""
        return self._stopped.get(partition)

    def stop(self, partition: TopicPartition, position: int | None) -> None:
        """Stop a partition at its position; where that is not known yet, as soon as it is."""
        self._limits[partition] = position
        if position is None:
            self._start(partition)
        else:
            self._stop(partition, position)

    def limit(self, partition: TopicPartition, position: int | None, limit: int) -> None:
        """Continue a partition from its position (``None``: the consumer's own) up to a limit."""
        self._limits[partition] = limit
        if position is not None and position >= limit:
            self._stop(partition, position)
        else:
            self._start(partition)

    def lift(self) -> None:
        """Remove all limits."""
        self._limits.clear()
        for partition in list(self._stopped):
            self._start(partition)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget partitions that are no longer assigned."""
        for partition in partitions:
            self._paused.discard(partition)
            self._held.discard(partition)
            for known in (self._limits, self._stopped, self._ends):
                known.pop(partition, None)

    def _stop(self, partition: TopicPartition, position: int) -> None:
        self._stopped[partition] = position
        if position == self._limits[partition]:
            self._ends[partition] = position
        self._consumer.pause([partition])

    def _start(self, partition: TopicPartition) -> None:
        position = self._stopped.pop(partition, None)
        self._ends.pop(partition, None)
        if position is None:
            return
        # The end of the log may have been reported before the limit was set: after a seek it is again.
        self._consumer.seek({partition: position})
        if not self._blocked(partition):
            self._consumer.resume([partition])

    def _blocked(self, partition: TopicPartition) -> bool:
        return partition in self._paused or partition in self._held or partition in self._stopped

    # --- the consumer

    def poll(self, max_records: int, timeout: float) -> Polled:
        """See ``Consumer``."""
        polled = self._consumer.poll(max_records, timeout)
        if not self._limits and not self._held:
            return polled
        fetched: list[Fetched] = []
        ends = dict(polled.ends)
        for item in polled.fetched:
            partition = TopicPartition(item.topic, item.partition)
            if partition in self._held:
                # Came in the poll that assigned it: read again after the release.
                ends.pop(partition, None)
                self._consumer.seek({partition: item.offsets([0])[0]})
            elif (kept := self._within(partition, item)) is not None:
                fetched.append(kept)
        for partition, end in list(ends.items()):
            if partition in self._held:
                del ends[partition]
                self._consumer.seek({partition: end})
            elif partition in self._stopped:
                del ends[partition]
            elif partition in self._limits:
                limit = self._limits[partition]
                if limit is None:
                    self._limits[partition] = limit = end
                if end >= limit:
                    del ends[partition]
                    self._stop(partition, limit)
        ends |= self._ends
        self._ends = {}
        return polled._replace(fetched=fetched, ends=ends)

    def _within(self, partition: TopicPartition, item: Fetched) -> Fetched | None:
        """The records before the partition's limit, if there are any."""
        if partition not in self._limits:
            return item
        offsets = item.offsets()
        limit = self._limits[partition]
        if limit is None:
            self._limits[partition] = limit = offsets[0]
        if offsets[-1] < limit - 1:
            return item
        self._stop(partition, limit)
        count = bisect_left(offsets, limit)
        if count < len(item):
            self._consumer.seek({partition: limit})
        return None if count == 0 else item if count == len(item) else item.slice(0, count)

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        """See ``Consumer``."""
        self._consumer.seek(positions)
        for partition, position in positions.items():
            if partition not in self._limits:
                continue
            limit = self._limits[partition]
            if position >= 0 and limit is None:
                self._limits[partition] = limit = position
            if limit is not None and position >= limit:
                self._stop(partition, position)
            elif self._stopped.pop(partition, None) is not None:
                self._ends.pop(partition, None)
                if not self._blocked(partition):
                    self._consumer.resume([partition])

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """See ``Consumer``."""
        self._paused |= set(partitions)
        self._consumer.pause(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """See ``Consumer``."""
        self._paused -= set(partitions)
        self._consumer.resume([place for place in partitions if not self._blocked(place)])

    def known_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """See ``Consumer``."""
        ends = self._consumer.known_ends(partitions)
        return {
            partition: end if (limit := self._limits.get(partition)) is None else min(end, limit)
            for partition, end in ends.items()
        }

    def subscribe(self, topics: Collection[str | NamePattern], listener: RebalanceListener) -> None:
        """See ``Consumer``."""
        self._consumer.subscribe(topics, listener)

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """See ``Consumer``."""
        self._consumer.assign(positions)

    def keep_alive(self) -> None:
        """See ``Consumer``."""
        self._consumer.keep_alive()

    def assignment(self) -> set[TopicPartition]:
        """See ``Consumer``."""
        return self._consumer.assignment()

    def positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """See ``Consumer``."""
        return self._consumer.positions(partitions)

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """See ``Consumer``."""
        return self._consumer.committed(partitions)

    def committed_metadata(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, str]:
        """See ``Consumer``."""
        return self._consumer.committed_metadata(partitions)

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        """See ``Consumer``."""
        self._consumer.commit(offsets, offset_metadata)

    @property
    def member(self) -> str | None:
        """See ``Consumer``."""
        return self._consumer.member

    def group_metadata(self) -> object:
        """See ``Consumer``."""
        return self._consumer.group_metadata()

    def close(self) -> None:
        """See ``Consumer``."""
        self._consumer.close()
