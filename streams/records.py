"""The unit of work: a batch of records of one topic partition, as parallel columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")

_KEPT: Final[Any] = object()
"""Says that a field stays: ``None`` is a value that it may be given."""

Headers: TypeAlias = "list[tuple[str, bytes | None]]"
"""A record's headers, in the order they were written; a name may occur more than once."""

Rows: TypeAlias = "Sequence[int]"
"""Positions in a column, from 0."""

Trace: TypeAlias = "tuple[str, int, int] | bytes"
"""The input record that a row came from: topic, partition, offset; or these as in an internal topic."""


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


class Fetched(Protocol):
    """Records of one topic partition as the broker delivered them: bytes, in offset order.

    Columns are asked for by rows (all when ``None``), so that a client may leave in its own memory what
    nobody asks for.
    """

    @property
    def topic(self) -> str: ...

    @property
    def partition(self) -> int: ...

    @property
    def next_offset(self) -> int:
        """One past the last record's offset: what is committed once all of them are processed."""

    def __len__(self) -> int: ...

    def keys(self, rows: Rows | None = None) -> list[bytes | None]: ...

    def values(self, rows: Rows | None = None) -> list[bytes | None]: ...

    def timestamps(self, rows: Rows | None = None) -> list[int]:
        """Milliseconds since the epoch; -1 where the record has none."""

    def offsets(self, rows: Rows | None = None) -> list[int]: ...

    def headers(self, rows: Rows | None = None) -> list[Headers | None] | None:
        """One entry a row, or ``None`` when no row has any."""

    def slice(self, start: int, stop: int) -> Fetched: ...


def own_headers(column: Sequence[Headers | None]) -> list[Headers | None]:
    """The column with a list of its own for each row that has headers."""
    return [list(headers) if headers else headers for headers in column]


def take(column: Sequence[V], rows: Rows | None) -> list[V]:
    """The elements of ``column`` at ``rows``, in that order; all of them when ``rows`` is ``None``."""
    if rows is None:
        return list(column)
    if isinstance(rows, range) and rows.step == 1:
        return list(column[rows.start : rows.stop])
    return [column[row] for row in rows]


@dataclass(frozen=True, slots=True)
class FetchedLists:
    """``Fetched`` on plain lists: what the memory broker delivers and tests write down."""

    topic: str
    partition: int
    _keys: Sequence[bytes | None]
    _values: Sequence[bytes | None]
    _timestamps: Sequence[int]
    _offsets: Sequence[int]
    _headers: Sequence[Headers | None] | None = field(default=None)

    @property
    def next_offset(self) -> int:
        return self._offsets[-1] + 1

    def __len__(self) -> int:
        return len(self._offsets)

    def keys(self, rows: Rows | None = None) -> list[bytes | None]:
        return take(self._keys, rows)

    def values(self, rows: Rows | None = None) -> list[bytes | None]:
        return take(self._values, rows)

    def timestamps(self, rows: Rows | None = None) -> list[int]:
        return take(self._timestamps, rows)

    def offsets(self, rows: Rows | None = None) -> list[int]:
        return take(self._offsets, rows)

    def headers(self, rows: Rows | None = None) -> list[Headers | None] | None:
        return None if self._headers is None else take(self._headers, rows)

    def slice(self, start: int, stop: int) -> FetchedLists:
        return FetchedLists(
            self.topic,
            self.partition,
            self._keys[start:stop],
            self._values[start:stop],
            self._timestamps[start:stop],
            self._offsets[start:stop],
            None if self._headers is None else self._headers[start:stop],
        )


class Tracing:
    """The input records that rows came from, to be found when they are needed. Keeps none of the records.

    Where all are of one partition, that is the ``place``, and ``find`` gives offsets, else traces.
    """

    __slots__ = ("find", "place")

    def __init__(
        self, place: tuple[str, int] | None, find: Callable[[], Iterable[int]] | Callable[[], Iterable[Trace]]
    ) -> None:
        self.place = place
        self.find: Callable[[], Iterable[Any]] = find

    def __iter__(self) -> Iterator[Trace]:
        found = self.find()
        if self.place is None:
            return iter(found)
        topic, partition = self.place
        return zip(repeat(topic), repeat(partition), found)


