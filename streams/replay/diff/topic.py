"""Compares the results of two runs for one topic, in memory that does not grow with them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zlib import crc32

from streams.eventtime.windows import Windowed
from streams.records import Output
from streams.replay.bounded.spool import SpoolFile, read_spool
from streams.replay.diff.fields import FieldChange, Rules, changes
from streams.replay.diff.result import Difference, TopicDiff
from streams.replay.plain_values import plain
from streams.replay.positions import as_time

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence
    from pathlib import Path

    from streams.replay.bounded.rows import SpooledRows
    from streams.serde import Serde

BUCKET_ROWS: Final = 100_000
"""About how many records are compared at once: those of some of the keys."""

SAMPLES: Final = 5
"""How many examples there are of each kind of difference."""

EACH: Final = "each record"
LAST: Final = "the last record of each key and window"


class Serdes(NamedTuple):
    """How a run's results for a topic are decoded; ``None`` for bytes as they are."""

    key: Serde[Any] | None
    value: Serde[Any] | None


@dataclass(frozen=True, slots=True)
class Side:
    """The results of one run for a topic."""

    rows: Iterable[SpooledRows]
    count: int
    serdes: Serdes


class _Entry(NamedTuple):
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: tuple[tuple[str, bytes | None], ...]
    window: tuple[int, int] | None


def diff_topic(
    topic: str, old: Side, new: Side, *, last: bool, rules: Rules, folder: Path, left_out: frozenset[str]
) -> TopicDiff:
    """Compare two runs' results. With ``last``, the last record of each key and window is compared.

    ``folder`` is for files meanwhile. Headers of the names in ``left_out`` are not compared.
    """
    found = TopicDiff(topic, LAST if last else EACH, old.count, new.count)
    buckets = max(1, -(-max(old.count, new.count) // BUCKET_ROWS))
    sides = (old, new)
    for number, side in enumerate(sides):
        _divide(side.rows, folder / str(number), buckets)
    for bucket in range(buckets):
        entries = [
            _entries(
                read_spool(folder / str(number) / str(bucket)), side.serdes, last=last, left_out=left_out
            )
            for number, side in enumerate(sides)
        ]
        by_identity = [_grouped(each, last=last) for each in entries]
        for identity in dict.fromkeys([*by_identity[0], *by_identity[1]]):
            _compare(found, by_identity[0].get(identity, []), by_identity[1].get(identity, []), sides, rules)
    return found


def _divide(pieces: Iterable[SpooledRows], folder: Path, buckets: int) -> None:
    """Write records into files, those of equal keys into the same one."""
    files = [SpoolFile(folder / str(number)) for number in range(buckets)]
    for rows in pieces:
        headers = rows.headers or [None] * len(rows)
        by_bucket: dict[int, list[int]] = {}
        for row, key in enumerate(rows.keys):
            by_bucket.setdefault(crc32(key or b"") % buckets, []).append(row)
        for number, own in by_bucket.items():
            files[number].append(
                Output(
                    "",
                    [rows.keys[row] for row in own],
                    [rows.values[row] for row in own],
                    [rows.timestamps[row] for row in own],
                    [headers[row] for row in own],
                )
            )
    for file in files:
        file.close()


def _entries(
    pieces: Iterator[SpooledRows], serdes: Serdes, *, last: bool, left_out: frozenset[str]
) -> Iterator[_Entry]:
    for rows in pieces:
        headers = [
            tuple((name, value) for name, value in own or () if name not in left_out)
            for own in rows.headers or [None] * len(rows)
        ]
        windows = _windows(rows.values, serdes) if last else [None] * len(rows)
        yield from map(_Entry, rows.keys, rows.values, rows.timestamps, headers, windows)


def _windows(values: Sequence[bytes | None], serdes: Serdes) -> list[tuple[int, int] | None]:
    """The windows that values are results of."""
    decoded = [_decoded(serdes.value, value) for value in values]
    return [
        (value.start, value.end)
        if isinstance(value, Windowed)
        else (value["start"], value["end"])
        if isinstance(value, dict) and {"start", "end"} <= value.keys()
        else None
        for value in decoded
    ]


def _grouped(entries: Iterator[_Entry], *, last: bool) -> dict[Hashable, list[_Entry]]:
    """Records by what identifies them: key and event time, or key and window."""
    found: dict[Hashable, list[_Entry]] = {}
    for entry in entries:
        if last:
            found[entry.key, entry.window] = [entry]
        else:
            found.setdefault((entry.key, entry.timestamp), []).append(entry)
    return found


def _compare(
    found: TopicDiff, old: list[_Entry], new: list[_Entry], sides: tuple[Side, Side], rules: Rules
) -> None:
    """Compare the records of one identity: equal ones first, the others in their order."""
    left, right = Counter(map(_content, old)), Counter(map(_content, new))
    common = left & right
    found.equal += common.total()
    olds, news = _rest(old, Counter(common)), _rest(new, Counter(common))
    for before, after in zip(olds, news, strict=False):
        fields = _changed(before, after, sides, rules)
        if not fields:
            found.equal += 1
            continue
        found.changed_fields.update({change.path for change in fields})
        _note(found, "changed", after, sides[1], fields)
    for entry in olds[len(news) :]:
        _note(found, "missing", entry, sides[0], [FieldChange("value", _shown(entry, sides[0]), None)])
    for entry in news[len(olds) :]:
        _note(found, "added", entry, sides[1], [FieldChange("value", None, _shown(entry, sides[1]))])


def _content(entry: _Entry) -> Hashable:
    return entry.value, entry.headers


def _rest(entries: list[_Entry], common: Counter[Hashable]) -> list[_Entry]:
    rest = []
    for entry in entries:
        content = _content(entry)
        if common[content] > 0:
            common[content] -= 1
        else:
            rest.append(entry)
    return rest


def _changed(before: _Entry, after: _Entry, sides: tuple[Side, Side], rules: Rules) -> list[FieldChange]:
    fields = list(changes(_shown(before, sides[0]), _shown(after, sides[1]), rules))
    names = dict.fromkeys([name for name, _ in (*before.headers, *after.headers)])
    for name in names:
        old = [plain(value) for own, value in before.headers if own == name]
        new = [plain(value) for own, value in after.headers if own == name]
        path = f"header {name}"
        if old != new and path not in rules.ignore:
            fields.append(FieldChange(path, _text(old), _text(new)))
    return fields


def _shown(entry: _Entry, side: Side) -> Any:
    return _text(plain(_decoded(side.serdes.value, entry.value)))


def _note(found: TopicDiff, kind: Any, entry: _Entry, side: Side, fields: list[FieldChange]) -> None:
    found.kinds[kind] += 1
    if sum(sample.kind == kind for sample in found.samples) < SAMPLES:
        key = _text(plain(_decoded(side.serdes.key, entry.key)))
        when = (
            as_time(entry.timestamp)
            if entry.window is None
            else f"{as_time(entry.window[0])}/{as_time(entry.window[1])}"
        )
        found.samples.append(Difference(kind, key, when, fields))


def _decoded(serde: Serde[Any] | None, payload: bytes | None) -> Any:
    """A payload as its serde reads it, or as text, or in hexadecimal digits."""
    if payload is None:
        return None
    if serde is not None:
        try:
            return next(iter(serde.deserialize([payload])))
        except Exception:  # noqa: BLE001 - a value that cannot be read is compared as it is
            return _text(payload)
    return _text(payload)


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return value
