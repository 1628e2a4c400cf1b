"""Steps that join records of streams: with each other, within a window of event time, or with tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

from streams.operators import fan_out
from streams.operators.aggregate import with_groups
from streams.operators.change import bind_view
from streams.operators.window import with_times
from streams.serde import nullable
from streams.state.definition import schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.guard import Guard
    from streams.operators import Binding, Children, Forward
    from streams.operators.change import AnyView, JoinKind
    from streams.records import Batch, Rows
    from streams.serde import Serde
    from streams.windows import JoinWindow


@dataclass(frozen=True, slots=True)
class JoinTable:
    """Joins each record with what a table has for its key. The record's key and event time stay.

    Without a value in the table, a record goes on with ``None`` in a left join, else not at all. Tombstones
    meet the policy, and so do records without a key, unless a left join takes them.
    """

    kind: ClassVar[str] = "join"
    terminal: ClassVar[bool] = False
    stamps: ClassVar[bool] = False

    function: Callable[[Any, Any], Any]
    table: AnyView
    is_left: bool

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, is_left = fan_out(children), step.guard, self.is_left
        read = bind_view(self.table, step, "current")
        transform = partial(starmap, self.function)

        def run(batch: Batch[Any, Any]) -> None:
            batch = without_tombstones(guard, batch)
            if not len(batch):
                return
            batch = with_groups(guard, batch, null_keys=is_left)
            keys = list(dict.fromkeys(key for key in batch.keys if key is not None))
            known = {key: found[0] for key, found in zip(keys, read(keys), strict=True) if found is not None}
            forward_joined(
                forward, guard, transform, batch, list(map(known.get, batch.keys)), is_left=is_left
            )

        return run


@dataclass(frozen=True, slots=True)
class JoinGlobal:
    """As ``JoinTable`` with a table that every task has as a whole: ``key`` finds its key in a value."""

    kind: ClassVar[str] = "join_global"
    terminal: ClassVar[bool] = False
    stamps: ClassVar[bool] = False

    function: Callable[[Any, Any], Any]
    table: str
    key: Callable[[Any], Any]
    keys: Serde[Any]
    is_left: bool

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, is_left = fan_out(children), step.guard, self.is_left
        read = step.lookup(self.table)
        transform = partial(starmap, self.function)

        def find(value: Any) -> Any:
            key = self.key(value)
            if key is None and not is_left:
                raise ValueError("a null key finds nothing in a table")
            hash(key)
            return key

        find_keys, encode_keys = partial(map, find), nullable(self.keys.serialize)

        def run(batch: Batch[Any, Any]) -> None:
            batch = without_tombstones(guard, batch)
            batch, wanted = guard.apply(find_keys, batch.values, batch)
            rows = guard.each(encode_keys, wanted, batch)[1]
            if rows is not None:
                batch, wanted = batch.select(rows), [wanted[row] for row in rows]
            keys = list(dict.fromkeys(key for key in wanted if key is not None))
            known = dict(zip(keys, read(keys), strict=True))
            forward_joined(forward, guard, transform, batch, list(map(known.get, wanted)), is_left=is_left)

        return run


def forward_joined(
    forward: Forward,
    guard: Guard,
    transform: Callable[[Sequence[Any]], Iterable[Any]],
    batch: Batch[Any, Any],
    found: Sequence[Any],
    *,
    is_left: bool,
) -> None:
    """Forward what a join makes of the rows and what was found for each; without those that found nothing."""
    pairs = list(zip(batch.values, found, strict=True))
    if not is_left:
        rows = [row for row, other in enumerate(found) if other is not None]
        if len(rows) < len(pairs):
            batch, pairs = batch.select(rows), [pairs[row] for row in rows]
    joined, values = guard.apply(transform, pairs, batch)
    if values:
        forward(joined.with_values(values))


def without_tombstones(guard: Guard, batch: Batch[Any, Any]) -> Batch[Any, Any]:
    """The rows that have a value; the others meet the error policy: a missing partner is ``None`` too."""
    rows = [row for row, value in enumerate(batch.values) if value is not None]
    if len(rows) == len(batch):
        return batch
    for row, value in enumerate(batch.values):
        if value is None:
            guard.refuse(batch, row, ValueError("a tombstone has no value to be joined"))
    return batch.select(rows)


class Waiting(NamedTuple):
    """A record of one side that may still be joined with records of the other."""

    time: int
    value: Any
    matched: bool
    arrived: int
    """Stream time when it had come."""


class WaitingSerde:
    """Between the records of one side, with one key and in one bucket of time, and bytes."""

    name = "waiting records"

    def __init__(self, inner: Serde[Any]) -> None:
        self._inner = inner
        self.schema = {"waiting": schema_of(inner)}

    def serialize(self, values: Sequence[list[Waiting]]) -> Iterable[bytes]:
        encode = msgspec.msgpack.Encoder().encode
        for waiting in values:
            payloads = self._inner.serialize([item.value for item in waiting])
            yield encode(
                [
                    (item.time, payload, item.matched, item.arrived)
                    for item, payload in zip(waiting, payloads, strict=True)
                ]
            )

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[list[Waiting]]:
        decode = msgspec.msgpack.Decoder(list[tuple[int, bytes, bool, int]]).decode
        for payload in payloads:
            items = decode(payload)
            values = self._inner.deserialize([item[1] for item in items])
            yield [
                Waiting(time, value, matched, arrived)
                for (time, _, matched, arrived), value in zip(items, values, strict=True)
            ]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinStreams:
    """One side of a join of two streams: its records meet those of the other side that wait, then wait.

    Both sides' records wait in windowed stores, in buckets of time: ``own`` and ``other``. A record is late
    when stream time, as it was at its row, is past all that the window and ``grace`` let it meet. Where a
    side ``emits_alone``, records that met nobody go on with ``None`` once their bucket is past.
    """

    kind: ClassVar[str] = "join"
    terminal: ClassVar[bool] = False
    stamps: ClassVar[bool] = True

    function: Callable[[Any, Any], Any]
    how: JoinKind
    window: JoinWindow
    grace: int
    is_left: bool
    own: str
    other: str
    value: Serde[Any]
    close_idle_after: int | None = None

    @property
    def code(self) -> object:
        return self.function

    @property
    def emits_alone(self) -> bool:
        """Whether a record that meets nobody is joined with ``None``."""
        return self.how == "outer" or (self.how == "left" and self.is_left)

    @property
    def reach(self) -> tuple[int, int]:
        """How far before and after a record of this side those of the other side lie that it meets."""
        before, after = self.window.before, self.window.after
        return (before, after) if self.is_left else (after, before)

    @property
    def retention(self) -> int:
        """How long after its start a bucket of this side is of use."""
        return bucket_size(self.window) + self.reach[1] + self.grace

    def bind(self, step: Binding, children: Children) -> Forward:
        return _Joining(self, step, children).run


def bucket_size(window: JoinWindow) -> int:
    """How much time one bucket of waiting records holds: what a record meets lies in at most two of them."""
    return max(1, window.before + window.after)


class _Joining:
    def __init__(self, operator: JoinStreams, step: Binding, children: Children) -> None:
        self._back, self._ahead = operator.reach
        self._grace = operator.grace
        self._size = bucket_size(operator.window)
        self._lasts = operator.retention
        self._is_left = operator.is_left
        self._emits_alone = operator.emits_alone
        # Whether the other side asks which of its records have met somebody.
        self._marks_other = operator.how == "outer" or (operator.how == "left" and not operator.is_left)
        self._function = operator.function
        self._transform = partial(starmap, operator.function)
        self._encode = operator.value.serialize
        self._store = operator.own
        self._own = step.windows(operator.own)
        self._other = step.windows(operator.other)
        self._step = step
        self._guard = step.guard
        self._clock = step.clock
        self._forward = fan_out(children)
        step.at_slice_end(self._close)
        if operator.close_idle_after is not None:
            furthest = max(operator.window.before, operator.window.after)
            step.close_idle_after(operator.close_idle_after, self._size + furthest + operator.grace)

    def run(self, batch: Batch[Any, Any]) -> None:
        guard = self._guard
        batch = without_tombstones(guard, batch)
        if len(batch):
            batch = with_times(guard, batch)
        if len(batch):
            batch = self._without_late(batch)
        if len(batch) and self._emits_alone:
            batch = self._without_keyless(batch)
        if len(batch):
            batch = with_groups(guard, batch)
        # Found now, by its record, and not when what waits is written.
        batch, _ = guard.apply(self._encode, batch.values, batch)
        if len(batch):
            self._join(batch, self._clock.times(batch))

    def _without_late(self, batch: Batch[Any, Any]) -> Batch[Any, Any]:
        lasts = self._ahead + self._grace
        if min(batch.timestamps) + lasts >= self._clock.time:
            return batch
        arrived = self._clock.times(batch)
        rows = [
            row
            for row, (time, now) in enumerate(zip(batch.timestamps, arrived, strict=True))
            if time + lasts >= now
        ]
        if len(rows) == len(batch):
            return batch
        self._step.late(len(batch) - len(rows))
        return batch.select(rows)

    def _without_keyless(self, batch: Batch[Any, Any]) -> Batch[Any, Any]:
        keyless = [row for row, key in enumerate(batch.keys) if key is None]
        if not keyless:
            return batch
        self._forward_alone(batch.select(keyless))
        return batch.select([row for row, key in enumerate(batch.keys) if key is not None])

    def _join(self, batch: Batch[Any, Any], arrived: Sequence[int]) -> None:
        keys, values, times = batch.keys, batch.values, batch.timestamps
        back, ahead, grace, size = self._back, self._ahead, self._grace, self._size
        waiting = self._waiting(keys, times)
        rows: list[int] = []
        partners: list[Waiting] = []
        met: set[int] = set()
        """Rows that met somebody."""
        marks: dict[tuple[int, Any], set[int]] = {}
        """Positions, in a bucket's list, of those waiting that met somebody."""
        for row, (key, time, now) in enumerate(zip(keys, times, arrived, strict=True)):
            low, high = time - back, time + ahead
            for start in {max(0, low) // size * size: None, high // size * size: None}:
                for at, item in enumerate(waiting[start][key] or ()):
                    # In the order of their rows, the later of both came at this stream time.
                    both = max(now, item.arrived)
                    if low <= item.time <= high and min(high, item.time + back) + grace >= both:
                        rows.append(row)
                        partners.append(item)
                        met.add(row)
                        if not item.matched:
                            marks.setdefault((start, key), set()).add(at)
        self._wait(batch, arrived, met)
        if marks and self._marks_other:
            self._mark(waiting, marks)
        if rows:
            self._forward_pairs(batch, rows, partners, values)

    def _waiting(self, keys: Sequence[Any], times: Sequence[int]) -> dict[int, dict[Any, Any]]:
        """The other side's records, by bucket and key, in the buckets that these reach into."""
        back, ahead, size = self._back, self._ahead, self._size
        wanted: dict[int, dict[Any, None]] = {}
        for key, time in zip(keys, times, strict=True):
            wanted.setdefault(max(0, time - back) // size * size, {})[key] = None
            wanted.setdefault((time + ahead) // size * size, {})[key] = None
        return {
            start: dict(zip(chosen, self._other.get_many(start, list(chosen)), strict=True))
            for start, chosen in wanted.items()
        }

    def _wait(self, batch: Batch[Any, Any], arrived: Sequence[int], met: set[int]) -> None:
        """Add the rows to those that wait on this side."""
        size = self._size
        added: dict[int, dict[Any, list[Waiting]]] = {}
        for row, (key, value, time, now) in enumerate(
            zip(batch.keys, batch.values, batch.timestamps, arrived, strict=True)
        ):
            bucket = added.setdefault(time // size * size, {})
            bucket.setdefault(key, []).append(Waiting(time, value, row in met, now))
        for start, entries in added.items():
            before = self._own.get_many(start, list(entries))
            self._own.put_many(
                start,
                {
                    key: new if old is None else old + new
                    for (key, new), old in zip(entries.items(), before, strict=True)
                },
            )

    def _mark(self, waiting: dict[int, dict[Any, Any]], marks: dict[tuple[int, Any], set[int]]) -> None:
        """Note who of the other side has met somebody."""
        for (start, key), positions in marks.items():
            marked = [
                item._replace(matched=True) if at in positions else item
                for at, item in enumerate(waiting[start][key])
            ]
            self._other.put(start, key, marked)

    def _forward_pairs(
        self, batch: Batch[Any, Any], rows: Rows, partners: Sequence[Waiting], values: Sequence[Any]
    ) -> None:
        own = [values[row] for row in rows]
        others = [item.value for item in partners]
        pairs = list(zip(own, others, strict=True) if self._is_left else zip(others, own, strict=True))
        times = [max(batch.timestamps[row], item.time) for row, item in zip(rows, partners, strict=True)]
        met = batch.select(rows).with_timestamps(times)
        joined, results = self._guard.apply(self._transform, pairs, met)
        if results:
            self._forward(joined.with_values(results))

    def _forward_alone(self, batch: Batch[Any, Any]) -> None:
        pairs = [(value, None) if self._is_left else (None, value) for value in batch.values]
        joined, results = self._guard.apply(self._transform, pairs, batch)
        if results:
            self._forward(joined.with_values(results))

    def _close(self) -> None:
        now = self._clock.time
        bound = now - self._lasts + 1
        if bound <= self._own.expired:
            return
        if self._emits_alone:
            for _, entries in self._own.windows(0, bound):
                alone = [(key, item) for key, items in entries for item in items if not item.matched]
                if alone:
                    self._forward_alone(
                        self._step.derive(
                            self._store,
                            [key for key, _ in alone],
                            [item.value for _, item in alone],
                            [item.time for _, item in alone],
                        )
                    )
        self._own.expire(now)
