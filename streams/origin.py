"""The origin of a record: topic, partition and offset of its input record, also through internal topics.

In an internal topic the origin is a prefix of the value: ``MAGIC``, its length, topic, partition and offset.
A header would cost as much again as producing the record, and headers belong to the user.
"""

from __future__ import annotations

import struct
from functools import partial
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, cast

from streams.records import SyntheticBatch, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.records import Batch, Fetched, Headers, Rows, Trace

MAGIC = b"\xffso\x01"
"""The first bytes of a value with an origin."""

MAGIC_NULL = b"\xffso\x02"
"""The first bytes of a null value with an origin; nothing follows the origin."""

_LENGTH = struct.Struct(">H")
_PLACE = struct.Struct(">iq")
_OFFSET = struct.Struct(">q")

_SHORTEST = len(MAGIC) + _LENGTH.size + 1 + _PLACE.size
"""The length in bytes of the shortest origin, whose topic's name is one letter."""

_RESULT = 0x8000
"""A flag in the length: the record is the result of an aggregate or a timer, not the input record itself."""


class Origin(NamedTuple):
    """The input record from which a record was computed; the last of them for the result of several.

    If a timer made the record, ``topic`` is the step's name and ``offset`` is -1.
    """

    topic: str
    partition: int
    offset: int
    is_result: bool = False
    """Whether it is the result of several records or of a timer: its bytes are then not the input's."""

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition} offset {self.offset}"


def origin_of(batch: Batch[object, object], row: int) -> Origin:
    """The input record from which a row was computed."""
    (trace,) = batch.traces([row])
    return read_trace(trace, is_result=isinstance(batch.fetched, SyntheticBatch))


def described(batch: Batch[object, object], row: int) -> str:
    """Describe a row for an error: its input record, and what was made of it."""
    fetched, origin = batch.fetched, origin_of(batch, row)
    if isinstance(fetched, SyntheticBatch):
        timer = fetched.topic == fetched.step
        made = f"a {'record of a timer' if timer else 'result'} of step {fetched.step!r}"
        if origin.offset < 0:
            return f"{made}, made by no input record"
        if timer:
            return f"{made}, kept since {origin}"
        return (
            f"{made}, {'last changed by' if fetched.is_last_change(batch.rows[row]) else 'made at'} {origin}"
        )
    if origin.offset < 0:
        return f"a record of step {origin.topic!r}, made by no input record"
    return f"{'a result, last changed by ' if origin.is_result else ''}{origin}"


def place_read(batch: Batch[object, object], row: int) -> str | None:
    """The place in an internal topic from which a row was read; ``None`` if it came from an input topic."""
    fetched = batch.fetched
    if not isinstance(fetched, Relayed):
        return None
    return f"{fetched.topic}-{fetched.partition} offset {batch.offset(row)}"


def read_trace(trace: Trace, *, is_result: bool = False) -> Origin:
    """The input record of a trace."""
    if isinstance(trace, tuple):
        return Origin(*trace, is_result)
    (length,) = _LENGTH.unpack_from(trace)
    partition, offset = _PLACE.unpack_from(trace, len(trace) - _PLACE.size)
    topic = trace[_LENGTH.size : -_PLACE.size].decode(errors="replace")
    return Origin(topic, partition, offset, is_result or bool(length & _RESULT))


def _encoded(trace: Trace, *, is_result: bool) -> bytes:
    if isinstance(trace, tuple):
        topic, partition, offset = trace
        name = topic.encode()
        length = len(MAGIC) + _LENGTH.size + len(name) + _PLACE.size
        flag = _RESULT if is_result else 0
        return _LENGTH.pack(length | flag) + name + _PLACE.pack(partition, offset)
    if is_result and not trace[0] & 0x80:
        return bytes([trace[0] | 0x80]) + trace[1:]
    return trace


def with_origins(values: Sequence[bytes | None], batch: Batch[object, object]) -> list[bytes | None]:
    """The values of a batch as written to an internal topic: each with the origin of its row as a prefix."""
    fetched = batch.fetched
    if isinstance(fetched, (SyntheticBatch, Relayed)):
        is_result = isinstance(fetched, SyntheticBatch)
        traces: Iterable[bytes] = (
            _encoded(trace, is_result=is_result) for trace in batch.traces(range(len(batch)))
        )
    else:
        # All rows have the same topic and partition: only the offset differs.
        whole = _encoded((fetched.topic, fetched.partition, 0), is_result=False)
        head, pack = whole[: -_OFFSET.size], _OFFSET.pack
        if all(values):
            begin = MAGIC + head
            pack_whole = struct.Struct(f">{len(begin)}sq").pack
            # Both maps run in C, without a Python call per record.
            heads: Iterable[bytes] = map(pack_whole, repeat(begin), batch.offsets)
            return list(map(bytes.__add__, heads, cast("Sequence[bytes]", values)))
        traces = (head + pack(offset) for offset in batch.offsets)
    return [
        MAGIC_NULL + trace if value is None else MAGIC + trace + value
        for trace, value in zip(traces, values, strict=True)
    ]


