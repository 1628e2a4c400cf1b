"""Writers of Avro records as generated Python code, where values determine the branches of unions.

What fastavro decides for each value of each record is decided once, when the code is generated.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NoReturn

from streams.serde.schemas.avro_types import RECORDS, NamedTypes, SchemaError, type_of

if TYPE_CHECKING:
    from collections.abc import Callable

_PYTHON: Final = {
    "boolean": "bool",
    "int": "int",
    "long": "int",
    "double": "float",
    "bytes": "bytes",
    "string": "str",
    "array": "list",
    "record": "dict",
}
_BITS: Final = {"int": 31, "long": 63}


def compile_writer(schema: Any, prefix: bytes) -> Callable[[Any], bytes]:
    """A function that encodes a record, after the prefix.

    Records are dictionaries; a field may be missing if it may be null. The schema has booleans,
    integers, doubles, bytes, strings, arrays and records, and of unions of these with null. Raises
    ``SchemaError`` for any other.
    """
    code = _Code(NamedTypes(schema))
    code.add("def write(r):")
    code.depth += 1
    code.add("o = [prefix]; a = o.append")
    code.value(schema, "r", "")
    code.add("return join(o)")
    scope: dict[str, Any] = {
        "prefix": prefix,
        "join": b"".join,
        "number": _number,
        "small": _SMALL,
        "double": struct.Struct("<d").pack,
        "bad": _bad,
    }
    exec("\n".join(code.lines), scope)  # noqa: S102 - the code is made above, names are in it as literals
    write: Callable[[Any], bytes] = scope["write"]
    return write


class _Code:
    """The lines of a function that appends the parts of a value to a list."""

    def __init__(self, types: NamedTypes) -> None:
        self.lines: list[str] = []
        self.depth = 0
        self._types = types
        self._count = 0

    def add(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def value(self, schema: Any, value: str, path: str) -> None:
        """Add the code that writes a value, which is in a variable; ``path`` is where in the record it is."""
        schema = self._types.resolved(schema)
        kind = type_of(schema)
        if kind == "union":
            self._union(schema, value, path)
            return
        if kind not in _PYTHON and kind not in RECORDS:
            raise SchemaError(f"there is no writer for the type {kind!r} of the field {path!r}")
        if kind == "double":
            self.add(f"if type({value}) is int: {value} = float({value})")
        python = _PYTHON.get(kind, "dict")
        limits = f" or not {-(1 << _BITS[kind])} <= {value} < {1 << _BITS[kind]}" if kind in _BITS else ""
        if kind not in RECORDS:
            self.add(f"if type({value}) is not {python}{limits}: bad({path!r}, {kind!r}, {value})")
        match kind:
            case "boolean":
                self.add(f"a(b'\\1' if {value} else b'\\0')")
            case "int" | "long":
                self._number(f"({value} << 1) ^ ({value} >> 63)")
            case "double":
                self.add(f"a(double({value}))")
            case "bytes" | "string":
                if kind == "string":
                    self.add(f"{value} = {value}.encode()")
                self._number(f"len({value}) << 1")
                self.add(f"a({value})")
            case "array":
                self._array(schema, value, path)
            case _:
                self._record(schema, value, path)

    def _record(self, schema: Any, value: str, path: str) -> None:
        for field in schema["fields"]:
            name, kind = field["name"], field["type"]
            inner = self._name()
            nullable = isinstance(kind, list) and "null" in kind
            self.add(f"{inner} = {value}.get({name!r})" if nullable else f"{inner} = {value}[{name!r}]")
            self.value(kind, inner, f"{path}.{name}" if path else name)

    def _array(self, schema: Any, value: str, path: str) -> None:
        item = self._name()
        self.add(f"if {value}:")
        self.depth += 1
        self._number(f"len({value}) << 1")
        self.add(f"for {item} in {value}:")
        self.depth += 1
        self.value(schema["items"], item, path)
        self.depth -= 2
        self.add("a(b'\\0')")

    def _union(self, union: list[Any], value: str, path: str) -> None:
        branches = [(at, self._types.resolved(branch)) for at, branch in enumerate(union)]
        others = [(at, branch) for at, branch in branches if type_of(branch) != "null"]
        kinds = [type_of(branch) for _, branch in others]
        classes = [_PYTHON.get(kind, "dict") for kind in kinds]
        if len(set(classes)) < len(classes):
            raise SchemaError(f"the values of {path!r} do not determine their branch of {kinds}")
        conditions = [f"{value} is None" if len(others) < len(branches) else "False"]
        self.add(f"if {conditions[0]}: a({bytes([2 * next((a for a, b in branches if b == 'null'), 0)])!r})")
        for (at, branch), python in zip(others, classes, strict=True):
            alone = len(others) == 1
            self.add("else:" if alone else f"elif type({value}) is {python}:")
            self.depth += 1
            self.add(f"a({bytes([2 * at])!r})")
            self.value(branch, value, path)
            self.depth -= 1
        if len(others) > 1:
            self.add(f"else: bad({path!r}, {' or '.join(kinds)!r}, {value})")

    def _number(self, expression: str) -> None:
        name = self._name()
        self.add(f"{name} = {expression}")
        self.add(f"a(small[{name}] if {name} < 16384 else number({name}))")

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"


def _encoded(number: int) -> bytes:
    """An unsigned number as Avro encodes it, seven bits a byte."""
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


_SMALL: Final = [_encoded(number) for number in range(1 << 14)]
_PAIRS: Final = [bytes([number & 127 | 128, number >> 7 | 128]) for number in range(1 << 14)]
"""Two bytes that are followed by others, by the 14 bits in them."""


def _number(number: int) -> bytes:
    made = b""
    while number >= 1 << 14:
        made += _PAIRS[number & 0x3FFF]
        number >>= 14
    return made + _SMALL[number]


def _bad(path: str, kind: str, value: Any) -> NoReturn:
    raise ValueError(f"field {path!r} needs {kind}, got {type(value).__name__}: {value!r:.80}")
