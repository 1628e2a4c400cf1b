"""The store of a processor: it checks entries when they are put, and not when they are committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.operators.keys import HeldKeys, as_read, readable_keys
from streams.operators.snapshot import snapshot
from streams.serde.round_trip import RoundTrip
from streams.state.expiring import ExpiringSerde

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from streams.state.buffered import KeyValueState
    from streams.state.definition import StoreDefinition
    from streams.state.expiring import ExpiringState


class ProcessorStore:
    """See ``operators.processor.KeyValueStore``. The underlying store keeps values as objects until a commit.

    Each stored value is a separate object that the serde has written and read back. If the store shared
    objects with the user's code, modifying them would change the store, and the changes of a failed call or
    of an aborted transaction could not be rolled back.

    Raises ``ValueError`` for a key or a value that cannot be read back.
    """

    def __init__(
        self, state: KeyValueState[Any, Any] | ExpiringState[Any, Any], definition: StoreDefinition
    ) -> None:
        self._state = state
        self._name = definition.name
        serde, value = definition.key, definition.value
        self._serde = serde
        self._key_type = getattr(serde, "key_type", None)
        self._encode_keys = readable_keys(serde)
        self._keys = HeldKeys(serde)
        self._values = RoundTrip(value.inner if isinstance(value, ExpiringSerde) else value)

    def get(self, key: Any) -> Any:
        """The value, or ``None``."""
        return snapshot(self._state.get(self._held(key)))

    def get_many(self, keys: Sequence[Any]) -> list[Any]:
        """The values of the keys, ``None`` for those without a value, in one read."""
        return list(map(snapshot, self._state.get_many([self._held(key) for key in keys])))

    def put(self, key: Any, value: Any) -> None:
        """Set a value; ``None`` deletes."""
        self._state.put(self._written(key), None if value is None else self._kept(key, value))

    def put_many(self, entries: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> None:
        """Set several values; ``None`` deletes."""
        self._state.put_many(
            {
                self._written(key): None if value is None else self._kept(key, value)
                for key, value in dict(entries).items()
            }
        )

    def delete(self, key: Any) -> None:
        """Remove the entry if there is one."""
        self._state.delete(self._written(key))

    def scan(
        self, start: Any = None, stop: Any = None, *, reverse: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        """Iterate over entries from ``start`` to ``stop`` (exclusive), in the order of their encoded keys."""
        bounds = [None if key is None else self._held(key) for key in (start, stop)]
        return self._shown(self._state.scan(bounds[0], bounds[1], reverse=reverse))

    def prefix(self, prefix: bytes) -> Iterator[tuple[Any, Any]]:
        """Iterate over entries whose encoded key starts with ``prefix``, in order."""
        return self._shown(self._state.prefix(prefix))

    # --- for the task

    def mark(self) -> None:
        """Start recording changes, so that ``rollback`` can undo them."""
        self._state.mark()

    def keep(self) -> None:
        """Keep the changes since ``mark``."""
        self._state.keep()

    def rollback(self) -> None:
        """Undo the changes since ``mark``."""
        self._state.rollback()

    def _held(self, key: Any) -> Any:
        if type(key) is self._key_type:
            return key
        try:
            if key is None:
                raise ValueError("a key must not be None")  # noqa: TRY301 - the handler adds the store's name
            return next(iter(as_read(self._serde, [key]) if self._key_type else self._encode_keys([key])))
        except Exception as error:
            raise ValueError(f"store {self._name!r} cannot use the key {key!r:.80}: {error}") from error

    def _written(self, key: Any) -> Any:
        held = self._held(key)
        try:
            for _ in self._keys.serde.serialize([held]):
                pass
        except Exception as error:
            raise ValueError(f"store {self._name!r} cannot use the key {key!r:.80}: {error}") from error
        return held

    def _kept(self, key: Any, value: Any) -> Any:
        try:
            (read,) = self._values.read_back([value])
        except Exception as error:
            raise ValueError(
                f"store {self._name!r} cannot store the value of {key!r:.80}: {error}"
            ) from error
        # A serde may return the object that it was passed.
        return snapshot(read) if read is value else read

    def _shown(self, entries: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        for key, value in entries:
            (shown,) = self._keys.shown([key])
            yield shown, snapshot(value)