def with_origin(value: bytes | None, origin: tuple[str, int, int], *, is_result: bool) -> bytes:
    """A value as written to an internal topic: with the topic, partition and offset of its input record."""
    trace = _encoded(origin, is_result=is_result)
    return MAGIC_NULL + trace if value is None else MAGIC + trace + value


def without_origin(value: bytes | None) -> bytes | None:
    """A value of an internal topic without the origin before it."""
    length = 0 if value is None else _length(value)
    if value is None or (length and value[:4] == MAGIC_NULL):
        return None
    return value[length:]


def origin_of_value(value: bytes | None) -> Origin | None:
    """The origin before a value of an internal topic; ``None`` if it has none."""
    length = 0 if value is None else _length(value)
    if value is None or not length:
        return None
    return read_trace(value[len(MAGIC) : length])


def _length(value: bytes) -> int:
    """The length of a value's origin in bytes; 0 if it has none, e.g. because another program wrote it."""
    if len(value) < _SHORTEST or value[:4] not in {MAGIC, MAGIC_NULL}:
        return 0
    length: int = _LENGTH.unpack_from(value, len(MAGIC))[0] & ~_RESULT
    return length if _SHORTEST <= length <= len(value) else 0


class Relayed:
    """The ``Fetched`` of an internal topic: its values without origins, and the origins.

    Records without an origin, from other programs or earlier versions, are their own origin.
    """

    __slots__ = ("_fetched", "_length", "_payloads", "_values", "partition", "topic")

    def __init__(self, fetched: Fetched) -> None:
        self.topic = fetched.topic
        self.partition = fetched.partition
        self._fetched = fetched
        self._payloads = fetched.values()
        self._length = _common_length(self._payloads)
        """The length of all origins in bytes if it is the same for all, else 0."""
        if self._length:
            column = cast("list[bytes]", self._payloads)
            self._values: list[bytes | None] = list(map(itemgetter(slice(self._length, None)), column))
        else:
            self._values = list(map(without_origin, self._payloads))

    @property
    def read(self) -> Fetched:
        """The records as they were read, with origins."""
        return self._fetched

    @property
    def next_offset(self) -> int:
        return self._fetched.next_offset

    def __len__(self) -> int:
        return len(self._payloads)

    def keys(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        return self._fetched.keys(rows)

    def values(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        return take(self._values, rows)

    def timestamps(self, rows: Rows | None = None) -> Sequence[int]:
        return self._fetched.timestamps(rows)

    def offsets(self, rows: Rows | None = None) -> Sequence[int]:
        return self._fetched.offsets(rows)

    def headers(self, rows: Rows | None = None) -> Sequence[Headers | None] | None:
        return self._fetched.headers(rows)

    def slice(self, start: int, stop: int) -> Relayed:
        return Relayed(self._fetched.slice(start, stop))

    @property
    def tracer(self) -> Callable[[Rows], Iterable[Trace]]:
        """A function that returns the encoded origins of rows. It keeps only the payloads in memory."""
        offsets = None if self._length else self._fetched.offsets()
        return partial(_origins, self._payloads, self._length, self.topic, self.partition, offsets)


def _origins(
    payloads: Sequence[bytes | None],
    length: int,
    topic: str,
    partition: int,
    offsets: Sequence[int] | None,
    rows: Rows,
) -> Iterable[Trace]:
    if offsets is None:
        return [payloads[row][4:length] for row in rows]  # type: ignore[index]  # none of them is None
    return [
        payload[4:stop]
        if (payload := payloads[row]) is not None and (stop := _length(payload))
        else (topic, partition, offsets[row])
        for row in rows
    ]


def _common_length(payloads: Sequence[bytes | None]) -> int:
    """The length in bytes of the origins before all values if it is the same for all, else 0."""
    first = payloads[0] if payloads else None
    if first is None or first[:4] != MAGIC:
        return 0
    length = _length(first)
    column = cast("Sequence[bytes]", payloads)
    try:
        same = all(map(bytes.startswith, column, repeat(first[:6])))
        return length if same and min(map(len, column)) >= length else 0
    except TypeError:
        # One of the values is null: earlier versions wrote null values without an origin.
        return 0
