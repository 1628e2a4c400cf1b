"""Encodes values of any type for accumulators, so that they are read back unchanged."""

from __future__ import annotations

import datetime as dt
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

from streams.serde.value_type import member_types, traits

if TYPE_CHECKING:
    from collections.abc import Callable

TYPED, PLAIN = 1, 2
"""Codes of MessagePack extensions: a value encoded by its type, and a self-describing one."""

_SCALARS = (Decimal, dt.datetime, dt.date, dt.time, dt.timedelta, UUID, Fraction, complex)
INLINE = frozenset({str, bytes, int, float, bool, type(None)})
"""Types that msgpack stores unchanged (integers of up to 64 bits)."""
LIVE = INLINE | frozenset(_SCALARS)
"""Immutable types, which accumulators keep unencoded."""

_ZONED = frozenset({dt.datetime, dt.time})

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Encoded(NamedTuple):
    """A mutable value as an accumulator keeps it: its bytes, and the code of its encoding."""

    code: int
    data: bytes


class ValueCodec:
    """Converts between values and their form in accumulators.

    ``kind`` is the type of the values; with ``None`` they must be self-describing: numbers, text, bytes,
    times, ``Decimal``, ``UUID`` and collections of these, not objects of classes. (For a time zone, the
    offset from UTC is kept, not the rules.) Immutable values are kept as they are, others encoded, so that
    later changes to them do not affect the accumulator, and results are equal before and after a commit.
    """

    __slots__ = ("_exact", "_kind", "_ordered", "_vague", "_wanted")

    def __init__(self, kind: Any = None) -> None:
        self._kind = kind
        found = None if kind is None else traits(kind)
        self._vague = found is not None and found.vague
        # Sets are unordered: without sorting, equal sets would have different bytes.
        self._ordered: Any = "deterministic" if found is not None and found.sets else None
        self._exact = LIVE if kind is None else LIVE.intersection(member_types(kind))
        self._wanted = "" if kind is None else getattr(kind, "__name__", str(kind))

    def takes(self, kinds: set[type]) -> bool:
        """Whether all values of these types are kept unencoded."""
        return kinds <= self._exact and not kinds & _ZONED

    def keep(self, value: Any) -> Any:
        """The form of the value in an accumulator.

        Raises ``TypeError`` or ``ValueError``, naming the offending part, for a value that could not be read
        back unchanged.
        """
        if type(value) in self._exact:
            return _with_offset(value) if type(value) in _ZONED else value
        if self._kind is None:
            return Encoded(PLAIN, _encode(_tagged(value, "")))
        plain = msgspec.to_builtins(value, builtin_types=(bytes,), order=self._ordered)
        data = _encode(plain)
        restored = msgspec.convert(_decode(data), self._kind)
        if type(restored) in LIVE:
            # An integer is accepted as a float.
            if type(value) is not type(restored) and (type(value) is not int or restored != value):
                raise TypeError(f"needs {self._wanted}, got {type(value).__name__}: {value!r:.80}")
            return restored
        if type(restored) is not type(value):
            raise TypeError(f"needs {self._wanted}, got {type(value).__name__}: {value!r:.80}")
        if self._vague or restored != value:
            difference = _difference(value, restored, "")
            if difference:
                raise TypeError(f"{self._wanted} would be read back changed: {difference}")
        return Encoded(TYPED, data)

    def restore(self, kept: Any) -> Any:
        """The value; a new object at each call if it is mutable."""
        if type(kept) is not Encoded:
            return kept
        code, data = kept
        if code == PLAIN:
            value = _decode_plain(data)
            if self._kind is None:
                return value
            plain = msgspec.to_builtins(value, builtin_types=(bytes,))
        else:
            plain = _decode(data)
        return plain if self._kind is None else msgspec.convert(plain, self._kind)

    def pack(self, kept: Any) -> Any:
        """The kept form as plain data for msgpack."""
        if type(kept) is Encoded:
            return Ext(*kept)
        return kept if type(kept) in INLINE and type(kept) is not int else _tagged(kept, "")

    def unpack(self, packed: Any) -> Any:
        """The kept form of packed data, also of plain values from earlier versions.

        Raises ``msgspec.ValidationError`` if the data no longer matches the type.
        """
        if type(packed) is Ext:
            if packed.code in {TYPED, PLAIN}:
                return Encoded(packed.code, bytes(packed.data))
            return _untagged(packed.code, memoryview(packed.data))
        if type(packed) in self._exact:
            return packed
        if self._kind is None:
            return Encoded(PLAIN, _encode(_tagged(packed, "")))
        value = msgspec.convert(packed, self._kind)
        return value if type(value) in LIVE else Encoded(TYPED, _encode(packed))


def _with_offset(value: Any) -> Any:
    """The time with its offset from UTC, as it is stored, instead of its zone."""
    zone = value.tzinfo
    if zone is None or type(zone) is dt.timezone:
        return value.replace(fold=0) if value.fold else value
    offset = value.utcoffset()
    if offset is None:
        raise TypeError(f"{value!r:.80} has a zone without an offset, which would be lost")
    return value.replace(tzinfo=dt.timezone(offset), fold=0)


# Values that describe themselves: msgpack's own types, and extensions for the others.


def _text(value: Any) -> bytes:
    return str(value).encode()


def _items(value: Any) -> bytes:
    return _encode([_tagged(item, f"[{place}]") for place, item in enumerate(value)])


def _pairs(value: Any) -> bytes:
    return _encode([[_tagged(key, "key"), _tagged(item, f"[{key!r}]")] for key, item in value.items()])


