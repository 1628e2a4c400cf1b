"""The processor that drops messages whose identity it has seen: what was delivered again after its commit."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from streams.connectors.rabbitmq.message_columns import identities

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping, Sequence

    from streams.records import Batch

STORE: Final = "identities"

_HEAD: Final = b"head"
_GROUP: Final = b"g"
_GROUP_END: Final = b"h"
_NUMBER_BYTES: Final = 8


class Store(Protocol):
    """The part of a key-value store that is used, with keys and values of bytes."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes | None) -> None: ...

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]: ...


class Context(Protocol):
    """The part of ``streams.Context`` that is used."""

    @property
    def partition(self) -> int: ...

    def store(self, name: str) -> Store: ...

    def forward(self, output: Batch[Any, Any]) -> None: ...


class Deduplication:
    """Remembers the last ``remembered`` identities, in groups of those that were processed together.

    The store has an entry for each group, and one with the number of the next; memory has all identities. The
    store may be rolled back between two calls: it is read again when its number is another one than was put.
    ``dropped`` counts for each task, for the reader's metrics.
    """

    def __init__(self, header: str, remembered: int, dropped: MutableMapping[int, int]) -> None:
        self._header = header
        self._remembered = remembered
        self._dropped = dropped

    def open(self, context: Context) -> None:
        self._store = context.store(STORE)
        self._task = context.partition
        self._read_store()

    def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
        if self._store.get(_HEAD) != self._head:
            self._read_store()
        found = identities(batch.headers, self._header, len(batch))
        known = self._known
        new: dict[bytes, None] = {}
        kept: list[int] = []
        for row, identity in enumerate(found):
            if identity is not None:
                if identity in known or identity in new:
                    continue
                new[identity] = None
            kept.append(row)
        if new:
            self._remember(list(new))
        if len(kept) < len(batch):
            self._dropped[self._task] = self._dropped.get(self._task, 0) + len(batch) - len(kept)
            batch = batch.select(kept)
        if kept:
            context.forward(batch)

    def _read_store(self) -> None:
        self._head = self._store.get(_HEAD)
        self._next = 0 if self._head is None else int.from_bytes(self._head)
        self._groups = deque(
            (int.from_bytes(key[1:]), msgspec.msgpack.decode(value, type=list[bytes]))
            for key, value in self._store.scan(_GROUP, _GROUP_END)
        )
        self._known = {identity for _, group in self._groups for identity in group}

    def _remember(self, group: Sequence[bytes]) -> None:
        self._store.put(_group_key(self._next), msgspec.msgpack.encode(group))
        self._groups.append((self._next, list(group)))
        self._known.update(group)
        while len(self._known) - len(self._groups[0][1]) >= self._remembered:
            number, oldest = self._groups.popleft()
            self._store.put(_group_key(number), None)
            self._known.difference_update(oldest)
        self._next += 1
        self._head = self._next.to_bytes(_NUMBER_BYTES)
        self._store.put(_HEAD, self._head)


def _group_key(number: int) -> bytes:
    return _GROUP + number.to_bytes(_NUMBER_BYTES)
