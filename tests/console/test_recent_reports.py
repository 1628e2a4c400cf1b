"""What workers did in the last seconds, by the reports that the console has seen."""

from __future__ import annotations

import pytest

from streams.console.recent_reports import RecentReports
from tests.support.worker_reports import rebalance, report, step, task

BEGUN = 1_000_000


def test_rates_are_those_of_the_last_seconds_and_not_of_all_time():
    recent = RecentReports()
    for second in range(61):
        # Nothing for half a minute, then 10 records a second, which take half of the time.
        busy = max(0, second - 30)
        at = BEGUN + second * 1000
        recent.add(
            [
                report(
                    "a",
                    at=at,
                    steps=[step("enrich", 10 * busy, 0.5 * busy, dead_letters=busy // 10)],
                    busy_seconds={"poll": 1.0 * second, "process": 0.6 * busy, "commit": 0.1 * busy},
                )
            ],
            at,
        )
    rates = recent.rates()["a"]
    assert rates.seconds == 20
    enrich = rates.steps["enrich"]
    assert enrich.records == pytest.approx(10)
    assert enrich.dead_letters == 2
    assert enrich.share == pytest.approx(0.5)
    assert rates.stages == {"process": pytest.approx(0.6), "commit": pytest.approx(0.1)}
    assert rates.busy == pytest.approx(0.7)


def test_nothing_is_known_before_ten_seconds():
    recent = RecentReports()
    for second in (0, 5, 9):
        recent.add([report("a", at=BEGUN + second * 1000)], BEGUN + second * 1000)
        assert recent.rates() == {}
    recent.add([report("a", at=BEGUN + 10_000)], BEGUN + 10_000)
    assert recent.rates().keys() == {"a"}


def test_a_worker_that_was_started_again_is_measured_anew():
    recent = RecentReports()
    for second in (0, 20):
        recent.add([report("a", at=BEGUN + second * 1000, steps=[step("s", 500, 5.0)])], BEGUN)
    recent.add([report("a", at=BEGUN + 21_000, started=BEGUN + 20_500, steps=[step("s", 3, 0.1)])], BEGUN)
    assert recent.rates() == {}


def test_counts_that_fall_are_no_negative_rate():
    # What a task that moves away has counted may be missing for a moment.
    recent = RecentReports()
    recent.add([report("a", at=BEGUN, steps=[step("s", 500, 5.0)])], BEGUN)
    recent.add([report("a", at=BEGUN + 12_000, steps=[step("s", 450, 4.0)])], BEGUN)
    assert recent.rates()["a"].steps["s"] == (0.0, 0.0, 0)


def test_waiting_for_the_system_of_a_sink_is_its_time():
    recent = RecentReports()
    for second, waited in ((0, 2.0), (10, 10.0)):
        recent.add(
            [
                report(
                    "a",
                    at=BEGUN + second * 1000,
                    steps=[step("table", 0, second / 10)],
                    sink_seconds={"table": waited},
                )
            ],
            BEGUN,
        )
    assert recent.rates()["a"].steps["table"].share == pytest.approx(0.9)


def test_restores_have_a_rate():
    recent = RecentReports()
    for second, done in ((0, 1_000), (10, 6_000)):
        tasks = [task("0_1", restored=done, to_restore=9_000), task("0_2")]
        recent.add([report("a", at=BEGUN + second * 1000, tasks=tasks)], BEGUN)
    assert recent.rates()["a"].restoring == {"0_1": 500.0}


def test_workers_that_are_gone_have_no_rates_but_their_rebalances_stay():
    recent = RecentReports()
    mine = rebalance(BEGUN, "lost", "poll deadline", "orders-1")
    for second in (0, 10):
        now = BEGUN + second * 1000
        recent.add(
            [report("a", at=now, rebalances=[mine]), report("b", at=now)],
            now,
        )
    assert recent.rates().keys() == {"a", "b"}
    for second in (30, 80):
        now = BEGUN + second * 1000
        recent.add(
            [report("b", at=now, rebalances=[rebalance(now, "assigned", "members changed", "orders-1")])], now
        )
    assert recent.rates().keys() == {"b"}
    assert [(item.worker, item.change.time) for item in recent.rebalances] == [
        ("b", BEGUN + 80_000),
        ("b", BEGUN + 30_000),
        ("a", BEGUN),
    ]
