"""What is said to hold a worker back, on the in-memory broker with a manual clock: soon, and not for long."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Text
from streams.broker import Polled
from streams.broker.throttling import Throttled
from streams.errors import BrokerUnreachable
from streams.monitoring.garbage_time import GarbageTime
from streams.monitoring.observer import Observer
from streams.monitoring.processor_wait import ProcessorWait
from streams.records import Output, TopicPartition
from tests.support.cluster import Broker, MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from streams.broker import Isolation
    from streams.broker.memory import MemoryAdmin, Step
    from streams.broker.throttling import Role
    from streams.monitoring.bottleneck import Bottleneck

SOON = 30
"""Seconds within which a cause must be named."""

GONE = 60
"""Seconds after its end within which it must not be named any more."""


class Limited(Broker):
    """A broker with quotas, which can also be silent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.held: dict[tuple[Role, str], float] = {}
        self.silent = False

    def throttled(self) -> Sequence[Throttled]:
        return [Throttled(role, broker, seconds) for (role, broker), seconds in self.held.items()]

    def admin(self) -> MemoryAdmin:
        admin = super().admin()
        ends = admin.end_offsets

        def end_offsets(
            partitions: Collection[TopicPartition], isolation: Isolation = "read_committed"
        ) -> dict[TopicPartition, int]:
            if self.silent:
                raise BrokerUnreachable("no broker answers at nowhere:9092")
            return ends(partitions, isolation)

        admin.end_offsets = end_offsets  # type: ignore[method-assign]  # of this one alone
        return admin


