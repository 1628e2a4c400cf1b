"""What a worker's observer measures, on the in-memory broker with a manual clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams import App, Text
from streams.broker import NewTopic
from streams.errors import BrokerUnreachable
from streams.monitoring.condition import Condition
from streams.monitoring.observer import Observer
from streams.records import Output, TopicPartition
from tests.support.cluster import Broker, MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Collection

    from streams.broker import Isolation
    from streams.broker.memory import MemoryAdmin
    from streams.monitoring.partition_figures import PartitionFigures
    from streams.runtime.worker import Worker

PLACE = TopicPartition("in", 0)
YEAR = 365 * 86_400


class Distant(Broker):
    """A broker that can be made unreachable for admin clients."""

    away = False

    def admin(self) -> MemoryAdmin:
        admin = super().admin()
        ends = admin.end_offsets

        def end_offsets(
            partitions: Collection[TopicPartition], isolation: Isolation = "read_committed"
        ) -> dict[TopicPartition, int]:
            if self.away:
                raise BrokerUnreachable("no broker answers at nowhere:9092")
            return ends(partitions, isolation)

        admin.end_offsets = end_offsets  # type: ignore[method-assign]  # of this one alone
        return admin


class Site(MemoryCluster):
    """An app that copies a topic, and a worker of it that is observed."""

    broker: Distant

    def __init__(self, partitions: int = 1, app: App | None = None) -> None:
        super().__init__({"in": partitions, "out": partitions})
        self.app = app or copying()
        self.begin()

    def make_broker(self, **options: object) -> Distant:
        return Distant(**options)

    def begin(self) -> None:
        """Start a worker, as a new process does: its observer has seen nothing yet."""
        self.worker: Worker = self.make_worker(
            self.app,
            "slot",
            transaction_timeout=10_000.0,
            partitions=self.prepare(self.app, create_outputs=False),
            wall_clock=self.clock.milliseconds,
        )
        self.observer = Observer(
            self.worker,
            None,
            self.broker,
            goal=self.app.settings.waiting_goal,
            clock=self.clock,
            wall_clock=self.clock.milliseconds,
        )
        self.worker.start()

    def append(self, count: int = 1, *, age: float = 0, partition: int = 0) -> None:
        """Append records whose timestamps are ``age`` seconds old."""
        time = self.clock.milliseconds() - round(age * 1000)
        self.write(Output("in", [None] * count, [b"v"] * count, [time] * count, partition=partition))

    def work(self, seconds: int = 1) -> None:
        """Let the worker run, and observe it each second."""
        for _ in range(seconds):
            self.worker.run_once()
            self.pass_time(1)

    def pass_time(self, seconds: int) -> None:
        """Let time pass in which the worker does nothing."""
        for _ in range(seconds):
            self.clock.advance(1.0)
            self.observer.observe()

    def condition(self) -> Condition:
        return self.observer.latest.judgement.condition

    def figures(self, place: TopicPartition = PLACE) -> PartitionFigures:
        return self.observer.latest.partitions[place]


def repartitioning() -> App:
    app = App("repartitioning")
    app.stream("in", value=Text()).key_by(str, name="by-value", key=Text()).repartition("by-value").to("out")
    return app


def copying() -> App:
    app = App("copying")
    app.stream("in", value=Text()).to("out")
    return app


def test_a_partition_that_is_drained_has_no_waiting_time():
    site = Site()
    site.append(5)
    site.work(10)
    assert (site.figures().lag, site.figures().waiting) == (0, 0.0)
    assert site.condition() is Condition.KEEPING_UP


def test_the_marker_of_a_transaction_does_not_wait():
    site = Site()
    producer = site.broker.producer(transactional_id="other", transaction_timeout=60.0)
    producer.init_transactions(1)
    producer.begin()
    producer.produce(Output("in", [None], [b"v"], [site.clock.milliseconds()], partition=0))
    producer.commit(1)
    site.work(10)
    figures = site.figures()
    assert figures.end == 2
    assert (figures.lag, figures.waiting) == (0, 0.0)


def test_records_wait_from_when_they_were_appended():
    site = Site()
    site.work(5)
    site.append()
    site.pass_time(20)
    site.append(5)
    site.pass_time(40)
    assert site.figures().waiting == pytest.approx(60, abs=2)
    assert site.figures().lag == 6
    site.work(3)
    assert site.figures().waiting == 0


def test_records_that_waited_before_the_worker_began_have_their_own_times():
    site = Site()
    site.work(5)
    site.worker.close()
    for _ in range(6):
        site.append()
        site.clock.advance(10)
    site.begin()
    site.worker.run_once()
    site.pass_time(2)
    # It has joined, and has not read anything yet.
    assert site.worker.progress[PLACE].position is None
    assert (site.figures().position, site.figures().lag) == (0, 6)
    assert site.figures().waiting == pytest.approx(62, abs=2)
    site.work(5)
    assert site.figures().waiting == 0


def test_events_of_last_year_have_waited_for_as_long_as_they_are_there():
    site = Site()
    site.work(5)
    site.append(3, age=YEAR)
    site.pass_time(10)
    assert site.figures().waiting == pytest.approx(10, abs=2)
    site.append(3, age=-YEAR)
    site.pass_time(10)
    assert site.figures().waiting == pytest.approx(20, abs=2)
    site.work(5)
    assert site.figures().waiting == 0


def test_records_behind_an_open_transaction_wait():
    site = Site()
    site.work(3)
    producer = site.broker.producer(transactional_id="other", transaction_timeout=600.0)
    producer.init_transactions(1)
    producer.begin()
    producer.produce(Output("in", [None], [b"v"], [site.clock.milliseconds()], partition=0))
    producer.flush(1)
    site.append()
    appended = site.clock.now
    site.work(50)
    assert site.figures().waiting == pytest.approx(site.clock.now - appended, abs=2)
    assert site.condition() is Condition.FALLING_BEHIND
    producer.commit(1)
    site.work(10)
    assert site.figures().waiting == 0
    assert site.condition() is Condition.KEEPING_UP


def test_rates_are_those_of_the_last_minute():
    site = Site()
    site.work(5)
    for _ in range(100):
        site.append(30)
        site.work()
    figures = site.figures()
    assert figures.arrival_rate == pytest.approx(30, rel=0.1)
    assert figures.processing_rate == pytest.approx(30, rel=0.1)


def test_a_worker_that_does_not_run_loses_records_when_retention_reaches_them():
    site = Site()
    site.admin.delete_topics(["in"])
    site.admin.create_topics([NewTopic(name="in", partitions=1, settings={"retention.ms": "600000"})])
    site.begin()
    site.work(5)
    site.append(10)
    site.pass_time(100)
    assert site.figures().deleted_in == pytest.approx(500, abs=3)
    site.work(5)
    assert site.figures().deleted_in is None


def test_figures_that_cannot_be_measured_are_old_and_not_zero():
    site = Site()
    site.append(5)
    site.work(5)
    site.broker.away = True
    site.pass_time(30)
    assert site.figures().age == pytest.approx(30, abs=0.5)
    assert site.figures().end == 5


def test_nothing_is_known_before_the_first_answer():
    site = Site()
    site.broker.away = True
    site.append(5)
    site.worker.run_once()
    site.pass_time(2)
    figures = site.figures()
    assert (figures.end, figures.lag, figures.waiting, figures.age) == (None, None, None, None)
    assert site.condition() is Condition.UNKNOWN


def test_partitions_of_other_workers_vanish():
    site = Site(partitions=2)
    site.work(3)
    assert len(site.observer.latest.partitions) == 2
    other = site.make_worker(site.app, "other", transaction_timeout=100.0)
    other.start()
    for _ in range(5):
        other.run_once()
        site.work()
    assert len(site.observer.latest.partitions) == 1


def test_steps_have_their_own_time_and_the_records_that_reach_them():
    app = App("steps")
    lines = app.stream("in", value=Text()).filter(lambda value: value != "drop", name="keep")
    lines.map(str.upper, name="upper").to("out", name="write")
    site = Site(app=app)
    site.write(Output("in", [None] * 4, [b"a", b"drop", b"b", b"c"], [1] * 4, partition=0))
    site.work(3)
    (counts,) = [item for item in site.worker.counts if item.step_records]
    assert counts.step_records == {"keep": 4, "upper": 3, "write": 3}
    assert all(seconds > 0 for seconds in counts.step_seconds.values())


def test_what_the_app_deletes_itself_was_processed_and_is_no_loss():
    site = Site(app=repartitioning())
    found = set()
    for _ in range(240):
        # More in some seconds than the worker gets to before it is observed.
        site.append(5)
        site.worker.run_once()
        site.pass_time(1)
        found |= {place.topic for place, item in site.observer.latest.partitions.items() if item.lag}
        assert [item.deleted_in for item in site.observer.latest.partitions.values()] == [None, None]
    assert any("repartition" in topic for topic in found)
