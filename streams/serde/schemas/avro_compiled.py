"""Readers of Avro records as generated Python code, one for each pair of schemas.

What fastavro decides for each value of each record (types, promotions, which fields are read, where defaults
apply) is decided once, when the code is generated. fastavro reads the schemas for which there is none.
"""

from __future__ import annotations

import struct
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Final

import fastavro.read
from msgspec import inspect

from streams.serde.schemas.avro_decimals import DECIMAL
from streams.serde.schemas.avro_types import NAMED, RECORDS, NamedTypes, type_of
from streams.serde.schemas.avro_values import fresh

if TYPE_CHECKING:
    from collections.abc import Callable

DEEPEST_BLOCKS: Final = 12
"""Python limits how deep blocks are nested: deeper schemas are left to fastavro."""

_PROMOTED = {
    ("int", "long"): "",
    ("int", "float"): "float",
    ("int", "double"): "float",
    ("long", "float"): "float",
    ("long", "double"): "float",
    ("float", "double"): "",
    ("string", "bytes"): "bytes",
    ("bytes", "string"): "string",
}
"""For a type and the one that is read: the conversion, or the type as which the bytes are read."""

_SIZES = {"boolean": 1, "float": 4, "double": 8}


_EXACT: dict[str, inspect.Type] = {
    "null": inspect.NoneType(),
    "boolean": inspect.BoolType(),
    "int": inspect.IntType(),
    "long": inspect.IntType(),
    "float": inspect.FloatType(),
    "double": inspect.FloatType(),
    "bytes": inspect.BytesType(),
    "fixed": inspect.BytesType(),
    "string": inspect.StrType(),
    "date": inspect.DateType(),
    "timestamp-millis": inspect.DateTimeType(),
    "timestamp-micros": inspect.DateTimeType(),
    DECIMAL: inspect.DecimalType(),
    "uuid": inspect.UUIDType(),
}
"""The types of values that are taken as they are, without any constraint; by type or logical type."""


class _Unsupported(Exception):
    """There is no generated code for these schemas."""


def compile_reader(
    written: Any, wanted: Any, shape: inspect.Type | None = None
) -> Callable[[bytes], Any] | None:
    """A function that decodes the record of a payload, from its sixth byte to its end.

    ``written`` and ``wanted`` are parsed schemas, the same for no resolution. They must not be recursive, and
    values must determine the branches of their unions. With ``shape``, records are instances of its structs;
    values of ``wanted`` must fit it (``fits``). ``None`` if the schemas need fastavro: for example, if some
    values of the one cannot be read with the other. The function raises ``ValueError`` for a payload that is
    no such record.
    """
    generator = _Generator(NamedTypes(written), NamedTypes(wanted))
    try:
        generator.add("def read(d):")
        generator.add(" try:")
        generator.depth = 2
        generator.add("p, e = 5, len(d)")
        result = generator.value(written, wanted, shape)
    except _Unsupported:
        return None
    generator.add(f"if p == e: return {result}")
    generator.depth = 1
    generator.add("except (IndexError, BadStruct):")
    generator.add(" raise ValueError('the payload ends within the record') from None")
    generator.add("raise ValueError(f'{e - p} bytes are left after the record')")
    # The names of a schema only occur as quoted constants.
    exec("\n".join(generator.lines), generator.names)  # noqa: S102 - generated from checked schemas
    read: Callable[[bytes], Any] = generator.names["read"]
    return read


def fits(schema: Any, shape: inspect.Type, types: NamedTypes) -> bool:
    """Whether values of a schema have the types of ``shape`` already, except that records are dictionaries.

    A struct then needs no validation. It must be one whose fields are all that its constructor does.
    """
    schema = types.resolved(schema)
    kind = type_of(schema)
    if isinstance(shape, inspect.AnyType):
        return kind not in RECORDS
    if kind == "union":
        return (
            len(schema) == 2
            and isinstance(shape, inspect.UnionType)
            and len(shape.types) == 2
            and inspect.NoneType() in shape.types
            and "null" in schema
            and fits(next(branch for branch in schema if branch != "null"), _not_null(shape), types)
        )
    if kind == "array":
        return (
            isinstance(shape, inspect.ListType)
            and shape == inspect.ListType(shape.item_type)
            and fits(schema["items"], shape.item_type, types)
        )
    if kind == "map":
        return (
            isinstance(shape, inspect.DictType)
            and shape == inspect.DictType(inspect.StrType(), shape.value_type)
            and fits(schema["values"], shape.value_type, types)
        )
    if kind in RECORDS:
        return isinstance(shape, inspect.StructType) and _fits_struct(schema, shape, types)
    return _EXACT.get(_logical(schema) or kind) == shape