class Site(MemoryCluster):
    """An app that copies a topic, and a worker of it that is observed each second."""

    broker: Limited

    def __init__(
        self, partitions: int = 4, *, show_keys: bool = True, processor: ProcessorWait | None = None
    ) -> None:
        super().__init__({"in": partitions, "out": partitions})
        app = App("copying")
        app.stream("in", value=Text()).to("out")
        self.worker = self.make_worker(
            app,
            "slot",
            transaction_timeout=10_000.0,
            partitions=self.prepare(app, create_outputs=False),
            wall_clock=self.clock.milliseconds,
        )
        self.observer = Observer(
            self.worker,
            None,
            self.broker,
            goal=30.0,
            show_keys=show_keys,
            processor=processor,
            clock=self.clock,
            wall_clock=self.clock.milliseconds,
        )
        self.commit_seconds = 0
        """How long the broker takes to acknowledge a commit."""
        self.during_commit: list[Bottleneck] = []
        """What was said last while a commit waited."""
        self.broker.before = self._before
        self.worker.start()

    def make_broker(self, **options: object) -> Limited:
        return Limited(**options)

    def _before(self, step: Step) -> None:
        if step == "commit.before":
            for _ in range(self.commit_seconds):
                self.pass_time()
                self.during_commit = list(self.observer.latest.bottlenecks)

    def append(self, count: int = 1, *, partition: int = 0, key: str | None = None) -> None:
        keys = [None if key is None else key.encode()] * count
        time = self.clock.milliseconds()
        self.write(Output("in", keys, [b"v"] * count, [time] * count, partition=partition))

    def pass_time(self, seconds: float = 1.0) -> None:
        self.clock.advance(max(0.0, seconds))
        self.observer.observe()

    def work(self, seconds: int, each: Callable[[], object] = lambda: None) -> None:
        """Let the worker run, and observe it each second, after ``each``."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            each()
            begun = self.clock.now
            self.worker.run_once()
            self.pass_time(1.0 - (self.clock.now - begun))

    def named(self, cause: str) -> Bottleneck | None:
        found = [item for item in self.observer.latest.bottlenecks if item.cause.value == cause]
        return found[0] if found else None

    def hide_records(self) -> Callable[[], None]:
        """Let polls wait for a second and return nothing, until the returned function is called."""
        consumer = self.consumer_of(self.worker)
        poll = consumer.poll

        def nothing(_max_records: int, _timeout: float) -> Polled:
            self.clock.advance(1.0)
            return Polled([], {})

        consumer.poll = nothing

        def end() -> None:
            consumer.poll = poll

        return end


@pytest.mark.parametrize(
    ("role", "said"),
    [("producer", "the broker acknowledges late because of a quota"), ("consumer", "records arrive late")],
)
def test_a_quota_is_named_with_the_client_the_broker_and_the_share(role, said):
    site = Site()
    site.work(60)
    end = site.hide_records()

    def hold() -> None:
        site.broker.held[role, "3"] = site.broker.held.get((role, "3"), 0.0) + 0.8

    site.work(SOON, hold)
    end()
    named = site.named("quota")
    assert named is not None
    assert named.subject == f"{role} at broker 3"
    assert named.share == pytest.approx(0.8, abs=0.05)
    assert named.sentence.startswith(said)
    assert f"broker 3 holds back the {role} for" in named.sentence
    site.work(GONE)
    assert site.observer.latest.bottlenecks == []


def test_a_quota_that_hardly_matters_is_not_named():
    site = Site()

    def hold() -> None:
        site.broker.held["producer", "1"] = site.broker.held.get(("producer", "1"), 0.0) + 0.05

    site.work(SOON, hold)
    assert site.observer.latest.bottlenecks == []


def test_a_commit_that_is_not_acknowledged_is_named_while_it_waits():
    site = Site()
    site.work(60)
    site.append(10)
    site.commit_seconds = SOON
    site.work(1)
    (named,) = site.during_commit
    assert named.cause.value == "broker"
    assert named.sentence.startswith("the broker acknowledges slowly")
    site.commit_seconds = 0
    site.work(GONE)
    assert site.observer.latest.bottlenecks == []


def test_slow_commits_are_named_with_how_long_one_takes():
    site = Site()
    site.commit_seconds = 3
    site.work(SOON, site.append)
    named = site.named("broker")
    assert named is not None
    assert named.share is not None
    assert named.share > 0.7
    assert "for each commit" in named.sentence
    assert site.named("quota") is None
    site.commit_seconds = 0
    site.work(GONE, site.append)
    assert site.observer.latest.bottlenecks == []


def test_with_a_quota_the_time_for_acknowledgements_is_not_called_slow_too():
    site = Site()
    site.commit_seconds = 3

    def hold() -> None:
        site.append()
        site.broker.held["producer", "1"] = site.broker.held.get(("producer", "1"), 0.0) + 3.0

    site.work(SOON, hold)
    assert [item.cause.value for item in site.observer.latest.bottlenecks][:2] == ["quota", "broker"]
    named = site.named("broker")
    assert named is not None
    assert named.sentence.startswith("waiting for the broker's acknowledgements takes")


def test_a_broker_that_does_not_answer_is_named():
    site = Site()
    site.work(20)
    site.broker.silent = True
    site.work(SOON)
    named = site.named("broker")
    assert named is not None
    assert named.sentence.startswith("the broker has not answered for ")
    assert "nowhere:9092" in named.sentence
    site.broker.silent = False
    site.work(2)
    assert site.observer.latest.bottlenecks == []


def test_records_that_are_there_and_do_not_come_are_named():
    site = Site()
    site.work(60)
    end = site.hide_records()
    site.append(1_500, partition=2)
    site.work(SOON)
    named = site.named("fetching")
    assert named is not None
    assert named.subject == "in-2"
    assert "although 1,500 are there" in named.sentence
    end()
    site.work(GONE)
    assert site.observer.latest.bottlenecks == []


def test_a_worker_without_records_does_not_wait_for_any():
    site = Site()
    site.work(120)
    assert site.observer.latest.bottlenecks == []


def slow_with_keys(site: Site, *keys: tuple[str | None, int]) -> Callable[[], None]:
    site.commit_seconds = 3

    def each() -> None:
        for key, count in keys:
            site.append(count, partition=3, key=key)

    return each


def test_the_key_that_most_records_of_a_hot_partition_have_is_named():
    site = Site()
    site.work(SOON, slow_with_keys(site, ("eu", 90), ("us", 10)))
    partition, key = site.named("partition"), site.named("key")
    assert partition is not None
    assert partition.subject == "in-3"
    assert key is not None
    assert key.share == pytest.approx(0.9, abs=0.05)
    assert "of the records of in-3 have the key 'eu'" in key.sentence
    site.commit_seconds = 0
    site.work(GONE)
    assert site.observer.latest.bottlenecks == []
    # Nothing is sampled, nor kept, while nothing is wrong.
    assert not site.worker.key_sample.wanted
    assert site.worker.key_sample.take() == {}


def test_keys_can_be_kept_out_of_what_is_said():
    site = Site(show_keys=False)
    site.work(SOON, slow_with_keys(site, ("anna@example.org", 90), ("us", 10)))
    key = site.named("key")
    assert key is not None
    assert "of the records of in-3 have the same key" in key.sentence
    assert not any("example" in part for part in (key.sentence, key.subject))


def test_a_few_keys_that_most_records_have_are_named_together():
    site = Site()
    others = [(f"other {number}", 1) for number in range(10)]
    site.work(SOON, slow_with_keys(site, ("eu", 30), ("us", 30), *others))
    key = site.named("key")
    assert key is not None
    assert "one of 2 keys ('eu', 'us')" in key.sentence or "one of 2 keys ('us', 'eu')" in key.sentence


def test_a_long_or_strange_key_is_cut_and_escaped():
    site = Site()
    site.work(SOON, slow_with_keys(site, ("é\x1b[31m" + "x" * 10_000, 90)))
    key = site.named("key")
    assert key is not None
    assert "\x1b" not in key.sentence
    assert "'é\\x1b[31mxxx" in key.sentence
    assert len(key.sentence) < 250


def test_records_without_keys_have_no_leading_key():
    site = Site()
    site.work(SOON, slow_with_keys(site, (None, 90), ("us", 10)))
    assert site.named("partition") is not None
    assert site.named("key") is None


def test_many_keys_have_no_leading_one():
    site = Site()
    site.work(SOON, slow_with_keys(site, *((f"key {number}", 1) for number in range(100))))
    assert site.named("partition") is not None
    assert site.named("key") is None


def test_a_backlog_in_one_partition_makes_it_hot_although_nothing_arrives():
    site = Site()
    site.work(1)
    end = site.hide_records()
    for partition in (0, 1, 3):
        site.append(10, partition=partition)
    site.append(970, partition=2)
    site.work(SOON)
    named = site.named("partition")
    assert named is not None
    assert (named.subject, named.share) == ("in-2", 0.97)
    end()
    site.work(GONE)
    assert site.observer.latest.bottlenecks == []


class Schedule:
    """The files in which Linux says for how long a thread or a container has waited for a processor."""

    def __init__(self, folder: Path) -> None:
        self._thread, self._limit = folder / "schedstat", folder / "cpu.stat"
        self.wait = ProcessorWait(str(self._thread), str(self._limit))
        self.waited = self.stopped = 0.0
        self.write()

    def write(self) -> None:
        self._thread.write_text(f"5000000 {round(self.waited * 1e9)} 12\n")
        self._limit.write_text(f"usage_usec 77\nnr_throttled 3\nthrottled_usec {round(self.stopped * 1e6)}\n")


@pytest.mark.parametrize(
    ("limited", "said"),
    [
        (False, "the machine's CPU is busy with other work"),
        (True, "the container's CPU limit stops the worker for"),
    ],
)
def test_a_worker_that_waits_for_a_processor_is_told_from_a_slow_one(tmp_path, limited, said):
    schedule = Schedule(tmp_path)
    site = Site(processor=schedule.wait)
    site.commit_seconds = 3

    def starve() -> None:
        site.append()
        if limited:
            schedule.stopped += 2.5
        schedule.waited += 2.5
        schedule.write()

    site.work(SOON, starve)
    named = site.named("processor")
    assert named is not None
    assert named.sentence.startswith(said)
    assert named.share == pytest.approx(0.6, abs=0.15)
    site.commit_seconds = 0
    site.work(GONE)
    assert site.observer.latest.bottlenecks == []


def test_a_system_that_says_nothing_of_processors_names_none(tmp_path):
    site = Site(processor=ProcessorWait(str(tmp_path / "none"), str(tmp_path / "none")))
    site.commit_seconds = 3
    site.work(SOON, site.append)
    assert [item.cause.value for item in site.observer.latest.bottlenecks] == ["broker"]


def test_the_time_of_collections_is_measured_only_while_somebody_asks():
    before = len(gc.callbacks)
    garbage = GarbageTime()
    assert garbage.share(0.0) is None
    assert len(gc.callbacks) == before + 1
    kept = [[number] for number in range(100_000)]
    for _ in range(5):
        gc.collect()
    share = garbage.share(10.0)
    assert share is not None
    assert share > 0
    garbage.stop()
    garbage.stop()
    assert len(gc.callbacks) == before
    del kept


def test_a_partition_of_two_with_most_records_is_named():
    site = Site(partitions=2)
    site.commit_seconds = 3

    def each() -> None:
        site.append(90, partition=1)
        site.append(10, partition=0)

    site.work(SOON, each)
    named = site.named("partition")
    assert named is not None
    assert (named.subject, named.share) == ("in-1", 0.9)
