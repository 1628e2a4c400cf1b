"""Values of any type as dictionaries, lists, texts and numbers, to compare and print them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def plain(value: Any) -> Any:
    """The value as dictionaries, lists, texts and numbers; what has no such form as Python prints it."""
    try:
        return msgspec.to_builtins(value, builtin_types=(bytes,), str_keys=True, enc_hook=repr)
    except (TypeError, ValueError, msgspec.ValidationError):
        return repr(value)


class PlainValues:
    """The serde of rows for sink connectors, which have none of their own, in the files of a shadow run."""

    name = "plain values"

    def serialize(self, values: Sequence[Any]) -> Iterable[bytes]:
        return [msgspec.msgpack.encode(plain(value)) for value in values]

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[Any]:
        return map(msgspec.msgpack.decode, payloads)
