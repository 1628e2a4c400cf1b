"""What became of the mails of a day, counted from the ends of their jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from apps.email_jobs.mail import Mail


class End(msgspec.Struct, frozen=True):
    """What the report needs of a record of the results of jobs."""

    job: str
    ending: str
    ended: int
    """Milliseconds since the epoch."""
    tries: int = 1
    result: Any = None


class Day(msgspec.Struct, frozen=True):
    """The mails whose jobs ended on a day, or one of them."""

    date: str
    sent: int = 0
    failed: int = 0
    """Those that became dead letters, or were cancelled."""
    retries: int = 0
    asked: bool = False
    """Whether the last thing that happened is that the day's report was asked for."""

    def __add__(self, more: Day) -> Day:
        return Day(
            self.date,
            self.sent + more.sent,
            self.failed + more.failed,
            self.retries + more.retries,
            more.asked,
        )


def date_of(milliseconds: int, zone: str) -> str:
    """The date in a time zone, e.g. ``2026-11-30``."""
    return datetime.fromtimestamp(milliseconds / 1000, ZoneInfo(zone)).date().isoformat()


def day_before(milliseconds: int, zone: str) -> str:
    """The date of the day before that of a time."""
    day = datetime.fromtimestamp(milliseconds / 1000, ZoneInfo(zone)).date() - timedelta(days=1)
    return day.isoformat()


def day_of_mail(end: End, zone: str) -> Day:
    """A mail whose job has ended, as a day with one mail."""
    sent = end.ending == "succeeded"
    return Day(date_of(end.ended, zone), int(sent), int(not sent), max(0, end.tries - 1))


def report_of(day: Day, to: str) -> Mail:
    """The mail that reports a day."""
    text = f"Sent: {day.sent}, with {day.retries} retries. Not sent: {day.failed}.\n"
    return Mail(to, f"Mails of {day.date}", text)
