"""Steps that join a stream with another one, in a window of event time, or with a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

from streams.coroutines.awaitables import settled
from streams.durations import whole_milliseconds
from streams.lineage import UNKNOWN, ancestry_of, combined, unpacked
from streams.operators import Operator, fan_out
from streams.operators.change import bind_view
from streams.operators.keys import held_keys, with_keys
from streams.operators.window import RESULTS_AT_ONCE, with_times
from streams.records import take
from streams.serde import nullable
from streams.state.definition import schema_of
from streams.state.unmatched import UnmatchedRecords

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from streams.eventtime.windows import JoinWindow
    from streams.lineage import Ancestry
    from streams.operators import Account, Binding, Children, Forward
    from streams.operators.change import AnyView, JoinKind
    from streams.operators.guard import Guard
    from streams.records import Batch, Rows, Trace
    from streams.serde import Serde
    from streams.state.buffered import WindowState

_LATEST = 1 << 63


@dataclass(frozen=True, slots=True)
class JoinTable(Operator):
    """Joins each record with a table's value for its key. The record's key and event time stay the same.

    A record without a value in the table is joined with ``None`` by a left join, and otherwise dropped. The
    policy applies to tombstones, and to records without a key unless it is a left join.
    """

    kind: ClassVar[str] = "join"
    one_to_one: ClassVar[bool] = True

    function: Callable[[Any, Any], Any]
    table: AnyView
    is_left: bool

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        guard, is_left, held = step.guard, self.is_left, held_keys(step, self.table.stores[0])
        account = step.account
        forward = held.leaving(fan_out(children))
        read = bind_view(self.table, step, "current")
        transform = partial(starmap, self.function)

        def run(batch: Batch[Any, Any]) -> None:
            batch = without_tombstones(guard, batch)
            if not len(batch):
                return
            keys = list(dict.fromkeys(key for key in batch.keys if key is not None))
            known = {key: found[0] for key, found in zip(keys, read(keys), strict=True) if found is not None}
            found = list(map(known.get, batch.keys))
            forward_joined(forward, guard, account, transform, batch, found, is_left=is_left)

        return held.entering(guard, run, null_keys=is_left)


@dataclass(frozen=True, slots=True)
class JoinGlobal(Operator):
    """As ``JoinTable``, with a global table: ``key`` computes the table's key from a value."""

    kind: ClassVar[str] = "join_global"
    one_to_one: ClassVar[bool] = True

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
        account = step.account
        read = step.lookup(self.table)
        transform = partial(starmap, self.function)

        def find(value: Any) -> Any:
            key = settled(self.key(value))
            if key is None and not is_left:
                raise ValueError("a null key matches no key of a table")
            return key

        find_keys, encode_keys = partial(map, find), nullable(self.keys.serialize)

        def run(batch: Batch[Any, Any]) -> None:
            batch = without_tombstones(guard, batch)
            batch, wanted = guard.apply(find_keys, batch.values, batch)
            encoded, rows = guard.each(encode_keys, wanted, batch)
            if rows is not None:
                batch, wanted = batch.select(rows), take(wanted, rows)
            # Keys are equal when their bytes are.
            keys = {place: key for place, key in zip(encoded, wanted, strict=True) if place is not None}
            known = dict(zip(keys, read(list(keys.values())), strict=True))
            found = list(map(known.get, encoded))
            forward_joined(forward, guard, account, transform, batch, found, is_left=is_left)

        return run


def forward_joined(
    forward: Forward,
    guard: Guard,
    account: Account,
    transform: Callable[[Sequence[Any]], Iterable[Any]],
    batch: Batch[Any, Any],
    found: Sequence[Any],
    *,
    is_left: bool,
) -> None:
    """Join each row with the value found for it; forward the results. Only a left join keeps the others."""
    pairs: Sequence[tuple[Any, Any]] = list(zip(batch.values, found, strict=True))
    if not is_left:
        rows = [row for row, other in enumerate(found) if other is not None]
        if len(rows) < len(pairs):
            account.filtered(len(pairs) - len(rows))
            batch, pairs = batch.select(rows), take(pairs, rows)
    joined, values = guard.apply(transform, pairs, batch)
    if values:
        forward(joined.with_values(values))