@dataclass(slots=True)
class Record(Generic[K, V]):
    """One record, for user code that asks for single records.

    ``timestamp`` is milliseconds since the epoch. ``topic``, ``partition`` and ``offset`` are those of the
    input record that it came from.
    """

    key: K
    value: V
    timestamp: int
    headers: Headers | None = None
    topic: str = ""
    partition: int = -1
    offset: int = -1
    source_row: tuple[int, int] | None = field(default=None, repr=False, compare=False)
    """Of a record that ``Batch.records`` gave: the batch's number and the row.

    What is made of it by ``with_`` can so be traced to its input, offsets or not.
    """

    @overload
    def with_(self, *, timestamp: int = ..., headers: Headers | None = ...) -> Record[K, V]: ...

    @overload
    def with_(self, *, value: V2, timestamp: int = ..., headers: Headers | None = ...) -> Record[K, V2]: ...

    @overload
    def with_(self, *, key: K2, timestamp: int = ..., headers: Headers | None = ...) -> Record[K2, V]: ...

    @overload
    def with_(
        self, *, key: K2, value: V2, timestamp: int = ..., headers: Headers | None = ...
    ) -> Record[K2, V2]: ...

    def with_(
        self,
        *,
        key: Any = _KEPT,
        value: Any = _KEPT,
        timestamp: int = _KEPT,
        headers: Headers | None = _KEPT,
    ) -> Record[Any, Any]:
        """A new record with these in place of its own; all else stays, and so does its input record.

        ``value=None`` makes a tombstone, ``headers=None`` takes the headers away.
        """
        return Record(
            self.key if key is _KEPT else key,
            self.value if value is _KEPT else value,
            self.timestamp if timestamp is _KEPT else timestamp,
            (self.headers and list(self.headers)) if headers is _KEPT else headers,
            self.topic,
            self.partition,
            self.offset,
            self.source_row,
        )


