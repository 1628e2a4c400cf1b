"""Keys of the steps that group records by key: two keys are equal if their serde writes the same bytes.

Keys that are equal in Python may be written differently, as 1, 1.0 and true are in JSON, and some cannot be
dictionary keys, as lists. If they were held as Python objects, results would depend on which records share a
batch or a commit. So keys are held as bytes within a step and in its stores, and decoded for the steps
downstream, unless their serde declares that equal keys have equal bytes (``Serde``, ``key_type``).
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any

from streams.errors import TopologyError
from streams.operators.snapshot import FIXED, snapshot
from streams.serde import held_key, nullable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from streams.operators import Binding, Children, Forward
    from streams.operators.guard import Guard
    from streams.records import Batch
    from streams.serde import Serde


REMEMBERED_KEYS = 10_000
"""Of so many keys a step knows the bytes without another look."""

_PLAIN_KEYS = frozenset({str, bytes, int})
"""Types of which two equal keys are written alike."""


class HeldKeys:
    """Converts the keys of records to the form in which a step holds them, and back."""

    def __init__(self, serde: Serde[Any]) -> None:
        self.serde = held_key(serde)
        """Between keys as they are held and bytes."""
        self._written = serde
        self._encoded = self.serde is not serde
        self._type = getattr(serde, "key_type", None)
        self._canonical = _Canonical(serde)

    def entering(self, guard: Guard, run: Forward, *, null_keys: bool = False) -> Forward:
        """Wrap ``run`` to receive batches with held keys.

        The policy applies to records whose keys cannot be written and read back, and to those without a key,
        unless ``null_keys``.
        """
        take_in = self._encode if self._encoded else self._check
        kind = self._type

        def enter(batch: Batch[Any, Any]) -> None:
            # The common case.
            kinds = batch.key_types
            if kinds != {kind}:
                if type(None) in kinds and not null_keys:
                    batch = with_keys(guard, batch)
                batch = take_in(guard, batch)
            if len(batch):
                run(batch)

        return enter

    def leaving(self, forward: Forward) -> Forward:
        """Wrap ``forward`` to receive batches with held keys and forward them with the users' keys."""
        if not self._encoded:
            return forward
        return lambda batch: forward(batch.with_keys(self.shown(batch.keys)))

    def children(self, children: Children) -> Mapping[str, Forward]:
        """The steps downstream, each wrapped by ``leaving``."""
        return {name: self.leaving(forward) for name, forward in children.items()}

    def shown(self, keys: Iterable[Any]) -> list[Any]:
        """Convert held keys to the users' keys."""
        if not self._encoded:
            return list(keys)
        return self._canonical.decode(list(keys))

    def _check(self, guard: Guard, batch: Batch[Any, Any]) -> Batch[Any, Any]:
        if batch.key_types <= {self._type, type(None)}:
            return batch
        # From streams with other serdes, merged into this one.
        batch, keys = guard.apply(nullable(partial(as_read, self._written)), batch.keys, batch)
        return batch.with_keys(keys)

    def _encode(self, guard: Guard, batch: Batch[Any, Any]) -> Batch[Any, Any]:
        batch, keys = guard.apply(nullable(self._canonical.encode), batch.keys, batch)
        return batch.with_keys(keys)


def held_keys(step: Binding, store: str) -> HeldKeys:
    """The ``HeldKeys`` of a step whose records have the keys of a store that it owns or uses."""
    return HeldKeys(step.definition(store).key)


class ImpliedText:
    """The check of keys from a user's function that are written as text by default.

    Another type at the beginning is a mistake in the program and not in a record, so the worker stops. After
    a key that was text, it is the record that is wrong: the policy applies where its key is written.
    """

    def __init__(self, guard: Guard, *, implied: bool) -> None:
        self._guard = guard
        self._unsettled = implied

    def check(self, keys: Sequence[Any], batch: Batch[Any, Any]) -> None:
        """Raise ``TopologyError`` if no key so far is text and one of these is not."""
        if not self._unsettled:
            return
        kinds = set(map(type, keys)) - {type(None)}
        if any(issubclass(kind, str) for kind in kinds):
            self._unsettled = False
        elif kinds:
            row, key = next((row, key) for row, key in enumerate(keys) if key is not None)
            raise TopologyError(
                f"{self._guard.describe} made a key of type {type(key).__name__}, {key!r:.80}, of "
                f"{batch.topic}-{batch.partition} offset {batch.offset(row)}, but keys are written as text "
                "by default",
                hint=f"pass a serde for the keys: key={_serde_of(key)}; or key=Text(), if only "
                "this record is wrong: on_error then applies to such records",
            )


