"""Positions in topics as they are written on the command line, and the offsets that they stand for.

======================  =====================================================================================
``earliest``            the oldest record that exists
``latest``              the end
``2026-11-30T08:00Z``   the first record with this timestamp or a later one; without a zone it is UTC
``1796025600000``       the same, in milliseconds since the epoch
``-2h``, ``-PT2H``      the first record of the last two hours
``offsets.json``        the offsets in a file
======================  =====================================================================================
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from streams.durations import MILLISECOND
from streams.errors import ConfigurationError
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.broker import Admin, Isolation

EXAMPLES: Final = (
    "write earliest, latest, a time (2026-11-30T08:00Z; without a zone it is UTC), milliseconds since the "
    "epoch, a duration before now (-2h, -1d12h, -PT2H), or a file of offsets (offsets.json)"
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}

_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|d|h|m|s)")

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|d|h|m|s))+")

_ISO_DURATION = re.compile(
    r"P(?:(?P<w>\d+)W)?(?:(?P<d>\d+)D)?"
    r"(?:T(?=\d)(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?"
)

_ISO_UNITS = {"w": 7 * 86_400_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}

_LONGEST = timedelta.max // MILLISECOND

_WITH_SECONDS_OR_DAY = (8, 10)
"""How many digits a number has that is rather a day (20261130) or seconds than milliseconds."""


@dataclass(frozen=True, slots=True)
class Earliest:
    """The oldest record of each partition."""

    def __str__(self) -> str:
        return "earliest"


@dataclass(frozen=True, slots=True)
class Latest:
    """The end of each partition."""

    def __str__(self) -> str:
        return "latest"


@dataclass(frozen=True, slots=True)
class AtTime:
    """The first record of each partition with this timestamp or a later one."""

    milliseconds: int
    """Since the epoch."""

    def __str__(self) -> str:
        return as_time(self.milliseconds)


@dataclass(frozen=True, slots=True)
class Ago:
    """The first record of each partition within this time before now."""

    milliseconds: int

    def __str__(self) -> str:
        return f"the last {timedelta(milliseconds=self.milliseconds)}"


@dataclass(frozen=True, slots=True)
class AtOffsets:
    """These offsets. Partitions that are not in it have no position."""

    offsets: Mapping[TopicPartition, int]
    source: str = "the given offsets"

    def __str__(self) -> str:
        return self.source


Position: TypeAlias = Earliest | Latest | AtTime | Ago | AtOffsets


PositionInCode: TypeAlias = "str | int | Mapping[TopicPartition, int]"
"""A position as programs write it: as on the command line, milliseconds since the epoch, or offsets."""


class Resolved(NamedTuple):
    """Offsets by partition."""

    offsets: dict[TopicPartition, int]
    """Each is between the oldest record of its partition and the end, both included."""

    moved: dict[TopicPartition, int]
    """Requested offsets that the log does not have: replaced by the nearest one, as Kafka's tools do it."""


def parse_position(text: str) -> Position:
    """Read a position as written on the command line; files are read at once.

    Raises ``ConfigurationError`` with examples for anything else.
    """
    given = text.strip()
    if given == "earliest":
        return Earliest()
    if given == "latest":
        return Latest()
    if Path(given).suffix in (".json", ".csv"):
        return read_offsets(Path(given))
    if given.startswith("-"):
        return Ago(parse_duration(given[1:]))
    return AtTime(parse_time(given))


def to_position(given: PositionInCode) -> Position:
    """The position that a program has written. Raises ``ConfigurationError`` as ``parse_position`` does."""
    if isinstance(given, str):
        return parse_position(given)
    return AtTime(given) if isinstance(given, int) else AtOffsets(given)


def parse_time(text: str) -> int:
    """Milliseconds since the epoch from ISO 8601 or the number itself. Without a zone, the time is UTC.

    Raises ``ConfigurationError`` for anything else, and for times before 1970.
    """
    given = text.strip()
    if re.fullmatch("[0-9]+", given):
        if len(given) in _WITH_SECONDS_OR_DAY:
            raise ConfigurationError(
                f"{given} is ambiguous: as milliseconds since the epoch it is in January or early in 1970",
                hint="milliseconds of today have 13 digits; write a day as 2026-11-30",
            )
        if int(given) >= 2**63:
            raise ConfigurationError(f"{given} is too large for milliseconds since the epoch")
        return int(given)
    try:
        read = datetime.fromisoformat(given)
    except ValueError:
        raise ConfigurationError(f"{text!r} is not a position in a topic", hint=EXAMPLES) from None
    try:
        since = (read if read.tzinfo is not None else read.replace(tzinfo=UTC)) - _EPOCH
    except OverflowError:
        raise ConfigurationError(f"{text!r} is too far away") from None
    if since < timedelta(0):
        raise ConfigurationError(f"{text!r} is before 1970, where timestamps begin")
    return since // MILLISECOND


