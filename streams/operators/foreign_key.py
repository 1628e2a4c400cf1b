"""The four steps of a join of two tables by a foreign key, which is computed from the left table's values.

A left task *subscribes* with the right task that has the foreign key. The right task stores the subscription
and *answers* with its value, immediately and whenever it changes. An answer has a hash of the left value that
subscribed: if that value has changed since, a newer answer will follow and this one is dropped. This is the
protocol of Kafka Streams (KIP-213).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import msgspec

from streams.coroutines.awaitables import settled
from streams.operators import Operator, fan_out
from streams.operators.change import apply_present, bind_view, forward_changes, quietly
from streams.operators.keys import held_keys, readable_keys
from streams.operators.table import keep_values
from streams.records import take
from streams.serde import nullable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.operators import Binding, Children, Forward
    from streams.operators.change import AnyView, Found
    from streams.operators.guard import Guard
    from streams.records import Batch
    from streams.serde import Serde
    from streams.serde.round_trip import RoundTrip

_LENGTH = struct.Struct(">I")


class Action(IntEnum):
    """The kind of a subscription message."""

    SUBSCRIBE = 0
    UNSUBSCRIBE = 1
    UNSUBSCRIBE_AND_ANSWER = 2
    ANSWER = 3
    """There is no foreign key: answer without a value."""


class Subscription(NamedTuple):
    """A message from a left task; the record's key is the foreign key."""

    key: bytes
    """The key of the left row, encoded."""
    hash: bytes | None
    """The hash of its value; ``None`` for a deletion."""
    action: Action


class Answer(NamedTuple):
    """A message from a right task; the record's key is the left row's."""

    hash: bytes | None
    value: Any


class SubscriptionSerde:
    """The serde of subscriptions."""

    name = "subscription"

    def serialize(self, values: Sequence[Subscription]) -> Iterable[bytes]:
        return map(msgspec.msgpack.Encoder().encode, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Subscription]:
        return map(msgspec.msgpack.Decoder(Subscription).decode, payloads)


class AnswerSerde:
    """The serde of answers; ``inner`` is that of the right table's values."""

    def __init__(self, inner: Serde[Any]) -> None:
        self._inner = inner
        self.name = f"answer {inner.name}"

    def serialize(self, values: Sequence[Answer]) -> Iterable[bytes]:
        encode = msgspec.msgpack.Encoder().encode
        payloads = nullable(self._inner.serialize)([answer.value for answer in values])
        return (encode((answer.hash, payload)) for answer, payload in zip(values, payloads, strict=True))

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Answer]:
        decode = msgspec.msgpack.Decoder(tuple[bytes | None, bytes | None]).decode
        for payload in payloads:
            digest, value = decode(payload)
            yield Answer(digest, None if value is None else next(iter(self._inner.deserialize([value]))))


