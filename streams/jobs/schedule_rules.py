"""When the calls of a schedule are due: cron expressions in a time zone, and plain intervals."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from streams.durations import to_milliseconds, whole_milliseconds
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Missed: TypeAlias = Literal["skip", "latest", "all"]
"""What becomes of instants that passed while no worker ran; see ``Cron``."""

Overlap: TypeAlias = Literal["allow", "skip", "queue"]
"""What becomes of an instant at which an earlier call is not finished; see ``Cron``."""

MISSED: tuple[Missed, ...] = ("skip", "latest", "all")
OVERLAPS: tuple[Overlap, ...] = ("allow", "skip", "queue")

ABBREVIATIONS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}

SHORTEST_MILLISECONDS = 1_000
"""The shortest interval."""

_FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")
_EXAMPLES = "'30 2 * * *' (daily at 02:30), '*/15 9-17 * * MON-FRI', '0 6 1 * *' (monthly), '@hourly'"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# No change of the time in a zone is longer: a whole day was left out where the date line moved.
_LONGEST_CHANGE = timedelta(days=2)
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Cron:
    """Due by a cron expression: minute, hour, day of the month, month, day of the week.

    Names (``MON``, ``JAN``), ranges, steps and lists are as in cron, with ``L`` for the last day of the
    month; also ``@hourly``, ``@daily``, ``@weekly``, ``@monthly`` and ``@yearly``. The times are those of the
    clocks in ``zone``, e.g. ``Europe/Berlin``. When these are changed, the rules of Debian's cron hold. Where
    neither the minutes nor the hours begin with ``*``, a time that is left out is due right after the gap,
    and one that comes twice is due the first time. Others are due whenever the clocks show a time that fits.

    ``missed`` says what becomes of instants that passed while no worker ran: ``latest`` releases the last of
    them, ``all`` each of them, ``skip`` none that is more than a minute late. ``overlap`` is for an
    instant at which an earlier call of the schedule waits, runs, or will be tried again: ``skip`` leaves it
    out, ``queue`` executes it afterwards, and ``allow`` beside it.

    Raises ``ConfigurationError`` for an expression, a zone or an option that does not exist.
    """

    expression: str
    zone: str = "UTC"
    missed: Missed = "latest"
    overlap: Overlap = "skip"

    def __post_init__(self) -> None:
        _check_policies("Cron", self.missed, self.overlap)
        _zone(self.zone)
        _check_expression(self.expression)

    def after(self, instant: int) -> Iterator[int]:
        """The instants after that one, in milliseconds since the epoch, in order."""
        fields = _five_fields(self.expression)
        zone = _zone(self.zone)
        start = (_EPOCH + timedelta(milliseconds=instant)).replace(microsecond=0)
        last = instant
        if any(field.startswith("*") for field in fields.split()[:2]):
            times = _whenever_it_fits(fields, zone, start)
        else:
            # The first of two equal local times may be before ``instant``, and so may be the end of a gap:
            # these times are counted from a local time that is certainly earlier.
            times = iter(CronSim(fields, (start - _LONGEST_CHANGE).astimezone(zone)))
        for due in times:
            found = (due.astimezone(UTC) - _EPOCH) // timedelta(milliseconds=1)
            # Several times in one gap are one instant.
            if found > last:
                last = found
                yield found

    def __str__(self) -> str:
        return f"{self.expression} {self.zone}"


@dataclass(frozen=True, slots=True)
class Every:
    """Due at all multiples of ``interval`` since 1970-01-01 00:00 UTC, whatever clocks of zones show.

    For ``missed`` and ``overlap`` see ``Cron``. Raises ``ConfigurationError``, and ``TopologyError`` for an
    interval that is no duration of at least a second.
    """

    interval: timedelta
    missed: Missed = "latest"
    overlap: Overlap = "skip"

    def __post_init__(self) -> None:
        _check_policies("Every", self.missed, self.overlap)
        to_milliseconds(self.interval, "Every: interval", least=SHORTEST_MILLISECONDS)

    def after(self, instant: int) -> Iterator[int]:
        """The instants after that one, in milliseconds since the epoch, in order."""
        interval = whole_milliseconds(self.interval)
        number = instant // interval
        while True:
            number += 1
            yield number * interval

    def __str__(self) -> str:
        return f"every {self.interval}"


Rule: TypeAlias = "Cron | Every"


def _whenever_it_fits(fields: str, zone: ZoneInfo, start: datetime) -> Iterator[datetime]:
    """The times after ``start`` at which what the clocks of the zone show fits the expression.

    Between two changes of the clocks, these are the times of a calendar without changes. (CronSim does this
    for zones too, but passes over some times in whole hours where clocks are changed by half an hour.)
    """
    looked = start
    while True:
        offset = _offset(zone, looked + _SECOND)
        for local in CronSim(fields, (looked + offset).replace(tzinfo=None)):
            due = local.replace(tzinfo=UTC) - offset
            # No zone changes its clocks twice in a day.
            while looked < due and _offset(zone, until := min(due, looked + _DAY)) == offset:
                looked = until
            if looked < due:
                looked = _last_with(zone, offset, looked, until)
                break
            yield due
        else:
            return


def _offset(zone: ZoneInfo, time: datetime) -> timedelta:
    """What the clocks of the zone are ahead of UTC then."""
    offset = time.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _last_with(zone: ZoneInfo, offset: timedelta, first: datetime, last: datetime) -> datetime:
    """The last second with that offset, between one that has it and one that has not."""
    while last - first > _SECOND:
        middle = first + (last - first) // (2 * _SECOND) * _SECOND
        if _offset(zone, middle) == offset:
            first = middle
        else:
            last = middle
    return first


def _check_policies(kind: str, missed: object, overlap: object) -> None:
    policies: tuple[tuple[str, object, tuple[str, ...]], ...] = (
        ("missed", missed, MISSED),
        ("overlap", overlap, OVERLAPS),
    )
    for name, value, allowed in policies:
        if value not in allowed:
            raise ConfigurationError(
                f"{kind}: {name} is one of {', '.join(allowed)}, got {value!r:.80}",
                hint=_closest(str(value), allowed),
            )
    if (missed, overlap) == ("all", "skip"):
        raise ConfigurationError(
            f"{kind}: missed='all' releases several calls at once, of which overlap='skip' would leave out "
            "all but the first",
            hint="overlap='queue' executes them one after another, overlap='allow' beside each other",
        )


def _closest(name: str, known: Iterable[str]) -> str | None:
    """Advice that names the closest known one, if any is close."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f"did you mean {by_lower[close[0]]!r}?" if close else None


