"""Steps whose functions are given single records: key, event time and headers as well as the value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain, compress, repeat
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from streams.coroutines.awaitables import settled
from streams.operators import Operator, fan_out
from streams.operators.guard import UnfitResult
from streams.operators.snapshot import FIXED, snapshot
from streams.operators.stateless import LATEST, no_event_time, several
from streams.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.operators import Binding, Children, Forward
    from streams.operators.keys import KeptKeys
    from streams.records import Batch, Headers

Columns: TypeAlias = "tuple[Any, Any, int, Headers | None]"
"""Key, value, event time and headers of a record, as they were when a function gave it."""


@dataclass(frozen=True, slots=True)
class MapRecords(Operator):
    """Replaces each record by the one that the function makes of it."""

    kind: ClassVar[str] = "map_records"
    stamps: ClassVar[bool] = True

    function: Callable[[Record[Any, Any]], Record[Any, Any]]
    kept_keys: KeptKeys | None = None

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, function, kept_keys = fan_out(children), step.guard, self.function, self.kept_keys

        def run(batch: Batch[Any, Any]) -> None:
            record_at, taken = records_of(batch), _Taken(batch, kept_keys, self.kind)

            def call(row: int) -> Columns:
                return taken(function(record_at(row)), row)

            kept, made = guard.apply(partial(map, call), range(len(batch)), batch)
            if made:
                forward(_replaced(kept, kept.rows, made))

        return run


@dataclass(frozen=True, slots=True)
class FlatMapRecords(Operator):
    """Replaces each record by those that the function gives for it."""

    kind: ClassVar[str] = "flat_map_records"
    stamps: ClassVar[bool] = True

    function: Callable[[Record[Any, Any]], Iterable[Record[Any, Any]]]
    kept_keys: KeptKeys | None = None

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, function, kept_keys = fan_out(children), step.guard, self.function, self.kept_keys

        def run(batch: Batch[Any, Any]) -> None:
            record_at, taken = records_of(batch), _Taken(batch, kept_keys, self.kind)

            def call(row: int) -> list[Columns]:
                # Each is taken as it comes: a generator may change and give one object again.
                return [taken(record, row) for record in several(function(record_at(row)))]

            kept, made = guard.apply(partial(map, call), range(len(batch)), batch)
            flat = list(chain.from_iterable(made))
            if flat:
                sources = chain.from_iterable(
                    repeat(row, len(own)) for row, own in zip(kept.rows, made, strict=True)
                )
                forward(_replaced(kept, list(sources), flat))

        return run


@dataclass(frozen=True, slots=True)
class FilterRecords(Operator):
    """Keeps the records that satisfy the predicate."""

    kind: ClassVar[str] = "filter_records"

    predicate: Callable[[Record[Any, Any]], object]

    @property
    def code(self) -> object:
        return self.predicate

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, predicate = fan_out(children), step.guard, self.predicate

        def run(batch: Batch[Any, Any]) -> None:
            record_at = records_of(batch)

            def call(row: int) -> bool:
                return bool(settled(predicate(record_at(row))))

            judged, verdicts = guard.apply(partial(map, call), range(len(batch)), batch)
            rows = list(compress(range(len(judged)), verdicts))
            if rows:
                forward(judged if len(rows) == len(judged) else judged.select(rows))

        return run


@dataclass(frozen=True, slots=True)
class PeekRecords(Operator):
    """Shows each record to a function and passes it on unchanged."""

    kind: ClassVar[str] = "peek_records"
    terminal: ClassVar[bool] = True

    function: Callable[[Record[Any, Any]], object]

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, function = fan_out(children), step.guard, self.function

        def run(batch: Batch[Any, Any]) -> None:
            record_at = records_of(batch)

            def call(row: int) -> object:
                return function(record_at(row))

            seen, _ = guard.apply(partial(map, call), range(len(batch)), batch)
            if len(seen):
                forward(seen)

        return run


def records_of(batch: Batch[Any, Any]) -> Callable[[int], Record[Any, Any]]:
    """What gives a row as a record, made again each time: a call that failed may have changed it.

    Headers are the record's own, the value is the one in the batch; so is the key, unless it can be changed.
    """
    topic, partition = batch.topic, batch.partition
    keys, values, timestamps, headers = batch.keys, batch.values, batch.timestamps, batch.headers
    offsets = batch.offsets
    fixed = batch.key_types <= FIXED

    def record_at(row: int) -> Record[Any, Any]:
        key = keys[row]
        own = None if headers is None else headers[row]
        return Record(
            key if fixed else snapshot(key),
            values[row],
            timestamps[row],
            own and list(own),
            topic,
            partition,
            offsets[row],
        )

    return record_at


class _Taken:
    """Takes what there is in a record that a function gave for a row: it may be changed afterwards.

    Raises for one that cannot go on, so that it fails with the call that gave it.
    """

    __slots__ = ("_kept_keys", "_keys", "_kind", "_times")

    def __init__(self, batch: Batch[Any, Any], kept_keys: KeptKeys | None, kind: str) -> None:
        self._keys = batch.keys
        self._times = batch.timestamps
        self._kept_keys = kept_keys
        self._kind = kind

    def __call__(self, record: object, row: int) -> Columns:
        if not isinstance(record, Record):
            settled(record)
            raise UnfitResult(
                f"{self._kind} needs records from its function, got {type(record).__name__}: "
                "make them with record.with_(value=…)"
            )
        key, time = snapshot(record.key), record.timestamp
        if self._kept_keys is not None:
            self._kept_keys.check(key, self._keys[row])
        # A record that was written without a time has one of -1.
        if (type(time) is not int or not 0 <= time < LATEST) and time != self._times[row]:
            raise no_event_time(time)
        return key, snapshot(settled(record.value)), time, taken_headers(record.headers)


def taken_headers(headers: Any) -> Headers | None:
    """A copy of headers that a function of the user's gave. Raises ``TypeError`` for what no broker takes."""
    if headers is None:
        return None
    if not isinstance(headers, list | tuple):
        settled(headers)
        raise TypeError(f"headers are a list of pairs of a name and bytes, or None: got {headers!r:.80}")
    for pair in headers:
        if not (
            isinstance(pair, tuple)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and (pair[1] is None or isinstance(pair[1], bytes))
        ):
            raise TypeError(f"a header is a pair of a name and bytes, or None for these: got {pair!r:.80}")
        if not pair[0].isascii():
            # Raises for a surrogate, which the broker's client does not take.
            pair[0].encode()
    return list(headers)


def _replaced(source: Batch[Any, Any], rows: Sequence[int], made: Sequence[Columns]) -> Batch[Any, Any]:
    """A batch of what was made of the input records at ``rows``."""
    keys, values, timestamps, headers = map(list, zip(*made, strict=True))
    batch = source.of_rows(rows, values).with_keys(keys).with_timestamps(timestamps)
    # Without a column of its own, the batch would have the headers of the input.
    return batch.with_headers(headers) if source.headers is not None or any(headers) else batch
