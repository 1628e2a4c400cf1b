"""Resets and bounded runs in simulations: sound programs pass, and faults of the replay itself are found."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json, Text, Tumbling
from streams.broker.memory.admin import MemoryAdmin
from streams.errors import ConfigurationError
from streams.replay.bounded import publish
from streams.replay.reset import Reset
from streams.runtime import commit_numbers
from streams.simulation import RangeSimulator, Simulator
from streams.simulation.pool import Simulation, as_json, explain, simulate
from streams.simulation.resets import follows, repeats
from streams.simulation.run import InputRecord
from streams.simulation.schedule import make_schedule
from streams.simulation.simulator import Report

if TYPE_CHECKING:
    from collections.abc import Callable

SALES = [InputRecord(b"k%d" % (n % 4), b"%d" % n, 1_000 * n) for n in range(40)]
NAMES = [InputRecord(b"k%d" % (n % 4), b"name%d" % n, 9_000 * n) for n in range(8)]
INPUT = {"sales": SALES, "names": NAMES}


def shop(**settings: Any) -> App:
    app = App("shop", **settings)
    names = app.table("names", key=Text(), value=Text(), store="names")
    sales = app.stream("sales", key=Text(), value=Text())
    sales.join(names, lambda sale, name: f"{name} {sale}").to("named", value=Text())
    by_digit = sales.group_by(lambda sale: sale[-1], store="by-digit")
    by_digit.count("counts").to("counts")
    by_digit.window(Tumbling(seconds=10)).count("windows").final().to("final")
    return app


def copying(**settings: Any) -> App:
    app = App("copying", **settings)
    app.stream("sales", value=Text()).map(str.upper).to("copies", value=Text())
    return app


def derived() -> App:
    app = App("derived")
    names = app.table("names", key=Text(), value=Text(), store="names")
    names.group_by(lambda name: name[-1]).count("by-digit").to("by-digit")
    return app


def last(simulator: Simulator, seeds: int) -> Report:
    *_, report = simulator.run(range(seeds))
    return report


@pytest.mark.parametrize(
    ("app", "inputs"),
    [(shop, INPUT), (copying, {"sales": SALES}), (derived, {"names": NAMES})],
    ids=["a table, counts and windows", "no state", "state of all changes of a table"],
)
def test_after_a_reset_the_results_are_those_from_the_position_on(
    app: Callable[[], App], inputs: dict[str, Any]
):
    report = last(Simulator(app(), inputs, reset=True), 30)
    assert [line for difference in report.differences for line in explain(difference)] == []
    assert report.faults["reset"] == report.schedules == 30
    assert report.faults.total() > 60


def test_results_at_least_once_may_be_repeated_after_a_reset():
    report = last(Simulator(copying(guarantee="at_least_once"), {"sales": SALES}, reset=True), 40)
    assert report.differences == []
    assert report.faults["reset"] == 40


def test_every_kind_of_reset_happens():
    seen: Counter[Any] = Counter()
    for seed in range(60):
        reset = make_schedule(seed, lambda _: {"poll": 30, "begin": 5}, ["crash"], positions=5).reset
        assert reset is not None
        seen.update([("position", reset.position), ("killed", reset.killed), ("away", reset.away)])
        seen["interrupted", reset.interrupted] += 1
    assert {name for name in seen if name[0] == "position"} == {("position", number) for number in range(5)}
    assert {("killed", True), ("killed", False), ("away", True), ("away", False)} <= set(seen)
    assert {("interrupted", number) for number in range(4)} <= set(seen)


def test_state_from_before_a_reset_that_is_still_used_is_found(monkeypatch: pytest.MonkeyPatch):
    """As if workers did not know the epoch: their disks look as if they belonged to the offsets."""
    monkeypatch.setattr(commit_numbers, "epoch", lambda _: 0)
    report = last(Simulator(shop(), INPUT, reset=True), 100)
    (difference,) = report.differences
    assert difference.schedule.reset is not None
    assert "reset of the group" in "\n".join(explain(difference))


def test_changelogs_that_are_not_emptied_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Reset, "_empty_changelog", lambda *_: None)
    (difference,) = last(Simulator(shop(), INPUT, reset=True), 100).differences
    assert difference.schedule.reset is not None


def test_repartition_topics_that_are_not_emptied_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MemoryAdmin, "delete_records", lambda *_: None)
    keep = vars(Reset)["_empty_repartitions"]

    def beginning(self: Reset) -> Any:
        return dict.fromkeys(keep(self), 0)

    monkeypatch.setattr(Reset, "_empty_repartitions", beginning)
    (difference,) = last(Simulator(shop(), INPUT, reset=True), 100).differences
    assert difference.schedule.reset is not None


@pytest.mark.parametrize(
    ("got", "ordered", "judged"),
    [
        ("abcabc", True, True),
        ("aabc", True, True),
        ("abc", True, True),
        ("bcabc", True, False),
        ("ab", True, False),
        ("abcab", True, False),
        ("cabca", False, True),
        ("aabca", False, False),
        ("ab", False, False),
    ],
)
def test_results_are_some_first_ones_and_then_all(got: str, ordered: bool, judged: bool):
    assert follows("abc", "abc", got, ordered=ordered) is judged
    assert repeats("abc", "abc", got) is ({*"abc"} == {*got})


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_bounded_run_that_is_killed_anywhere_has_the_same_bytes(partitions: int):
    simulator = RangeSimulator(shop(), INPUT, begin=12_000, end=35_000, partitions=partitions)
    report = last(simulator, 30)
    assert [line for difference in report.differences for line in explain(difference)] == []
    assert set(report.faults) == {"crash"}
    assert report.faults["crash"] > 60
    assert set(report.points) == {"poll", "poll.after", "process", "produce", "flush"}
    assert report.again > 0
    assert report.records > 0


def test_the_range_of_a_bounded_run_decides_on_its_results():
    def results(**bounds: Any) -> int:
        simulator = RangeSimulator(copying(), {"sales": SALES}, **bounds)
        return sum(map(len, simulator.expected.values()))

    assert results() == 40
    assert results(begin=12_000) == 28
    assert results(begin=12_000, end="1970-01-01T00:00:35Z") == 23


def test_what_depends_on_the_attempt_is_found_in_a_bounded_run():
    calls = iter(range(10**9))
    app = App("calls")
    app.stream("sales", value=Text()).map(lambda sale: f"{sale} {next(calls)}").to("out", value=Text())
    (difference,) = last(RangeSimulator(app, {"sales": SALES}), 20).differences
    assert difference.topic == "out"
    assert "topic out, key of partition 0" in "\n".join(explain(difference))


def test_results_of_a_killed_run_that_are_not_replaced_are_found(monkeypatch: pytest.MonkeyPatch):
    create = publish.create_results
    monkeypatch.setattr("streams.replay.bounded.run.delete_results", lambda *_: [])
    monkeypatch.setattr(
        "streams.replay.bounded.run.create_results",
        lambda admin, topics, run: {
            name: admin.topic_ids([name])[name]
            for name in [publish.result_topic(topic, run) for topic in topics]
            if create(admin, topics, run) or True
        },
    )
    (difference,) = last(RangeSimulator(copying(), {"sales": SALES}), 60).differences
    assert difference.topic == "copies"
    assert len(difference.got) > len(difference.expected)


def test_other_faults_of_a_bounded_run_are_refused():
    with pytest.raises(ConfigurationError, match="'evict' cannot happen to a bounded run"):
        RangeSimulator(copying(), {"sales": SALES}, kinds=["crash", "evict"])


def test_a_seed_gives_the_same_run_in_every_process():
    choices: list[dict[str, Any]] = [{"reset": True}, {"begin": "12000"}]
    for more in choices:
        simulation = Simulation(load=copying, inputs={"sales": SALES}, partitions=1, most=6, **more)
        reports = []
        for processes in (1, 2):
            total = Report()
            for report in simulate(simulation, range(20), processes):
                total.add(report)
            reports.append(as_json(total))
        assert reports[0] == reports[1]
        assert reports[0]["schedules"] == 20


def test_sinks_are_left_out_of_a_bounded_run():
    class Nowhere:
        kind = "nowhere"
        target = "nothing"
        max_rows = 10

        def check(self, context: Any) -> None:
            raise AssertionError(context)

        def open(self, context: Any) -> Any:
            raise AssertionError(context)

    app = copying()
    app.stream("names", key=Text(), value=Json()).sink(Nowhere(), store="nowhere")
    assert last(RangeSimulator(app, {"sales": SALES}), 5).differences == []
