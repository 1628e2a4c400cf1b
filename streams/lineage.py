"""The lineage of a result: which input records it was made of, in a size that does not grow.

A row of one input record has that record's coordinates. The result of several has the first and the last of
them in the order of event times, and their number. With the setting ``lineage``, results carry it as text in
the header ``__streams.lineage``::

    shop orders:0:42
    shop orders:0:1@1796025600000 orders:2:77@1796025700000 5
    shop orders:0:9@1796025600000 orders:0:9@1796025600000 1+

The app comes first, since other apps pass headers on. A number with ``+`` says that more records, which are
not known, contributed before the setting was on.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast
from urllib.parse import quote, unquote

import msgspec

from streams.origin import Relayed, read_trace
from streams.records import SyntheticBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.records import Batch, Headers

HEADER: Final = "__streams.lineage"
"""The name of the header."""

Contribution: TypeAlias = "tuple[int, str, int, int]"
"""One input record: event time (milliseconds since the epoch), topic, partition, offset."""

_SINGLE = re.compile(rb"(\S+) ([^\s:]+):(\d+):(\d+)")
_SEVERAL = re.compile(rb"(\S+) (-|\S+) (-|\S+) (\d+)(\+?)")
_PLACE = re.compile(rb"([^\s:]+):(\d+):(\d+)@(-?\d+)")


class Lineage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The input records of a result of several, or of a result of which not all are known.

    Not a named tuple, which takes five times as long to make: there is one for each result.
    """

    first: Contribution | None
    """The known one with the lowest event time; ``None`` if none is known."""
    last: Contribution | None
    records: int
    """How many are known."""
    complete: bool = True
    """Whether all are known."""


Ancestry: TypeAlias = "Contribution | Lineage"
"""What is known of a row: a plain tuple for one input record."""

UNKNOWN: Final = Lineage(None, None, 0, complete=False)


class NamedLineage(NamedTuple):
    """A header's content."""

    application: str
    lineage: Lineage


def as_lineage(ancestry: Ancestry) -> Lineage:
    """The same of one record as of several."""
    if isinstance(ancestry, Lineage):
        return ancestry
    return Lineage(ancestry, ancestry, 1)


def combined(items: Sequence[Ancestry]) -> Lineage:
    """The lineage of a result of all of these, of which there is at least one."""
    if set(map(type, items)) == {tuple}:
        single = cast("Sequence[Contribution]", items)
        return Lineage(min(single), max(single), len(single))
    parts = list(map(as_lineage, items))
    return Lineage(
        min((part.first for part in parts if part.first is not None), default=None),
        max((part.last for part in parts if part.last is not None), default=None),
        sum(part.records for part in parts),
        all(part.complete for part in parts),
    )


def grown(known: Lineage | None, items: Sequence[Ancestry]) -> Lineage:
    """The lineage of a result to which these rows, at least one, were added."""
    if len(items) == 1:
        # Most keys of a batch have few records, so this is what costs most.
        (item,) = items
        if known is None:
            return as_lineage(item)
        first, last = known.first, known.last
        if first is not None and last is not None and not isinstance(item, Lineage):
            return Lineage(
                first if first <= item else item,  # noqa: FURB136 - faster than min
                last if last >= item else item,  # noqa: FURB136 - faster than max
                known.records + 1,
                known.complete,
            )
    return combined(items) if known is None else united(known, combined(items))


def united(one: Lineage, other: Lineage) -> Lineage:
    """As ``combined``, of two results."""
    if one.first is None or one.last is None or other.first is None or other.last is None:
        return combined((one, other))
    # Comparisons are faster than min and max, for each key of each batch.
    return Lineage(
        one.first if one.first <= other.first else other.first,  # noqa: FURB136 - as above
        one.last if one.last >= other.last else other.last,  # noqa: FURB136 - as above
        one.records + other.records,
        one.complete and other.complete,
    )


def ancestry_of(batch: Batch[Any, Any]) -> Sequence[Ancestry]:
    """What is known of each row of a batch."""
    own = batch.lineage
    if own is not None:
        return own
    fetched = batch.fetched
    if isinstance(fetched, SyntheticBatch):
        found = fetched.lineage(batch.rows)
        if found is not None:
            return [UNKNOWN if item is None else item for item in found]
    elif not isinstance(fetched, Relayed):
        return list(zip(batch.timestamps, repeat(fetched.topic), repeat(fetched.partition), batch.offsets))
    # Of a store's entry without a lineage, only the record at which it was forwarded is known.
    results = isinstance(fetched, SyntheticBatch) and fetched.topic != fetched.step
    headers = fetched.headers(batch.rows) or repeat(None)
    traces = batch.traces(range(len(batch)))
    found = []
    for trace, time, own_headers in zip(traces, batch.timestamps, headers):  # noqa: B905 - the last may be endless
        origin = read_trace(trace, is_result=results)
        kept = None if own_headers is None else header_of(own_headers)
        if kept is not None:
            found.append(kept.lineage)
        elif origin.offset < 0:
            found.append(UNKNOWN)
        elif origin.is_result:
            # Of a version, or of a time, without lineage: only the record that changed it last is known.
            known = (time, origin.topic, origin.partition, origin.offset)
            found.append(Lineage(known, known, 1, complete=False))
        else:
            found.append((time, origin.topic, origin.partition, origin.offset))
    return found