class Batch(Generic[K, V]):
    """Records on their way through a topology: parallel columns with a row per record.

    Each row remembers the input record it came from, whatever was done to it since: that is where columns
    nobody replaced are read from when they are needed, and what a dead letter is written from. Batches are
    never changed in place: ``select`` and the ``with_`` methods return new ones and share the rest. Columns
    are sequences of equal length, not necessarily lists.
    """

    __slots__ = (
        "_fetched",
        "_headers",
        "_key_types",
        "_keys",
        "_number",
        "_rows",
        "_timestamps",
        "values",
    )

    values: Sequence[V]

    def __init__(
        self,
        fetched: Fetched,
        values: Sequence[V],
        *,
        rows: Rows | None = None,
        keys: Sequence[K] | None = None,
        timestamps: Sequence[int] | None = None,
        headers: Sequence[Headers | None] | None = None,
        number: int = 0,
    ) -> None:
        self._fetched = fetched
        self._rows = rows
        self.values = values
        self._keys = keys
        self._key_types: frozenset[type] | None = None
        self._timestamps = timestamps
        self._headers = headers
        self._number = number

    def __len__(self) -> int:
        return len(self.values)

    @property
    def topic(self) -> str:
        """The input topic the rows came from."""
        return self._fetched.topic

    @property
    def partition(self) -> int:
        """The input partition the rows came from."""
        return self._fetched.partition

    @property
    def fetched(self) -> Fetched:
        """The records that the rows came from, which ``rows`` counts."""
        return self._fetched

    def traces(self, rows: Rows) -> list[Trace]:
        """The input records that these rows came from, also through internal topics and stores."""
        return list(self.tracing(rows))

    def tracing(self, rows: Rows | None = None) -> Tracing:
        """As ``traces``, to be found later if at all, for all rows unless some are given."""
        fetched = self._fetched
        at = self._rows
        if rows is not None:
            at = rows if at is None else [at[row] for row in rows]
        own: Callable[[Rows], Iterable[Trace]] | None = getattr(fetched, "tracer", None)
        if own is not None:
            return Tracing(None, partial(own, range(len(fetched)) if at is None else at))
        first, count = fetched.offsets([0])[0], len(fetched)
        # Without a gap, which a marker would be, offsets need not be looked at.
        offsets: Sequence[int] = range(first, fetched.next_offset)
        if len(offsets) != count:
            offsets = fetched.offsets()
        chosen = partial(iter, offsets) if at is None else partial(map, offsets.__getitem__, at)
        return Tracing((fetched.topic, fetched.partition), chosen)

    @property
    def keys(self) -> Sequence[K]:
        if self._keys is None:
            self._keys = self._fetched.keys(self._rows)  # type: ignore[assignment]  # K is bytes until a serde or key_by replaces the column
        return self._keys  # type: ignore[return-value]  # assigned in the line above

    @property
    def key_types(self) -> frozenset[type]:
        """The classes of the keys, that of ``None`` included: found once, by the first step that asks."""
        if self._key_types is None:
            self._key_types = frozenset(map(type, self.keys))
        return self._key_types

    @property
    def timestamps(self) -> Sequence[int]:
        """Event times in milliseconds since the epoch."""
        if self._timestamps is None:
            self._timestamps = self._fetched.timestamps(self._rows)
        return self._timestamps

    @property
    def rows(self) -> Rows:
        """Which of the input records each row came from, counted from 0."""
        return range(len(self.values)) if self._rows is None else self._rows

    @property
    def offsets(self) -> Sequence[int]:
        """The offset, in the input partition, of the record each row came from."""
        return self._fetched.offsets(self._rows)

    def offset(self, row: int) -> int:
        """The offset, in the input partition, of the record that one row came from."""
        return self._fetched.offsets([row if self._rows is None else self._rows[row]])[0]

    def identities(self) -> list[Hashable]:
        """For each row, what its source is recognized by when the same input is processed again.

        That is the coordinates of the input record, or the store, key and window of a result. Rows that were
        made of one record share it.
        """
        fetched = self._fetched
        if isinstance(fetched, Derived):
            return fetched.identities(self._rows)
        topic, partition = fetched.topic, fetched.partition
        return [(topic, partition, offset) for offset in self.offsets]

    @property
    def headers(self) -> Sequence[Headers | None] | None:
        """One entry a row, or ``None`` when no row has any."""
        return self._fetched.headers(self._rows) if self._headers is None else self._headers

    def select(self, rows: Rows) -> Batch[K, V]:
        """The rows at those positions, in that order; a position may occur more than once."""
        own = self._rows
        return Batch(
            self._fetched,
            take(self.values, rows),
            rows=rows if own is None else [own[row] for row in rows],
            keys=None if self._keys is None else take(self._keys, rows),
            timestamps=None if self._timestamps is None else take(self._timestamps, rows),
            headers=None if self._headers is None else take(self._headers, rows),
            number=self._number,
        )

    def copy(self, *, number: int | None = None) -> Batch[K, V]:
        """The same rows in columns of its own, so that code which changes those changes no other batch.

        The values themselves are shared. With ``number``, single records remember that number and their row.
        """
        return Batch(
            self._fetched,
            list(self.values),
            rows=self._rows,
            keys=None if self._keys is None else list(self._keys),
            timestamps=None if self._timestamps is None else list(self._timestamps),
            headers=None if self._headers is None else own_headers(self._headers),
            number=self._number if number is None else number,
        )

    def of_rows(self, rows: Rows, values: Sequence[Any]) -> Batch[K, Any]:
        """A batch of these values, made of the input records at ``rows`` (as ``Batch.rows`` counts them)."""
        return Batch(self._fetched, values, rows=rows, number=self._number)

    def with_values(self, values: Sequence[V2]) -> Batch[K, V2]:
        """The same rows with other values, one a row."""
        return self._with(values=values)

    def with_keys(self, keys: Sequence[K2]) -> Batch[K2, V]:
        """The same rows with other keys, one a row."""
        return self._with(keys=keys)

    def with_timestamps(self, timestamps: Sequence[int]) -> Batch[K, V]:
        """The same rows with other event times (milliseconds since the epoch), one a row."""
        return self._with(timestamps=timestamps)

    def with_headers(self, headers: Sequence[Headers | None]) -> Batch[K, V]:
        """The same rows with other headers, one entry a row."""
        return self._with(headers=headers)

    def _with(self, **columns: Sequence[Any]) -> Batch[Any, Any]:
        for name, column in columns.items():
            if len(column) != len(self.values):
                raise ValueError(f"{len(self.values)} rows need as many {name}, got {len(column)}")
        return Batch(
            self._fetched,
            columns.get("values", self.values),
            rows=self._rows,
            keys=columns.get("keys", self._keys),
            timestamps=columns.get("timestamps", self._timestamps),
            headers=columns.get("headers", self._headers),
            number=self._number,
        )

    def records(self) -> Iterator[Record[K, V]]:
        """The rows as single records, for code that wants one at a time."""
        topic, partition = self.topic, self.partition
        headers: Iterable[Headers | None] = self.headers or [None] * len(self)
        number = self._number
        for key, value, timestamp, header, offset, row in zip(
            self.keys, self.values, self.timestamps, headers, self.offsets, self.rows, strict=True
        ):
            yield Record(
                key,
                value,
                timestamp,
                list(header) if header else header,
                topic,
                partition,
                offset,
                (number, row),
            )

    def original(self, row: int) -> Record[bytes | None, bytes | None]:
        """The input record that the row came from, as its bytes were read."""
        at = [row if self._rows is None else self._rows[row]]
        fetched = self._fetched
        headers = fetched.headers(at)
        return Record(
            fetched.keys(at)[0],
            fetched.values(at)[0],
            fetched.timestamps(at)[0],
            headers[0] if headers else None,
            fetched.topic,
            fetched.partition,
            fetched.offsets(at)[0],
        )


