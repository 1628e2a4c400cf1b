"""A cluster in memory, and workers on it that a test runs step by step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from streams.broker import GroupSettings, NewTopic
from streams.broker.memory import MemoryBroker
from streams.broker.reading import read_to_end
from streams.records import Output, TopicPartition
from streams.runtime.commit import AtLeastOnce, ExactlyOnce
from streams.runtime.topics import prepare_topics
from streams.runtime.worker import Worker
from tests.support.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from streams import App
    from streams.broker import NamePattern, RebalanceListener
    from streams.broker.memory import MemoryConsumer

TRANSACTION_SECONDS = 10.0


class Broker(MemoryBroker):
    """Knows which client a worker has, for tests that do to it what a process or a network does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.members: dict[RebalanceListener, MemoryConsumer] = {}

    def consumer(self, settings: GroupSettings) -> MemoryConsumer:
        consumer = super().consumer(settings)
        subscribe = consumer.subscribe

        def join(topics: Collection[str | NamePattern], listener: RebalanceListener) -> None:
            self.members[listener] = consumer
            subscribe(topics, listener)

        consumer.subscribe = join  # type: ignore[method-assign]  # of this one alone
        return consumer


class MemoryCluster:
    """``topics`` with their partition counts. ``clock`` is the time; ``options`` are the broker's.

    With ``real_time``, for workers in threads, broker and workers use the system's time instead.
    """

    def __init__(
        self,
        topics: Mapping[str, int],
        clock: Clock | None = None,
        *,
        real_time: bool = False,
        **options: Any,
    ) -> None:
        self.clock = clock or Clock()
        self.real_time = real_time
        if not real_time:
            options = {"clock": self.clock, "wait": self.clock.advance, **options}
        self.broker = self.make_broker(**options)
        self.admin = self.broker.admin()
        self.admin.create_topics([NewTopic(name=name, partitions=count) for name, count in topics.items()])

    def make_broker(self, **options: Any) -> Broker:
        return Broker(**options)

    def prepare(
        self, app: App, *, create_outputs: bool, dead_letter_topic: str | None = None
    ) -> dict[str, int]:
        """Prepare an app's topics as before a start, and return the partition counts of its inputs."""
        return prepare_topics(
            app.topology,
            self.admin,
            application=app.name,
            dead_letter_topic=dead_letter_topic or app.dead_letter_topic,
            create_outputs=create_outputs,
        )

    def make_worker(
        self,
        app: App,
        transactional_id: str,
        *,
        transaction_timeout: float = TRANSACTION_SECONDS,
        **options: Any,
    ) -> Worker:
        """Create a worker of the app, not started; ``options`` are those of ``Worker``."""
        kind = ExactlyOnce if app.settings.guarantee == "exactly_once" else AtLeastOnce
        guarantee: ExactlyOnce | AtLeastOnce = kind(
            self.broker, transactional_id, timeout=transaction_timeout
        )
        if not self.real_time:
            options = {"clock": self.clock, "pause": self.clock.advance, **options}
        return Worker(app.topology, self.broker, guarantee, app.settings, application=app.name, **options)

    def write(self, *outputs: Output) -> None:
        """Write records as other programs would."""
        producer = self.broker.producer()
        for output in outputs:
            producer.produce(output)
        producer.flush(1)
        producer.close()

    def expire(self, worker: Worker) -> None:
        """End the worker's session."""
        self.broker.expire(self.consumer_of(worker))

    def consumer_of(self, worker: Worker) -> Any:
        """The client with which a worker that was started is a member of the group."""
        return self.broker.members[worker]

    def freeze(self, worker: Worker) -> None:
        """Simulate a killed process: the worker's session ends and its open transaction times out."""
        self.expire(worker)
        self.clock.advance(TRANSACTION_SECONDS + 1)

    def uncommitted(self, group: str, partitions: Mapping[str, int]) -> int:
        """Records that a group has not committed, and partitions with a transaction that is open."""
        places = places_of(partitions)
        committed = self.admin.committed_offsets(group)
        reader = self.broker.consumer(GroupSettings(group="lag"))
        reader.assign({place: committed.get(place, 0) for place in places})
        hook, self.broker.before = self.broker.before, None
        left = sum(len(fetched) for fetched in reader.poll(100_000, 0).fetched)
        self.broker.before = hook
        reader.close()
        ends = [self.admin.end_offsets(places, kind) for kind in ("read_committed", "read_uncommitted")]
        return left + sum(ends[0][place] != ends[1][place] for place in places)

    def payloads(self, topic: str) -> list[bytes]:
        """The committed values of a topic in order of offsets, partition by partition; no tombstones."""
        return [value for _, value in self.rows(topic) if value is not None]

    def rows(self, topic: str) -> list[tuple[bytes | None, bytes | None]]:
        """The committed keys and values of a topic in order of offsets, partition by partition."""
        return [
            row
            for fetched in read_to_end(self.broker, [topic])
            for row in zip(fetched.keys(), fetched.values(), strict=True)
        ]


def places_of(partitions: Mapping[str, int]) -> list[TopicPartition]:
    """The partitions of topics, by the number that each has."""
    return [TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)]


class AppCluster(MemoryCluster):
    """A cluster with the topics of one app, beside ``topics``, and workers of it."""

    def __init__(self, app: App, topics: Mapping[str, int] | None = None, clock: Clock | None = None) -> None:
        super().__init__(topics or {}, clock)
        self.app = app
        self.counts = self.prepare(app, create_outputs=True)
        self.workers = 0

    def worker(self) -> Worker:
        """Start another worker."""
        self.workers += 1
        worker = self.make_worker(self.app, f"worker-{self.workers}", partitions=self.counts)
        worker.start()
        return worker

    def run(self, *workers: Worker, until: Callable[[], object], seconds: float = 20) -> None:
        """Let workers take turns until a condition holds."""
        deadline = time.monotonic() + seconds
        while not until():
            for worker in workers:
                worker.run_once()
            assert time.monotonic() < deadline, f"not done after {seconds} s"
