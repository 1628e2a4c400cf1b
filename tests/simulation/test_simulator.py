"""The simulation finds errors that faults reveal, and no others."""

from __future__ import annotations

import os
import random
import time
from itertools import count
from typing import TYPE_CHECKING, Any, get_args

import pytest

from streams import App, JoinWindow, Json, Text, Tumbling, dead_letter, key_value_store, seconds
from streams.broker.memory import MemoryProducer
from streams.durations import milliseconds
from streams.errors import ConfigurationError
from streams.runtime.commit import AtLeastOnce, ExactlyOnce
from streams.runtime.task_stores import TaskStores
from streams.simulation.comparisons import ANY, IGNORED, LAST, NOT, TWICE
from streams.simulation.pool import Simulation, as_json, explain, simulate
from streams.simulation.run import InputRecord
from streams.simulation.schedule import PACES, Event, Fault, Pace, Schedule, make_schedule
from streams.simulation.simulator import Difference, Report, Simulator
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Mapping

LINES = [InputRecord(None, f"k{number % 5} {number}".encode(), 1_000 * number) for number in range(40)]
USUAL = set(get_args(Fault)) - {"duplicate"}


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
    """Numbers the records of each key in an attribute, which a crash or a rebalance loses."""

    def __init__(self):
        self.numbers = {}

    def process(self, record, context):
        self.numbers[record.key] = self.numbers.get(record.key, 0) + 1
        record.value = f"{record.value} {self.numbers[record.key]}"
        context.forward(record)


class Distinct:
    """Forwards each value once."""

    def open(self, context):
        self.known = context.store("known")

    def process(self, record, context):
        if self.known.get(record.value) is None:
            self.known.put(record.value, 1)
            context.forward(record)


def numbering(processor: Any, **options: Any) -> App:
    app = App("numbering")
    lines = app.stream("lines", value=Text())
    keyed = lines.key_by(lambda line: line.split()[0]).repartition("by-word", value=Text())
    keyed.process(processor, **options).to("numbered", value=Text())
    return app


def stored() -> App:
    return numbering(Numbered, stores=[key_value_store("numbers")])


def copying(**settings: Any) -> App:
    app = App("copying", **settings)
    app.stream("lines", value=Text()).map(str.upper).to("copies", value=Text())
    return app


def counting() -> App:
    app = App("counting")
    words = app.stream("lines", value=Text()).group_by(lambda line: line.split()[0], store="by-word")
    words.count("counts").to("counts")
    windows = words.window(Tumbling(seconds=10), grace=seconds(1), close_idle_after=seconds(30))
    results = windows.count("windows")
    results.final().to("final")
    results.updates().to("updates")
    return app


def last(simulator: Simulator, seeds: int, **options: Any) -> Report:
    *_, report = simulator.run(range(seeds), **options)
    return report


def found(app: App, seeds: int = 100, inputs: Mapping[str, Any] | None = None) -> Difference:
    (difference,) = last(Simulator(app, inputs or {"lines": LINES}), seeds).differences
    return difference


def placing() -> App:
    """Some records name a partition that the topic does not have."""
    app = App("placing", dead_letter_limit=1.0)
    lines = app.stream("lines", value=Text()).key_by(lambda line: line.split()[0])
    numbered = lines.repartition("by-word", value=Text()).process(
        Numbered, stores=[key_value_store("numbers")], keeps_key=True
    )
    words = numbered.flat_map_records(
        lambda record: [record.with_(value=word) for word in str(record.value).split()], keeps_key=True
    )
    words.to(
        "placed",
        value=Text(),
        partition=lambda record: len(record.value) - 1,
        headers=lambda record: [("key", record.key.encode())],
        timestamp=lambda record: record.timestamp + 1,
        on_error=dead_letter,
    )
    return app


@pytest.mark.parametrize(
    "app",
    [counting(), stored(), placing()],
    ids=["aggregates", "a processor with a store", "partitions that are chosen"],
)
def test_results_are_the_same_whatever_happens_to_the_workers(app):
    report = last(Simulator(app, {"lines": LINES}), 80)
    assert report.differences == []
    assert report.schedules == 80
    assert set(report.faults) == USUAL
    assert report.records >= 80 * 40 / 2
    assert report.again > 0
    # At every step of their work.
    assert set(report.points) >= {
        *("poll", "poll.after", "process", "init_transactions", "begin", "produce"),
        *("send_offsets", "commit.before", "commit.after", "store.before", "store.after"),
    }


def test_results_on_several_partitions_are_the_same_where_they_do_not_depend_on_their_order():
    app = App("counting")
    words = app.stream("lines", value=Text()).group_by(lambda line: line.split()[0], store="by-word")
    words.window(Tumbling(seconds=10), grace=seconds(100), close_idle_after=seconds(30)).count(
        "windows"
    ).final().to("final")
    report = last(Simulator(app, {"lines": LINES}, partitions=3), 25)
    assert report.differences == []