class SubscriberSerde:
    """The serde of pairs of encoded keys, foreign and own, which keeps the subscribers of a key together."""

    name = "foreign key and key"
    key_type = tuple

    def serialize(self, values: Sequence[tuple[bytes, bytes]]) -> Iterable[bytes]:
        return (subscribers_of(foreign) + own for foreign, own in values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
        for payload in payloads:
            stop = 4 + _LENGTH.unpack_from(payload)[0]
            yield payload[4:stop], payload[stop:]


def subscribers_of(foreign: bytes) -> bytes:
    """The prefix of the encoded keys of all subscribers of a foreign key."""
    return _LENGTH.pack(len(foreign)) + foreign


class SubscribedSerde:
    """The serde of stored subscriptions: pairs of a hash and an event time."""

    name = "hash and time"

    def serialize(self, values: Sequence[tuple[bytes | None, int]]) -> Iterable[bytes]:
        return map(msgspec.msgpack.Encoder().encode, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[tuple[bytes | None, int]]:
        return map(msgspec.msgpack.Decoder(tuple[bytes | None, int]).decode, payloads)


def digest(value: Serde[Any], of: Any) -> bytes:
    """A hash of a value's bytes."""
    return blake2b(next(iter(value.serialize([of]))), digest_size=16).digest()


_Reference: TypeAlias = "tuple[Any, bytes] | None"
"""A foreign key and its bytes, by which keys are compared."""


def _refers(foreign_key: Callable[[Any], Any], serde: Serde[Any]) -> Callable[[Any], _Reference]:
    """A function that computes a value's foreign key. It raises for one that cannot be written and read."""
    encode = readable_keys(serde)

    def refer(value: Any) -> _Reference:
        key = settled(foreign_key(value))
        return None if key is None else (key, next(iter(encode([key]))))

    return refer


@dataclass(frozen=True, slots=True)
class Subscribe(Operator):
    """Sends a subscription for each change of the left table.

    If ``foreign_key`` fails on a value, the policy applies and the value is treated as deleted; a value
    without a foreign key is joined by left joins only.
    """

    kind: ClassVar[str] = "join_foreign_key"
    needs_old: ClassVar[bool] = True

    foreign_key: Callable[[Any], Any]
    foreign: Serde[Any]
    """The serde of foreign keys."""
    key: Serde[Any]
    value: Serde[Any]
    is_left: bool

    @property
    def code(self) -> object:
        return self.foreign_key

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, account = fan_out(children), step.guard, step.account
        value_serde, encode_keys = self.value, self.key.serialize
        refer = _refers(self.foreign_key, self.foreign)

        def ask(value: Any) -> tuple[_Reference, bytes]:
            return refer(value), digest(value_serde, value)

        def run(batch: Batch[Any, Any]) -> None:
            asked = apply_present(guard, ask, [new for new, _ in batch.values], batch)
            rows: list[int] = []
            foreign_keys: list[Any] = []
            subscriptions: list[Subscription] = []
            own_keys = list(encode_keys(batch.keys))
            for row, (own, new, (_, old)) in enumerate(zip(own_keys, asked, batch.values, strict=True)):
                before = None if old is None else quietly(refer, old)
                for key, action in self._actions(before, new, had_old=old is not None):
                    rows.append(row)
                    foreign_keys.append(key)
                    subscriptions.append(Subscription(own, None if new is None else new[1], action))
            account.replaced(len(asked))
            account.made(len(rows))
            if rows:
                forward(batch.select(rows).with_keys(foreign_keys).with_values(subscriptions))

        return run

    def _actions(
        self, before: _Reference, new: tuple[_Reference, bytes] | None, *, had_old: bool
    ) -> list[tuple[Any, Action]]:
        after = None if new is None else new[0]
        if after is not None:
            actions: list[tuple[Any, Action]] = [(after[0], Action.SUBSCRIBE)]
            if before is not None and before[1] != after[1]:
                actions.insert(0, (before[0], Action.UNSUBSCRIBE))
            return actions
        if before is not None:
            return [(before[0], Action.UNSUBSCRIBE_AND_ANSWER)]
        # There is no subscription, but a left join has, or had, a row.
        return [(None, Action.ANSWER)] * (self.is_left and (had_old or new is not None))


@dataclass(frozen=True, slots=True)
class KeepSubscriptions(Operator):
    """Stores the subscriptions to keys of the right table, and answers them with its values."""

    kind: ClassVar[str] = "subscriptions"

    store: str
    table: AnyView

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, guard, state, held = (
            fan_out(children),
            step.guard,
            step.state(self.store),
            held_keys(step, self.table.stores[0]),
        )
        account = step.account
        read = bind_view(self.table, step, "forwarded")
        encode_keys = nullable(held.serde.serialize)

        def run(batch: Batch[Any, Any]) -> None:
            batch = _with_foreign_keys(guard, batch)
            if not len(batch):
                return
            keys = list(dict.fromkeys(key for key in batch.keys if key is not None))
            values = dict(zip(keys, read(keys), strict=True))
            encoded = list(encode_keys(batch.keys))
            kept: dict[tuple[bytes, bytes], tuple[bytes | None, int] | None] = {}
            rows: list[int] = []
            answers: list[Answer] = []
            times: list[int] = []
            for row, (foreign, item, time) in enumerate(
                zip(encoded, batch.values, batch.timestamps, strict=True)
            ):
                subscribes = item.action == Action.SUBSCRIBE
                if item.action != Action.ANSWER:
                    kept[foreign, item.key] = (item.hash, time) if subscribes else None
                if item.action != Action.UNSUBSCRIBE:
                    found = values[batch.keys[row]] if subscribes else None
                    rows.append(row)
                    answers.append(Answer(item.hash, None if found is None else found[0]))
                    times.append(time if found is None else max(time, found[1]))
            state.put_many(kept)
            account.replaced(len(encoded))
            account.made(len(rows))
            if rows:
                forward(
                    batch.select(rows)
                    .with_keys([item.key for item in take(batch.values, rows)])
                    .with_values(answers)
                    .with_timestamps(times)
                )

        # Its output has other keys.
        return held.entering(guard, run, null_keys=True)


def _with_foreign_keys(guard: Guard, batch: Batch[Any, Any]) -> Batch[Any, Any]:
    """The rows that have a foreign key if their action needs one; the policy applies to the others."""
    lacking = [
        row
        for row, (key, item) in enumerate(zip(batch.keys, batch.values, strict=True))
        if key is None and item.action != Action.ANSWER
    ]
    if not lacking:
        return batch
    for row in lacking:
        guard.refuse(batch, row, ValueError("a subscription without a foreign key"))
    gone = set(lacking)
    return batch.select([row for row in range(len(batch)) if row not in gone])


@dataclass(frozen=True, slots=True)
class AnswerSubscribers(Operator):
    """Sends each change of the right table to all subscribers of its key."""

    kind: ClassVar[str] = "answers"

    store: str
    key: Serde[Any]

    def bind(self, step: Binding, children: Children) -> Forward:
        forward, state, encode_keys = fan_out(children), step.state(self.store), self.key.serialize
        account = step.account

        def run(batch: Batch[Any, Any]) -> None:
            rows: list[int] = []
            keys: list[bytes] = []
            answers: list[Answer] = []
            times: list[int] = []
            encoded = list(encode_keys(batch.keys))
            for row, (foreign, (new, _), time) in enumerate(
                zip(encoded, batch.values, batch.timestamps, strict=True)
            ):
                for (_, own), (hashed, subscribed) in state.prefix(subscribers_of(foreign)):
                    rows.append(row)
                    keys.append(own)
                    answers.append(Answer(hashed, new))
                    times.append(max(time, subscribed))
            account.replaced(len(encoded))
            account.made(len(rows))
            if rows:
                forward(batch.select(rows).with_keys(keys).with_values(answers).with_timestamps(times))

        return run


@dataclass(frozen=True, slots=True)
class JoinAnswers(Operator):
    """Joins answers with the values that subscribed, and stores the results as a table."""

    kind: ClassVar[str] = "join_answers"

    store: str
    foreign_key: Callable[[Any], Any]
    foreign: Serde[Any]
    function: Callable[[Any, Any], Any]
    table: AnyView
    value: Serde[Any]
    result: RoundTrip
    is_left: bool

    @property
    def code(self) -> object:
        return self.function

    def bind(self, step: Binding, children: Children) -> Forward:
        guard, state, held = step.guard, step.state(self.store), held_keys(step, self.store)
        account = step.account
        to = held.leaving(fan_out(children))
        read = bind_view(self.table, step, "forwarded")
        refer, function, is_left = _refers(self.foreign_key, self.foreign), self.function, self.is_left
        value_serde, read_back = self.value, self.result.read_back

        def join(pair: tuple[Any, Any]) -> Any:
            result = settled(function(*pair))
            # A result that cannot be stored fails here, with its record, and not when the store is written.
            return None if result is None else next(iter(read_back([result])))

        def own_value(found: Found) -> Found:
            # A value without a foreign key because the function fails has not subscribed.
            asked = found is not None and quietly(lambda value: (refer(value),), found[0])
            return found if asked else None

        def forward(batch: Batch[Any, Any]) -> None:
            new, old = [new for new, _ in batch.values], [old for _, old in batch.values]
            forward_changes(to, account, batch, new, old)

        def run(batch: Batch[Any, Any]) -> None:
            keys = list(dict.fromkeys(batch.keys))
            own: dict[Any, Found] = dict(zip(keys, map(own_value, read(keys)), strict=True))
            hashes = {
                key: None if found is None else digest(value_serde, found[0]) for key, found in own.items()
            }
            # An answer that does not match is for an earlier value.
            rows = [
                row
                for row, (key, answer) in enumerate(zip(batch.keys, batch.values, strict=True))
                if hashes[key] == answer.hash
            ]
            account.filtered(len(batch) - len(rows))
            if not rows:
                return
            batch = batch.select(rows)
            pairs: list[tuple[Any, Any] | None] = []
            for key, answer in zip(batch.keys, batch.values, strict=True):
                found = own[key]
                joined = found is not None and (is_left or answer.value is not None)
                pairs.append((found[0], answer.value) if found is not None and joined else None)
            results = apply_present(guard, join, pairs, batch)
            keep_values(state, batch.with_values(results), forward, sends_old=True)

        return held.entering(guard, run)