def parse_duration(text: str) -> int:
    """Milliseconds of a duration such as ``2h``, ``1d12h``, ``90s``, or ISO 8601: ``PT2H``, ``P1DT12H``.

    Raises ``ConfigurationError`` for anything else: a number without a unit, and months and years, whose
    lengths differ.
    """
    given = text.strip()
    iso = _ISO_DURATION.fullmatch(given)
    if _DURATION.fullmatch(given):
        total = sum(Decimal(number) * _UNITS[unit] for number, unit in _PARTS.findall(given))
    elif iso is not None and any(iso.groupdict().values()):
        total = sum(
            Decimal(number) * _ISO_UNITS[unit]
            for unit, number in iso.groupdict().items()
            if number is not None
        )
    else:
        raise ConfigurationError(
            f"{text!r} is not a duration",
            hint="write numbers with units (d, h, m, s, ms), e.g. 2h, 1d12h or 90s, or ISO 8601, e.g. PT2H",
        )
    if total != int(total):
        raise ConfigurationError(f"{text!r} is not a whole number of milliseconds")
    if total > _LONGEST:
        raise ConfigurationError(f"{text!r} is too long")
    return int(total)


def read_offsets(path: Path) -> AtOffsets:
    """Read a file of offsets: JSON as ``{"topic": {"0": 12}}``, or lines of ``topic,partition,offset``.

    The lines are what ``kafka-consumer-groups --reset-offsets --export`` writes. Raises
    ``ConfigurationError`` for a file that cannot be read, with the place in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"offsets cannot be read from {path}: {error}") from error
    source = str(path)
    if text.lstrip().startswith("{"):
        return AtOffsets(_from_json(text, source), source)
    return AtOffsets(_from_csv(text, source), source)


def resolve(
    position: Position,
    admin: Admin,
    partitions: Collection[TopicPartition],
    *,
    now: int,
    isolation: Isolation = "read_committed",
) -> Resolved:
    """The offsets of a position in these partitions, with one request for all of them per kind of offset.

    ``now`` is in milliseconds since the epoch, for durations before now. A time after the last record is the
    end. Partitions for which a file has no offset are left out. Raises ``TopicError`` for partitions that do
    not exist.
    """
    match position:
        case Earliest():
            return Resolved(admin.beginning_offsets(partitions), {})
        case Latest():
            return Resolved(admin.end_offsets(partitions, isolation), {})
        case AtTime(time):
            return Resolved(admin.offsets_for_times(dict.fromkeys(partitions, time), isolation), {})
        case Ago(before):
            time = max(0, now - before)
            return Resolved(admin.offsets_for_times(dict.fromkeys(partitions, time), isolation), {})
        case AtOffsets(offsets):
            wanted = {place: offsets[place] for place in partitions if place in offsets}
            return within(wanted, admin, isolation)


def within(wanted: Mapping[TopicPartition, int], admin: Admin, isolation: Isolation) -> Resolved:
    """These offsets, those outside of the log replaced by the nearest one in it."""
    beginnings, ends = admin.beginning_offsets(wanted), admin.end_offsets(wanted, isolation)
    offsets = {place: min(max(offset, beginnings[place]), ends[place]) for place, offset in wanted.items()}
    return Resolved(offsets, {place: wanted[place] for place in wanted if wanted[place] != offsets[place]})


def as_time(milliseconds: int) -> str:
    """A timestamp as ISO 8601 in UTC; the number itself where a calendar has no such day."""
    try:
        precision = "milliseconds" if milliseconds % 1000 else "seconds"
        when = _EPOCH + timedelta(milliseconds=milliseconds)
        return when.isoformat(timespec=precision).replace("+00:00", "Z")
    except OverflowError:
        return str(milliseconds)


def _from_json(text: str, source: str) -> dict[TopicPartition, int]:
    try:
        read = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{source} is not JSON: {error}") from error
    offsets: dict[TopicPartition, int] = {}
    for topic, numbers in read.items():
        if not isinstance(numbers, dict):
            raise ConfigurationError(
                f"{source}: {topic!r} has {numbers!r:.40} instead of offsets by partition",
                hint='write {"topic": {"0": 12, "1": 40}}',
            )
        for number, offset in numbers.items():
            offsets[_place(topic, number, source)] = _offset(offset, f"{source}: {topic}-{number}")
    return offsets


def _from_csv(text: str, source: str) -> dict[TopicPartition, int]:
    offsets: dict[TopicPartition, int] = {}
    for line, row in enumerate(_rows(text, source), start=1):
        if not row or row == ["topic", "partition", "offset"]:
            continue
        if len(row) != len(("topic", "partition", "offset")):
            raise ConfigurationError(
                f"{source}, line {line}: {','.join(row)!r:.80} is not topic,partition,offset",
                hint="export the offsets of a single group; JSON begins with {",
            )
        topic, number, offset = (item.strip() for item in row)
        place = _place(topic, number, f"{source}, line {line}")
        if place in offsets:
            raise ConfigurationError(f"{source}, line {line}: a second offset of {place}")
        offsets[place] = _offset(int(offset) if offset.isdecimal() else offset, f"{source}, line {line}")
    return offsets


def _rows(text: str, source: str) -> list[list[str]]:
    reader = csv.reader(text.splitlines())
    try:
        return list(reader)
    except csv.Error as error:
        raise ConfigurationError(f"{source}, line {reader.line_num}: {error}") from error


def _place(topic: str, number: str, where: str) -> TopicPartition:
    if not re.fullmatch("[0-9]{1,9}", number):
        raise ConfigurationError(f"{where}: {number!r} of topic {topic!r} is not a partition number")
    return TopicPartition(topic, int(number))


def _offset(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ConfigurationError(f"{where}: {value!r:.40} is not an offset")
    return value