def without_tombstones(guard: Guard, batch: Batch[Any, Any]) -> Batch[Any, Any]:
    """The rows that have a value; the policy applies to others, as ``None`` stands for a missing match."""
    rows = [row for row, value in enumerate(batch.values) if value is not None]
    if len(rows) == len(batch):
        return batch
    for row, value in enumerate(batch.values):
        if value is None:
            guard.refuse(batch, row, ValueError("a tombstone has no value to join"))
    return batch.select(rows)


class Waiting(NamedTuple):
    """A buffered record of one side that may still be joined with records of the other."""

    time: int
    payload: bytes
    """Its encoded value, decoded again for each match, so that results are the same after a restart."""
    matched: bool
    arrived: int
    """Stream time at its arrival, including the record itself."""


class TracedWaiting(Waiting):
    """A buffered record with its lineage, for the setting of that name."""

    lineage: Ancestry

    def marked(self) -> TracedWaiting:
        """The same, with a match."""
        return traced_waiting((self.time, self.payload, True, self.arrived), self.lineage)


def traced_waiting(fields: Sequence[Any], lineage: Ancestry) -> TracedWaiting:
    """A buffered record of these fields of ``Waiting``."""
    waiting = TracedWaiting(*fields)
    waiting.lineage = lineage
    return waiting


def ancestry_of_waiting(item: Waiting) -> Ancestry:
    """What is known of a buffered record."""
    return item.lineage if isinstance(item, TracedWaiting) else UNKNOWN


class WaitingSerde:
    """The serde of the buffered records of one side with one key in one bucket of time.

    It reads records with and without lineage, and writes the lineage only if asked to.
    """

    name = "waiting records"

    def __init__(self, inner: Serde[Any], *, lineage: bool = False) -> None:
        self.schema = {"waiting": schema_of(inner)}
        self.learn = getattr(inner, "learn", None)
        self._lineage = lineage

    def serialize(self, values: Sequence[list[Waiting]]) -> Iterable[bytes]:
        encode = msgspec.msgpack.Encoder().encode
        if not self._lineage:
            return map(encode, values)
        return (
            encode([(*item, item.lineage) if isinstance(item, TracedWaiting) else item for item in items])
            for items in values
        )

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[list[Waiting]]:
        try:
            return list(map(msgspec.msgpack.Decoder(list[Waiting]).decode, payloads))
        except msgspec.ValidationError:
            return map(_with_lineage, payloads)


