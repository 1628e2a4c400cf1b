"""Steps that aggregate by key, with one read and one write per batch and key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from streams.aggregates import Combined
from streams.aggregates.traced import TracedAggregate, lineage_of, unpack, with_lineage
from streams.coroutines.awaitables import settled
from streams.errors import TopologyError
from streams.operators import Operator, fan_out
from streams.operators.change import Change
from streams.operators.keys import ImpliedText, held_keys, with_keys
from streams.operators.origins import LastChanges
from streams.operators.traced_folding import folding_of
from streams.serde.round_trip import RoundTrip
from streams.serde.value_type import serde_type
from streams.state.definition import schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from streams.aggregates import Aggregate, Place
    from streams.operators import Binding, Children, Forward
    from streams.records import Batch
    from streams.serde import Serde

    Began: TypeAlias = Mapping[str, Sequence[Any]]
    Earlier: TypeAlias = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Group(Operator):
    """Sets each record's key to its group, or checks that it has a key: a null key belongs to no group."""

    function: Callable[[Any], Any] | None = None
    implied_text: bool = False
    """Whether keys are written as text by default, because there is no ``key=``."""

    @property
    def kind(self) -> str:
        return "group_by_key" if self.function is None else "group_by"

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard = fan_out(children), step.guard
        transform = None if self.function is None else partial(map, self.function)
        text = ImpliedText(guard, implied=self.implied_text)

        def run(batch: Batch[Any, Any]) -> None:
            if transform is not None:
                grouped, keys = guard.apply(transform, batch.values, batch)
                text.check(keys, grouped)
                batch = grouped.with_keys(keys)
            batch = with_keys(guard, batch)
            if len(batch):
                forward(batch)

        return run


class AccumulatorSerde:
    """The serde of an aggregate's accumulators."""

    name = "accumulator"

    def __init__(self, aggregate: Aggregate[Any, Any]) -> None:
        self._aggregate = aggregate
        self.schema = {"accumulator": aggregate.schema}

    def traced(self) -> AccumulatorSerde:
        """The serde that reads accumulators with their lineage."""
        return AccumulatorSerde(with_lineage(self._aggregate))

    def reading(self, began: Began, earlier: Earlier) -> AccumulatorSerde:
        """The serde for a store that is older than some of its aggregates."""
        return AccumulatorSerde(reading(self._aggregate, began, earlier))

    def serialize(self, values: Sequence[Any]) -> Iterable[bytes]:
        encode, pack = msgspec.msgpack.Encoder().encode, self._aggregate.pack
        return map(encode, map(pack, values))

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Any]:
        decode, aggregate = msgspec.msgpack.Decoder().decode, self._aggregate
        return (unpack(aggregate, decode(payload)) for payload in payloads)