class KeptKeys:
    """The check of a step with ``keeps_key``: its output for a record must have the record's key.

    Keys are equal when their bytes are, as in all steps.
    """

    __slots__ = ("_serde",)

    def __init__(self, serde: Serde[Any]) -> None:
        self._serde = serde

    def check(self, made: Any, *keys: Any) -> None:
        """Raise ``ValueError`` if ``made`` is none of the ``keys`` of its input record."""
        if any(self._same(made, key) for key in keys):
            return
        raise ValueError(
            f"the step keeps keys (keeps_key=True), but made the key {made!r:.80} from a record with the key "
            f"{' or '.join(format(repr(key), '.80') for key in keys)}: leave out keeps_key where keys change"
        )

    def check_batch(self, made: Batch[Any, Any], source: Batch[Any, Any]) -> None:
        """As ``check``, for a batch made from ``source``; raise too if it has other records."""
        same = made.fetched is source.fetched
        if same and made.rows == source.rows and all(map(is_, made.keys, source.keys)):
            return
        keys = keys_by_row(source)
        if not same or not keys.keys() >= set(made.rows):
            raise ValueError(
                "the step keeps keys (keeps_key=True), but returned a batch not made from its input batch: "
                "make it with select and the with_ methods of the input batch"
            )
        for own, row in zip(made.keys, made.rows, strict=True):
            self.check(own, *keys[row])

    def lent(self, batch: Batch[Any, Any]) -> Batch[Any, Any]:
        """The batch for the user's code, with copies of the keys that this could change in place."""
        return batch if batch.key_types <= FIXED else batch.with_keys(list(map(snapshot, batch.keys)))

    def _same(self, made: Any, key: Any) -> bool:
        if made is key or (type(made) is type(key) and type(key) in _PLAIN_KEYS and made == key):
            return True
        if made is None or key is None:
            return False
        try:
            return list(self._serde.serialize([made])) == list(self._serde.serialize([key]))
        except Exception:  # noqa: BLE001 - a key that cannot be written is a different key
            return False


def keys_by_row(batch: Batch[Any, Any]) -> dict[int, list[Any]]:
    """The keys of the rows that come from each input record."""
    keys: dict[int, list[Any]] = {}
    for row, key in zip(batch.rows, batch.keys, strict=True):
        keys.setdefault(row, []).append(key)
    return keys


def _serde_of(key: Any) -> str:
    """The serde for keys like this one, as one writes it in a program."""
    return "Bytes()" if isinstance(key, bytes) else f"Json({described_type(key)})"


def described_type(key: Any) -> str:
    """The type of a key, as Python source."""
    if isinstance(key, tuple) and type(key) is tuple and key:
        return f"tuple[{', '.join(map(described_type, key))}]"
    if isinstance(key, list) and key:
        return f"list[{' | '.join(dict.fromkeys(map(described_type, key)))}]"
    return type(key).__name__


def with_keys(guard: Guard, batch: Batch[Any, Any]) -> Batch[Any, Any]:
    """The rows that have a key; the policy applies to the others."""
    if type(None) not in batch.key_types:
        return batch
    kept = []
    for row, key in enumerate(batch.keys):
        if key is None:
            guard.refuse(batch, row, ValueError("a record without a key belongs to no group"))
        else:
            kept.append(row)
    return batch.select(kept)


def as_read(serde: Serde[Any], keys: Sequence[Any]) -> Iterator[Any]:
    """Each key after a round trip through the serde. Raises at one that it cannot write or read."""
    for key in keys:
        yield from serde.deserialize(list(serde.serialize([key])))


def readable_keys(serde: Serde[Any]) -> Callable[[Sequence[Any]], Iterable[bytes]]:
    """A function that serializes keys to their canonical bytes, and raises at keys that cannot be read back.

    A key that can be written in several ways, e.g. an integer where the type is float, has one canonical
    form: what is written for the key that was read back.
    """
    kind = getattr(serde, "key_type", None)
    canonical = _Canonical(serde)

    def serialize(keys: Sequence[Any]) -> Iterable[bytes]:
        if kind is not None and set(map(type, keys)) <= {kind}:
            return serde.serialize(keys)
        return canonical.encode(keys)

    return serialize


class _Canonical:
    """Converts between keys and their canonical bytes.

    It caches some, as the same keys recur.
    """

    def __init__(self, serde: Serde[Any]) -> None:
        self._serde = serde
        self._again: dict[bytes, bytes] = {}
        """The bytes written for a key after it was read back, by the bytes written for the key itself."""

    def encode(self, keys: Sequence[Any]) -> Iterable[bytes]:
        """The canonical bytes of the keys. Raises at a key that cannot be written and read back."""
        again = self._again
        with suppress(Exception):
            return [again[encoded] for encoded in self._serde.serialize(keys)]
        if len(again) > REMEMBERED_KEYS:
            self._again = {}
        return self._encode(keys)

    def decode(self, encoded: Sequence[Any]) -> list[Any]:
        """The keys with these bytes; ``None`` for ``None``."""
        distinct = list(dict.fromkeys(encoded))
        # Not cached: keys may be objects that users change.
        keys = dict(zip(distinct, nullable(self._serde.deserialize)(distinct), strict=True))
        return list(map(keys.__getitem__, encoded))

    def _encode(self, keys: Sequence[Any]) -> Iterator[bytes]:
        serde, again = self._serde, self._again
        for encoded in serde.serialize(keys):
            if encoded not in again:
                (key,) = serde.deserialize([encoded])
                if key is None:
                    raise ValueError(f"{serde.name} reads the key {encoded!r:.80} as None")
                (again[encoded],) = serde.serialize([key])
            yield again[encoded]
