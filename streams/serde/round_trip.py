"""Check that values are decoded unchanged, as they will be by another task or after a restart."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import math
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from streams.records import Column

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from streams.serde import Serde

_MILLISECOND = dt.timedelta(milliseconds=1)
_SINGLE = struct.Struct("<f")


class RoundTrip:
    """A serde that rejects values which ``inner`` would decode differently, or not at all.

    Three differences are allowed: a tuple may become a list if the type does not prevent it, and floats and
    times have the precision of their schema. For a custom serde it is only required that its bytes can be
    decoded.
    """

    def __init__(self, inner: Serde[Any]) -> None:
        self.inner = inner
        self.name = inner.name
        self.schema = getattr(inner, "schema", inner.name)
        self.learn = getattr(inner, "learn", None)
        self.whole_columns = bool(getattr(inner, "whole_columns", False))
        self._compares = bool(getattr(inner, "reads_as_written", False))

    def serialize(self, values: Sequence[Any]) -> Iterable[bytes]:
        """The same as the inner serde; raises at the first value that would be decoded differently."""
        found = self._all(values)
        return (payload for payload, _ in self._each(values)) if found is None else found[0]

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Any]:
        """The same as the inner serde."""
        return self.inner.deserialize(payloads)

    def read_back(self, values: Sequence[Any]) -> Iterable[Any]:
        """Each value after encoding and decoding; raises the same errors as ``serialize``."""
        found = self._all(values)
        return (value for _, value in self._each(values)) if found is None else found[1]

    def _all(self, values: Sequence[Any]) -> tuple[list[bytes], Sequence[Any]] | None:
        """Payloads and decoded values, if a comparison of complete columns finds no difference."""
        with suppress(Exception):
            payloads = list(self.inner.serialize(values))
            given = self.inner.deserialize(payloads)
            # A column of another class need not be iterated, unless its values are compared.
            read = given if isinstance(given, Column) and not self._compares else list(given)
            if len(read) == len(values) and (not self._compares or read == list(values)):
                return payloads, read
        return None

    def _each(self, values: Sequence[Any]) -> Iterator[tuple[bytes, Any]]:
        for value in values:
            (payload,) = self.inner.serialize([value])
            try:
                (read,) = self.inner.deserialize([payload])
            except Exception as error:
                raise ValueError(
                    f"{self.name} encodes it as {payload!r:.80} and cannot decode that: {error}"
                ) from error
            changed = _change(value, read, "") if self._compares else None
            if changed is not None:
                raise ValueError(
                    f"{self.name} would read it back as another value{changed}; use a serde with the type "
                    "of the values, e.g. Json(Type)"
                )
            yield payload, read


def _change(written: Any, read: Any, path: str) -> str | None:
    """Describe the first difference and its place; ``None`` if there are only allowed differences."""
    if _equal(written, read):
        return None
    if isinstance(read, list) and isinstance(written, list | tuple) and len(read) == len(written):
        parts = ((f"[{at}]", *pair) for at, pair in enumerate(zip(written, read, strict=True)))
    elif type(written) is tuple and len(written) == 2 and not isinstance(read, tuple):
        # A branch of an Avro union that was chosen explicitly.
        return _change(written[1], read, path) if isinstance(written[0], str) else _told(written, read, path)
    elif isinstance(read, dict) and isinstance(written, dict) and _same_names(written, read):
        parts = ((f"[{name!r}]", written[name], read[name]) for name in read)
    elif type(written) is not type(read):
        return _told(written, read, path)
    elif isinstance(read, tuple) and len(read) == len(written):
        parts = ((f"[{at}]", *pair) for at, pair in enumerate(zip(written, read, strict=True)))
    elif isinstance(read, msgspec.Struct):
        names: tuple[str, ...] = read.__struct_fields__
        parts = ((f".{name}", getattr(written, name), getattr(read, name)) for name in names)
    elif dataclasses.is_dataclass(read):
        names = tuple(field.name for field in dataclasses.fields(read))
        parts = ((f".{name}", getattr(written, name, None), getattr(read, name, None)) for name in names)
    else:
        return None if _as_precise(written, read) else _told(written, read, path)
    for place, before, after in parts:
        changed = _change(before, after, path + place)
        if changed is not None:
            return changed
    return None


def _same_names(written: dict[Any, Any], read: dict[Any, Any]) -> bool:
    return len(written) == len(read) and all(name in written for name in read)


def _equal(written: Any, read: Any) -> bool:
    try:
        return bool(written == read)
    except Exception:  # noqa: BLE001 - the user's class
        return False


def _as_precise(written: Any, read: Any) -> bool:
    """Whether two values are equal in the precision of the decoded one."""
    if isinstance(read, float):
        if math.isnan(written) or math.isnan(read):
            return math.isnan(written) and math.isnan(read)
        try:
            return _SINGLE.pack(written) == _SINGLE.pack(read)
        except OverflowError:
            return False
    if isinstance(read, dt.datetime):
        return bool((written.tzinfo is None) == (read.tzinfo is None) and abs(written - read) < _MILLISECOND)
    if isinstance(read, dt.time):
        seconds = written.replace(microsecond=0) == read.replace(microsecond=0)
        return bool(seconds and abs(written.microsecond - read.microsecond) < 1000)
    # Without __eq__, objects cannot be compared. Decimal NaNs are never equal, so their text is compared.
    silent = getattr(type(read), "__eq__", None) is object.__eq__
    return silent or (isinstance(read, decimal.Decimal) and str(written) == str(read))


def _told(written: Any, read: Any, path: str) -> str:
    place = f" at {path}" if path else ""
    return f"{place}: {written!r:.80} ({type(written).__name__}) as {read!r:.80} ({type(read).__name__})"