class TimedAccumulatorSerde:
    """As ``AccumulatorSerde``, for accumulators with the event time of their latest record."""

    name = "accumulator and time"

    def __init__(self, aggregate: Aggregate[Any, Any]) -> None:
        self._aggregate = aggregate
        self.schema = {"timed accumulator": aggregate.schema}

    def traced(self) -> TimedAccumulatorSerde:
        """The serde that reads accumulators with their lineage."""
        return TimedAccumulatorSerde(with_lineage(self._aggregate))

    def reading(self, began: Began, earlier: Earlier) -> TimedAccumulatorSerde:
        """The serde for a store that is older than some of its aggregates."""
        return TimedAccumulatorSerde(reading(self._aggregate, began, earlier))

    def serialize(self, values: Sequence[tuple[Any, int]]) -> Iterable[bytes]:
        encode, pack = msgspec.msgpack.Encoder().encode, self._aggregate.pack
        return (encode((pack(value), time)) for value, time in values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[tuple[Any, int]]:
        decode, aggregate = msgspec.msgpack.Decoder(tuple[Any, int]).decode, self._aggregate
        for payload in payloads:
            packed, time = decode(payload)
            yield unpack(aggregate, packed), time


def reading(aggregate: Aggregate[Any, Any], began: Began, earlier: Earlier) -> Aggregate[Any, Any]:
    """The aggregate for a store that is older than some of its aggregates: see ``Combined.reading``."""
    if isinstance(aggregate, TracedAggregate):
        return TracedAggregate(reading(aggregate.inner, began, earlier))
    return aggregate.reading(began, earlier) if isinstance(aggregate, Combined) else aggregate


def latest_times(keys: Sequence[Any], times: Sequence[int]) -> dict[Any, int]:
    """The highest of each key's event times."""
    pairs = zip(keys, times, strict=True)
    return dict(pairs if in_order(times) else sorted(pairs, key=itemgetter(1)))


def in_order(times: Sequence[int]) -> bool:
    """Whether the times are in ascending order."""
    # Sorting ascending times takes one comparison per time, and is faster than any other check.
    return list(times) == sorted(times)


class Reduce:
    """A user's function of two values as an aggregate; the first value is the first result.

    ``value`` is the serde of the stored values. The accumulator is the encoded value, so that the function
    gets a new object each time, which it may modify, and a value that cannot be written fails with its
    record.
    """

    def __init__(self, function: Callable[[Any, Any], Any], value: Serde[Any]) -> None:
        self._function = function
        self._value = value
        self._round_trip = RoundTrip(value)
        self.schema = {"reduced": schema_of(value)}
        self.result_type = serde_type(value)

    @property
    def record_wise(self) -> bool:
        return True

    @property
    def ordered(self) -> bool:
        return False

    @property
    def removable(self) -> bool:
        return False

    @property
    def mergeable(self) -> bool:
        return True

    def describe(self) -> str:
        return "reduce"

    def typed(self, kind: Any) -> Reduce:  # noqa: ARG002 - its serde knows
        return self

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return values

    def initial(self) -> None:
        return None

    def add(self, accumulator: Any, column: Sequence[Any], places: Sequence[Place] | None = None) -> Any:  # noqa: ARG002 - the protocol's
        so_far = self._read(accumulator)
        for value in column:
            so_far = value if so_far is None else settled(self._function(so_far, value))
        return self._written(so_far)

    def merge(self, first: Any, second: Any) -> Any:
        if first is None or second is None:
            return second if first is None else first
        return self._written(settled(self._function(self._read(first), self._read(second))))

    def remove(self, accumulator: Any, column: Sequence[Any]) -> Any:  # noqa: ARG002 - the protocol's
        raise TopologyError("reduce cannot subtract values: use an aggregate with custom(…, remove=…)")

    def result(self, accumulator: Any) -> Any:
        return self._read(accumulator)

    def pack(self, accumulator: Any) -> Any:
        return accumulator

    def unpack(self, packed: Any) -> Any:
        return packed

    def _written(self, value: Any) -> Any:
        return None if value is None else next(iter(self._round_trip.serialize([value])))

    def _read(self, accumulator: Any) -> Any:
        return None if accumulator is None else next(iter(self._value.deserialize([accumulator])))


@dataclass(frozen=True, slots=True)
class AggregateByKey(Operator):
    """One accumulator per key; at each commit, changed results are forwarded as changes of a table."""

    kind: ClassVar[str] = "aggregate"
    stamps: ClassVar[bool] = True
    forwards_at_commits: ClassVar[bool] = True

    store: str
    aggregate: Aggregate[Any, Any]

    def bind(self, step: Binding, children: Children) -> Forward:
        state, guard, held = step.state(self.store), step.guard, held_keys(step, self.store)
        folding = folding_of(self.aggregate, guard)
        account = step.account
        changes = LastChanges() if children else None
        step.at_commit(self._forwards_changes(step, held.children(children), changes))

        def add_each(batch: Batch[Any, Any]) -> int:
            keys, times = batch.keys, batch.timestamps

            def change(row: int, entries: Sequence[Any], places: Sequence[Place] | None) -> None:
                before, time = state.get(keys[row]) or (None, -1)
                state.put(keys[row], (folding.add_one(before, entries, places), max(time, times[row])))

            return folding.add_each(batch, change)

        def run(batch: Batch[Any, Any]) -> None:
            if folding.record_wise:
                account.held(add_each(batch))
                if changes is not None:
                    changes.note(batch, batch.keys)
                return
            batch, column = folding.column(batch)
            if changes is not None:
                changes.note(batch, batch.keys)
            places = folding.places(batch)
            shares = folding.shares(batch.keys, places)
            keys = list(shares)
            known = state.get_many(keys)
            accumulators = [None if old is None else old[0] for old in known]
            added = folding.add(accumulators, shares.values(), column, places)
            latest = latest_times(batch.keys, batch.timestamps)
            state.put_many(
                {
                    key: (new, latest[key] if old is None or old[1] < latest[key] else old[1])
                    for key, new, old in zip(keys, added, known, strict=True)
                }
            )
            account.held(folding.records(shares.values()))

        return held.entering(guard, run)

    def _forwards_changes(
        self, step: Binding, children: Children, changes: LastChanges | None
    ) -> Callable[[], None]:
        state, store, forward = step.state(self.store), self.store, fan_out(children) if children else None
        result, sends_old, account = self.aggregate.result, step.sends_old, step.account
        traced = isinstance(self.aggregate, TracedAggregate)
        state.defer()

        def run() -> None:
            changed = state.changed()
            if forward is None or changes is None or not changed:
                return
            keys = list(changed)
            new = [None if value is None else result(value[0]) for value in changed.values()]
            old: list[Any] = [None] * len(keys)
            before: dict[Any, Any] = {}
            if sends_old:
                before = dict(zip(keys, state.committed_many(keys), strict=True))
                old = [None if value is None else result(value[0]) for value in before.values()]
            times = [-1 if value is None else value[1] for value in changed.values()]
            state.begin_forwarding(before)
            lineage = None
            if traced:
                lineage = [None if value is None else lineage_of(value[0]) for value in changed.values()]
            account.made(len(changed))
            forward(
                step.derive(store, keys, list(map(Change, new, old)), times, changes.finder(keys), lineage)
            )
            state.end_forwarding()
            changes.clear()

        return run
