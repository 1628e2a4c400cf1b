"""The steps of tables: streams of changes of keys' values."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from streams.aggregates.traced import Traced, TracedAggregate, lineage_of
from streams.coroutines.awaitables import settled
from streams.errors import RegistryUnavailable, SchemaRegistryError, error_text
from streams.lineage import ancestry_of
from streams.operators import Operator, fan_out
from streams.operators.aggregate import Reduce
from streams.operators.change import (
    Change,
    apply_present,
    bind_view,
    forward_changes,
    paired,
    quietly,
)
from streams.operators.keys import ImpliedText, held_keys
from streams.operators.origins import LastChanges
from streams.operators.traced_folding import folding_of
from streams.serde import nullable
from streams.serde.topics import connected
from streams.state.definition import SourceEntries, schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.aggregates import Aggregate, Place
    from streams.lineage import Ancestry
    from streams.operators import Binding, Children, Forward
    from streams.operators.change import AnyView, Found, JoinKind
    from streams.records import Batch, Fetched, Headers
    from streams.serde import Serde
    from streams.serde.round_trip import RoundTrip
    from streams.serde.subjects import Subjects
    from streams.state.buffered import KeyValueState

_TIME = struct.Struct(">q")

LATEST = 1 << 63

REMOVED: tuple[str, bytes | None] = ("__streams.removed", None)
"""The header of records in a repartition topic that subtract a value from its group."""


class StampedSerde:
    """The serde of pairs of a value and its event time: eight bytes of time, then the value by ``inner``.

    If ``inner`` reads ``None`` (e.g. the JSON text ``null``), there is no value: the result is ``None``.
    """

    def __init__(self, inner: Serde[Any]) -> None:
        self._inner = inner
        self.name = f"stamped {inner.name}"
        self.schema = {"stamped": schema_of(inner)}
        self.learn = getattr(inner, "learn", None)
        self.reads_as_written = getattr(inner, "reads_as_written", False)

    def connected(self, subjects: Subjects) -> StampedSerde:
        """The same for a store that a topic of a schema registry fills."""
        return StampedSerde(connected(self._inner, subjects, "value", stored=True))

    def serialize(self, values: Sequence[tuple[Any, int]]) -> Iterable[bytes]:
        payloads = self._inner.serialize([value for value, _ in values])
        pack = _TIME.pack
        return (pack(time) + payload for (_, time), payload in zip(values, payloads, strict=True))

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Found]:
        values = self._inner.deserialize([payload[8:] for payload in payloads])
        unpack = _TIME.unpack_from
        return (
            None if value is None else (value, unpack(payload)[0])
            for value, payload in zip(values, payloads, strict=True)
        )


class TableEntries:
    """Converts records of a table's topic to entries of its store, as the table's steps would.

    A value that is null, or that the serde reads as ``None``, is a deletion. Records to which the steps would
    apply their policy, without a key or that cannot be decoded, are skipped.
    """

    def __init__(
        self, key: Serde[Any], value: Serde[Any], timestamp: Callable[[Any], int] | None = None
    ) -> None:
        self._key = key
        self._value = value
        self._timestamp = timestamp

    def connected(self, subjects: Subjects) -> TableEntries:
        """The same for a topic of a schema registry."""
        return TableEntries(
            connected(self._key, subjects, "key", stored=True),
            connected(self._value, subjects, "value"),
            self._timestamp,
        )

    def __call__(self, fetched: Fetched) -> SourceEntries:
        columns = fetched.keys(), fetched.values(), fetched.timestamps()
        with suppress(Exception):
            return SourceEntries(self._entries(*columns))
        entries: dict[bytes, bytes | None] = {}
        refused: list[tuple[int, str]] = []
        for row, (key, payload, time) in enumerate(zip(*columns, strict=True)):
            try:
                entries |= self._entries([key], [payload], [time])
            except (RegistryUnavailable, SchemaRegistryError):
                # Not the record's fault: the records are read again.
                raise
            except Exception as error:  # noqa: BLE001 - serdes and user code may raise anything
                refused.append((row, f"{type(error).__name__}: {error_text(error)}"))
        return SourceEntries(entries, refused)

    def _entries(
        self, keys: Sequence[bytes | None], payloads: Sequence[bytes | None], times: Sequence[int]
    ) -> dict[bytes, bytes | None]:
        # After a round trip through the serde, as equal keys may have been written differently.
        decoded = list(nullable(self._key.deserialize)(keys))
        # By type, as keys may be lists, which are not hashable.
        if type(None) in set(map(type, decoded)):
            raise ValueError("a record without a key cannot update a table")
        values = list(nullable(self._value.deserialize)(payloads))
        stamps: list[int] = list(times)
        if self._timestamp is not None:
            stamps = [
                time if value is None else _checked(settled(self._timestamp(value)))
                for value, time in zip(values, times, strict=True)
            ]
        pack = _TIME.pack
        stamped = [
            None if payload is None or value is None else pack(time) + payload
            for payload, value, time in zip(payloads, values, stamps, strict=True)
        ]
        return dict(zip(self._key.serialize(decoded), stamped, strict=True))


def _checked(time: Any) -> int:
    if type(time) is not int or not 0 <= time < LATEST:
        raise ValueError(f"not an event time: {time!r:.80}")
    return time


@dataclass(frozen=True, slots=True)
class KeepTable(Operator):
    """Keeps the latest value of each key, and forwards each record as a change; a null value deletes.

    Later records win, whatever their event times. The policy applies to records without a key.
    """

    kind: ClassVar[str] = "table"

    store: str
    check: RoundTrip | None = None
    """The serde of stored values, if they have been changed since they were read."""

    def bind(self, step: Binding, children: Children) -> Forward:
        state, guard, sends_old = step.state(self.store), step.guard, step.sends_old
        held = held_keys(step, self.store)
        forward = held.leaving(fan_out(children)) if children else step.account.stored
        read_back = None if self.check is None else nullable(self.check.read_back)

        def run(batch: Batch[Any, Any]) -> None:
            if read_back is not None:
                # A value that cannot be written fails here, with its record.
                batch, values = guard.apply(read_back, batch.values, batch)
                batch = batch.with_values(values)
            if len(batch):
                keep_values(state, batch, forward, sends_old=sends_old)

        return held.entering(guard, run)


def keep_values(
    state: KeyValueState[Any, Found], batch: Batch[Any, Any], forward: Forward, *, sends_old: bool
) -> None:
    """Store each row's value for its key, in order, and forward the changes: one read and one write."""
    keys, values = batch.keys, batch.values
    latest: dict[Any, Found] = {
        key: None if value is None else (value, time)
        for key, value, time in zip(keys, values, batch.timestamps, strict=True)
    }
    before: dict[Any, Found] = {}
    if sends_old:
        before = dict(zip(latest, state.get_many(list(latest)), strict=True))
        known = {key: None if found is None else found[0] for key, found in before.items()}
        changes = []
        for key, value in zip(keys, values, strict=True):
            changes.append(Change(value, known[key]))
            known[key] = value
    else:
        changes = [Change(value, None) for value in values]
    state.put_many(latest)
    state.begin_forwarding(before)
    forward(batch.with_values(changes))
    state.end_forwarding()