@cache
def _zone(name: object) -> ZoneInfo:
    try:
        if isinstance(name, str) and name:
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        # It is unknown, or no relative path, or a folder of the data.
        pass
    zones = available_timezones()
    if not zones:
        raise ConfigurationError(
            f"Cron: zone {name!r:.80} cannot be used, as this machine has no data about time zones",
            hint="install the system's package tzdata, or the one for Python: pip install tzdata",
        )
    raise ConfigurationError(
        f"Cron: {name!r:.80} is no time zone",
        hint=_closest(str(name), zones) or "zones are named as in 'Europe/Berlin' or 'UTC'",
    )


def _five_fields(expression: str) -> str:
    return ABBREVIATIONS.get(expression.strip().lower(), expression)


@cache
def _check_expression(expression: object) -> None:
    if not isinstance(expression, str):
        raise ConfigurationError(f"Cron takes a text, got {expression!r:.80}", hint=f"e.g. {_EXAMPLES}")
    if expression.strip().startswith("@") and expression.strip().lower() not in ABBREVIATIONS:
        raise ConfigurationError(
            f"Cron: {expression!r:.80} is unknown; there are: {', '.join(ABBREVIATIONS)}",
            hint=_closest(expression.strip(), ABBREVIATIONS) or f"e.g. {_EXAMPLES}",
        )
    fields = list(re.finditer(r"\S+", _five_fields(expression)))
    if len(fields) != len(_FIELDS):
        raise ConfigurationError(
            f"Cron: {expression!r:.80} has {len(fields)} fields, needed are {len(_FIELDS)}: "
            f"{', '.join(_FIELDS)}",
            hint="for seconds, use Every(seconds(10))" if len(fields) == 6 else f"e.g. {_EXAMPLES}",
        )
    for place, (field, name) in enumerate(zip(fields, _FIELDS, strict=True)):
        alone = ["*"] * len(_FIELDS)
        alone[place] = field.group()
        try:
            CronSim(" ".join(alone), _EPOCH)
        except CronSimError as error:
            raise ConfigurationError(
                f"Cron: {field.group()!r:.80} is no {name}, at position {field.start() + 1} of "
                f"{expression!r:.80}",
                hint=f"{_RANGES[name]}; e.g. {_EXAMPLES}",
            ) from error
    try:
        found: Any = next(CronSim(_five_fields(expression), _EPOCH), None)
    except CronSimError:
        found = None
    if found is None:
        raise ConfigurationError(
            f"Cron: {expression!r:.80} never comes, as no month has such a day", hint=f"e.g. {_EXAMPLES}"
        )


_RANGES = {
    "minute": "minutes are 0 to 59",
    "hour": "hours are 0 to 23",
    "day of the month": "days are 1 to 31, or L for the last one",
    "month": "months are 1 to 12, or JAN to DEC",
    "day of the week": "days are 0 to 7 from Sunday to Sunday, or SUN to SAT",
}
