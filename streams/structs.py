"""Structs that several threads decode."""

from __future__ import annotations

from typing import TypeVar

import msgspec

K = TypeVar("K", bound=type[msgspec.Struct])


def decodable(kind: K) -> K:
    """Have msgspec work out now how a struct is decoded, and not with its first value.

    It keeps the result with the class, and lets other threads see it before it is complete: two that decode
    the first values of a class at the same moment read a null pointer (msgspec 0.22). An import is done by
    one thread.
    """
    msgspec.json.Decoder(kind)
    return kind