def stamped(application: str, batch: Batch[Any, Any], *, internal: bool) -> Sequence[Headers | None] | None:
    """The headers of a batch with each row's lineage; ``None`` if no row has any header.

    In an internal topic the origin before each value says enough of a row that one input record has made.
    """
    own = batch.headers
    if not internal and batch.lineage is None and not isinstance(batch.fetched, SyntheticBatch | Relayed):
        # All rows have the same topic and partition: only the offset differs.
        begin = f"{application} {_quoted(batch.topic)}:{batch.partition}:".encode()
        marks: Iterable[bytes | None] = map(begin.__add__, map(b"%d".__mod__, batch.offsets))
        if own is None:
            return [[(HEADER, mark)] for mark in marks]
        return _added(own, marks)
    ancestry = ancestry_of(batch)
    if internal:
        if own is None and set(map(type, ancestry)) == {tuple}:
            return None
        marks = [several_text(application, item) if isinstance(item, Lineage) else None for item in ancestry]
    else:
        marks = _header_texts(application, ancestry)
    if own is None:
        return [None if mark is None else [(HEADER, mark)] for mark in marks]
    return _added(own, marks)


def _added(column: Sequence[Headers | None], marks: Iterable[bytes | None]) -> list[Headers | None]:
    """The headers with these, instead of those that an app upstream has written."""
    found: list[Headers | None] = []
    for headers, mark in zip(column, marks, strict=True):
        kept = [pair for pair in headers or () if pair[0] != HEADER]
        if mark is not None:
            kept.append((HEADER, mark))
        found.append(kept or None)
    return found


def _header_texts(application: str, column: Sequence[Ancestry]) -> list[bytes]:
    """The headers' values for results; those of many records inline, as each key of each commit has one."""
    name, prefix, form = application.encode(), _partition, b"%b %b%d@%d %b%d@%d %d"
    return [
        form
        % (
            name,
            prefix(item.first[1], item.first[2]),
            item.first[3],
            item.first[0],
            prefix(item.last[1], item.last[2]),
            item.last[3],
            item.last[0],
            item.records,
        )
        if isinstance(item, Lineage)
        and item.records > 1
        and item.complete
        and item.first is not None
        and item.last is not None
        else header_text(application, item)
        for item in column
    ]


def header_text(application: str, ancestry: Ancestry) -> bytes:
    """The header's value for a result."""
    if isinstance(ancestry, Lineage):
        first = ancestry.first
        if first is None or ancestry.records > 1 or not ancestry.complete:
            return several_text(application, ancestry)
        _, topic, partition, offset = first
    else:
        _, topic, partition, offset = ancestry
    return b"%b %b%d" % (application.encode(), _partition(topic, partition), offset)


def several_text(application: str, lineage: Lineage) -> bytes:
    """The header's value with event times, which the result of results needs."""
    more = b"" if lineage.complete else b"+"
    first, last = _place(lineage.first), _place(lineage.last)
    return b"%b %b %b %d%b" % (application.encode(), first, last, lineage.records, more)


def header_of(headers: Headers) -> NamedLineage | None:
    """The lineage in a record's headers, the last if there are several; ``None`` if there is none."""
    return next(
        (read for name, value in reversed(headers) if name == HEADER and (read := read_text(value))), None
    )


def read_text(value: bytes | None) -> NamedLineage | None:
    """A header's content; ``None`` if it is none."""
    if value is None:
        return None
    if single := _SINGLE.fullmatch(value):
        application, topic, partition, offset = single.groups()
        only = (-1, unquote(topic.decode()), int(partition), int(offset))
        return NamedLineage(application.decode(errors="replace"), Lineage(only, only, 1))
    if several := _SEVERAL.fullmatch(value):
        application, first, last, count, more = several.groups()
        ends = _read_place(first), _read_place(last)
        if None in ends and ends != (None, None):
            return None
        return NamedLineage(
            application.decode(errors="replace"), Lineage(*ends, int(count), complete=not more)
        )
    return None


def unpacked(packed: Any) -> Ancestry:
    """What msgpack has read of an ancestry, which it writes as it is."""
    if isinstance(packed[1], str):
        return cast("Contribution", tuple(packed))
    first, last, count, complete = packed
    return Lineage(
        None if first is None else cast("Contribution", tuple(first)),
        None if last is None else cast("Contribution", tuple(last)),
        count,
        complete,
    )


@lru_cache(maxsize=1000)
def _quoted(topic: str) -> str:
    """The name of a topic as it is; a source connector may give its records any name."""
    return quote(topic, safe="")


def _place(contribution: Contribution | None) -> bytes:
    if contribution is None:
        return b"-"
    time, topic, partition, offset = contribution
    return b"%b%d@%d" % (_partition(topic, partition), offset, time)


@lru_cache(maxsize=10_000)
def _partition(topic: str, partition: int) -> bytes:
    return f"{_quoted(topic)}:{partition}:".encode()


def _read_place(text: bytes) -> Contribution | None:
    match = _PLACE.fullmatch(text)
    if match is None:
        return None
    topic, partition, offset, time = match.groups()
    return int(time), unquote(topic.decode()), int(partition), int(offset)
