"""Stores whose entries expire some time after they were put (time to live)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from streams.state.definition import schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from streams.serde import Serde
    from streams.state.buffered import KeyValueState
    from streams.state.deadlines import Deadlines

K = TypeVar("K")
V = TypeVar("V")

_TIMES = Struct(">QQ")


class Expiring(NamedTuple):
    """A stored value with its expiry. Times are stream time in milliseconds since the epoch."""

    value: Any
    expires: int
    """From this time on, the entry does not exist."""
    deadline: int
    """When the key is checked next: at ``expires`` or earlier."""


class ExpiringSerde:
    """The serde of ``Expiring``: 16 bytes with both times, then the value encoded by ``inner``."""

    def __init__(self, inner: Serde[Any]) -> None:
        self.name = f"expiring {inner.name}"
        self.schema = {"expiring": schema_of(inner)}
        self.learn = getattr(inner, "learn", None)
        self.inner = inner

    def serialize(self, values: Sequence[Expiring]) -> Iterable[bytes]:
        times = (_TIMES.pack(entry.expires, entry.deadline) for entry in values)
        payloads = self.inner.serialize([entry.value for entry in values])
        return map(bytes.__add__, times, payloads)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Expiring]:
        values = self.inner.deserialize([payload[_TIMES.size :] for payload in payloads])
        for value, payload in zip(values, payloads, strict=True):
            yield Expiring(value, *_TIMES.unpack_from(payload))


class ExpiringState(Generic[K, V]):
    """A task's view of a store whose entries expire ``ttl`` milliseconds of stream time after their last put.

    They are invisible as soon as stream time, given by ``now``, has reached their put time plus ``ttl``;
    ``expire`` removes them. The value ``None`` means that there is no entry.
    """

    def __init__(
        self,
        state: KeyValueState[K, Expiring],
        deadlines: Deadlines[K],
        *,
        ttl: int,
        now: Callable[[], int],
    ) -> None:
        self._state = state
        self._deadlines = deadlines
        self._ttl = ttl
        self._now = now

    def get(self, key: K) -> V | None:
        return self._shown(self._state.get(key))

    def get_many(self, keys: Sequence[K]) -> list[V | None]:
        """The values of these keys, with one read of the store for those that are not in memory."""
        return list(map(self._shown, self._state.get_many(keys)))

    def put(self, key: K, value: V | None) -> None:
        """Set a value, whose lifetime starts now; ``None`` deletes."""
        self.put_many({key: value})

    def put_many(self, entries: Mapping[K, V | None]) -> None:
        """Set several values, whose lifetime starts now; ``None`` deletes."""
        expires = self._now() + self._ttl
        changed: dict[K, Expiring | None] = {}
        for (key, value), old in zip(entries.items(), self._state.get_many(list(entries)), strict=True):
            if value is not None:
                changed[key] = Expiring(value, expires, self._deadline(key, expires, old))
            elif old is not None:
                self._deadlines.remove(old.deadline, key)
                changed[key] = None
        self._state.put_many(changed)

    def delete(self, key: K) -> None:
        """Remove the entry, if there is one."""
        self.put_many({key: None})

    def scan(
        self, start: K | None = None, stop: K | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[K, V]]:
        """Entries with ``start <= key < stop``, in the order of their encoded keys."""
        return self._live(self._state.scan(start, stop, reverse=reverse))

    def prefix(self, prefix: bytes) -> Iterator[tuple[K, V]]:
        """Entries whose encoded key begins with ``prefix``, in order."""
        return self._live(self._state.prefix(prefix))

    def expire(self) -> None:
        """Remove expired entries. It only reads these, and entries that were put again meanwhile."""
        now = self._now()
        keys = self._deadlines.due(now)
        changed: dict[K, Expiring | None] = {}
        for key, entry in zip(keys, self._state.get_many(keys), strict=True):
            if entry is None:
                continue
            if entry.expires <= now:
                changed[key] = None
            else:
                self._deadlines.add(entry.expires, key)
                changed[key] = entry._replace(deadline=entry.expires)
        self._state.put_many(changed)

    def mark(self) -> None:
        """Start to record changes, so that ``rollback`` can undo them."""
        self._state.mark()
        self._deadlines.mark()

    def keep(self) -> None:
        """Keep the changes since ``mark``."""
        self._state.keep()
        self._deadlines.keep()

    def rollback(self) -> None:
        """Undo the changes since ``mark``."""
        self._state.rollback()
        self._deadlines.rollback()

    def _deadline(self, key: K, expires: int, old: Expiring | None) -> int:
        """The key's deadline: the existing one, if it is early enough, else a new one."""
        if old is not None:
            if old.deadline <= expires:
                return old.deadline
            self._deadlines.remove(old.deadline, key)
        self._deadlines.add(expires, key)
        return expires

    def _shown(self, entry: Expiring | None) -> V | None:
        return None if entry is None or entry.expires <= self._now() else entry.value

    def _live(self, entries: Iterable[tuple[K, Expiring]]) -> Iterator[tuple[K, V]]:
        now = self._now()
        for key, entry in entries:
            if entry.expires > now and entry.value is not None:
                yield key, entry.value
