"""The protocol of serdes, bytes and text, and columns with nulls."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")


class Serde(Protocol[T]):
    """Serializes and deserializes one type.

    Both methods return one result per element, lazily and in order, and raise at an element that they cannot
    handle: the engine applies the step's error policy to that record and calls again with the rest. They
    never get ``None``: a null key stays null, and a null value is a tombstone.

    A serde may describe its encoding by a property ``schema`` of plain data. Stores keep it, to check after a
    change of the program whether their entries can still be read. An attribute ``value_type`` is the type of
    the values, so that aggregates can store them.

    Keys are equal when their bytes are. A serde may have ``key_type``, a class whose own instances are equal
    exactly when this serde writes equal bytes for them: such keys are compared as they are, which is faster.

    A serde that has ``whole_columns`` true works on complete columns and may return a column of its own class
    (a ``streams.records.Column``). Where it raises, it is called again for each element alone.
    """

    @property
    def name(self) -> str:
        """The name in the output of ``describe``."""

    def serialize(self, values: Sequence[T]) -> Iterable[bytes]: ...

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[T]: ...


class Bytes:
    """Bytes, unchanged."""

    name = "Bytes"
    schema = "Bytes"
    value_type = bytes
    key_type = bytes

    def serialize(self, values: Sequence[bytes]) -> Iterable[bytes]:
        # Types are compared in C; only a column with another type in it is checked value by value.
        return values if set(map(type, values)) <= {bytes} else map(_require_bytes, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[bytes]:
        return payloads


def _require_bytes(value: bytes) -> bytes:
    if type(value) is not bytes:
        raise TypeError(f"the Bytes serde needs bytes, got {type(value).__name__}: {value!r:.80}")
    return value


class Text:
    """UTF-8 text."""

    name = "Text"
    schema = "Text"
    value_type = str
    key_type = str

    def serialize(self, values: Sequence[str]) -> Iterable[bytes]:
        with suppress(Exception):
            return list(map(str.encode, values))
        # Lazily, so that the values before the one that fails are encoded.
        return map(_encoded_text, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[str]:
        return map(bytes.decode, payloads)


def _encoded_text(value: Any) -> bytes:
    if not isinstance(value, str):
        wanted = type(value).__name__ if type(value) in {int, float, bool} else "type"
        raise TypeError(
            f"the Text serde needs str, got {type(value).__name__}: {value!r:.80}; "
            f"use another serde, e.g. Json({wanted})"
        )
    return value.encode()


def held_key(serde: Serde[Any]) -> Serde[Any]:
    """The serde of keys in the memory of steps and stores, where equal objects are the same key.

    It is ``serde`` itself if its keys are equal exactly when their bytes are; otherwise ``Bytes``, so that
    encoded keys are used.
    """
    return Bytes() if getattr(serde, "key_type", None) is None else serde


def nullable(
    transform: Callable[[Sequence[Any]], Iterable[Any]],
) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """``transform`` for columns with nulls: ``None`` stays ``None`` and is not passed to it."""

    def apply(column: Sequence[Any]) -> Iterable[Any]:
        # all() checks truth values in C, 3 times faster than a search for None; empty values, and values
        # without a truth value, only take the slower path.
        with suppress(Exception):
            if all(column):
                return transform(column)
        present = [value for value in column if value is not None]
        if len(present) == len(column):
            return transform(column)
        return _with_nulls(column, iter(transform(present)))

    return apply


def _with_nulls(column: Sequence[Any], results: Iterator[Any]) -> Iterator[Any]:
    for value in column:
        yield None if value is None else next(results)