@dataclass(frozen=True, slots=True)
class Derived:
    """``Fetched`` for records that come from state instead of from an input topic.

    ``topic`` and ``partition`` are those of the store's changelog, ``step`` made them. Offsets are -1; the
    bytes are made only when a dead letter needs them. ``_changed_by`` finds the input records that last
    changed rows, ``None`` where they are not known; ``_made_at`` is the one at which all were made, e.g. the
    one that closed a window, or has an offset of -1 where that was a timer.
    """

    topic: str
    partition: int
    _keys: Sequence[Any]
    _values: Sequence[Any]
    _timestamps: Sequence[int]
    _encode: Callable[[Any], bytes | None]
    step: str
    _changed_by: Callable[[Rows], Sequence[Trace | None]] | None
    _made_at: Trace
    next_offset: int = field(default=-1)
    _window: Callable[[Any], Hashable] | None = field(default=None)
    """Which window a value belongs to, where one key may have several results at the same time."""

    def __len__(self) -> int:
        return len(self._values)

    def identities(self, rows: Rows | None = None) -> list[Hashable]:
        """What tells each row apart from the results for other keys and windows."""
        keys = self.keys(rows)
        windows: Iterable[Hashable] = [None] * len(keys)
        if self._window is not None:
            windows = map(self._window, take(self._values, rows))
        return [(self.topic, self.partition, key, window) for key, window in zip(keys, windows, strict=True)]

    def keys(self, rows: Rows | None = None) -> list[bytes | None]:
        return [self._encode(key) for key in take(self._keys, rows)]

    def values(self, rows: Rows | None = None) -> list[bytes | None]:
        return [self._encode(value) for value in take(self._values, rows)]

    def timestamps(self, rows: Rows | None = None) -> list[int]:
        return take(self._timestamps, rows)

    def offsets(self, rows: Rows | None = None) -> list[int]:
        return [-1] * (len(self._values) if rows is None else len(rows))

    def headers(self, rows: Rows | None = None) -> list[Headers | None] | None:  # noqa: ARG002 - the protocol's
        return None

    def slice(self, start: int, stop: int) -> Derived:
        return Derived(
            self.topic,
            self.partition,
            self._keys[start:stop],
            self._values[start:stop],
            self._timestamps[start:stop],
            self._encode,
            self.step,
            None if self._changed_by is None else partial(self._changed_behind, start),
            self._made_at,
            _window=self._window,
        )

    def tracer(self, rows: Rows) -> Iterable[Trace]:
        """The input records that last changed these rows, or else the one at which they were made."""
        if self._changed_by is None:
            return [self._made_at] * len(rows)
        return [trace or self._made_at for trace in self._changed_by(rows)]

    def is_last_change(self, row: int) -> bool:
        """Whether it is known which input record changed it last."""
        return self._changed_by is not None and self._changed_by([row])[0] is not None

    def _changed_behind(self, start: int, rows: Rows) -> Sequence[Trace | None]:
        assert self._changed_by is not None
        return self._changed_by([start + row for row in rows])