def test_joins_of_disordered_streams_are_the_same_whatever_happens_to_the_workers():
    app = App("joining")
    lines = app.stream("lines", key=Text(), value=Json())
    left, right = lines.filter(lambda value: value % 2), lines.filter(lambda value: not value % 2)
    window = JoinWindow(before=milliseconds(5), after=milliseconds(20))
    joined = left.outer_join(
        right, lambda one, two: [one, two], window=window, store="ab", value=Json(), other_value=Json()
    )
    joined.to("joined")
    joined.late().to("late")
    generator = random.Random(7)
    records = [
        InputRecord(
            generator.choice([b"a", b"b", b"c"]),
            b"%d" % number,
            1_000 + 5 * number - generator.randint(0, 40),
        )
        for number in range(80)
    ]
    simulator = Simulator(app, {"lines": records})
    assert simulator.topics["joined"] == ANY
    report = last(simulator, 40)
    assert report.differences == []
    assert report.again > 0


def test_state_outside_of_stores_is_found_and_the_schedule_shrunk():
    difference = found(numbering(Forgetful))
    assert difference.topic == "numbered"
    assert 1 <= len(difference.schedule.events) == len(difference.story) <= 2
    expected, got = difference.expected[difference.first].value, difference.got[difference.first].value
    assert expected is not None
    assert got is not None
    assert expected.split()[:2] == got.split()[:2]
    assert expected != got
    assert difference.view[1].startswith(repr(expected.decode()))


def test_variables_that_outlive_a_run_are_found_without_a_fault():
    seen: list[str] = []

    def number(line: str) -> str:
        seen.append(line)
        return f"{line} {len(seen)}"

    app = App("remembering")
    app.stream("lines", value=Text()).map(number).to("numbered", value=Text())
    difference = found(app)
    assert difference.schedule == Schedule()
    assert "no fault was injected" in "\n".join(explain(difference))


@pytest.mark.parametrize("source", [random.random, time.time_ns], ids=["random numbers", "the time"])
def test_results_that_depend_on_something_besides_the_input_are_found(source):
    app = App("drawing")
    app.stream("lines", value=Text()).map(lambda line: f"{line} {source()}").to("drawn", value=Text())
    difference = found(app)
    assert difference.schedule == Schedule()
    assert difference.topic == "drawn"


def test_a_commit_without_its_offsets_is_found(monkeypatch):
    commit = ExactlyOnce.commit
    monkeypatch.setattr(ExactlyOnce, "commit", lambda self, _, *others: commit(self, {}, *others))
    difference = found(copying(), 20)
    assert len(difference.schedule.events) == 1
    assert len(difference.got) > len(difference.expected)


def test_state_that_is_kept_before_the_transaction_commits_is_found(monkeypatch):
    take_changelog = TaskStores.take_changelog

    def too_early(self):
        outputs = take_changelog(self)
        self.committed({})
        return outputs

    monkeypatch.setattr(TaskStores, "take_changelog", too_early)
    difference = found(stored(), 50)
    assert len(difference.schedule.events) <= 2


def test_an_abort_that_does_not_reach_the_broker_is_found(monkeypatch):
    monkeypatch.setattr(MemoryProducer, "abort", lambda self, _: self.commit(1.0))
    assert len(found(copying(), 50).schedule.events) <= 2


def test_a_program_that_fails_under_some_schedule_is_a_difference_too():
    class Fragile(Forgetful):
        opened = 0

        def open(self, _context):
            Fragile.opened += 1
            if Fragile.opened > 2:
                raise OSError("no more than two at a time")

    assert "no more than two at a time" in (found(numbering(Fragile)).error or "")


def test_a_restart_lets_no_more_windows_close_as_nothing_comes():
    app = App("closing")
    grouped = app.stream("in", key=Text(), value=Text()).group_by_key()
    windows = grouped.window(Tumbling(seconds=10), close_idle_after=seconds(30)).count("counts")
    windows.final().to("final")
    driver = TopologyDriver(app)
    driver.send("in", "on time", key="k", timestamp=5_000)
    for _ in range(3):
        driver.advance(milliseconds(100_000))
        driver.restart()
        driver.send("in", "too late", key="k", timestamp=4_000)
    driver.send("in", "on time", key="k", timestamp=16_000)
    driver.advance(milliseconds(100_000))
    assert [window.value.start for window in driver.read("final")] == [0, 10_000]


def test_at_least_once_may_repeat_records_and_must_not_lose_or_change_any(monkeypatch, unaccounted):
    simulator = Simulator(copying(guarantee="at_least_once"), {"lines": LINES})
    report = last(simulator, 60)
    assert report.differences == []
    assert report.records > 60 * len(LINES)
    monkeypatch.setattr(AtLeastOnce, "write", lambda *_: None)
    assert unaccounted.of_workers == []
    assert last(simulator, 60).differences[0].topic == "copies"
    # The ledger sees it, too.
    assert {fault.sentence for fault in unaccounted.of_workers} == {"committed and not acknowledged"}
    unaccounted.clear()


