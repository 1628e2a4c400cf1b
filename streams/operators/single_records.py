"""Steps whose functions receive records: key, event time and headers as well as the value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain, compress, repeat
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from streams.coroutines.awaitables import settled
from streams.operators import Operator, fan_out
from streams.operators.snapshot import FIXED, snapshot
from streams.operators.stateless import LATEST, no_event_time, several
from streams.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.operators import Binding, Children, Forward
    from streams.operators.keys import KeptKeys
    from streams.records import Batch, Headers

Columns: TypeAlias = "tuple[Any, Any, int, Headers | None]"
"""Key, value, event time and headers of a record when a function returned or yielded it."""


@dataclass(frozen=True, slots=True)
class MapRecords(Operator):
    """Replaces each record by the result of the function."""

    kind: ClassVar[str] = "map_records"
    one_to_one: ClassVar[bool] = True
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
                forward(_replaced(kept, kept.rows, made, kept.lineage))

        return run


@dataclass(frozen=True, slots=True)
class FlatMapRecords(Operator):
    """Replaces each record by those that the function returns or yields."""

    kind: ClassVar[str] = "flat_map_records"
    stamps: ClassVar[bool] = True

    function: Callable[[Record[Any, Any]], Iterable[Record[Any, Any]]]
    kept_keys: KeptKeys | None = None

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, function, kept_keys = fan_out(children), step.guard, self.function, self.kept_keys
        account = step.account

        def run(batch: Batch[Any, Any]) -> None:
            record_at, taken = records_of(batch), _Taken(batch, kept_keys, self.kind)

            def call(row: int) -> list[Columns]:
                # Copied one by one: a generator may modify a record and yield it again.
                return [taken(record, row) for record in several(function(record_at(row)))]

            kept, made = guard.apply(partial(map, call), range(len(batch)), batch)
            flat = list(chain.from_iterable(made))
            account.replaced(len(made))
            if flat:
                account.made(len(flat))
                sources = chain.from_iterable(
                    repeat(row, len(own)) for row, own in zip(kept.rows, made, strict=True)
                )
                lineage = None
                if kept.lineage is not None:
                    parts = (repeat(item, len(own)) for item, own in zip(kept.lineage, made, strict=True))
                    lineage = list(chain.from_iterable(parts))
                forward(_replaced(kept, list(sources), flat, lineage))

        return run


@dataclass(frozen=True, slots=True)
class FilterRecords(Operator):
    """Keeps the records that satisfy the predicate."""

    kind: ClassVar[str] = "filter_records"
    one_to_one: ClassVar[bool] = True

    predicate: Callable[[Record[Any, Any]], object]

    @property
    def code(self) -> object:
        return self.predicate

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, predicate = fan_out(children), step.guard, self.predicate
        account = step.account

        def run(batch: Batch[Any, Any]) -> None:
            record_at = records_of(batch)

            def call(row: int) -> bool:
                return bool(settled(predicate(record_at(row))))

            judged, verdicts = guard.apply(partial(map, call), range(len(batch)), batch)
            rows = list(compress(range(len(judged)), verdicts))
            if len(rows) < len(verdicts):
                account.filtered(len(verdicts) - len(rows))
            if rows:
                forward(judged if len(rows) == len(judged) else judged.select(rows))

        return run


@dataclass(frozen=True, slots=True)
class PeekRecords(Operator):
    """Calls a function with each record and forwards the record unchanged."""

    kind: ClassVar[str] = "peek_records"
    one_to_one: ClassVar[bool] = True
    terminal: ClassVar[bool] = True

    function: Callable[[Record[Any, Any]], object]
    muted: Callable[[], bool] | None = None
    """Whether the function is not to be called now; asked for each batch."""

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward = fan_out(children) if children else step.account.ended
        guard, function, muted = step.guard, self.function, self.muted

        def run(batch: Batch[Any, Any]) -> None:
            if muted is not None and muted():
                forward(batch)
                return
            record_at = records_of(batch)

            def call(row: int) -> object:
                return function(record_at(row))

            seen, _ = guard.apply(partial(map, call), range(len(batch)), batch)
            if len(seen):
                forward(seen)

        return run


def records_of(batch: Batch[Any, Any]) -> Callable[[int], Record[Any, Any]]:
    """A function that returns a row as a new record each time: a failed call may have changed the last one.

    Headers are copied, the value is the one in the batch; so is the key, unless it is mutable.
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
    """Copies the fields of a function's result for a row, because the record may be changed afterwards.

    Raises for an invalid record, so that the call that returned it fails.
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
            raise TypeError(
                f"the function of {self._kind} must return records, got {type(record).__name__}: "
                "make them with record.with_(value=…)"
            )
        key, time = snapshot(record.key), record.timestamp
        if self._kept_keys is not None:
            self._kept_keys.check(key, self._keys[row])
        # A record written without a time has the event time -1.
        if (type(time) is not int or not 0 <= time < LATEST) and time != self._times[row]:
            raise no_event_time(time)
        return key, snapshot(settled(record.value)), time, taken_headers(record.headers)


def taken_headers(headers: Any) -> Headers | None:
    """Copy headers from a user's function. Raises ``TypeError`` for headers that no broker accepts."""
    if headers is None:
        return None
    if not isinstance(headers, list | tuple):
        settled(headers)
        raise TypeError(f"headers must be a list of pairs of a name and bytes, or None: got {headers!r:.80}")
    for pair in headers:
        if not (
            isinstance(pair, tuple)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and (pair[1] is None or isinstance(pair[1], bytes))
        ):
            raise TypeError(
                f"a header is a pair of a name and bytes, or of a name and None: got {pair!r:.80}"
            )
        if not pair[0].isascii():
            # Raises for a surrogate, which the broker's client rejects.
            pair[0].encode()
    return list(headers)


def _replaced(
    source: Batch[Any, Any], rows: Sequence[int], made: Sequence[Columns], lineage: Sequence[Any] | None
) -> Batch[Any, Any]:
    """A batch of the results for the input records at ``rows``."""
    keys, values, timestamps, headers = map(list, zip(*made, strict=True))
    batch = source.of_rows(rows, values, lineage).with_keys(keys).with_timestamps(timestamps)
    # Without a column of its own, the batch would have the headers of the input.
    return batch.with_headers(headers) if source.headers is not None or any(headers) else batch
