"""Schedules in the driver: instants, missed ones, overlaps, restarts, and what is recorded of each."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from streams import App, TopologyError, days, hours, minutes, seconds
from streams.errors import ConfigurationError
from streams.jobs.current import current_job
from streams.jobs.retry import Retry
from streams.jobs.schedule_rules import Cron, Every
from streams.testing import TopologyDriver

NOON = 1_800_000_000_000
"""A Friday, 2027-01-15 08:00 UTC, in milliseconds since the epoch."""


def at(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)


def shown(instant: int) -> str:
    return f"{datetime.fromtimestamp(instant / 1000, UTC):%d %H:%M}"


class Work:
    """An app with a schedule, what its jobs have done, and a driver that begins at a time."""

    driver: TopologyDriver

    def __init__(self) -> None:
        self.app = App("work")
        self.done: list[object] = []
        """The instants of the jobs that ran, each with the time of the clock if that was another."""

    def note(self) -> None:
        instant = current_job().scheduled
        late = self.driver.clock - instant
        self.done.append(shown(instant) + (f" +{late // 60_000}" if late else ""))

    def begin(self, clock: int = NOON) -> None:
        self.driver = TopologyDriver(self.app, clock=clock)
        self.driver.advance(seconds(0))

    def down(self, duration) -> None:
        """Let time pass while no worker runs."""
        self.driver.restart()
        self.driver.clock += duration // minutes(1) * 60_000
        self.driver.advance(seconds(0))

    def occurrences(self, schedule: str = "tick") -> list[tuple[str, str]]:
        return [
            (shown(record.value.instant), record.value.decision.value)
            for record in self.driver.read("work-job-occurrences")
            if record.key == schedule
        ]


def ticking(rule, **options) -> Work:
    work = Work()
    work.app.job(name="tick", schedule=rule, **options)(work.note)
    return work


@pytest.mark.parametrize(
    ("rule", "begin", "length", "expected"),
    [
        (
            Cron("30 2 * * *", "Europe/Berlin"),
            "2027-03-27 00:00",
            days(3),
            ["27 01:30", "28 01:00", "29 00:30"],
        ),
        (Cron("30 2 * * *", "Europe/Berlin"), "2027-10-30 12:00", days(2), ["31 00:30", "01 01:30"]),
        (Cron("0,30 2 * * *", "Europe/Berlin"), "2027-03-27 12:00", days(1), ["28 01:00"]),
        (Cron("0,30 2 * * *", "Europe/Berlin"), "2027-10-30 12:00", days(1), ["31 00:00", "31 00:30"]),
        (Cron("*/30 2 * * *", "Europe/Berlin"), "2027-03-27 12:00", days(1), []),
        (
            Cron("*/30 2 * * *", "Europe/Berlin"),
            "2027-10-30 12:00",
            days(1),
            ["31 00:00", "31 00:30", "31 01:00", "31 01:30"],
        ),
        (Cron("0 9 * * *", "America/New_York"), "2027-03-13 00:00", days(2), ["13 14:00", "14 13:00"]),
        (Cron("@daily"), "2027-01-01 06:00", days(2), ["02 00:00", "03 00:00"]),
        (Every(hours(10)), "2027-01-01 00:00", days(1), ["01 04:00", "01 14:00", "02 00:00"]),
    ],
)
def test_jobs_are_released_at_the_instants_of_the_rule(rule, begin, length, expected):
    work = ticking(rule)
    work.begin(at(begin))
    work.driver.advance(length)
    assert work.done == expected
    assert work.occurrences() == [(instant, "released") for instant in expected]


@pytest.mark.parametrize(("day", "count"), [("2027-03-27 23:00", 23), ("2027-10-30 22:00", 25)])
def test_an_hourly_schedule_has_as_many_jobs_as_the_local_day_has_hours(day, count):
    work = ticking(Cron("30 * * * *", zone="Europe/Berlin"))
    work.begin(at(day))
    work.driver.advance(hours(count))
    assert len(set(work.done)) == len(work.done) == count


def test_a_new_schedule_begins_after_now_and_continues_after_restarts() -> None:
    work = ticking(Every(minutes(10)))
    work.begin()
    assert work.done == []
    work.driver.advance(minutes(10))
    work.driver.restart()
    work.driver.advance(minutes(25))
    assert work.done == ["15 08:10", "15 08:20", "15 08:30"]


@pytest.mark.parametrize(
    ("missed", "done", "occurrences"),
    [
        (
            "latest",
            ["15 08:10", "15 08:40 +5"],
            [("15 08:20", "collapsed"), ("15 08:30", "collapsed"), ("15 08:40", "released")],
        ),
        ("skip", ["15 08:10"], [("15 08:20", "missed"), ("15 08:30", "missed"), ("15 08:40", "missed")]),
        (
            "all",
            ["15 08:10", "15 08:20 +25", "15 08:30 +15", "15 08:40 +5"],
            [("15 08:20", "released"), ("15 08:30", "released"), ("15 08:40", "released")],
        ),
    ],
)
def test_instants_that_passed_while_no_worker_ran(missed, done, occurrences):
    work = ticking(Every(minutes(10), missed=missed, overlap="queue"))
    work.begin()
    work.driver.advance(minutes(15))
    assert work.occurrences() == [("15 08:10", "released")]
    work.down(minutes(30))
    assert work.done == done
    assert work.occurrences() == occurrences
    work.driver.advance(minutes(10))
    assert work.done == [*done, "15 08:50"]


def test_a_schedule_that_skips_what_it_missed_forgives_a_minute():
    work = ticking(Every(minutes(10), missed="skip"))
    work.begin()
    work.driver.advance(minutes(9))
    work.down(minutes(2))
    assert work.done == ["15 08:10 +1"]


def test_of_very_many_instants_the_latest_are_released_and_the_others_recorded_together():
    work = ticking(Every(seconds(1), missed="all", overlap="allow"))
    work.begin()
    work.down(days(2))
    records = [record.value for record in work.driver.read("work-job-occurrences")]
    first, *others = records
    assert (first.decision, first.first, first.instant) == (
        "missed",
        NOON + 1_000,
        NOON + 2 * 86_400_000 - 10_000_000,
    )
    assert "more than 10,000" in first.reason
    assert [record.instant for record in others] == list(
        range(first.instant + 1_000, NOON + 2 * 86_400_000 + 1, 1_000)
    )
    assert len(work.done) == 10_000


def failing(rule: Cron | Every, tries: int = 2, **options: Any) -> Work:
    """A job whose first attempt for the first instant fails, with a retry 25 minutes later."""
    work = Work()

    def tick() -> None:
        work.note()
        if len(work.done) == 1:
            raise OSError("not now")

    retry = Retry(tries, backoff=minutes(25), jitter=0)
    work.app.job(name="tick", schedule=rule, retry=retry, **options)(tick)
    return work


@pytest.mark.parametrize(
    ("overlap", "done", "decisions"),
    [
        (
            "skip",
            ["15 08:10", "15 08:10 +25", "15 08:40"],
            ["released", "overlapped", "overlapped", "released"],
        ),
        ("allow", ["15 08:10", "15 08:20", "15 08:30", "15 08:10 +25", "15 08:40"], ["released"] * 4),
        (
            "queue",
            ["15 08:10", "15 08:10 +25", "15 08:20 +15", "15 08:30 +5", "15 08:40"],
            ["released"] * 4,
        ),
    ],
)
@pytest.mark.parametrize("restart", [False, True])
def test_overlaps_with_a_job_that_waits_for_its_next_attempt(overlap, done, decisions, restart):
    work = failing(Every(minutes(10), overlap=overlap))
    work.begin()
    for _ in range(40):
        work.driver.advance(minutes(1))
        if restart:
            work.driver.restart()
    assert work.done == done
    records = [record.value for record in work.driver.read("work-job-occurrences")]
    assert [record.decision.value for record in records] == decisions
    for number, record in enumerate(records):
        assert record.job == f"0-{number}"
        waited = number in (1, 2)
        assert record.reason == ("job 0-0 of an earlier instant was not finished" if waited else "")
    endings = {end.key: end.value.ending.value for end in work.driver.read("work-job-results")}
    assert list(endings.values()).count("duplicate") == decisions.count("overlapped")


def test_a_job_that_failed_for_good_is_finished():
    work = failing(Every(minutes(10)), tries=1)
    work.begin()
    work.driver.advance(minutes(20))
    assert work.done == ["15 08:10", "15 08:20"]
    work.driver.dead_letters()


def test_a_schedule_that_is_declared_no_more_is_forgotten_and_begins_anew():
    work = Work()

    def with_schedule(declared: bool) -> App:
        app = App("work")
        if declared:
            app.job(name="tick", schedule=Every(minutes(10), missed="all", overlap="queue"))(work.note)
        else:
            app.job(name="tick")(work.note)
        return app

    work.app = with_schedule(True)
    work.begin()
    work.driver.advance(minutes(10))
    work.driver.restart(with_schedule(False))
    work.driver.advance(minutes(30))
    work.driver.restart(with_schedule(True))
    work.driver.advance(minutes(10))
    assert work.done == ["15 08:10", "15 08:50"]


def test_a_changed_rule_continues_after_the_last_decided_instant():
    work = Work()

    def with_rule(rule: Cron) -> App:
        app = App("work")
        app.job(name="tick", schedule=rule)(work.note)
        return app

    work.app = with_rule(Cron("0 * * * *"))
    work.begin()
    work.driver.advance(minutes(70))
    work.driver.restart(with_rule(Cron("5,50 * * * *")))
    work.driver.advance(minutes(50))
    assert work.done == ["15 09:00", "15 09:05 +5", "15 09:50"]


def test_several_schedules_of_one_job_with_arguments() -> None:
    work = Work()

    @work.app.job(name="report", key=lambda kind, pages=1: kind)
    def report(kind: str, pages: int = 1) -> None:
        work.done.append((kind, pages, shown(current_job().scheduled)))

    work.app.schedule(report.call("short"), Every(minutes(30)), name="short")
    work.app.schedule(report.using(priority=5).call("long", pages=9), Cron("45 8 * * FRI"), name="long")
    work.begin()
    work.driver.advance(hours(1))
    assert work.done == [("short", 1, "15 08:30"), ("long", 9, "15 08:45"), ("short", 1, "15 09:00")]
    records = work.driver.read("work-job-occurrences")
    assert [record.key for record in records] == ["short", "long", "short"]


def test_with_several_partitions_one_of_them_decides():
    work = ticking(Every(minutes(10)))
    work.driver = TopologyDriver(work.app, partitions=4, clock=NOON)
    work.driver.advance(hours(1))
    assert len(work.done) == 6
    (partition,) = {record.partition for record in work.driver.read("work-jobs")}
    assert {record.value.job.partition("-")[0] for record in work.driver.read("work-job-occurrences")} == {
        str(partition)
    }


def test_a_delayed_job_that_enqueues_runs_at_its_time() -> None:
    """Between two times, the clock stands at each at which something is due."""

    work = Work()

    @work.app.job(name="remind")
    def remind() -> None:
        work.done.append(shown(work.driver.clock))

    work.begin()
    for delay in (hours(5), hours(3)):
        call = remind.using(delay=delay).call()
        work.driver.send_bytes("work-jobs", call.payload(work.driver.clock))
    work.driver.advance(days(1))
    assert work.done == ["15 11:00", "15 13:00"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cron("30 25 * * *"), ["'25' is no hour, at position 4", "30 2 * * *"]),
        (lambda: Cron("* * * *"), ["4 fields", "day of the week"]),
        (lambda: Cron("0 0 2 * * *"), ["6 fields", "Every(seconds(10))"]),
        (lambda: Cron("0 0 30 2 *"), ["never comes"]),
        (lambda: Cron("@dialy"), ["@daily"]),
        (lambda: Cron("0 0 * * *", zone="Europe/Berln"), ["did you mean 'Europe/Berlin'?"]),
        (lambda: Cron("0 0 * * *", zone="../secret"), ["no time zone"]),
        (
            lambda: Cron("0 0 * * *", missed="last"),  # type: ignore[arg-type]  # what is tested
            ["missed is one of skip, latest, all"],
        ),
        (
            lambda: Every(minutes(1), overlap="wait"),  # type: ignore[arg-type]  # what is tested
            ["overlap is one of allow, skip, queue"],
        ),
        (lambda: Every(minutes(1), missed="all"), ["overlap='queue'"]),
        (lambda: Every(seconds(0.5)), ["1000 ms or more"]),
    ],
)
def test_mistakes_in_rules_are_refused_with_what_would_do(make, words):
    with pytest.raises((ConfigurationError, TopologyError)) as raised:
        make()
    text = f"{raised.value} {raised.value.hint}"
    for word in words:
        assert word in text


def test_mistakes_in_declarations_are_refused() -> None:
    work = Work()
    app = work.app

    with pytest.raises(TopologyError, match="needs: kind, pages") as raised:

        @app.job(name="report", schedule=Every(minutes(1)))
        def report(kind: str, pages: int) -> None: ...

    assert raised.value.hint == "app.schedule(report.call(kind=…, pages=…), Every(…))"

    @app.job(name="tick", schedule=Every(minutes(1)))
    def tick() -> None: ...

    with pytest.raises(TopologyError, match="two schedules are named 'tick'"):
        app.schedule(tick.call(), Every(minutes(2)))
    app.schedule(tick.call(), Every(minutes(2)), name="other")
    with pytest.raises(TopologyError, match="the schedule decides when"):
        app.schedule(tick.using(delay=minutes(1)).call(), Every(minutes(2)), name="late")
    with pytest.raises(TopologyError, match="takes a call of a job"):
        app.schedule(tick, Every(minutes(2)), name="function")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ConfigurationError, match="takes a Cron or an Every"):
        app.schedule(tick.call(), "* * * * *", name="text")  # type: ignore[arg-type]  # what is tested
    elsewhere = App("elsewhere")
    elsewhere.job(name="tick")(work.note)
    with pytest.raises(TopologyError, match="job of another app"):
        elsewhere.schedule(tick.call(), Every(minutes(2)))
    with pytest.raises(TopologyError, match="on_failure='continue'"):

        @app.job(name="overtaken", schedule=Every(minutes(1), overlap="queue"), on_failure="continue")
        def overtaken() -> None: ...
