"""Instants of cron expressions against every minute of a year, and of intervals."""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import islice, product, takewhile
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st

from streams import hours, minutes, seconds
from streams.jobs.schedule_rules import Cron, Every

MINUTE = 60_000
YEAR = 2027
ZONES = (
    "Europe/Berlin",
    # A change of half an hour, and one at midnight; both on the other hemisphere.
    "Australia/Lord_Howe",
    "America/Santiago",
)


class LocalYear:
    """Each minute of a year, by what the clocks of a zone show."""

    def __init__(self, zone: str) -> None:
        start, info = datetime(YEAR, 1, 1, tzinfo=UTC), ZoneInfo(zone)
        self.first = int(start.timestamp()) * 1000
        self.last = int(datetime(YEAR + 1, 1, 1, tzinfo=UTC).timestamp()) * 1000 - MINUTE
        self.minutes: dict[tuple[int, int], list[tuple[int, datetime, bool]]] = defaultdict(list)
        """By hour and minute: the instant, what clocks show, and whether they did so before."""
        self.gaps: list[tuple[int, list[datetime]]] = []
        """The first instant after each gap, with the minutes that are left out."""
        seen = before = datetime(YEAR - 1, 1, 1)  # noqa: DTZ001 - what clocks show
        for instant in range(self.first, self.last + 1, MINUTE):
            local = (start + timedelta(milliseconds=instant - self.first)).astimezone(info)
            shown = local.replace(tzinfo=None, fold=0)
            self.minutes[shown.hour, shown.minute].append((instant, shown, shown <= seen))
            left_out = (shown - before) // timedelta(minutes=1)
            if 1 < left_out < 1_440:
                self.gaps.append((instant, [before + timedelta(minutes=n) for n in range(1, left_out)]))
            before, seen = shown, max(seen, shown)


class Fields:
    """An expression read in the simplest way: which minutes of the local calendar it names."""

    def __init__(self, expression: str) -> None:
        parts = expression.split()
        self.minutes, self.hours, self.days, self.months, self.weekdays = (
            _numbers(part, low, high)
            for part, (low, high) in zip(parts, ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7)), strict=True)
        )
        self.both = parts[2].startswith("*") or parts[4].startswith("*")
        self.fixed = not parts[0].startswith("*") and not parts[1].startswith("*")

    def day(self, date: datetime) -> bool:
        of_month = date.day in self.days
        weekday = date.isoweekday()
        of_week = weekday in self.weekdays or weekday % 7 in self.weekdays
        return date.month in self.months and (of_month and of_week if self.both else of_month or of_week)

    def fits(self, local: datetime) -> bool:
        return local.minute in self.minutes and local.hour in self.hours and self.day(local)


def _numbers(part: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for item in part.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        if span == "*":
            numbers = range(low, high + 1)
        elif last:
            numbers = range(int(first), int(last) + 1)
        else:
            numbers = range(int(first), high + 1 if step else int(first) + 1)
        found |= set(numbers[:: int(step or 1)])
    return found


def expected(expression: str, year: LocalYear) -> list[int]:
    """The instants of the year by the documented rules.

    Expressions with a wildcard in minutes or hours: all minutes whose local time fits. Others: the first
    minute with a local time that fits; and the first one after a gap, if the gap has a time that fits.
    """
    fields = Fields(expression)
    found = {
        instant
        for time in product(fields.hours, fields.minutes)
        for instant, shown, again in year.minutes[time]
        if fields.day(shown) and not (again and fields.fixed)
    }
    if fields.fixed:
        found |= {instant for instant, left_out in year.gaps if any(map(fields.fits, left_out))}
    return sorted(found)


def any_numbers(choose: Random, low: int, high: int) -> str:
    if choose.random() < 0.2:
        return choose.choice(["*", f"*/{choose.randint(2, 20)}"])
    items = []
    for _ in range(choose.randint(1, 3)):
        first, last = sorted((choose.randint(low, high), choose.randint(low, high)))
        span = f"{first}-{last}" if first < last else str(first)
        items.append(choose.choice([str(first), span, f"{span}/{choose.randint(2, 20)}"]))
    return ",".join(items)


def any_expression(choose: Random) -> str:
    """Mostly times at night, when clocks are changed."""
    return " ".join(
        [
            any_numbers(choose, 0, 59),
            any_numbers(choose, 0, choose.choice([4, 4, 23])),
            choose.choice(["*", "*", any_numbers(choose, 1, 28)]),
            choose.choice(["*", "*", "*", any_numbers(choose, 1, 12)]),
            choose.choice(["*", "*", any_numbers(choose, 0, 7)]),
        ]
    )


CHOSEN = (
    "30 2 * * *",
    "0,30 2 * * *",
    "30 2,3 * * *",
    "*/30 2 * * *",
    "30 * * * *",
    "15 0-2 * * *",
    "0 0 * * *",
    "59 23 * * *",
)


@pytest.mark.parametrize("zone", ZONES)
def test_a_year_of_instants_is_what_looking_at_each_minute_finds(zone):
    year = LocalYear(zone)
    choose = Random(zone)
    for expression in (*CHOSEN, *(any_expression(choose) for _ in range(7))):
        rule = Cron(expression, zone)
        instants = list(takewhile(lambda instant: instant <= year.last, rule.after(year.first - 1)))
        wanted = expected(expression, year)
        assert instants == wanted, expression
        # From any instant on, the others follow: also within hours that come twice.
        for number in range(0, len(wanted), len(wanted) // 20 + 1):
            for after in (wanted[number] - 1, wanted[number], wanted[number] + MINUTE):
                following = wanted[bisect_right(wanted, after) :][:3]
                found = list(islice(rule.after(after), 3))
                assert found[: len(following)] == following, f"{expression} after {after}"


@given(
    interval=st.sampled_from([seconds(1), seconds(7), minutes(5), hours(24)]),
    after=st.integers(-(10**12), 2 * 10**12),
)
def test_intervals_are_multiples_since_the_epoch(interval, after):
    length = interval // timedelta(milliseconds=1)
    found = list(islice(Every(interval).after(after), 3))
    assert found == [(after // length + number) * length for number in (1, 2, 3)]


def test_the_last_day_of_a_month():
    found = islice(Cron("0 12 L * *").after(0), 14)
    for number, instant in enumerate(found):
        day = datetime.fromtimestamp(instant / 1000, UTC)
        assert (day.year, day.month) == (1970 + number // 12, number % 12 + 1)
        assert day.day == monthrange(day.year, day.month)[1]