def _fits_struct(schema: Any, shape: inspect.StructType, types: NamedTypes) -> bool:
    fields = {field["name"]: field["type"] for field in schema["fields"]}
    if shape.tag is not None or shape.array_like or hasattr(shape.cls, "__post_init__"):
        return False
    if shape.forbid_unknown_fields and fields.keys() - {field.encode_name for field in shape.fields}:
        return False
    return all(
        fits(fields[field.encode_name], field.type, types)
        if field.encode_name in fields
        else not field.required
        for field in shape.fields
    )


def _not_null(shape: inspect.UnionType) -> inspect.Type:
    """The other type of a union of two with null."""
    return next((option for option in shape.types if option != inspect.NoneType()), shape)


class _Generator:
    """Collects lines of code. ``d`` is the payload, ``p`` the position in it, ``e`` its end."""

    def __init__(self, written: NamedTypes, wanted: NamedTypes) -> None:
        self._written = written
        self._wanted = wanted
        self.depth = 0
        self.lines: list[str] = []
        self.names: dict[str, Any] = {
            "varint": _varint,
            "short": _short,
            "negative": _negative,
            "no_branch": _no_branch,
            "no_symbol": _no_symbol,
            "fresh": fresh,
            "single": struct.Struct("<f").unpack_from,
            "double": struct.Struct("<d").unpack_from,
            "BadStruct": struct.error,
        }
        self._count = 0

    def add(self, line: str) -> None:
        self.lines.append(" " * self.depth + line)

    def value(self, written: Any, wanted: Any, shape: inspect.Type | None) -> str:
        """Add the code that reads a value; returns the expression or variable with the result."""
        written, wanted = self._written.resolved(written), self._wanted.resolved(wanted)
        if isinstance(written, list):
            return self._union(written, wanted if wanted is not written else None, shape)
        if isinstance(wanted, list):
            wanted = self._branch(written, wanted)
        if isinstance(shape, inspect.UnionType):
            shape = _not_null(shape)
        kind, target = type_of(written), type_of(wanted)
        logical = _logical(written)
        if logical != _logical(wanted):
            raise _Unsupported
        if kind in RECORDS and target in RECORDS:
            self._require_same_name(written, wanted)
            return self._record(written, wanted, shape)
        if kind != target:
            conversion = _PROMOTED.get((kind, target))
            if conversion is None or logical:
                raise _Unsupported
            if conversion == "float":
                return f"float({self._number()})"
            return self._primitive(conversion or kind)
        if kind in NAMED:
            self._require_same_name(written, wanted)
        if kind in {"array", "map"}:
            return self._blocks(written, kind, wanted, shape)
        if kind == "enum":
            return self._enum(written, wanted)
        if kind == "fixed":
            if written["size"] != wanted["size"]:
                raise _Unsupported
            result = self._fixed(written["size"])
        else:
            result = self._primitive(kind)
        read = fastavro.read.LOGICAL_READERS.get(f"{kind}-{logical}")
        if read is None:
            return result
        return f"{self._constant(read)}({result}, {self._constant(written)}, None)"

    def skip(self, schema: Any) -> None:
        """Add the code that passes over a value which is not read."""
        schema = self._written.resolved(schema)
        kind = type_of(schema)
        if kind == "union":
            index = self._raw_number()
            for at, branch in enumerate(schema):
                self.add(f"{'el' if at else ''}if {index} == {2 * at}:")
                self._within(lambda branch=branch: self.skip(branch))  # type: ignore[misc]
            self.add(f"else: no_branch({index}, {len(schema)})")
        elif kind in RECORDS:
            for field in schema["fields"]:
                self.skip(field["type"])
        elif kind in {"array", "map"}:
            self._loop(lambda: self._skip_item(schema, kind))
        elif kind in {"int", "long", "enum"}:
            self._raw_number()
        elif kind in {"bytes", "string"}:
            self.add(f"p += {self._length()}")
        elif kind != "null":
            size = schema["size"] if kind == "fixed" else _SIZES[kind]
            self.add(f"p += {size}")
            # Nothing else would notice the end while items of a fixed size are passed over.
            self.add("if p > e: short()")

    # --- types

    def _record(self, written: Any, wanted: Any, shape: inspect.Type | None) -> str:
        shapes = shape.fields if isinstance(shape, inspect.StructType) else ()
        inner = {field.encode_name: field.type for field in shapes}
        fields = {field["name"]: field for field in wanted["fields"]}
        by_alias = {alias: field for field in wanted["fields"] for alias in field.get("aliases", ())}
        found: dict[str, str] = {}
        for field in written["fields"]:
            target = fields.get(field["name"]) or by_alias.get(field["name"])
            if target is None:
                self.skip(field["type"])
            elif target["name"] in found:
                raise _Unsupported
            else:
                found[target["name"]] = self._kept(
                    self.value(field["type"], target["type"], inner.get(target["name"]))
                )
        for name, field in fields.items():
            if name not in found:
                if "default" not in field:
                    raise _Unsupported
                default = self._constant(field["default"])
                found[name] = f"fresh({default})" if isinstance(field["default"], dict | list) else default
        if isinstance(shape, inspect.StructType):
            return self._struct(shape, found)
        return f"{{{', '.join(f'{name!r}: {value}' for name, value in found.items())}}}"

    def _struct(self, shape: inspect.StructType, found: dict[str, str]) -> str:
        make = self._constant(shape.cls)
        named = {field.name: found[field.encode_name] for field in shape.fields if field.encode_name in found}
        parameters = signature(shape.cls).parameters.values()
        if len(named) == len(shape.fields) and all(
            parameter.kind is Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters
        ):
            return f"{make}({', '.join(named[parameter.name] for parameter in parameters)})"
        return f"{make}({', '.join(f'{name}={value}' for name, value in named.items())})"

    def _union(self, written: list[Any], wanted: Any, shape: inspect.Type | None) -> str:
        """A union, read as another type, or with ``None`` as it is."""
        index, result = self._raw_number(), self._name()
        for at, branch in enumerate(written):
            self.add(f"{'el' if at else ''}if {index} == {2 * at}:")
            self._within(lambda branch=branch: self._set(result, branch, wanted, shape))  # type: ignore[misc]
        self.add(f"else: no_branch({index}, {len(written)})")
        return result

    def _set(self, result: str, branch: Any, wanted: Any, shape: inspect.Type | None) -> None:
        self.add(f"{result} = {self.value(branch, branch if wanted is None else wanted, shape)}")

    def _branch(self, written: Any, union: list[Any]) -> Any:
        """The branch of a union as which a value is read."""
        kind = type_of(written)
        for branch in union:
            option = self._wanted.resolved(branch)
            other = type_of(option)
            if kind == other and (kind not in NAMED or _same_name(written, option)):
                return option
            if (kind, other) in _PROMOTED or (kind in RECORDS and other in RECORDS):
                # Which branch is right depends on more than the type.
                raise _Unsupported
        raise _Unsupported

    def _enum(self, written: Any, wanted: Any) -> str:
        known, default = set(wanted["symbols"]), wanted.get("default")
        symbols = [symbol if symbol in known else default for symbol in written["symbols"]]
        if None in symbols:
            raise _Unsupported
        index = self._raw_number()
        self.add(f"if {index} & 1 or {index} >= {2 * len(symbols)}: no_symbol({index}, {len(symbols)})")
        return f"{self._constant(symbols)}[{index} >> 1]"

    def _blocks(self, written: Any, kind: str, wanted: Any, shape: inspect.Type | None) -> str:
        result = self._name()
        inner = shape.item_type if isinstance(shape, inspect.ListType) else None
        inner = shape.value_type if isinstance(shape, inspect.DictType) else inner
        if kind == "array":
            self.add(f"{result} = []")
            self._loop(
                lambda: self.add(f"{result}.append({self.value(written['items'], wanted['items'], inner)})")
            )
        else:
            self.add(f"{result} = {{}}")
            self._loop(lambda: self._map_item(written, wanted, result, inner))
        return result

    def _map_item(self, written: Any, wanted: Any, result: str, shape: inspect.Type | None) -> None:
        key = self._kept(self._primitive("string"))
        self.add(f"{result}[{key}] = {self.value(written['values'], wanted['values'], shape)}")

    def _skip_item(self, schema: Any, kind: str) -> None:
        if kind == "map":
            self.add(f"p += {self._length()}")
        self.skip(schema["items" if kind == "array" else "values"])

    def _primitive(self, kind: str) -> str:
        match kind:
            case "null":
                return "None"
            case "boolean":
                result = self._name()
                self.add(f"{result} = d[p] != 0; p += 1")
                return result
            case "int" | "long":
                return self._number()
            case "float" | "double":
                result = self._name()
                self.add(
                    f"{result}, = {'single' if kind == 'float' else 'double'}(d, p); p += {_SIZES[kind]}"
                )
                return result
            case _:
                length, result = self._length(), self._name()
                text = ".decode()" if kind == "string" else ""
                self.add(f"{result} = d[p:p + {length}]{text}; p += {length}")
                return result

    def _fixed(self, size: int) -> str:
        result = self._name()
        self.add(f"{result} = d[p:p + {size}]; p += {size}")
        self.add("if p > e: short()")
        return result

    def _number(self) -> str:
        raw, result = self._raw_number(), self._name()
        self.add(f"{result} = {raw} >> 1 ^ -({raw} & 1)")
        return result

    def _length(self) -> str:
        raw = self._raw_number()
        self.add(f"if {raw} & 1: negative({raw})")
        self.add(f"{raw} >>= 1")
        return raw

    def _raw_number(self) -> str:
        """A number as encoded: twice its value, or for a negative one, twice its absolute value minus one."""
        name = self._name()
        self.add(f"{name} = d[p]")
        self.add(f"if {name} < 128: p += 1")
        self.add(f"else: {name}, p = varint(d, p)")
        return name

    def _loop(self, item: Callable[[], None]) -> None:
        count = self._name()
        self.add("while True:")
        self.depth += 1
        raw = self._raw_number()
        self.add(f"if {raw} == 0: break")
        self.add(f"{count} = {raw} >> 1")
        self.add(f"if {raw} & 1:")
        self.depth += 1
        # A negative count is followed by the size of the block.
        self.add(f"{count} += 1")
        self._raw_number()
        self.depth -= 1
        self.add(f"for _ in range({count}):")
        self._within(item)
        self.depth -= 1

    # --- code

    def _within(self, add: Callable[[], object]) -> None:
        self.depth += 1
        if self.depth > DEEPEST_BLOCKS:
            raise _Unsupported
        before = len(self.lines)
        add()
        if len(self.lines) == before:
            self.add("pass")
        self.depth -= 1

    def _kept(self, expression: str) -> str:
        """A variable with the value of an expression, which is read before what follows in the payload."""
        if expression.isidentifier():
            return expression
        name = self._name()
        self.add(f"{name} = {expression}")
        return name

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _constant(self, value: Any) -> str:
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def _require_same_name(self, written: Any, wanted: Any) -> None:
        if not _same_name(written, wanted):
            raise _Unsupported


def _same_name(written: Any, wanted: Any) -> bool:
    name = written["name"].rpartition(".")[2]
    return bool(name == wanted["name"].rpartition(".")[2])


def _logical(schema: Any) -> str:
    return str(schema.get("logicalType", "")) if isinstance(schema, dict) else ""


def _varint(payload: bytes, at: int) -> tuple[int, int]:
    number, shift = payload[at] & 0x7F, 7
    at += 1
    for byte in payload[at : at + 9]:
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("the payload ends within an integer, or has one of more than 64 bits")


def _short() -> None:
    raise ValueError("the payload ends within the record")


def _negative(raw: int) -> None:
    raise ValueError(f"a length is negative: {-(raw + 1) // 2}")


def _no_branch(raw: int, branches: int) -> None:
    raise ValueError(f"a union of {branches} branches has no branch {raw >> 1 ^ -(raw & 1)}")


def _no_symbol(raw: int, symbols: int) -> None:
    raise ValueError(f"an enum of {symbols} symbols has no symbol {raw >> 1 ^ -(raw & 1)}")
