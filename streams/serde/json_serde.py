"""JSON values of any type, or of a given one."""

from __future__ import annotations

import builtins
import math
import operator
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast, overload

import msgspec
import msgspec.inspect

from streams.serde.schemas.shape import shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

T = TypeVar("T")
Type: TypeAlias = builtins.type[T]


class Json(Generic[T]):
    """JSON with msgspec, validated against ``type`` while it is decoded.

    With a ``msgspec.Struct`` that only declares the fields used, the rest of an object is skipped without
    parsing it, which is faster than decoding it into a dictionary. Without a type, values are plain Python
    objects.
    """

    reads_as_written = True
    """Whether a decoded value must equal the one that was encoded."""

    @overload
    def __init__(self: Json[Any], type: None = None) -> None: ...

    @overload
    def __init__(self, type: Type[T]) -> None: ...

    def __init__(self, type: Type[T] | None = None) -> None:  # noqa: A002 - the natural keyword; the builtin is not needed here
        self._type = type
        self.value_type: Any = Any if type is None else type
        """The type of the values, whose fields' types are those of aggregates."""
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(cast("Type[T]", type or Any))
        # Equal sets must be encoded as equal bytes, as they may be keys; other types already have an order.
        # msgspec can do so if the keys of all mappings are text.
        kinds = _kinds(type)
        alike = "set" in kinds and "names" not in kinds
        self._encoder = msgspec.json.Encoder(order="deterministic" if alike else None)
        self._holds_floats = bool(kinds & {"float", "any"})
        self._floats = [operator.attrgetter(name) for name in _float_fields(type) or ()]
        self._had_nulls = False

    @property
    def name(self) -> str:
        kind: Any = self._type
        if kind is None:
            return "Json"
        return f"Json({kind.__name__ if isinstance(kind, builtins.type) else kind})"

    @property
    def key_type(self) -> builtins.type | None:
        """Text and integers are equal if their JSON is; 1, 1.0 and true are equal but differ in JSON."""
        return self._type if self._type in (str, int) else None

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the values; ``any``, or the serde's name if the type cannot be described."""
        try:
            described: Any = "any" if self._type is None else shape(self._type) or "any"
        except TypeError:
            described = self.name
        return {"json": described}

    def serialize(self, values: Sequence[T]) -> Iterable[bytes]:
        """Encode values. Raises ``ValueError`` at NaN and infinity, which JSON cannot represent."""
        encode = self._encoder.encode
        if not self._holds_floats:
            return map(encode, values)
        with suppress(Exception):
            payloads = list(map(encode, values))
            if self._all_finite(values, payloads):
                return payloads
        return self._each(values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[T]:
        return map(self._decoder.decode, payloads)

    def _all_finite(self, values: Sequence[T], payloads: list[bytes]) -> bool:
        """Whether the column certainly has neither NaN nor infinity; checked at once, in C."""
        if self._floats:
            if set(map(type, values)) != {self._type}:
                return False
            # A sum is finite if all of its terms are; the filter drops missing values, and 0.
            return all(math.isfinite(sum(filter(None, map(of, values)))) for of in self._floats)
        # They are encoded as null: data without nulls has none.
        if not self._had_nulls:
            if b"null" not in b"".join(payloads):
                return True
            self._had_nulls = True
        return _are_finite(values)

    def _each(self, values: Sequence[T]) -> Iterator[bytes]:
        encode = self._encoder.encode
        for value in values:
            payload = encode(value)
            if b"null" in payload and not _are_finite([value]):
                _require_finite(msgspec.to_builtins(value, str_keys=True, enc_hook=_opened), "")
            yield payload


def _kinds(kind: Any) -> frozenset[str]:
    """What the values of a type may contain.

    ``float``, ``set``, ``names`` (mappings whose keys are not text) and ``any`` (values of any type).
    """
    if kind is None:
        return frozenset({"any"})
    try:
        return _kinds_of(shape(kind))
    except TypeError:
        return frozenset({"any"})


def _kinds_of(described: Any) -> frozenset[str]:
    found = set()
    waiting: list[Any] = [described]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if not part:
                found.add("any")
            elif part.get("type") == "number":
                found.add("float")
            elif part.get("uniqueItems"):
                found.add("set")
            elif "propertyNames" in part:
                found.add("names")
            for word in ("items", "prefixItems", "additionalProperties", "anyOf"):
                waiting.append(part.get(word))
            for word in ("properties", "$defs"):
                waiting += part.get(word, {}).values()
    return frozenset(found)


def _float_fields(kind: Any) -> list[str] | None:
    """The fields of a struct that may be floats; ``None`` if floats may also be elsewhere in its values."""
    try:
        described, info = shape(kind), msgspec.inspect.type_info(kind)
    except (TypeError, RecursionError):
        return None
    if not isinstance(info, msgspec.inspect.StructType) or not isinstance(kind, type):
        return None
    definitions = dict(described["$defs"])
    own = definitions.pop(described["$ref"].rpartition("/")[2])
    others: list[Any] = list(definitions.values())
    found = []
    for field in info.fields:
        part = own.get("properties", {}).get(field.encode_name, {})
        options = part.get("anyOf", [{word: value for word, value in part.items() if word != "default"}])
        scalar = [option for option in options if option.get("type") == "number"]
        if scalar:
            found.append(field.name)
        others += [option for option in options if option not in scalar]
    return None if _kinds_of(others) & {"float", "any"} else found


# In msgpack, floats with all bits of the exponent set, which are not finite.
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_packed = msgspec.msgpack.Encoder().encode


def _are_finite(values: Sequence[Any]) -> bool:
    """Whether the values certainly contain neither NaN nor infinity."""
    try:
        return _NOT_FINITE.search(_packed(values)) is None
    except (TypeError, ValueError, OverflowError):
        # Integers beyond 64 bits.
        return False


def _opened(value: Any) -> Any:
    """JSON that is part of a value, read: it cannot contain what is looked for."""
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    raise NotImplementedError


def _require_finite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        place = f" at {path}" if path else ""
        raise ValueError(f"JSON cannot represent {value}{place}: it would be read back as null")
    if isinstance(value, dict):
        for name, inner in value.items():
            _require_finite(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            _require_finite(inner, f"{path}[{at}]")
