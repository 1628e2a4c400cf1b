"""What a schedule did at each of its instants, as records of a topic."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Decision(StrEnum):
    """What became of an instant of a schedule."""

    RELEASED = "released"
    """It is a job."""
    COLLAPSED = "collapsed"
    """It passed while no worker ran, and a later one was released for it."""
    MISSED = "missed"
    """It passed while no worker ran, and nothing was released for it."""
    OVERLAPPED = "overlapped"
    """The job of an earlier instant was not finished: nothing was executed."""


class Occurrence(msgspec.Struct, omit_defaults=True, frozen=True):
    """The value of a record of the occurrences' topic, as JSON. Its key is the schedule's name.

    Times are milliseconds since the epoch.
    """

    schedule: str
    instant: int
    decision: Decision
    decided: int
    reason: str = ""
    job: str | None = None
    """The id of the job of this instant; one that overlapped has one too."""
    first: int | None = None
    """The record is for all instants from this one to ``instant``, as there were too many."""


def occurrences_topic(application: str) -> str:
    """The topic of what the schedules of an app did."""
    return f"{application}-job-occurrences"


def said(milliseconds: int) -> str:
    """A duration in words for reasons, e.g. ``2 h 5 min``."""
    seconds = milliseconds // 1000
    for unit, size, lower, part in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{seconds} s"
