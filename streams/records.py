"""The unit of work: a batch of records of one topic partition, as parallel columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

K = TypeVar("K")
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
K2 = TypeVar("K2")
V2 = TypeVar("V2")

_KEPT: Final[Any] = object()
"""Says that a field stays: ``None`` is a value that it may be given."""

Headers: TypeAlias = "list[tuple[str, bytes | None]]"
"""A record's headers, in the order they were written; a name may occur more than once."""

Rows: TypeAlias = "Sequence[int]"
"""Positions in a column, from 0."""

Trace: TypeAlias = "tuple[str, int, int] | bytes"
"""The input record of a row: topic, partition, offset; or these as encoded in an internal topic."""


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


class Fetched(Protocol):
    """Records of one topic partition as the broker delivered them: bytes, in offset order.

    Columns are read by rows (all when ``None``), so that data that is not read may stay in the client's
    memory.
    """

    @property
    def topic(self) -> str: ...

    @property
    def partition(self) -> int: ...

    @property
    def next_offset(self) -> int:
        """One past the last record's offset: to be committed when all of them are processed."""

    def __len__(self) -> int: ...

    def keys(self, rows: Rows | None = None) -> Sequence[bytes | None]: ...

    def values(self, rows: Rows | None = None) -> Sequence[bytes | None]: ...

    def timestamps(self, rows: Rows | None = None) -> Sequence[int]:
        """Milliseconds since the epoch; -1 where the record has none."""

    def offsets(self, rows: Rows | None = None) -> Sequence[int]: ...

    def headers(self, rows: Rows | None = None) -> Sequence[Headers | None] | None:
        """One entry a row, or ``None`` when no row has any."""

    def slice(self, start: int, stop: int) -> Fetched: ...


class Column(Sequence[V_co]):
    """A column that is no plain list and chooses rows in its own way, e.g. an array of another library.

    Whatever passes batches on asks for its length and for ``take``, for a slice where it works in pieces, and
    for ``None in column`` where a topic has no nulls; only code that looks at single values iterates.
    A class says that it is one by inheriting from this, so that no other array is taken for one.
    """

    __slots__ = ()

    @abstractmethod
    def take(self, rows: Rows | None) -> Sequence[V_co]:
        """The elements at ``rows``, in that order, or all: nothing that is changed in it changes this one."""


def own_headers(column: Sequence[Headers | None]) -> list[Headers | None]:
    """The column with a separate list for each row that has headers."""
    return [list(headers) if headers else headers for headers in column]


def take(column: Sequence[V], rows: Rows | None) -> Sequence[V]:
    """The elements of ``column`` at ``rows``, in that order; all of them when ``rows`` is ``None``.

    A ``Column`` chooses them itself; of any other sequence they come as a new list.
    """
    if type(column) is not list and isinstance(column, Column):
        return column.take(rows)
    if rows is None:
        return list(column)
    if isinstance(rows, range) and rows.step == 1:
        return list(column[rows.start : rows.stop])
    return [column[row] for row in rows]