class RowOwner(Protocol):
    """The maker of an output's rows, who decides about one that cannot be written."""

    def place(self, row: int) -> Hashable | None:
        """What the row is recognized by when its input comes again; ``None``: ``refuse`` it at once."""

    def refuse(self, row: int, error: Exception) -> None:
        """Do with the row what its step's policy says. May raise what ends the worker."""


class Output:
    """Encoded rows for one topic: what a sink hands to a producer.

    Columns are parallel; ``timestamps`` in milliseconds since the epoch, ``headers`` is ``None`` when no row
    has any. A row with key ``None`` may go to any partition; others go where Java clients would put them
    (murmur2), unless ``partition`` names one for all rows, which the topic must have, or ``partitions`` one
    for each: a row for one that the topic does not have is refused. ``owner`` knows the rows by their number,
    counted from ``first``.
    """

    __slots__ = (
        "first",
        "headers",
        "keys",
        "owner",
        "partition",
        "partitions",
        "timestamps",
        "topic",
        "values",
    )

    def __init__(
        self,
        topic: str,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        timestamps: Sequence[int],
        headers: Sequence[Headers | None] | None = None,
        *,
        partition: int | None = None,
        partitions: Sequence[int] | None = None,
        owner: RowOwner | None = None,
        first: int = 0,
    ) -> None:
        self.topic = topic
        self.keys = keys
        self.values = values
        self.timestamps = timestamps
        self.headers = headers
        self.partition = partition
        self.partitions = partitions
        self.owner = owner
        self.first = first

    def __len__(self) -> int:
        return len(self.values)

    def rest(self, start: int) -> Output:
        """The rows from ``start`` on."""
        return self.part(start, len(self))

    def part(self, start: int, stop: int) -> Output:
        """The rows from ``start`` up to, without, ``stop``."""
        return Output(
            self.topic,
            self.keys[start:stop],
            self.values[start:stop],
            self.timestamps[start:stop],
            None if self.headers is None else self.headers[start:stop],
            partition=self.partition,
            partitions=None if self.partitions is None else self.partitions[start:stop],
            owner=self.owner,
            first=self.first + start,
        )

    def refuse(self, row: int, error: Exception) -> None:
        """Tell the owner of a row that cannot be written. Raises ``error`` where there is none."""
        if self.owner is None:
            raise error
        self.owner.refuse(self.first + row, error)