def _with_lineage(payload: bytes) -> list[Waiting]:
    """Buffered records, some with a lineage. Raises ``msgspec.ValidationError`` for other data."""
    found: list[Waiting] = []
    for fields in msgspec.msgpack.Decoder(list[list[Any]]).decode(payload):
        time, content, matched, arrived = msgspec.convert(fields[:4], tuple[int, bytes, bool, int])
        if len(fields) > 4:
            found.append(traced_waiting((time, content, matched, arrived), unpacked(fields[4])))
        else:
            found.append(Waiting(time, content, matched, arrived))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinStreams(Operator):
    """One side of a join of two streams: joins its records with the other side's, then buffers them.

    Both sides' records are buffered in windowed stores, in buckets of time: ``own`` and ``other``. Until
    stream time passes a record's event time by more than ``lasts``, the record is joined; after that it is
    late. If a side ``emits_alone``, its records without a match are joined with ``None`` at that moment;
    ``unmatched`` is the store of the candidates. A matching record that arrives after that may still be in
    time by its own event time: it is late only for this match.

    ``closes`` is set for the later of the two steps: it handles both sides when a slice ends. ``joined`` and
    ``late`` name the steps that receive the pairs and the late records.
    """

    kind: ClassVar[str] = "join"
    stamps: ClassVar[bool] = True
    order_depends_on_slices: ClassVar[bool] = True
    """Pairs are in the order of rows; unmatched records follow when a slice ends, in order of event times."""

    function: Callable[[Any, Any], Any]
    how: JoinKind
    window: JoinWindow
    grace: int
    is_left: bool
    own: str
    other: str
    unmatched: str | None
    value: Serde[Any]
    other_value: Serde[Any]
    closes: bool
    joined: str
    late: str
    close_idle_after: int | None = None
    lineage: bool = False
    """Whether pairs have the lineage of both records."""

    @property
    def code(self) -> object:
        return self.function

    @property
    def late_child(self) -> str:
        return self.late

    @property
    def idle_reach(self) -> int:
        return 2 * whole_milliseconds(self.window.before + self.window.after) + self.grace

    @property
    def reach(self) -> tuple[int, int]:
        """How far before and after a record of this side its matches may be, in milliseconds."""
        before, after = whole_milliseconds(self.window.before), whole_milliseconds(self.window.after)
        return (before, after) if self.is_left else (after, before)

    @property
    def lasts(self) -> int:
        """By how many milliseconds stream time may have passed a record's event time while it is joined."""
        return sum(self.reach) + self.grace

    @property
    def retention(self) -> int:
        """How long after its start a bucket of this side is needed, in milliseconds.

        It is needed until all possible matches of its records are late themselves: before that, it shows
        which records of the other side are late for a match.
        """
        return bucket_size(self.window) + self.reach[1] + self.lasts

    def bind(self, step: Binding, children: Children) -> Forward:
        held = held_keys(step, self.own)
        joining = _Joining(self, step, held.children(children))
        return held.entering(step.guard, joining.run, null_keys=True)


def emits_alone(how: JoinKind, *, is_left: bool) -> bool:
    """Whether records of that side without a match are joined with ``None``."""
    return how == "outer" or (how == "left" and is_left)


def bucket_size(window: JoinWindow) -> int:
    """The length of a bucket in milliseconds, such that a record's matches are in at most two buckets."""
    return max(1, whole_milliseconds(window.before + window.after))