@dataclass(frozen=True, slots=True)
class FetchedLists:
    """``Fetched`` on plain lists, for the memory broker and tests."""

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

    def keys(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        return take(self._keys, rows)

    def values(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        return take(self._values, rows)

    def timestamps(self, rows: Rows | None = None) -> Sequence[int]:
        return take(self._timestamps, rows)

    def offsets(self, rows: Rows | None = None) -> Sequence[int]:
        return take(self._offsets, rows)

    def headers(self, rows: Rows | None = None) -> Sequence[Headers | None] | None:
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
    """The input records of rows, determined when needed. Holds none of the records.

    If all are of one partition, that is the ``place``, and ``find`` returns offsets, else traces.
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
    """A single record, for user code.

    ``timestamp`` is milliseconds since the epoch. ``topic``, ``partition`` and ``offset`` are those of its
    input record.
    """

    key: K
    value: V
    timestamp: int
    headers: Headers | None = None
    topic: str = ""
    partition: int = -1
    offset: int = -1
    source_row: tuple[int, int] | None = field(default=None, repr=False, compare=False)
    """For a record from ``Batch.records``: the batch's number and the row.

    Records derived from it with ``with_`` can be traced to their input by this, even without offsets.
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
    """Records in a topology: parallel columns with a row per record.

    Each row keeps a reference to its input record: columns that were not replaced are read from there when
    needed, and so is the content of a dead letter. Batches are never changed in place: ``select`` and the
    ``with_`` methods return new ones that share the other columns. Columns are sequences of equal length, not
    necessarily lists.
    """

    __slots__ = (
        "_fetched",
        "_headers",
        "_key_types",
        "_keys",
        "_number",
        "_rows",
        "_timestamps",
        "lineage",
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
        lineage: Sequence[Any] | None = None,
    ) -> None:
        self._fetched = fetched
        self._rows = rows
        self.values = values
        self._keys = keys
        self._key_types: frozenset[type] | None = None
        self._timestamps = timestamps
        self._headers = headers
        self._number = number
        self.lineage = lineage
        """With the setting ``lineage``, what rows are made of besides their input records, e.g. joined pairs;
        ``None`` where those say all. See ``streams.lineage``."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def topic(self) -> str:
        """The input topic of the rows."""
        return self._fetched.topic

    @property
    def partition(self) -> int:
        """The input partition of the rows."""
        return self._fetched.partition

    @property
    def fetched(self) -> Fetched:
        """The input records, to which ``rows`` refer."""
        return self._fetched

    def traces(self, rows: Rows) -> list[Trace]:
        """The input records of these rows, also through internal topics and stores."""
        return list(self.tracing(rows))

    def tracing(self, rows: Rows | None = None) -> Tracing:
        """As ``traces``, but determined lazily; for all rows unless some are given."""
        fetched = self._fetched
        at = self._rows
        if rows is not None:
            at = rows if at is None else take(at, rows)
        own: Callable[[Rows], Iterable[Trace]] | None = getattr(fetched, "tracer", None)
        if own is not None:
            return Tracing(None, partial(own, range(len(fetched)) if at is None else at))
        first, count = fetched.offsets([0])[0], len(fetched)
        # Without a gap (of a transaction's marker), the offsets need not be read.
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
        """The classes of the keys, that of ``None`` included; computed once."""
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
        """The number of each row's input record in ``fetched``, counted from 0."""
        return range(len(self.values)) if self._rows is None else self._rows

    @property
    def offsets(self) -> Sequence[int]:
        """The offset, in the input partition, of each row's input record."""
        return self._fetched.offsets(self._rows)

    def offset(self, row: int) -> int:
        """The offset, in the input partition, of one row's input record."""
        return self._fetched.offsets([row if self._rows is None else self._rows[row]])[0]

    def identities(self) -> list[Hashable]:
        """What identifies each row's source when the same input is processed again.

        This is the coordinates of the input record, or the store, key and window of a result. Rows made of
        one record share it.
        """
        fetched = self._fetched
        if isinstance(fetched, SyntheticBatch):
            return fetched.identities(self._rows)
        topic, partition = fetched.topic, fetched.partition
        return [(topic, partition, offset) for offset in self.offsets]

    @property
    def headers(self) -> Sequence[Headers | None] | None:
        """One entry a row, or ``None`` when no row has any."""
        return self._fetched.headers(self._rows) if self._headers is None else self._headers

    def select(self, rows: Rows) -> Batch[K, V]:
        """The rows at these positions, in that order; a position may occur more than once."""
        own = self._rows
        return Batch(
            self._fetched,
            take(self.values, rows),
            rows=rows if own is None else take(own, rows),
            keys=None if self._keys is None else take(self._keys, rows),
            timestamps=None if self._timestamps is None else take(self._timestamps, rows),
            headers=None if self._headers is None else take(self._headers, rows),
            number=self._number,
            lineage=None if self.lineage is None else take(self.lineage, rows),
        )

    def copy(self, *, number: int | None = None) -> Batch[K, V]:
        """The same rows in separate columns, so that code that changes these does not affect other batches.

        The values themselves are shared. With ``number``, single records keep that number and their row.
        """
        return Batch(
            self._fetched,
            take(self.values, None),
            rows=self._rows,
            keys=None if self._keys is None else take(self._keys, None),
            timestamps=None if self._timestamps is None else take(self._timestamps, None),
            headers=None if self._headers is None else own_headers(self._headers),
            number=self._number if number is None else number,
            lineage=self.lineage,
        )

    def of_rows(
        self, rows: Rows, values: Sequence[Any], lineage: Sequence[Any] | None = None
    ) -> Batch[K, Any]:
        """A batch of these values, made of the input records at ``rows`` (as ``Batch.rows`` counts them).

        ``lineage`` is as in this batch, for each of them.
        """
        return Batch(self._fetched, values, rows=rows, number=self._number, lineage=lineage)

    def with_values(self, values: Sequence[V2]) -> Batch[K, V2]:
        """The same rows with other values, one per row."""
        return self._with(values=values)

    def with_keys(self, keys: Sequence[K2]) -> Batch[K2, V]:
        """The same rows with other keys, one per row."""
        return self._with(keys=keys)

    def with_timestamps(self, timestamps: Sequence[int]) -> Batch[K, V]:
        """The same rows with other event times (milliseconds since the epoch), one per row."""
        return self._with(timestamps=timestamps)

    def with_headers(self, headers: Sequence[Headers | None]) -> Batch[K, V]:
        """The same rows with other headers, one entry per row."""
        return self._with(headers=headers)

    def with_lineage(self, lineage: Sequence[Any]) -> Batch[K, V]:
        """The same rows with what they are made of; see ``streams.lineage``."""
        return self._with(lineage=lineage)

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
            lineage=columns.get("lineage", self.lineage),
        )

    def records(self) -> Iterator[Record[K, V]]:
        """The rows as single records."""
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
        """The row's input record, as bytes."""
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
class SyntheticBatch:
    """``Fetched`` for records that come from state instead of an input topic.

    ``topic`` and ``partition`` are those of the store's changelog, ``step`` is the step that made the
    records. Offsets are -1; the bytes are encoded only when a dead letter needs them. ``_changed_by`` returns
    the input records that last changed rows, ``None`` where they are not known; ``_made_at`` is the input
    record at which all were made, e.g. the one that closed a window, with an offset of -1 for a timer.
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
    """Returns the window of a value, if one key may have several results at the same time."""
    _lineage: Sequence[Any] | None = field(default=None)

    def __len__(self) -> int:
        return len(self._values)

    def identities(self, rows: Rows | None = None) -> list[Hashable]:
        """What identifies each row: store, key and window."""
        keys = self.keys(rows)
        windows: Iterable[Hashable] = [None] * len(keys)
        if self._window is not None:
            windows = map(self._window, take(self._values, rows))
        return [(self.topic, self.partition, key, window) for key, window in zip(keys, windows, strict=True)]

    def keys(self, rows: Rows | None = None) -> list[bytes | None]:
        return [self._encode(key) for key in take(self._keys, rows)]

    def values(self, rows: Rows | None = None) -> list[bytes | None]:
        return [self._encode(value) for value in take(self._values, rows)]

    def timestamps(self, rows: Rows | None = None) -> Sequence[int]:
        return take(self._timestamps, rows)

    def offsets(self, rows: Rows | None = None) -> list[int]:
        return [-1] * (len(self._values) if rows is None else len(rows))

    def headers(self, rows: Rows | None = None) -> list[Headers | None] | None:  # noqa: ARG002 - the protocol's
        return None

    def slice(self, start: int, stop: int) -> SyntheticBatch:
        return SyntheticBatch(
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
            _lineage=None if self._lineage is None else self._lineage[start:stop],
        )

    def lineage(self, rows: Rows) -> Sequence[Any] | None:
        """What these rows are made of, if that is known; see ``streams.lineage``."""
        return None if self._lineage is None else take(self._lineage, rows)

    def tracer(self, rows: Rows) -> Iterable[Trace]:
        """The input records that last changed these rows, else the one at which they were made."""
        if self._changed_by is None:
            return [self._made_at] * len(rows)
        return [trace or self._made_at for trace in self._changed_by(rows)]

    def is_last_change(self, row: int) -> bool:
        """Whether the input record that last changed the row is known."""
        return self._changed_by is not None and self._changed_by([row])[0] is not None

    def _changed_behind(self, start: int, rows: Rows) -> Sequence[Trace | None]:
        assert self._changed_by is not None
        return self._changed_by([start + row for row in rows])


class RowOwner(Protocol):
    """The producer of an output's rows, which handles rows that cannot be written."""

    def place(self, row: int) -> Hashable | None:
        """What identifies the row when its input is processed again; ``None`` to ``refuse`` it at once."""

    def refuse(self, row: int, error: Exception) -> None:
        """Apply the step's policy to the row. May raise an error that ends the worker."""


def total_bytes(payloads: Sequence[bytes | None]) -> int:
    """The sum of the payloads' lengths, nulls counting nothing."""
    try:
        return sum(map(len, payloads))  # type: ignore[arg-type]  # a null raises, and then they are left out
    except TypeError:
        return sum(map(len, filter(None, payloads)))


class Output:
    """Encoded rows for one topic, from a sink to a producer.

    Columns are parallel; ``timestamps`` in milliseconds since the epoch, ``headers`` is ``None`` if no row
    has any. A row with key ``None`` may go to any partition; others go to the same partition as with Java
    clients (murmur2), unless ``partition`` names one for all rows, which the topic must have, or
    ``partitions`` one for each: a row for one that the topic does not have is refused. ``owner`` identifies
    the rows by number, counted from ``first``.
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
        """Let the owner handle a row that cannot be written. Raises ``error`` without an owner."""
        if self.owner is None:
            raise error
        self.owner.refuse(self.first + row, error)
