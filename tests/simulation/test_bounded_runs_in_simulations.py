"""Bounded runs in simulations: sound programs pass, and faults of the replay itself are found."""

from __future__ import annotations

from typing import Any

import pytest

from streams import App, Json, Text
from streams.errors import ConfigurationError
from streams.replay.bounded import publish
from streams.simulation import RangeSimulator
from streams.simulation.pool import Simulation, as_json, explain, simulate
from streams.simulation.simulator import Report
from tests.simulation.shop_apps import INPUT, SALES, copying, last, shop


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