class _Joining:
    def __init__(self, operator: JoinStreams, step: Binding, children: Children) -> None:
        self._back, self._ahead = operator.reach
        self._lasts = operator.lasts
        self._size = bucket_size(operator.window)
        self._is_left = operator.is_left
        self._lineage = operator.lineage
        self._emits_alone = emits_alone(operator.how, is_left=operator.is_left)
        # Whether the other side's records without a match are joined with None.
        self._marks_other = emits_alone(operator.how, is_left=not operator.is_left)
        self._transform = partial(starmap, operator.function)
        self._encode = operator.value.serialize
        self._decode, self._decode_other = operator.value.deserialize, operator.other_value.deserialize
        self._stores = operator.own, operator.other
        self._own = step.windows(operator.own)
        self._other = step.windows(operator.other)
        self._unmatched: UnmatchedRecords[Any] | None = None
        if operator.unmatched is not None:
            self._unmatched = UnmatchedRecords(step.windows(operator.unmatched))
        self._unmatched_store = operator.unmatched
        self._step = step
        self._guard = step.guard
        self._account = step.account
        self._clock = step.clock
        self._joined = operator.joined
        self._forward = children[operator.joined]
        self._origins = step.timed_changes(operator.own)
        self._origins_of = {
            operator.is_left: self._origins,
            not operator.is_left: step.timed_changes(operator.other),
        }
        """By side: whether it is the left one."""
        self._late = children.get(operator.late)
        if operator.closes:
            step.at_slice_end(self._close)
            if operator.close_idle_after is not None:
                horizon = self._size + max(operator.reach) + operator.lasts
                step.close_idle_after(operator.close_idle_after, horizon)

    def run(self, batch: Batch[Any, Any]) -> None:
        guard = self._guard
        batch = without_tombstones(guard, batch)
        if len(batch):
            batch = with_times(guard, batch)
        if len(batch) and self._emits_alone:
            batch = self._without_keyless(batch)
        if len(batch):
            batch = with_keys(guard, batch)
        batch, payloads = guard.apply(self._encode, batch.values, batch)
        if len(batch):
            self._join(batch, payloads, self._clock.times(batch))

    def _without_keyless(self, batch: Batch[Any, Any]) -> Batch[Any, Any]:
        keyless = [row for row, key in enumerate(batch.keys) if key is None]
        if not keyless:
            return batch
        alone = batch.select(keyless)
        self._account.replaced(len(alone))
        self._forward_joined(alone, [self._pair(value, None) for value in alone.values])
        return batch.select([row for row, key in enumerate(batch.keys) if key is not None])

    def _join(self, batch: Batch[Any, Any], payloads: Sequence[bytes], arrived: Sequence[int]) -> None:
        lasts = self._lasts
        times = batch.timestamps
        if min(times) + lasts >= self._clock.time:
            late = self._meet(batch, payloads, arrived)
            kept = len(late)
        else:
            # Whether a row is late depends on stream time at its arrival.
            rows = [
                row for row, (time, now) in enumerate(zip(times, arrived, strict=True)) if time + lasts >= now
            ]
            late = sorted({*range(len(batch))}.difference(rows))
            kept = 0
            if rows:
                missed = self._meet(batch.select(rows), take(payloads, rows), take(arrived, rows))
                kept = len(missed)
                late = sorted([*late, *(rows[row] for row in missed)])
        if late:
            self._leave_out(batch.select(late), kept=kept)

    def _meet(self, batch: Batch[Any, Any], payloads: Sequence[bytes], arrived: Sequence[int]) -> list[int]:
        """Join the rows, none of which is late, with the other side's buffered records, and buffer them.

        Returns those that are late for a record which they would have matched.
        """
        keys, times = batch.keys, batch.timestamps
        back, ahead, size, lasts = self._back, self._ahead, self._size, self._lasts
        waiting = self._waiting(keys, times)
        rows: list[int] = []
        partners: list[Waiting] = []
        missed: dict[int, None] = {}
        overtaken: dict[tuple[int, Any, int], Waiting] = {}
        """The buffered records that arrived after a matching row, too late for it, by their places."""
        marks: dict[tuple[int, Any], set[int]] = {}
        """The positions, in a bucket's list, of the buffered records that have found a match."""
        for row, (key, time, now) in enumerate(zip(keys, times, arrived, strict=True)):
            low, high = time - back, time + ahead
            first, last = max(0, low) // size * size, high // size * size
            for start in (first,) if first == last else (first, last):
                for at, item in enumerate(waiting[start][key] or ()):
                    other, _, matched, came = item
                    if not low <= other <= high:
                        continue
                    # In row order, the later of the two arrived at the higher stream time.
                    earlier = time if time < other else other  # noqa: FURB136 - faster than min, for each pair
                    if earlier + lasts >= now and earlier + lasts >= came:
                        rows.append(row)
                        partners.append(item)
                        if not matched:
                            marks.setdefault((start, key), set()).add(at)
                    elif came > now:
                        overtaken[start, key, at] = item
                    else:
                        missed[row] = None
        if overtaken:
            self._leave_out_overtaken(overtaken)
        met = set(rows)
        self._wait(batch, payloads, arrived, met)
        if self._emits_alone:
            assert self._unmatched is not None
            alone = [row for row in range(len(keys)) if row not in met]
            self._unmatched.add((times[row], keys[row]) for row in alone)
            self._origins.note(batch.select(alone))
        if marks and self._marks_other:
            self._mark(waiting, marks)
        if rows:
            self._forward_pairs(batch, rows, partners)
        return list(missed)

    def _waiting(self, keys: Sequence[Any], times: Sequence[int]) -> dict[int, dict[Any, Any]]:
        """The other side's records, by bucket and key, in the buckets with possible matches."""
        back, ahead, size = self._back, self._ahead, self._size
        wanted: dict[int, dict[Any, None]] = {}
        for key, time in zip(keys, times, strict=True):
            wanted.setdefault(max(0, time - back) // size * size, {})[key] = None
            wanted.setdefault((time + ahead) // size * size, {})[key] = None
        return {
            start: dict(zip(chosen, self._other.get_many(start, list(chosen)), strict=True))
            for start, chosen in wanted.items()
        }

    def _wait(
        self, batch: Batch[Any, Any], payloads: Sequence[bytes], arrived: Sequence[int], met: set[int]
    ) -> None:
        """Add the rows to the buffered records of this side."""
        if self._emits_alone:
            self._origins.note(batch)
        size = self._size
        ancestry = ancestry_of(batch) if self._lineage else None
        added: dict[int, dict[Any, list[Waiting]]] = {}
        for row, (key, payload, time, now) in enumerate(
            zip(batch.keys, payloads, batch.timestamps, arrived, strict=True)
        ):
            bucket = added.setdefault(time // size * size, {})
            item = Waiting(time, payload, row in met, now)
            if ancestry is not None:
                item = traced_waiting(item, ancestry[row])
            if key in bucket:
                bucket[key].append(item)
            else:
                bucket[key] = [item]
        self._account.held(sum(sum(map(len, entries.values())) for entries in added.values()))
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
        """Mark the records of the other side that have a match."""
        for (start, key), positions in marks.items():
            marked = [
                item
                if at not in positions
                else item.marked()
                if isinstance(item, TracedWaiting)
                else item._replace(matched=True)
                for at, item in enumerate(waiting[start][key])
            ]
            self._other.put(start, key, marked)

    def _leave_out(self, batch: Batch[Any, Any], *, kept: int) -> None:
        """Count late records, ``kept`` of which are buffered, and forward them to the step for them."""
        self._step.late(len(batch), kept=kept)
        if self._late is not None:
            self._late(batch)

    def _leave_out_overtaken(self, overtaken: Mapping[tuple[int, Any, int], Waiting]) -> None:
        """Report buffered records as late that arrived too late for a row which is only now processed.

        That happens where one batch has records of both sides: the other side's step has processed all of it
        already. That step has reported those that were too late for an earlier record of this side.
        """
        keys: list[Any] = []
        items: list[Waiting] = []
        for (_, key, _), item in overtaken.items():
            low, high = item.time - self._ahead, item.time + self._back
            before = (
                earlier
                for start in {
                    max(0, low) // self._size * self._size: None,
                    high // self._size * self._size: None,
                }
                for earlier in self._own.get(start, key) or ()
            )
            if not any(
                low <= earlier.time <= high
                and earlier.arrived <= item.arrived
                and min(earlier.time, item.time) + self._lasts < item.arrived
                for earlier in before
            ):
                keys.append(key)
                items.append(item)
        if items:
            values = list(self._decode_other([item.payload for item in items]))
            times = [item.time for item in items]
            lineage = list(map(ancestry_of_waiting, items)) if self._lineage else None
            overtaken_batch = self._step.derive(self._stores[1], keys, values, times, lineage=lineage)
            self._leave_out(overtaken_batch, kept=len(items))

    def _pair(self, own: Any, other: Any) -> tuple[Any, Any]:
        return (own, other) if self._is_left else (other, own)

    def _forward_pairs(self, batch: Batch[Any, Any], rows: Rows, partners: Sequence[Waiting]) -> None:
        values, times = batch.values, batch.timestamps
        own = take(values, rows)
        others = self._decode_other([item.payload for item in partners])
        pairs = list(zip(own, others, strict=True) if self._is_left else zip(others, own, strict=True))
        later = [max(times[row], item.time) for row, item in zip(rows, partners, strict=True)]
        paired = batch.select(rows)
        if self._lineage:
            paired = paired.with_lineage(
                [
                    combined((one, ancestry_of_waiting(item)))
                    for one, item in zip(ancestry_of(paired), partners, strict=True)
                ]
            )
        self._forward_joined(paired.with_timestamps(later), pairs)

    def _forward_joined(self, batch: Batch[Any, Any], pairs: Sequence[tuple[Any, Any]]) -> None:
        joined, results = self._guard.apply(self._transform, pairs, batch)
        # Both records of a pair that fails are buffered, or counted already.
        self._account.resumed(len(pairs) - len(results))
        self._account.made(len(results), self._joined)
        if results:
            self._forward(joined.with_values(results))

    def _close(self) -> None:
        now = self._clock.time
        unmatched = self._unmatched
        if unmatched is not None and now - self._lasts > unmatched.reached:
            if unmatched.reached == 0:
                # State of earlier versions has no store of unmatched records.
                unmatched.add(self._waiting_alone())
            leaving = unmatched.before(now - self._lasts)
            for at in range(0, len(leaving), RESULTS_AT_ONCE):
                self._forward_alone(leaving[at : at + RESULTS_AT_ONCE])
            unmatched.expire(now)
        self._own.expire(now)
        self._other.expire(now)

    def _alone_sides(self) -> Iterator[_Side]:
        """The sides whose unmatched records are joined with ``None``, left first."""
        own = _Side(self._own, self._is_left, self._decode)
        other = _Side(self._other, not self._is_left, self._decode_other)
        for side, alone in sorted(
            [(own, self._emits_alone), (other, self._marks_other)], key=lambda each: not each[0].is_left
        ):
            if alone:
                yield side

    def _waiting_alone(self) -> Iterator[tuple[int, Any]]:
        """Event times and keys of all buffered records without a match."""
        for side in self._alone_sides():
            for _, entries in side.store.windows(0, _LATEST):
                yield from ((item.time, key) for key, items in entries for item in items if not item.matched)

    def _forward_alone(self, leaving: Sequence[tuple[int, Any]]) -> None:
        """Join the unmatched records at these times and keys with ``None``, in that order."""
        size, earliest, latest = self._size, leaving[0][0], leaving[-1][0]
        buckets: dict[int, dict[Any, None]] = {}
        for time, key in leaving:
            buckets.setdefault(time // size * size, {})[key] = None
        alone: dict[tuple[int, Any], list[tuple[Any, tuple[Any, Any], bool, Ancestry]]] = {}
        for store, is_left, decode in self._alone_sides():
            places: list[tuple[int, Any]] = []
            payloads: list[bytes] = []
            ancestry: list[Ancestry] = []
            for start, keys in buckets.items():
                for key, items in zip(keys, store.get_many(start, list(keys)), strict=True):
                    for item in items or ():
                        if not item.matched and earliest <= item.time <= latest:
                            places.append((item.time, key))
                            payloads.append(item.payload)
                            ancestry.append(ancestry_of_waiting(item))
            for place, value, known in zip(places, decode(payloads), ancestry, strict=True):
                pair = (value, None) if is_left else (None, value)
                alone.setdefault(place, []).append((value, pair, is_left, known))
        found = [(time, key, *each) for time, key in leaving for each in alone.get((time, key), ())]
        if found:
            times, found_keys, values, pairs, sides, made_of = zip(*found, strict=True)
            changed_by = self._own_records(list(zip(sides, found_keys, times, strict=True)))
            lineage = made_of if self._lineage else None
            batch = self._step.derive(self._unmatched_store, found_keys, values, times, changed_by, lineage)
            self._forward_joined(batch, pairs)

    def _own_records(self, places: Sequence[tuple[bool, Any, int]]) -> Callable[[Rows], list[Trace | None]]:
        """A function that finds the input records of unmatched records, by side, key and time."""

        def find(rows: Rows) -> list[Trace | None]:
            found: list[Trace | None] = []
            for is_left, key, time in (places[row] for row in rows):
                found += self._origins_of[is_left].finder([(key, time, time)])([0])
            return found

        return find


class _Side(NamedTuple):
    """The buffered records of one side of a join."""

    store: WindowState[Any, list[Waiting]]
    is_left: bool
    decode: Callable[[Sequence[bytes]], Iterable[Any]]