@dataclass(frozen=True, slots=True)
class FilterTable(Operator):
    """Removes the values for which the predicate is false; a key whose old value was kept is deleted."""

    kind: ClassVar[str] = "filter"
    needs_old: ClassVar[bool] = True

    predicate: Callable[[Any], object]

    @property
    def code(self) -> object:
        return self.predicate

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, account = fan_out(children), step.guard, step.account
        predicate = self.predicate

        def keep(value: Any) -> Any:
            return value if settled(predicate(value)) else None

        def run(batch: Batch[Any, Any]) -> None:
            new = apply_present(guard, keep, [new for new, _ in batch.values], batch)
            old = [None if old is None else quietly(keep, old) for _, old in batch.values]
            forward_changes(forward, account, batch, new, old)

        return run


@dataclass(frozen=True, slots=True)
class MapTable(Operator):
    """Replaces each value; deletions are unchanged, and the result ``None`` is a deletion."""

    kind: ClassVar[str] = "map"
    passes_changes: ClassVar[bool] = True

    function: Callable[[Any], Any]

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, sends_old = fan_out(children), step.guard, step.sends_old
        function = self.function

        def run(batch: Batch[Any, Any]) -> None:
            results = apply_present(guard, function, [new for new, _ in batch.values], batch)
            olds: Sequence[Any] = [None] * len(results)
            if sends_old:
                olds = [None if old is None else quietly(function, old) for _, old in batch.values]
            forward(batch.with_values(list(map(Change, results, olds))))

        return run