def test_at_least_once_does_not_compare_counts_downstream_of_a_repartition_topic():
    app = App("counting", guarantee="at_least_once")
    words = app.stream("lines", value=Text())
    words.to("copies", value=Text())
    words.group_by(lambda line: line.split()[0], store="by-word").count("counts").to("counts")
    topics = Simulator(app, {"lines": LINES}).topics
    assert topics["counts"] == TWICE
    assert topics["copies"].startswith("every record")


def test_input_that_comes_twice_is_a_fault_that_has_to_be_requested():
    app = App("distinct")
    lines = app.stream("lines", value=Text()).key_by(lambda _: "all")
    lines.process(Distinct, stores=[key_value_store("known", key=Text())]).to("once", value=Text())
    assert last(Simulator(app, {"lines": LINES}, kinds=["duplicate", "crash"]), 30).differences == []
    report = last(Simulator(copying(), {"lines": LINES}, kinds=["duplicate"]), 30)
    assert [event.fault for event in report.differences[0].schedule.events] == ["duplicate"]


def test_headers_and_event_times_are_compared_too():
    app = App("copying")
    app.stream("lines", value=Text()).map(str, timestamp=lambda _: time.time_ns() // 1000).to(
        "copies", value=Text()
    )
    difference = found(app, inputs={"lines": [(b"k", b"one", 5, [("a", b"b")])]})
    assert difference.expected[0].headers == (("a", b"b"),)
    assert difference.expected[0].timestamp != difference.got[0].timestamp


def test_what_depends_on_commits_is_not_compared():
    app = counting()
    app.stream("counts", key=Text(), value=Json(int)).group_by_key().count("changes").to("changes")
    topics = Simulator(app, {"lines": LINES}).topics
    assert topics["counts"] == LAST
    assert topics["updates"] == LAST
    assert topics["changes"] == NOT


def test_a_table_made_from_updates_is_not_compared():
    app = App("counting")
    counts = app.stream("lines", value=Text()).group_by(lambda line: line, store="lines").count("counts")
    counts.to_stream().group_by_key().count("changes").to("changes")
    assert Simulator(app, {"lines": LINES}).topics["changes"] == NOT


def test_dead_letters_are_compared_and_what_is_named_is_not():
    app = App("halving")
    numbers = app.stream("lines", value=Text()).map(
        lambda line: int(line[-1]) // (int(line[-1]) % 2), on_error=dead_letter
    )
    numbers.to("halves")
    simulator = Simulator(app, {"lines": LINES}, ignore=["halves"])
    assert simulator.topics == {"halves": IGNORED, "halving-dead-letters": ANY}
    assert last(simulator, 20).differences == []


def test_dead_letters_of_functions_are_compared_where_those_of_results_are_not():
    app, runs = App("counting"), count(1)

    def work(line: str) -> str:
        # Another record fails in each run.
        return line if next(runs) % 50 else str(int(line))

    counts = app.stream("lines", value=Text()).map(work).group_by(lambda line: line, value=Text()).count("n")
    counts.map(lambda n: 1 // (n - 1)).to("out")
    simulator = Simulator(app, {"lines": LINES}, ignore=["out", "counting-n-changelog"])
    assert simulator.topics["counting-dead-letters"] == ANY
    (difference,) = last(simulator, 100).differences
    assert difference.topic == "counting-dead-letters"


def test_an_app_of_which_nothing_can_be_compared_is_refused():
    with pytest.raises(ConfigurationError, match="no topic that the app writes"):
        Simulator(copying(), {"lines": LINES}, ignore=["copies", "copying-dead-letters"])


def test_a_seed_always_gives_the_same_schedule():
    def counts(_: Pace) -> dict[Any, int]:
        return {"poll": 30, "begin": 5}

    assert make_schedule(7, counts, ["crash", "abort"]) == make_schedule(7, counts, ["crash", "abort"])
    assert make_schedule(7, counts, ["crash"]) != make_schedule(8, counts, ["crash"])
    assert {event.point for seed in range(50) for event in make_schedule(seed, counts, ["abort"]).events} == {
        "begin"
    }
    assert {make_schedule(seed, counts, ["crash"]).pace for seed in range(200)} == set(PACES)
    assert str(Event("begin", 3, "crash")) == "crash beginning a transaction, no. 3"


def test_a_seed_always_gives_the_same_run():
    def run(seed: int) -> dict[str, Any]:
        *_, report = Simulator(counting(), {"lines": LINES}).run([seed])
        return as_json(report)

    assert [run(seed) for seed in range(4)] == [run(seed) for seed in range(4)]


def test_processes_give_what_one_gives_and_leave_the_environment_as_it_was():
    before = dict(os.environ)
    simulation = Simulation(load=stored, inputs={"lines": LINES}, partitions=1, most=6)
    reports = []
    for processes in (1, 2):
        total = Report()
        for report in simulate(simulation, range(20), processes):
            total.add(report)
        reports.append(as_json(total))
    assert reports[0] == reports[1]
    assert reports[0]["schedules"] == 20
    assert dict(os.environ) == before
