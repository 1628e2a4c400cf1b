"""Detect records of a changelog that its store did not write, or that were damaged."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.errors import StateError, error_text
from streams.state.changelog import RESERVED, TIME_KEY, entry_key
from streams.state.store import START

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.records import Fetched, Headers, TopicPartition
    from streams.serde import Serde
    from streams.state.changelog import Checkpoint
    from streams.state.definition import StoreDefinition

LIMIT = 10_000
"""The maximum number of such records that are remembered per changelog partition."""

LATEST_START = 1 << 63
"""An upper bound of window starts, exclusive (milliseconds since the epoch)."""


class _Found(NamedTuple):
    offset: int
    reason: str
    value: bytes | None


class UnreadableRecords:
    """Separates the entries of a changelog partition from records that the store cannot have written.

    A record is unreadable if it has no key, if the store's serdes cannot decode its key or value, if its key
    does not begin with a window's start in a windowed store, or if it has the key of metadata and an invalid
    value. It is remembered until a later record with its key, or a tombstone, replaces it. ``values`` returns
    the serde for values of the schema in the changelog, ``None`` if only the task can decode them.
    """

    def __init__(
        self,
        store: StoreDefinition,
        place: TopicPartition,
        values: Callable[[str | None], Serde[Any] | None],
    ) -> None:
        self._store = store
        self._place = place
        self._values = values
        self._schema: str | None = None
        self._value = values(None)
        self._found: dict[tuple[str, bytes | None], _Found] = {}
        """The unreadable records by kind and key, in the order of offsets."""

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def first_offset(self) -> int:
        """The offset of the first unreadable record, from which the changelog has to be read again."""
        return next(iter(self._found.values())).offset

    def entries(self, fetched: Fetched, checkpoint: Checkpoint) -> dict[bytes, bytes | None]:
        """The entries of these records, also unreadable ones; applies metadata to ``checkpoint``."""
        keys, values = fetched.keys(), fetched.values()
        entries: dict[bytes | None, bytes | None] = dict(zip(keys, values, strict=True))
        if None in entries or max(filter(None, entries), default=b"") >= RESERVED:
            rows = [row for row, key in enumerate(keys) if key is None or key.startswith(RESERVED)]
            for row in rows:
                entries.pop(keys[row], None)
            headers = fetched.headers(rows) or [None] * len(rows)
            for row, own in zip(rows, headers, strict=True):
                key, value = keys[row], values[row]
                if key is None:
                    self._add(("record", None), fetched.offsets([row])[0], "it has no key", value)
                    continue
                entry = entry_key(key, own)
                if entry is None:
                    entry = self._metadata(checkpoint, key, value, own, fetched, row)
                if entry is not None:
                    entries[entry] = value
        if checkpoint.schema_written != self._schema:
            self._schema = checkpoint.schema_written
            self._value = self._values(self._schema)
        read: dict[bytes, bytes | None] = entries  # type: ignore[assignment]  # without None now
        self._check(read, fetched)
        return read

    def check_again(self) -> None:
        """Remove records that have become readable because the schema of their values is now known."""
        for place, found in list(self._found.items()):
            kind, key = place
            if kind == "entry" and key is not None and self._reason(key, found.value) is None:
                del self._found[place]

    def error(self) -> StateError:
        """The error that ends the worker because of these records."""
        offset, reason, _ = next(iter(self._found.values()))
        more = f" ({len(self._found)} such records in total)" if len(self._found) > 1 else ""
        return StateError(
            f"store {self._store.name!r} cannot be restored from {self._place}: the record at offset "
            f"{offset} was not written by the store: {reason}{more}",
            hint="find out what else writes to this topic, and stop it. To fix the topic, write a record "
            "with the same key and no value, or the right value, to the same partition; otherwise give the "
            "store another name and replay the input to build it again",
        )

    def _metadata(
        self,
        checkpoint: Checkpoint,
        key: bytes,
        value: bytes | None,
        headers: Headers | None,
        fetched: Fetched,
        row: int,
    ) -> bytes | None:
        """Apply a record of metadata. Returns its key if it is an entry after all, of an earlier version."""
        place = "metadata", key
        try:
            checkpoint.read(key, value, headers)
        except ValueError as error:
            if not headers and value is not None and self._reason(key, value) is None:
                return key
            what = "stream time" if key == TIME_KEY else "the schema"
            self._add(place, fetched.offsets([row])[0], f"it has the key of {what}, and {error}", value)
        else:
            self._found.pop(place, None)
        return None

    def _check(self, entries: Mapping[bytes, bytes | None], fetched: Fetched) -> None:
        if self._found:
            for place in [place for place in self._found if place[0] == "entry" and place[1] in entries]:
                del self._found[place]
        present = entries if None not in entries.values() else _without_deletions(entries)
        if not present or self._readable(list(present), list(present.values())):  # type: ignore[arg-type]
            return
        offsets: dict[bytes | None, int] | None = None
        for key, value in present.items():
            reason = self._reason(key, value)
            if reason is not None:
                if offsets is None:
                    offsets = _offsets(fetched)
                self._add(("entry", key), offsets[key], reason, value)

    def _readable(self, keys: Sequence[bytes], values: Sequence[bytes]) -> bool:
        store = self._store
        try:
            if store.retention is not None:
                if min(map(len, keys)) < START.size or max(keys)[0] >= 0x80:
                    return False
                keys = [key[START.size :] for key in keys]
            read = _length(store.key.deserialize(keys))
            if self._value is None:
                return read == len(keys)
            both = read, _length(self._value.deserialize(values))
        except Exception:  # noqa: BLE001 - a serde may raise anything; records are then checked one by one
            return False
        return both == (len(keys), len(values))

    def _reason(self, key: bytes, value: bytes | None) -> str | None:
        """Why a record is not an entry; ``None`` if it can be one."""
        store, own = self._store, key
        if store.retention is not None:
            if len(key) < START.size:
                return f"its key {key!r:.80} is too short to begin with the 8 bytes of a window's start"
            if START.unpack_from(key)[0] >= LATEST_START:
                return f"its key {key!r:.80} does not begin with a window's start"
            own = key[START.size :]
        try:
            (_,) = store.key.deserialize([own])
        except Exception as error:  # noqa: BLE001 - a serde may raise anything
            return f"its key {own!r:.80} cannot be decoded by {store.key.name}: {_text(error)}"
        if value is None or self._value is None:
            return None
        try:
            (_,) = self._value.deserialize([value])
        except Exception as error:  # noqa: BLE001 - as above
            return (
                f"its value {value!r:.80} (key {own!r:.80}) cannot be decoded by {self._value.name}: "
                f"{_text(error)}"
            )
        return None

    def _add(self, place: tuple[str, bytes | None], offset: int, reason: str, value: bytes | None) -> None:
        self._found.pop(place, None)
        if len(self._found) < LIMIT:
            self._found[place] = _Found(offset, reason, value)


def _length(results: Iterable[Any]) -> int:
    """Count the results of an iterable without storing them."""
    numbers = count()
    deque(zip(results, numbers, strict=False), maxlen=0)
    return next(numbers)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error_text(error)}"


def _without_deletions(entries: Mapping[bytes, bytes | None]) -> dict[bytes, bytes | None]:
    return {key: value for key, value in entries.items() if value is not None}


def _offsets(fetched: Fetched) -> dict[bytes | None, int]:
    """The offset of the last record of each entry's key."""
    keys = fetched.keys()
    headers = fetched.headers() or [None] * len(keys)
    return {
        entry_key(key, own) if key is not None and key.startswith(RESERVED) else key: offset
        for key, own, offset in zip(keys, headers, fetched.offsets(), strict=True)
    }