@dataclass(frozen=True, slots=True)
class GroupChanges(Operator):
    """Forwards each change as up to two records with the groups as keys.

    One has the old value, to be subtracted, and is marked with a header; the other has the new value, to be
    added. The policy applies to values whose group is ``None`` or cannot be computed; they have no group.
    """

    kind: ClassVar[str] = "group_by"
    needs_old: ClassVar[bool] = True

    function: Callable[[Any], Any]
    implied_text: bool = False
    """Whether keys are written as text by default, because there is no ``key=``."""

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, function = fan_out(children), step.guard, self.function
        account = step.account
        text = ImpliedText(guard, implied=self.implied_text)

        def group(value: Any) -> Any:
            key = settled(function(value))
            if key is None:
                raise ValueError("a value whose key is None belongs to no group")
            return key

        def run(batch: Batch[Any, Any]) -> None:
            added = apply_present(guard, group, [new for new, _ in batch.values], batch)
            text.check(added, batch)
            rows: list[int] = []
            keys: list[Any] = []
            values: list[Any] = []
            headers: list[Headers | None] = []
            for row, (new, old) in enumerate(batch.values):
                key = None if old is None else quietly(group, old)
                for place, value, header in ((key, old, [REMOVED]), (added[row], new, None)):
                    if place is not None:
                        rows.append(row)
                        keys.append(place)
                        values.append(value)
                        headers.append(header)
            account.replaced(len(added))
            account.made(len(rows))
            if rows:
                forward(batch.select(rows).with_values(values).with_keys(keys).with_headers(headers))

        return run


class RemovableReduce(Reduce):
    """As ``Reduce``, with a second function that subtracts a value."""

    def __init__(
        self, add: Callable[[Any, Any], Any], remove: Callable[[Any, Any], Any], value: Serde[Any]
    ) -> None:
        super().__init__(add, value)
        self._remove = remove

    @property
    def removable(self) -> bool:
        return True

    @property
    def mergeable(self) -> bool:
        return False

    def remove(self, accumulator: Any, column: Sequence[Any]) -> Any:
        for value in column:
            # Nothing to subtract from: it was not added, or everything was subtracted before.
            if accumulator is not None:
                accumulator = self._written(settled(self._remove(self._read(accumulator), value)))
        return accumulator


@dataclass(frozen=True, slots=True)
class AggregateChanges(Operator):
    """As ``AggregateByKey`` for the records of ``GroupChanges``: values are added and subtracted."""

    kind: ClassVar[str] = "aggregate"
    stamps: ClassVar[bool] = True
    forwards_at_commits: ClassVar[bool] = True

    store: str
    aggregate: Aggregate[Any, Any]

    def bind(self, step: Binding, children: Children) -> Forward:
        held = held_keys(step, self.store)
        return held.entering(step.guard, _AggregatingChanges(self, step, held.children(children)).run)


class _AggregatingChanges:
    def __init__(self, operator: AggregateChanges, step: Binding, children: Children) -> None:
        self._store = operator.store
        self._aggregate = operator.aggregate
        self._step = step
        self._guard = step.guard
        self._account = step.account
        self._state = step.state(operator.store)
        self._folding = folding_of(operator.aggregate, step.guard)
        self._sends_old = step.sends_old
        self._forward = fan_out(children)
        self._deleted: dict[Any, int] = {}
        """The event times of deletions since the last commit."""
        self._changes = LastChanges()
        self._state.defer()
        step.at_commit(self._forward_changes)

    def run(self, batch: Batch[Any, Any]) -> None:
        if self._folding.record_wise:
            self._account.held(self._add_each(batch))
            self._changes.note(batch, batch.keys)
            return
        batch, column = self._guard.apply(self._aggregate.column, batch.values, batch)
        self._changes.note(batch, batch.keys)
        rows: dict[Any, tuple[list[Any], list[Any]]] = {}
        latest: dict[Any, int] = {}
        for key, removed, entry, time in zip(
            batch.keys, _removals(batch), column, batch.timestamps, strict=True
        ):
            rows.setdefault(key, ([], []))[removed].append(entry)
            latest[key] = max(time, latest.get(key, time))
        aggregate = self._aggregate
        ancestry = self._ancestry(batch)
        keys = list(rows)
        changed: dict[Any, Found] = {}
        for key, known in zip(keys, self._state.get_many(keys), strict=True):
            accumulator, before = (aggregate.initial(), -1) if known is None else known
            added, taken_out = rows[key]
            # A value that is subtracted was added before, at the latest in this batch.
            if added:
                accumulator = aggregate.add(accumulator, added)
            if taken_out:
                accumulator = aggregate.remove(accumulator, taken_out)
            if isinstance(aggregate, TracedAggregate):
                accumulator = aggregate.touched(accumulator, ancestry[key])
            changed[key] = self._entry(key, accumulator, max(before, latest[key]))
        self._state.put_many(changed)
        self._account.held(sum(len(added) + len(taken_out) for added, taken_out in rows.values()))

    def _add_each(self, batch: Batch[Any, Any]) -> int:
        """Add record by record; return how many were added."""
        keys, times, removals = batch.keys, batch.timestamps, _removals(batch)
        aggregate, state = self._aggregate, self._state
        ancestry = ancestry_of(batch) if self._folding.traced else ()

        def change(row: int, entries: Sequence[Any], places: Sequence[Place] | None) -> None:  # noqa: ARG001 - aggregates that can subtract values have no order
            accumulator, before = state.get(keys[row]) or (aggregate.initial(), -1)
            update = aggregate.remove if removals[row] else aggregate.add
            time = max(before, times[row])
            updated = update(accumulator, entries)
            if isinstance(aggregate, TracedAggregate):
                updated = aggregate.touched(updated, [ancestry[row]])
            state.put(keys[row], self._entry(keys[row], updated, time))

        return self._folding.add_each(batch, change)

    def _ancestry(self, batch: Batch[Any, Any]) -> dict[Any, list[Ancestry]]:
        """What is known of each key's rows, if accumulators have their lineage."""
        found: dict[Any, list[Ancestry]] = {}
        if self._folding.traced:
            for key, item in zip(batch.keys, ancestry_of(batch), strict=True):
                found.setdefault(key, []).append(item)
        return found

    def _entry(self, key: Any, accumulator: Any, time: int) -> Found:
        if accumulator is None or (type(accumulator) is Traced and accumulator.value is None):
            self._deleted[key] = time
            return None
        return accumulator, time

    def _forward_changes(self) -> None:
        changed = self._state.changed()
        deleted, self._deleted = self._deleted, {}
        if not changed:
            return
        keys = list(changed)
        result = self._aggregate.result
        before: dict[Any, Found] = {}
        if self._sends_old:
            before = dict(zip(keys, self._state.committed_many(keys), strict=True))
        changes = [
            Change(*(None if found is None else result(found[0]) for found in (new, before.get(key))))
            for key, new in changed.items()
        ]
        times = [deleted.get(key, 0) if new is None else new[1] for key, new in changed.items()]
        self._state.begin_forwarding(before)
        lineage = None
        if self._folding.traced:
            lineage = [None if new is None else lineage_of(new[0]) for new in changed.values()]
        self._account.made(len(changed))
        self._forward(
            self._step.derive(self._store, keys, changes, times, self._changes.finder(keys), lineage)
        )
        self._state.end_forwarding()
        self._changes.clear()


