"""Writes records for programs outside of a worker, and returns where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.broker import Appended
from streams.broker.memory.producer import MemoryProducer
from streams.errors import RecordRefused, RecordsRefused
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.broker.memory.cluster import Cluster


class MemoryAppender:
    """``Appender`` of a ``MemoryBroker``. Transactions are visible at once, under the broker's lock."""

    def __init__(self, cluster: Cluster, transactional_id: str) -> None:
        self._cluster = cluster
        self._plain = MemoryProducer(cluster, None, 10.0)
        self._together = MemoryProducer(cluster, transactional_id, 10.0)
        self._begun = False

    def append(self, output: Output, timeout: float) -> list[Appended]:
        def write(row: Output) -> None:
            self._plain.produce(row)
            self._plain.flush(timeout)

        return self._placed(output, self._plain, write)

    def append_together(self, output: Output, timeout: float) -> list[Appended]:
        together = self._together
        if not self._begun:
            together.init_transactions(timeout)
            self._begun = True
        together.begin()
        try:
            appended = self._placed(output, together, together.produce)
        except BaseException:
            together.abort(timeout)
            raise
        together.commit(timeout)
        return appended

    def close(self) -> None:
        self._plain.close()
        self._together.close()

    def _placed(
        self, output: Output, producer: MemoryProducer, write: Callable[[Output], None]
    ) -> list[Appended]:
        """Write the rows one by one, to see where each one goes."""
        found = []
        for row in range(len(output)):
            with self._cluster.locked():
                before = self._ends(output.topic)
            failure: RecordsRefused | None = None
            try:
                write(output.part(row, row + 1))
            except RecordsRefused as error:
                failure = error
            refused = producer.take_refused()
            if refused or failure is not None:
                raise RecordRefused(str(refused[0].error if refused else failure), position=row)
            with self._cluster.locked():
                after = self._ends(output.topic)
            found += [
                Appended(number, end - 1) for number, end in after.items() if end > before.get(number, 0)
            ]
        return found

    def _ends(self, topic: str) -> dict[int, int]:
        known = self._cluster.topics.get(topic)
        count = 0 if known is None else len(known.logs)
        return {
            number: self._cluster.existing_log(TopicPartition(topic, number)).next_offset
            for number in range(count)
        }
