"""Simulation finds what disturbances break, and nothing where nothing is broken."""

from __future__ import annotations

from typing import Any

import pytest

from streams import App, Json, Text, Tumbling, key_value_store, seconds
from streams.simulate import LAST, NOT, Event, Report, Simulator, make_schedule

LINES = [(None, f"k{number % 5} {number}".encode(), 1_000 * number) for number in range(40)]


class Numbered:
    """Numbers the records of each key, as a processor with a store should."""

    def open(self, context):
        self.numbers = context.store("numbers")

    def process(self, record, context):
        number = (self.numbers.get(record.key) or 0) + 1
        self.numbers.put(record.key, number)
        record.value = f"{record.value} {number}"
        context.forward(record)


class Forgetful:
    """Numbers the records of each key in an attribute: what a crash or a rebalance forgets."""

    def __init__(self):
        self.numbers = {}

    def process(self, record, context):
        self.numbers[record.key] = self.numbers.get(record.key, 0) + 1
        record.value = f"{record.value} {self.numbers[record.key]}"
        context.forward(record)


def numbering(processor: Any, **options: Any) -> App:
    app = App("numbering")
    lines = app.stream("lines", value=Text())
    keyed = lines.key_by(lambda line: line.split()[0]).repartition("by-word", value=Text())
    keyed.process(processor, **options).to("numbered", value=Text())
    return app


def counting() -> App:
    app = App("counting")
    words = app.stream("lines", value=Text()).group_by(lambda line: line.split()[0], name="by-word")
    words.count("counts").to("counts")
    windows = words.window(Tumbling(seconds=10), grace=seconds(1), close_idle_after=seconds(5))
    results = windows.count("windows")
    results.final().to("final")
    results.updates().to("updates")
    return app


def last(simulator: Simulator, seeds: int, **options: Any) -> Report:
    *_, report = simulator.run(range(seeds), **options)
    return report


@pytest.mark.parametrize(
    "app",
    [counting(), numbering(Numbered, stores=[key_value_store("numbers")])],
    ids=["aggregates", "a processor with a store"],
)
def test_results_are_the_same_whatever_happens_to_the_workers(app):
    simulator = Simulator(app, {"lines": LINES})
    report = last(simulator, 150)
    assert report.differences == []
    assert report.schedules == 150
    assert len(report.disturbances) == 7
    assert report.records >= 150 * 40 / 2


def test_results_on_several_partitions_are_the_same_where_they_do_not_depend_on_their_order():
    app = App("counting")
    words = app.stream("lines", value=Text()).group_by(lambda line: line.split()[0], name="by-word")
    words.window(Tumbling(seconds=10), grace=seconds(100), close_idle_after=seconds(5)).count(
        "windows"
    ).final().to("final")
    report = last(Simulator(app, {"lines": LINES}, partitions=3), 60)
    assert report.differences == []


def test_state_that_is_not_in_a_store_is_found_and_the_schedule_made_small():
    (difference,) = last(Simulator(numbering(Forgetful), {"lines": LINES}), 200).differences
    assert difference.topic == "numbered"
    assert len(difference.schedule) <= 2
    expected, got = difference.expected[difference.first], difference.got[difference.first]
    assert expected is not None
    assert got is not None
    assert expected.split()[:2] == got.split()[:2]
    assert expected != got


def test_a_program_that_fails_under_some_schedule_is_a_difference_too():
    class Fragile(Forgetful):
        opened = 0

        def open(self, _context):
            Fragile.opened += 1
            if Fragile.opened > 2:
                raise OSError("no more than two at a time")

    report = last(Simulator(numbering(Fragile), {"lines": LINES}), 200)
    assert "no more than two at a time" in (report.differences[0].error or "")


def test_what_depends_on_commits_is_not_compared():
    app = counting()
    app.stream("counts", key=Text(), value=Json(int)).group_by_key().count("changes").to("changes")
    topics = Simulator(app, {"lines": LINES}).topics
    assert topics["counts"] == LAST
    assert topics["updates"] == LAST


def test_a_table_made_from_updates_is_not_compared():
    app = App("counting")
    counts = app.stream("lines", value=Text()).group_by(lambda line: line, name="lines").count("counts")
    counts.to_stream().group_by_key().count("changes").to("changes")
    assert Simulator(app, {"lines": LINES}).topics["changes"] == NOT


def test_a_seed_always_gives_the_same_schedule():
    assert make_schedule(7, 500) == make_schedule(7, 500)
    assert make_schedule(7, 500) != make_schedule(8, 500)
    assert str(Event(3, "crash")) == "crash at call 3"