def _sorted_items(value: Any) -> bytes:
    # Equal sets have equal bytes.
    return _encode([Ext(PLAIN, data) for data in sorted(_encode(_tagged(item, "element")) for item in value)])


def _with_factory(value: Any) -> bytes:
    name = getattr(value.default_factory, "__name__", "None")
    if value.default_factory is not _FACTORIES.get(name):
        raise TypeError(f"a defaultdict with the factory {value.default_factory!r:.80}")
    return _encode([name, Ext(PLAIN, _pairs(value))])


_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (int, float, str, bytes, list, dict, set)}
_FACTORIES["None"] = None


def _from_items(make: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    return lambda data: make(_decode_plain(data))


def _from_factory(data: bytes) -> Any:
    name, pairs = _decode(data)
    return defaultdict(_FACTORIES[name], _decode_plain(pairs.data))


def _from_delta(data: bytes) -> dt.timedelta:
    days, seconds, microseconds = _decode(data)
    return dt.timedelta(days, seconds, microseconds)


def _from_complex(data: bytes) -> complex:
    return complex(*_decode(data))


# The codes are stored: their meaning must never change.
_FORMS: dict[type, tuple[int, Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    int: (3, _text, int),
    Decimal: (4, _text, lambda data: Decimal(data.decode())),
    dt.datetime: (
        5,
        lambda value: value.isoformat().encode(),
        lambda data: dt.datetime.fromisoformat(data.decode()),
    ),
    dt.date: (6, lambda value: value.isoformat().encode(), lambda data: dt.date.fromisoformat(data.decode())),
    dt.time: (7, lambda value: value.isoformat().encode(), lambda data: dt.time.fromisoformat(data.decode())),
    dt.timedelta: (8, lambda value: _encode([value.days, value.seconds, value.microseconds]), _from_delta),
    UUID: (9, lambda value: value.bytes, lambda data: UUID(bytes=data)),
    tuple: (10, _items, _from_items(tuple)),
    set: (11, _sorted_items, _from_items(set)),
    frozenset: (12, _sorted_items, _from_items(frozenset)),
    bytearray: (13, bytes, bytearray),
    Fraction: (14, _text, lambda data: Fraction(data.decode())),
    complex: (15, lambda value: _encode([value.real, value.imag]), _from_complex),
    deque: (16, _items, _from_items(deque)),
    Counter: (17, _pairs, _from_items(lambda pairs: Counter(dict(pairs)))),
    OrderedDict: (18, _pairs, _from_items(OrderedDict)),
    defaultdict: (19, _with_factory, _from_factory),
}
_BY_CODE = {code: read for code, _, read in _FORMS.values()}


def _tagged(value: Any, path: str) -> Any:
    """The value with extensions for types that msgpack does not distinguish.

    Raises ``TypeError``, with the path to it, for an object of a class.
    """
    kind = type(value)
    if kind in _ZONED:
        value = _with_offset(value)
    if kind in INLINE:
        if kind is int and not -(2**63) <= value < 2**64:
            return Ext(3, _text(value))
        return value
    if kind is list:
        return [
            item if type(item) in _AS_IS else _tagged(item, f"{path}[{place}]")
            for place, item in enumerate(value)
        ]
    if kind is dict:
        if all(type(key) is str for key in value):
            return {
                key: item if type(item) in _AS_IS else _tagged(item, f"{path}[{key!r}]")
                for key, item in value.items()
            }
        return Ext(20, _pairs(value))
    form = _FORMS.get(kind)
    if form is None:
        place = f" at {path}" if path else ""
        raise TypeError(f"{kind.__name__}{place} cannot be read back without its type: {value!r:.80}")
    if kind is deque and value.maxlen is not None:
        raise TypeError("a deque with a maxlen would be read back without it")
    return Ext(form[0], form[1](value))


_AS_IS = INLINE - {int}
_BY_CODE[20] = _from_items(dict)


def _untagged(code: int, data: Any) -> Any:
    if code == PLAIN:
        return _decode_plain(bytes(data))
    return _BY_CODE[code](bytes(data))


_decode_plain = msgspec.msgpack.Decoder(ext_hook=_untagged).decode


def _difference(value: Any, restored: Any, path: str) -> str:
    """The first difference of two values, types included; empty if there is none."""
    kind = type(value)
    if kind is not type(restored):
        return f"{path or 'it'} is {kind.__name__}, would be {type(restored).__name__}"
    if kind in LIVE:
        same = value == restored or (value != value and restored != restored)  # noqa: PLR0124 - NaN
        return "" if same else f"{path or 'it'} is {value!r:.80}, would be {restored!r:.80}"
    if kind in {list, tuple} or (isinstance(value, tuple) and hasattr(value, "_fields")):
        pairs = [(f"{path}[{place}]", *both) for place, both in enumerate(zip(value, restored, strict=True))]
    elif isinstance(value, dict):
        pairs = [(f"{path}[{key!r}]", value[key], restored.get(key)) for key in value]
    else:
        names = getattr(kind, "__struct_fields__", None) or getattr(kind, "__dataclass_fields__", None) or ()
        names = names or [each.name for each in getattr(kind, "__attrs_attrs__", ())]
        if not names:
            return "" if value == restored else f"{path or 'it'} is {value!r:.80}, would be {restored!r:.80}"
        pairs = [(f"{path}.{name}", getattr(value, name), getattr(restored, name)) for name in names]
    return next((found for name, one, other in pairs if (found := _difference(one, other, name))), "")