def _removals(batch: Batch[Any, Any]) -> list[bool]:
    """The rows that subtract their value."""
    headers = batch.headers
    if headers is None:
        return [False] * len(batch)
    return [own is not None and any(name == REMOVED[0] for name, _ in own) for own in headers]


@dataclass(frozen=True, slots=True)
class JoinTables(Operator):
    """Joins one side's changes with the other table's value for the key.

    ``first`` is whether this side receives changes that reach both sides first: it must then read the other
    side as it was before the change.
    """

    kind: ClassVar[str] = "join"
    needs_old: ClassVar[bool] = True

    function: Callable[[Any, Any], Any]
    how: JoinKind
    other: AnyView
    is_left: bool
    first: bool

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        guard, sends_old, held = step.guard, step.sends_old, held_keys(step, self.other.stores[0])
        account = step.account
        forward = held.leaving(fan_out(children))
        read = bind_view(self.other, step, "before" if self.first else "forwarded")
        function, how, is_left = self.function, self.how, self.is_left

        def join(pair: tuple[Any, Any]) -> Any:
            return function(*pair)

        def pair(value: Any, other: Found, time: int) -> tuple[Any, int] | None:
            own = None if value is None else (value, time)
            return paired(how, own, other) if is_left else paired(how, other, own)

        def run(batch: Batch[Any, Any]) -> None:
            keys = list(dict.fromkeys(batch.keys))
            others = dict(zip(keys, read(keys), strict=True))
            news, olds, times = [], [], []
            for key, (new, old), time in zip(batch.keys, batch.values, batch.timestamps, strict=True):
                other = others[key]
                new_pair, old_pair = pair(new, other, time), pair(old, other, time)
                news.append(None if new_pair is None else new_pair[0])
                olds.append(None if old_pair is None else old_pair[0])
                times.append(time if other is None else max(time, other[1]))
            batch = batch.with_timestamps(times)
            results = apply_present(guard, join, news, batch)
            # Without a new value, the old one determines whether there is a result to delete.
            before = [
                quietly(join, old) if old is not None and (sends_old or new is None) else None
                for new, old in zip(results, olds, strict=True)
            ]
            forward_changes(forward, account, batch, results, before)

        return held.entering(guard, run)


@dataclass(frozen=True, slots=True)
class MergeChanges(Operator):
    """Forwards the changes of both sides of a join."""

    kind: ClassVar[str] = "joined"
    passes_changes: ClassVar[bool] = True

    def bind(self, step: Binding, children: Children) -> Forward:  # noqa: ARG002 - the binding is not used
        return fan_out(children)
