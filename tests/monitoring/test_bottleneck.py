"""Which cause is named, by what the time was spent on."""

from __future__ import annotations

from typing import Any

import pytest

from streams.monitoring.bottleneck import Bottlenecks, Cause, TimeSpent, hot_partition, of_waiting
from streams.records import TopicPartition


class Course:
    """A worker that is observed each second; what it spends in each second is given by part."""

    def __init__(self) -> None:
        self.bottlenecks = Bottlenecks()
        self.now = 0.0
        self.totals: dict[str, float] = {}

    def run(self, seconds: int, **each: float) -> Course:
        """Parts: names of steps, ``sink`` for a sink, and ``decode``, ``stores``, ``broker``."""
        for _ in range(seconds):
            self.bottlenecks.observe(self._spent())
            self.now += 1
            for part, share in each.items():
                self.totals[part] = self.totals.get(part, 0.0) + share
        self.bottlenecks.observe(self._spent())
        return self

    def _spent(self) -> TimeSpent:
        decode, stores, broker = (self.totals.get(name, 0.0) for name in ("decode", "stores", "broker"))
        return TimeSpent(
            self.now,
            steps={name: self.totals.get(name, 0.0) for name in ("parse", "enrich")},
            sinks={"sink": self.totals.get("sink", 0.0)},
            decode=decode,
            stores=stores,
            broker=broker,
        )

    @property
    def named(self) -> Any:
        found = self.bottlenecks.of_time()
        return (found[0].cause, found[0].subject) if found else None


def test_the_step_that_takes_most_of_the_time_is_named_with_its_share():
    course = Course().run(30, parse=0.1, enrich=0.81, decode=0.05)
    (found,) = course.bottlenecks.of_time()
    assert (found.cause, found.subject) == (Cause.STEP, "enrich")
    assert found.share == pytest.approx(0.81)
    assert found.sentence == "step 'enrich' takes 81% of the worker's time"


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("decode", (Cause.DECODING, "decode")),
        ("stores", (Cause.STORES, "stores")),
        ("broker", (Cause.BROKER, "broker")),
        ("sink", (Cause.SINK, "sink")),
        ("parse", (Cause.STEP, "parse")),
    ],
)
def test_whatever_takes_most_of_the_time_is_named(part, named):
    assert Course().run(30, **{"enrich": 0.2, part: 0.7}).named == named


def test_a_worker_that_has_time_left_has_no_bottleneck():
    assert Course().run(30, enrich=0.5, decode=0.1).named is None


def test_a_cause_is_named_soon_and_forgotten_soon():
    course = Course().run(300, enrich=0.1)
    assert course.run(20, enrich=0.95).named == (Cause.STEP, "enrich")
    assert course.run(20, enrich=0.1).named is None


def test_a_share_that_varies_around_the_bound_does_not_come_and_go():
    course = Course().run(30, broker=0.75)
    for _ in range(5):
        assert course.run(10, broker=0.6).named == (Cause.BROKER, "broker")
        assert course.run(10, broker=0.75).named == (Cause.BROKER, "broker")
    assert course.run(20, broker=0.5).named is None
    assert course.run(20, broker=0.65).named is None


def test_another_cause_takes_the_place_of_the_first():
    course = Course().run(60, enrich=0.9)
    assert course.run(20, broker=0.9).named == (Cause.BROKER, "broker")


def test_time_spread_over_many_steps_names_none():
    assert Course().run(30, parse=0.2, enrich=0.2, decode=0.2, stores=0.2, broker=0.2).named is None


def places(*counts: int) -> dict[TopicPartition, int]:
    return {TopicPartition("in", number): count for number, count in enumerate(counts)}


def test_a_partition_with_most_of_the_records_is_named():
    (found,) = hot_partition(places(900, 30, 40, 30))
    assert (found.subject, found.share) == ("in-0", 0.9)
    assert "90%" in found.sentence
    assert "more workers would not help" in found.sentence


@pytest.mark.parametrize(
    "arrived", [(100, 100, 100, 100), (100, 90), (700, 300), (900,), (0, 0, 0), (40, 30, 20, 10), ()]
)
def test_partitions_that_share_the_records_are_not_named(arrived):
    assert hot_partition(places(*arrived)) == []


def test_one_of_two_partitions_must_have_far_more_than_half():
    (found,) = hot_partition(places(900, 100))
    assert (found.subject, found.share) == ("in-0", 0.9)


def test_what_idle_workers_wait_for_is_named():
    place, other = TopicPartition("in", 0), TopicPartition("other", 0)
    found = of_waiting(
        open_transactions={place: 7},
        held_back={place: [other]},
        problems={"sink 'orders'": "no connection"},
        retrying=("charge", "TimeoutError: 5 s"),
    )
    assert [item.cause for item in found] == [
        Cause.CONNECTOR,
        Cause.STEP,
        Cause.TRANSACTION,
        Cause.OTHER_INPUT,
    ]
    assert "offset 7 of in-0" in found[2].sentence
    assert "other-0" in found[3].sentence


def test_of_many_partitions_with_the_same_cause_a_few_are_named():
    hidden = {TopicPartition("in", number): 7 for number in range(200)}
    found = of_waiting(open_transactions=hidden, held_back={}, problems={}, retrying=None)
    assert [item.subject for item in found] == ["in-0", "in-1", "in-2"]
    assert found[2].sentence.endswith("(and so in 197 more partitions)")
    assert "more partitions" not in found[0].sentence
