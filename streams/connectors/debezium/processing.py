"""What a source's processor uses of its task: the part of ``streams.Context`` that connectors may know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from streams.records import Batch, Record


class Store(Protocol):
    """A key-value store with keys and values of bytes."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def put(self, key: bytes, value: bytes | None) -> None: ...

    def put_many(self, entries: Mapping[bytes, bytes | None]) -> None: ...

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]: ...


class Context(Protocol):
    """A processor's access to its task."""

    def store(self, name: str) -> Store: ...

    def schedule(
        self, every: timedelta, call: Callable[[int], None], *, on: Literal["wall_clock"]
    ) -> Any: ...

    def forward(self, output: Record[Any, Any] | Batch[Any, Any]) -> None: ...
