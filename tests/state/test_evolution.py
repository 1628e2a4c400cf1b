"""Schema changes of stores: compatible ones are read, others are refused or migrated."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import functools
import io
import json
import operator
import struct
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import fastavro
import msgspec
import pytest
from hypothesis import HealthCheck, assume, event, given, settings, strategies as st

from streams import App, fail, key_value_store
from streams.errors import StateError, TransactionAborted
from streams.records import Output, Record
from streams.serde import Avro, Bytes, Json, Text
from streams.serde.schemas.avro_resolution import avro_differences
from streams.serde.schemas.shape import shape
from streams.state.definition import StoreDefinition
from streams.state.evolution import Verdict, check, compare, kept, migrated_entries
from streams.state.expiring import Expiring, ExpiringSerde
from streams.state.memory import MemoryDatabases
from streams.state.store import Changes
from streams.testing import TopologyDriver
from tests.support.cluster import MemoryCluster

if TYPE_CHECKING:
    from pathlib import Path

    from streams.runtime.worker import Worker
    from streams.state.store import Database

# --- JSON, by example


def json_store(kind: Any, **settings: Any) -> StoreDefinition:
    return StoreDefinition(name="orders", key=Text(), value=Json(kind), **settings)


def verdict(stored: Any, wanted: Any) -> Verdict:
    return compare(json_store(stored).schema, json_store(wanted).schema)


class Small(msgspec.Struct):
    size: int


class WithNote(msgspec.Struct):
    size: int
    note: str = ""


class WithRequiredNote(msgspec.Struct):
    size: int
    note: str


class TextSize(msgspec.Struct):
    size: str


class FloatSize(msgspec.Struct):
    size: float


class NullableSize(msgspec.Struct):
    size: int | None


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    size: int


class Within(msgspec.Struct):
    lines: list[Small]


class WithinText(msgspec.Struct):
    lines: list[TextSize]


class WithinFloat(msgspec.Struct):
    lines: list[FloatSize]


class Node(msgspec.Struct):
    size: int
    next: Node | None = None


class WiderNode(msgspec.Struct):
    size: float
    next: WiderNode | None = None


class OtherNode(msgspec.Struct):
    size: int
    next: OtherNode | None = None
    label: int = 0


class TextNode(msgspec.Struct):
    size: int
    next: TextNode | None = None
    label: str = ""


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Line(msgspec.Struct, tag=True):
    length: float


class TextSquare(msgspec.Struct, tag="Square"):
    side: str


class Point(msgspec.Struct, array_like=True):
    x: int
    y: int


class Space(msgspec.Struct, array_like=True):
    x: int
    y: int
    z: int = 0


class FullSpace(msgspec.Struct, array_like=True):
    x: int
    y: int
    z: int


class Pair(NamedTuple):
    x: int
    y: int


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class MoreColours(enum.Enum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class Terse(msgspec.Struct, omit_defaults=True):
    size: int = 1


class OtherTerse(msgspec.Struct, omit_defaults=True):
    size: int = 2


class Verbose(msgspec.Struct):
    size: int = 1


class OtherVerbose(msgspec.Struct):
    size: int = 2


class Renamed(msgspec.Struct, rename={"size": "length"}):
    size: int


T = TypeVar("T")


class Box(msgspec.Struct, Generic[T], omit_defaults=True):
    content: T


READABLE = [
    (Small, WithNote),
    (WithNote, Small),
    (WithRequiredNote, WithNote),
    (Small, FloatSize),
    (Small, NullableSize),
    (Within, WithinFloat),
    (Node, WiderNode),
    (Node, OtherNode),
    (Node, Small),
    (Small, Strict),
    (Small, dict[str, int]),
    (Small, dict[str, float | None]),
    (dict[str, int], dict[str, float]),
    (list[int], list[float | None]),
    (list[int], tuple[int, ...]),
    (set[int], list[int]),
    (set[int], set[Any]),
    (tuple[int, str], list[int | str]),
    (tuple[int, str], tuple[float, str]),
    (Circle, Circle | Square),
    (Circle | Square, Circle | Square | Line),
    (Circle | None, Circle | Square | None),
    (Point, Space),
    (Point, list[int]),
    (FullSpace, Point),
    (Point, Pair),
    (Pair, Point),
    (Pair, tuple[int, int]),
    (Colour, MoreColours),
    (Colour, str),
    (Literal["a"], Literal["a", "b"]),
    (Literal["red"], Colour),
    (Literal[1, 2], int),
    (Literal[1, 2], float),
    (Literal[1] | None, int | None),
    (int, int | str),
    (int, Any),
    (Small, Any),
    (Any, None),
    (None, Any),
    (dt.datetime, str),
    (bytes, str),
    (uuid.UUID, str),
    (Annotated[int, msgspec.Meta(ge=2)], Annotated[int, msgspec.Meta(gt=1)]),
    (Annotated[int, msgspec.Meta(gt=1, le=5)], Annotated[int, msgspec.Meta(ge=1, lt=6)]),
    (Annotated[str, msgspec.Meta(min_length=2, max_length=3)], Annotated[str, msgspec.Meta(min_length=1)]),
    (tuple[int, int], Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]),
    (Verbose, OtherVerbose),
    (Terse, Verbose),
    (Box[int], Box[float]),
]

UNREADABLE = [
    (Small, TextSize, "value field 'size': was integer, is string"),
    (Small, WithRequiredNote, "value field 'note': is new and has no default"),
    (WithNote, WithRequiredNote, "value field 'note': could be absent, is required"),
    (Small, Renamed, "value field 'length': is new and has no default"),
    (FloatSize, Small, "value field 'size': was number, is integer"),
    (NullableSize, Small, "value field 'size': was integer or null, is integer"),
    (WithNote, Strict, "value field 'note': was removed, and unknown fields are forbidden"),
    (Within, WithinText, "value field 'lines[].size': was integer, is string"),
    (OtherNode, TextNode, "value field 'label': was integer, is string"),
    (dict[str, Small], dict[str, TextSize], "value field '{}.size': was integer, is string"),
    (dict[str, int], Small, "value field 'size': could be absent, is required"),
    (dict[str, int], dict[int, int], "value: keys were string, are integer"),
    (dict[str, int], Strict, "value: was a mapping, is an object that forbids unknown fields"),
    (list[int], set[int], "value: was an array, is a set"),
    (list[int], tuple[int, int], r"value: could have any number of elements, has at most 2"),
    (set[tuple[int, int]], set[Any], "value: its elements were array of 2, are of any type"),
    (Circle | Square, Circle, "value field 'type': could be 'Square', which is no longer a value of it"),
    (Circle | Square, Circle | TextSquare, "value: was object, is object"),
    (Circle | Square, Circle | Line, "value: was object, is object"),
    (Point, FullSpace, "value field '[2]': could be absent, is required"),
    (Space, FullSpace, "value field '[2]': could be absent, is required"),
    (Space, Pair, "value: could have 3 elements, has at most 2"),
    (tuple[int, str], list[int], "value field '[1]': was string, is integer"),
    (MoreColours, Colour, "value: could be 'green', which is no longer a value of it"),
    (str, Colour, "value: was string, is one of 'blue', 'red'"),
    (Literal["a"], dt.date, "value: could be 'a', is string (date)"),
    (int, Literal[1] | float, "value: was integer, is one of 1"),
    (str, dt.datetime, "value: was string, is string (date-time)"),
    (dt.date, dt.datetime, r"value: was string (date), is string (date-time)"),
    (int | str, int, "value: was integer or string, is integer"),
    (Any, Small, "value: was anything, is object"),
    (None, Small, "value: was anything, is object"),
    (Small, list[int], "value: was object, is array"),
    (list[Any], list[int], "value field '[]': was anything, is integer"),
    (int, Annotated[int, msgspec.Meta(ge=2)], "value: minimum is new, is 2"),
    (
        Annotated[int, msgspec.Meta(ge=1)],
        Annotated[int, msgspec.Meta(gt=1)],
        "value: exclusiveMinimum is new, is 1",
    ),
    (
        Annotated[str, msgspec.Meta(max_length=5)],
        Annotated[str, msgspec.Meta(max_length=4)],
        "value: maxLength was 5, is 4",
    ),
    (
        Annotated[bytes, msgspec.Meta(min_length=5)],
        Annotated[str, msgspec.Meta(min_length=5)],
        "value: minLength is new, is 5",
    ),
    (dt.datetime, Annotated[dt.datetime, msgspec.Meta(tz=True)], "value: tz is new, is True"),
    (
        Terse,
        OtherTerse,
        "value field 'size': default was 1, has changed, and values equal to it were omitted",
    ),
]


@pytest.mark.parametrize(("stored", "wanted"), READABLE)
def test_what_the_new_type_reads_is_compatible(stored, wanted):
    found = verdict(stored, wanted)
    assert found.relation in {"same", "compatible"}, found
    assert verdict(stored, stored).relation == "same"


@pytest.mark.parametrize(("stored", "wanted", "says"), UNREADABLE)
def test_what_the_new_type_cannot_read_is_named(stored, wanted, says):
    found = verdict(stored, wanted)
    assert found.relation == "incompatible"
    assert says in found.differences
    assert found.migratable


def test_every_difference_is_reported():
    class Before(msgspec.Struct):
        size: int
        price: float

    class After(msgspec.Struct):
        size: str
        price: int
        note: str

    assert [text.partition(":")[0] for text in verdict(Before, After).differences] == [
        "value field 'size'",
        "value field 'price'",
        "value field 'note'",
    ]


def test_names_and_documentation_of_types_do_not_matter():
    class Order(msgspec.Struct):
        """A customer's order."""

        size: int

    assert verdict(Order, Small).relation == "same"
    assert compare(
        StoreDefinition(name="s", key=Json(Order)).schema, StoreDefinition(name="s", key=Json(Small)).schema
    ) == Verdict("same")


class Foreign:
    """A type that msgspec does not support."""


def test_types_that_cannot_be_described_are_known_by_name():
    assert Json(Foreign).schema == {"json": "Json(Foreign)"}
    assert verdict(Foreign, Foreign).relation == "same"
    assert verdict(Foreign, None).relation == "compatible"
    assert verdict(Foreign, Small).differences == ("value: was Json(Foreign), is object",)


# --- JSON, at random

FIELDS = ("a", "b", "c")
META: dict[str, Any] = {
    "low": {"ge": 0},
    "lower": {"ge": -5},
    "open": {"gt": 0},
    "high": {"ge": 0, "le": 9},
    "free": {},
}
WITHIN = {"low": (0, 99), "lower": (-5, 99), "open": (1, 99), "high": (0, 9), "free": (-(2**60), 2**60)}
LITERALS: list[tuple[Any, ...]] = [("x",), ("x", "y"), (1,), (1, 2), ("x", 1)]

scalars = st.one_of(
    st.sampled_from([("float",), ("str",), ("bool",), ("none",), ("datetime",), ("date",), ("bytes",)]),
    st.sampled_from([("uuid",), ("decimal",), ("duration",)]),
    st.tuples(st.just("int"), st.sampled_from(list(META))),
    st.tuples(st.just("literal"), st.sampled_from(LITERALS)),
)
hashable = st.sampled_from([("int", "free"), ("str",), ("date",), ("literal", ("x", "y"))])


@st.composite
def structs(draw, inner):
    names = draw(st.permutations(FIELDS))[: draw(st.integers(0, 3))]
    fields = sorted(
        [(name, draw(inner), draw(st.booleans())) for name in names], key=lambda field: (field[2], field[0])
    )
    options = draw(st.sampled_from([(), ("array_like",), ("forbid",), ("omit",), ("array_like", "forbid")]))
    tag = draw(st.sampled_from([None, None, "one", "two"]))
    return ("struct", tag, options, tuple(fields))


def containers(inner):
    return st.one_of(
        st.tuples(st.just("list"), inner),
        st.tuples(st.just("set"), hashable),
        st.tuples(st.just("tuple"), inner, inner),
        st.tuples(st.just("dict"), st.sampled_from(["str", "int", "date"]), inner),
        st.tuples(st.just("optional"), inner),
        st.tuples(st.just("union"), structs(inner), structs(inner)),
        structs(inner),
    )


specs = st.one_of(st.just(("any",)), st.recursive(scalars, containers, max_leaves=6))


@st.composite
def changed(draw, spec):
    """The spec with a few changes, as completely different schemas are rarely compatible."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.one_of(specs, st.just(("optional", spec)), st.just(("union_with", spec))))
    match spec:
        case ("int", _):
            return draw(st.sampled_from([*(("int", low) for low in META), ("float",)]))
        case ("literal", _):
            choices = [("literal", values) for values in LITERALS]
            return draw(st.sampled_from([*choices, ("str",), ("int", "free"), ("int", "low"), ("float",)]))
        case ("list", inner):
            kind = draw(st.sampled_from(["list", "list", "vartuple", "any_set"]))
            return (kind, draw(changed(inner)))
        case ("set", inner):
            return (draw(st.sampled_from(["set", "list", "any_set"])), inner)
        case ("tuple", first, second):
            if draw(st.booleans()):
                return ("list", first)
            return ("tuple", draw(changed(first)), draw(changed(second)))
        case ("dict", key, inner):
            return ("dict", draw(st.sampled_from([key, "str"])), draw(changed(inner)))
        case ("optional", inner):
            return draw(st.sampled_from([("optional", draw(changed(inner))), inner]))
        case ("union", first, second):
            first, second = draw(changed(first)), draw(changed(second))
            return ("union", first, second) if first[0] == second[0] == "struct" else first
        case ("struct", tag, options, fields):
            kept_fields = [
                (name, draw(changed(inner)), draw(st.sampled_from([default, True])))
                for name, inner, default in fields
                if draw(st.integers(0, 4))
            ]
            known = {name for name, _, _ in fields}
            kept_fields += [
                (name, draw(scalars), True)
                for name in FIELDS
                if name not in known and draw(st.integers(0, 2)) == 0
            ]
            if draw(st.integers(0, 5)) == 0:
                return ("dict", "str", ("any",))
            options = draw(st.sampled_from([options, options, ("forbid",), ()]))
            tag = draw(st.sampled_from([tag, tag, "one"]))
            return ("struct", tag, options, tuple(sorted(kept_fields, key=lambda field: field[2])))
        case _:
            return draw(st.sampled_from([spec, ("str",), ("any",)]))


KEYS: dict[str, Any] = {"str": str, "int": int, "date": dt.date}
SIMPLE: dict[str, Any] = {
    "float": float,
    "str": str,
    "bool": bool,
    "none": None,
    "datetime": dt.datetime,
    "date": dt.date,
    "bytes": bytes,
    "uuid": uuid.UUID,
    "decimal": decimal.Decimal,
    "duration": dt.timedelta,
    "any": Any,
}


def built(spec: Any) -> Any:
    match spec:
        case ("int", low):
            return Annotated[int, msgspec.Meta(**META[low])]
        case ("literal", choices):
            return Literal[choices]
        case ("list", inner):
            return list[built(inner)]  # type: ignore[misc]
        case ("vartuple", inner):
            return tuple[built(inner), ...]  # type: ignore[misc]
        case ("set", inner):
            return set[built(inner)]  # type: ignore[misc]
        case ("any_set", _):
            return set[Any]
        case ("tuple", first, second):
            return tuple[built(first), built(second)]  # type: ignore[misc]
        case ("dict", key, inner):
            keys: Any = KEYS[key]
            return dict[keys, built(inner)]  # type: ignore[misc]
        case ("optional", inner):
            return built(inner) | None if inner != ("any",) else Any
        case ("union", first, second):
            return built(first) | built(second)
        case ("union_with", inner):
            return built(inner) | int | Literal["z"]
        case ("struct", tag, options, fields):
            return msgspec.defstruct(
                "S",
                [
                    (name, built(inner), default_of(inner)) if default else (name, built(inner))
                    for name, inner, default in fields
                ],
                tag=tag,
                kw_only=False,
                array_like="array_like" in options,
                forbid_unknown_fields="forbid" in options,
                omit_defaults="omit" in options,
            )
        case _:
            return SIMPLE[spec[0]]


def default_of(spec: Any) -> Any:
    match spec[0]:
        case "int":
            return 5
        case "list":
            return msgspec.field(default_factory=list)
        case "dict":
            return msgspec.field(default_factory=dict)
        case "str":
            return "default"
        case "float":
            return 0.5
        case "literal":
            return spec[1][0]
        case _:
            return msgspec.field(default_factory=lambda: None)


def values(spec: Any, kind: Any) -> st.SearchStrategy[Any]:
    match spec:
        case ("int", low):
            return st.integers(*WITHIN[low])
        case ("literal", choices):
            return st.sampled_from(choices)
        case ("list", inner):
            return st.lists(values(inner, kind.__args__[0]), max_size=3)
        case ("set", inner):
            return st.sets(values(inner, kind.__args__[0]), max_size=3)
        case ("tuple", *inner):
            return st.tuples(*map(values, inner, kind.__args__))
        case ("dict", key, inner):
            keys: dict[str, Any] = {"str": st.text(max_size=3), "int": st.integers(0, 9), "date": st.dates()}
            return st.dictionaries(keys[key], values(inner, kind.__args__[1]), max_size=3)
        case ("optional", inner):
            return st.one_of(st.none(), values(inner, without_none(kind)))
        case ("union", first, second):
            one, other = kind.__args__
            return st.one_of(values(first, one), values(second, other))
        case ("struct", _, _, fields):
            types = kind.__annotations__
            return st.builds(
                kind,
                **{
                    name: st.one_of(values(inner, types[name]), *present_default(inner, default))
                    for name, inner, default in fields
                },
            )
        case ("any",):
            return st.one_of(
                st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)
            )
        case ("none",):
            return st.none()
        case ("float",):
            return st.floats(allow_nan=False, allow_infinity=False)
        case ("decimal",):
            return st.decimals(allow_nan=False, allow_infinity=False)
        case ("str",):
            return st.one_of(st.text(max_size=3), st.just("x"))
        case ("bytes",):
            return st.binary(max_size=3)
        case ("datetime",):
            return st.datetimes(timezones=st.sampled_from([None, dt.UTC]))
        case ("uuid",):
            return st.uuids()
        case ("duration",):
            return st.timedeltas(dt.timedelta(0), dt.timedelta(days=9))
        case _:
            return st.from_type(SIMPLE[spec[0]])


def present_default(inner: Any, default: bool) -> list[st.SearchStrategy[Any]]:
    return [st.just(default_of(inner))] if default and inner[0] in {"int", "str", "float", "literal"} else []


def without_none(kind: Any) -> Any:
    members = [member for member in getattr(kind, "__args__", ()) if member is not type(None)]
    if type(None) not in getattr(kind, "__args__", ()):
        return kind
    return functools.reduce(operator.or_, members)


@settings(max_examples=400, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.data())
def test_what_is_called_compatible_can_be_read(data):
    before = data.draw(specs)
    after = data.draw(changed(before))
    try:
        stored, wanted = built(before), built(after)
        old, new = Json(stored), Json(wanted)
    except TypeError:
        # msgspec allows no such type, for instance a union of two kinds of text.
        assume(False)
    found = compare(StoreDefinition(name="s", value=old).schema, StoreDefinition(name="s", value=new).schema)
    event(found.relation)
    if found.relation == "incompatible":
        assert found.differences
        return
    written = data.draw(st.lists(values(before, stored), min_size=1, max_size=5))
    list(new.deserialize(list(old.serialize(written))))


# --- Avro, by example


def record(*fields: Any, **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "shop.Order", "fields": list(fields), **more}


def field(kind: Any, name: str = "size", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


def symbols(*names: str, **more: Any) -> dict[str, Any]:
    return {"type": "enum", "name": "shop.Colour", "symbols": list(names), **more}


def fixed(size: int, name: str = "shop.Hash") -> dict[str, Any]:
    return {"type": "fixed", "name": name, "size": size}


def item(*fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": "shop.Item", "fields": list(fields)}


MILLISECONDS = {"type": "long", "logicalType": "timestamp-millis"}
MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
TREE = record(field("int"), field(["null", "shop.Order"], "next"))

RESOLVED = [
    (record(field("int")), record(field("long"))),
    (record(field("int")), record(field("double"))),
    (record(field("long")), record(field("float"))),
    (record(field("float")), record(field("double"))),
    (record(field("string")), record(field("bytes"))),
    (record(field("int")), record(field("int"), field("string", "note", default=""))),
    (record(field("int"), field("string", "note")), record(field("int"))),
    (record(field("int")), record(field("long", "length", aliases=["size"]))),
    (record(field("int")), record(field(["null", "int"]))),
    (record(field(["null", "int"])), record(field(["string", "long", "null"]))),
    (record(field(["int", "long"])), record(field("double"))),
    (record(field(symbols("A", "B"))), record(field(symbols("B", "C", "A")))),
    (record(field(symbols("A", "B"))), record(field(symbols("A", default="A")))),
    (record(field({"type": "array", "items": "int"})), record(field({"type": "array", "items": "long"}))),
    (record(field({"type": "map", "values": "int"})), record(field({"type": "map", "values": "double"}))),
    (record(field(fixed(4))), record(field(fixed(4, "other.Hash")))),
    (record(field("int")), record(field("int"), name="warehouse.Order")),
    (record(field("int")), record(field("int"), name="shop.Purchase", aliases=["shop.Order"])),
    (record(field(MILLISECONDS)), record(field(MILLISECONDS))),
    (record(field({**MONEY, "scale": 0})), record(field({k: v for k, v in MONEY.items() if k != "scale"}))),
    (TREE, record(field("long"), field(["null", "shop.Order"], "next"))),
]

UNRESOLVED = [
    (record(field("long")), record(field("int")), "value field 'size': was long, is int"),
    (record(field("int")), record(field("string")), "value field 'size': was int, is string"),
    (record(field("bytes")), record(field("string")), "value field 'size': was bytes, is string"),
    (record(), record(field("int")), "value field 'size': is new and has no default"),
    (
        record(field("int")),
        record(field("int"), name="shop.Purchase"),
        "value: was record shop.Order, is record shop.Purchase",
    ),
    (record(field(["null", "int"])), record(field("int")), "value field 'size': was null or int, is int"),
    (
        record(field(symbols("A", "B"))),
        record(field(symbols("A"))),
        "value field 'size': could be 'B', which was removed, and there is no default",
    ),
    (
        record(field(fixed(4))),
        record(field(fixed(5))),
        "value field 'size': was fixed shop.Hash of 4 bytes, is fixed shop.Hash of 5 bytes",
    ),
    (
        record(field(MILLISECONDS)),
        record(field("long")),
        "value field 'size': was long (timestamp-millis), is long",
    ),
    (
        record(field(MONEY)),
        record(field({**MONEY, "scale": 3})),
        "value field 'size': was bytes (decimal precision 9 scale 2), is bytes (decimal precision 9 scale 3)",
    ),
    (
        record(field({"type": "array", "items": item(field("int"))}, "items")),
        record(field({"type": "array", "items": item(field("string"))}, "items")),
        "value field 'items[].size': was int, is string",
    ),
    (
        record(field({"type": "map", "values": "int"})),
        record(field({"type": "map", "values": "string"})),
        "value field 'size': was map of int, is map of string",
    ),
    (
        record(field("int"), field("int", "length")),
        record(field("int", aliases=["length"])),
        "value field 'size': matches two stored fields, 'size' and 'length'",
    ),
    (
        record(field(item(), "first"), field("shop.Item", "second")),
        record(field(["null", item()], "second")),
        "value field 'second': shop.Item is now defined here, and was defined earlier before",
    ),
    (
        TREE,
        record(field("int"), field(["null", "shop.Order"], "next"), field("int", "depth")),
        "value field 'depth': is new and has no default",
    ),
]


@pytest.mark.parametrize(("stored", "wanted"), RESOLVED)
def test_what_a_schema_resolves_is_compatible(stored, wanted):
    assert list(avro_differences(stored, wanted, "value")) == []
    assert list(avro_differences(stored, stored, "value")) == []


@pytest.mark.parametrize(("stored", "wanted", "says"), UNRESOLVED)
def test_what_a_schema_does_not_resolve_is_named(stored, wanted, says):
    assert list(avro_differences(stored, wanted, "value")) == [says]


# --- Avro, at random

SYMBOLS = ("A", "B", "C")
primitives = st.sampled_from(["int", "long", "float", "double", "string", "bytes", "boolean", "null"])


@st.composite
def avro_schemas(draw, depth: int = 2):
    """Schemas in which named types have no names yet: ``with_names`` adds them."""
    kinds = ["primitive", "enum", "fixed"] + ["record", "record", "array", "map", "union"] * (depth > 0)
    match draw(st.sampled_from(kinds)):
        case "primitive":
            return draw(primitives)
        case "enum":
            return symbols(*sorted(draw(st.sets(st.sampled_from(SYMBOLS), min_size=1))))
        case "fixed":
            return fixed(draw(st.integers(1, 2)))
        case "array":
            return {"type": "array", "items": draw(avro_schemas(depth - 1))}
        case "map":
            return {"type": "map", "values": draw(avro_schemas(depth - 1))}
        case "union":
            branches = draw(st.lists(avro_schemas(0), min_size=1, max_size=3, unique_by=kind_of))
            return [branch for branch in branches if not isinstance(branch, list)]
        case _:
            names = draw(st.permutations(FIELDS))[: draw(st.integers(0, 3))]
            return item(*(field(draw(avro_schemas(depth - 1)), name) for name in names))


def kind_of(schema: Any) -> str:
    return schema["type"] if isinstance(schema, dict) else str(schema)


def kinds_differ(branches: list[Any]) -> bool:
    kinds = [kind_of(branch) for branch in branches]
    return len(set(kinds)) == len(kinds)


WIDER = {
    "int": ["long", "double"],
    "long": ["float"],
    "float": ["double"],
    "string": ["bytes"],
    "bytes": ["string"],
}


@st.composite
def evolved_schemas(draw, schema):
    if draw(st.integers(0, 9)) == 0:
        return draw(avro_schemas(1))
    if not isinstance(schema, list) and draw(st.integers(0, 5)) == 0:
        union = [draw(primitives), schema]
        return union if kinds_differ(union) else schema
    match schema:
        case str():
            return draw(st.sampled_from([schema, *WIDER.get(schema, [])]))
        case list():
            extended = [*(draw(evolved_schemas(branch)) for branch in schema), draw(primitives)]
            extended = [branch for branch in extended if not isinstance(branch, list)]
            extended = draw(st.permutations(extended))
            return extended if kinds_differ(extended) else schema
        case {"type": "enum"}:
            default = {"default": schema["symbols"][0]} if draw(st.booleans()) else {}
            names = {*draw(st.sets(st.sampled_from(SYMBOLS))), schema["symbols"][0]}
            return {**schema, "symbols": sorted(names), **default}
        case {"type": "fixed"}:
            return {**schema, "size": draw(st.sampled_from([schema["size"], schema["size"], 2]))}
        case {"type": "array"}:
            return {**schema, "items": draw(evolved_schemas(schema["items"]))}
        case {"type": "map"}:
            return {**schema, "values": draw(evolved_schemas(schema["values"]))}
        case _:
            fields = []
            for known in schema["fields"]:
                if draw(st.integers(0, 4)) == 0:
                    continue
                changes = {"type": draw(evolved_schemas(known["type"]))}
                if draw(st.integers(0, 4)) == 0:
                    changes |= {"name": known["name"] + "_new", "aliases": [known["name"]]}
                fields.append({**known, **changes})
            if draw(st.booleans()):
                fields.append(field("int", "new", **draw(st.sampled_from([{"default": 5}, {}]))))
            return {**schema, "fields": draw(st.permutations(fields))}


def with_names(schema: Any, path: str = "N") -> Any:
    """The schema with a distinct name for each named type, derived from its position."""
    match schema:
        case list():
            return [with_names(branch, f"{path}_{kind_of(branch)}") for branch in schema]
        case {"type": "array"}:
            return {**schema, "items": with_names(schema["items"], f"{path}_items")}
        case {"type": "map"}:
            return {**schema, "values": with_names(schema["values"], f"{path}_values")}
        case {"type": "record"}:
            fields = [
                {**each, "type": with_names(each["type"], f"{path}_{each['name'].removesuffix('_new')}")}
                for each in schema["fields"]
            ]
            return {**schema, "name": path, "fields": fields}
        case {"type": "enum" | "fixed"}:
            return {**schema, "name": path}
        case _:
            return schema


def avro_values(schema: Any) -> st.SearchStrategy[Any]:
    match schema:
        case list():
            return st.one_of(*map(avro_values, schema))
        case {"type": "array"}:
            return st.lists(avro_values(schema["items"]), max_size=2)
        case {"type": "map"}:
            return st.dictionaries(st.text(max_size=2), avro_values(schema["values"]), max_size=2)
        case {"type": "record"}:
            return st.fixed_dictionaries(
                {each["name"]: avro_values(each["type"]) for each in schema["fields"]}
            )
        case {"type": "enum"}:
            return st.sampled_from(schema["symbols"])
        case {"type": "fixed"}:
            return st.binary(min_size=schema["size"], max_size=schema["size"])
        case "int":
            return st.integers(-(2**31), 2**31 - 1)
        case "long":
            return st.integers(-(2**63), 2**63 - 1)
        case "float" | "double":
            return st.floats(allow_nan=False, width=32)
        case "string":
            return st.text(max_size=3)
        case "bytes":
            return st.binary(max_size=3)
        case "boolean":
            return st.booleans()
        case _:
            return st.none()


@settings(max_examples=300, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.data())
def test_what_is_called_resolvable_is_resolved(data):
    plain = data.draw(avro_schemas())
    writer, reader = with_names(plain), with_names(data.draw(evolved_schemas(plain)))
    differences = list(avro_differences(writer, reader, "value"))
    event("incompatible" if differences else "compatible")
    if differences:
        return
    written, wanted = fastavro.parse_schema(writer), fastavro.parse_schema(reader)
    for value in data.draw(st.lists(avro_values(writer), min_size=1, max_size=4)):
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, written, value)
        buffer.seek(0)
        fastavro.schemaless_reader(buffer, written, wanted)


# --- stores


def test_the_purpose_and_the_key_cannot_change():
    before = StoreDefinition(name="s", key=Text(), value=Json(Small), purpose="tumbling 60000")
    after = StoreDefinition(name="s", key=Json(str), value=Json(FloatSize), purpose="tumbling 1000")
    found = compare(before.schema, after.schema)
    assert found.relation == "incompatible"
    assert not found.migratable
    assert found.differences == (
        "purpose: was 'tumbling 60000', is 'tumbling 1000'",
        "key: was Text, is JSON; keys are looked up by their bytes, so no change of it is compatible",
    )


def test_the_order_of_a_keys_fields_is_that_of_its_bytes():
    class Place(msgspec.Struct, frozen=True):
        city: str
        street: str = ""

    class Turned(msgspec.Struct, frozen=True, kw_only=True):
        street: str = ""
        city: str

    def definition(kind: Any) -> StoreDefinition:
        return StoreDefinition(name="s", key=Json(kind))

    assert compare(definition(Place).schema, definition(Turned).schema).relation == "incompatible"
    assert verdict(Place, Turned).relation == "same"


@pytest.mark.parametrize(("before", "after"), [(Bytes(), Text()), (Json(), Text()), (Text(), Json(str))])
def test_other_serdes_are_the_same_or_incompatible(before, after):
    stored = StoreDefinition(name="s", value=before).schema
    assert compare(stored, stored).relation == "same"
    assert compare(stored, StoreDefinition(name="s", value=after).schema).relation == "incompatible"


class StampedSerde:
    """A store as for tables, without their steps."""

    def __init__(self, inner: Any) -> None:
        self.name = "stamped"
        self.schema = {"stamped": inner.schema}
        self._inner = inner
        self.learn = getattr(inner, "learn", None)

    def serialize(self, values: Any) -> Any:
        return [
            struct.pack(">q", time) + payload
            for (value, time) in values
            for payload in self._inner.serialize([value])
        ]

    def deserialize(self, payloads: Any) -> Any:
        return [
            (value, struct.unpack(">q", payload[:8])[0])
            for payload in payloads
            for value in self._inner.deserialize([payload[8:]])
        ]


@pytest.mark.parametrize("wrapper", [StampedSerde, ExpiringSerde])
def test_values_are_compared_within_what_the_store_puts_around_them(wrapper):
    def schema(serde: Any) -> str:
        return StoreDefinition(name="s", value=serde).schema

    stored = schema(wrapper(Json(Small)))
    assert compare(stored, schema(wrapper(Json(FloatSize)))).relation == "compatible"
    within = compare(stored, schema(wrapper(Json(TextSize))))
    assert within.differences == ("value field 'size': was integer, is string",)
    assert within.migratable
    without = compare(stored, schema(Json(Small)))
    assert without.relation == "incompatible"
    assert not without.migratable


class Wrapping(StampedSerde):
    """Values wrapped as by other steps: the wrapper is only known by its name."""

    def __init__(self, *around: str, inner: Any) -> None:
        super().__init__(inner)
        self.schema = inner.schema
        for name in reversed(around):
            self.schema = {name: self.schema}


def test_whatever_stands_around_values_must_stay():
    def schema(*around: str, inner: Any) -> str:
        return StoreDefinition(name="s", value=Wrapping(*around, inner=inner)).schema

    stored = schema("accumulator", "reduced", inner=Json(Small))
    assert compare(stored, schema("accumulator", "reduced", inner=Json(FloatSize))).relation == "compatible"
    changed = compare(stored, schema("accumulator", inner=Json(Small)))
    assert changed.differences == ("value: was reduced JSON, is JSON",)
    assert not changed.migratable


def test_a_serde_within_another_learns_what_entries_were_written_with(tmp_path):
    path = written(tmp_path / "shop.Order.avsc", field("int"))
    first = StoreDefinition(name="s", value=StampedSerde(Avro(path)))
    store = store_of(first, {b"a": ({"size": 1}, 5)})
    written(path, field("long"))
    second = StoreDefinition(name="s", value=StampedSerde(Avro(path)))
    assert not check(second, first.schema)
    assert list(second.value.deserialize([store.get(b"a")])) == [({"size": 1}, 5)]


def test_values_from_before_two_compatible_changes_are_remembered():
    class First(msgspec.Struct):
        size: int
        note: str = ""

    first, second = json_store(First).schema, json_store(Small).schema
    third = json_store(msgspec.defstruct("Third", [("size", int), ("note", int, 0)])).schema
    # Each change alone is compatible: a field goes, a field with a default comes.
    assert compare(first, second).relation == compare(second, third).relation == "compatible"
    text = kept(first, second)
    assert json.loads(text)["earlier"] == [Json(First).schema]
    assert compare(text, third).differences == ("value field 'note': was string, is integer",)
    assert compare(text, second).relation == "same"
    assert kept(text, second) == text
    back = kept(text, first)
    assert json.loads(back)["earlier"] == [Json(Small).schema]


def test_without_earlier_schemas_the_programs_own_is_stored():
    schema = json_store(Small).schema
    assert kept(None, schema) == kept(schema, schema) == schema


def test_nothing_is_done_where_the_schema_is_the_same_or_compatible():
    assert not check(json_store(Small), json_store(Small).schema)
    assert not check(json_store(WithNote, migrate=dict), json_store(Small).schema)


def test_state_that_cannot_be_read_is_refused_with_the_choice():
    with pytest.raises(StateError) as caught:
        check(json_store(TextSize), json_store(Small).schema)
    assert caught.value.exit_code == 8
    message = str(caught.value)
    assert "store 'orders'" in message
    assert "value field 'size': was integer, is string" in message
    for choice in ("migrate=", "another name", "go back"):
        assert choice in message


def test_a_migration_is_due_where_there_is_a_function_for_it():
    assert check(json_store(TextSize, migrate=dict), json_store(Small).schema)


def test_a_function_of_values_cannot_change_keys():
    stored = StoreDefinition(name="orders", key=Bytes(), value=Json(Small)).schema
    with pytest.raises(StateError, match="can only change values"):
        check(json_store(TextSize, migrate=dict), stored)


def test_entries_that_are_a_topics_records_cannot_be_migrated():
    table = json_store(TextSize, migrate=dict, source_topic="prices")
    with pytest.raises(StateError, match="the records of topic 'prices'"):
        check(table, json_store(Small).schema)


@pytest.mark.parametrize("stored", ["", "Json", "[]", '{"purpose": "plain"}'])
def test_an_invalid_stored_schema_is_an_error_with_the_stores_name(stored):
    with pytest.raises(StateError, match="store 'orders': its stored schema"):
        check(json_store(Small), stored)


# --- migration


def store_of(definition: StoreDefinition, entries: dict[Any, Any]) -> Any:
    """A store with these entries, with serialized or windowed keys, as the definition encodes them."""
    return database_of(definition, entries).store(definition.name)


def database_of(definition: StoreDefinition, entries: dict[Any, Any]) -> Database:
    """A database that has these entries in one store."""
    database = MemoryDatabases().open([definition.name], 0)
    written: dict[bytes, bytes | None] = {}
    for key, value in entries.items():
        encoded = b""
        if definition.retention is not None:
            start, key = key  # noqa: PLW2901 - the key proper
            encoded = struct.pack(">Q", start)
        (payload,) = definition.value.serialize([value])
        written[encoded + next(iter(definition.key.serialize([key])))] = payload
    database.write({definition.name: Changes(written)}, {})
    return database


def test_all_values_are_migrated_and_of_the_new_type():
    before = json_store(Small)
    store = store_of(before, {"a": Small(1), "b": Small(2)})
    after = json_store(TextSize, migrate=lambda old: {"size": f"{old['size']} cm"})
    assert list(migrated_entries(after, before.schema, store)) == [
        ("a", TextSize("1 cm")),
        ("b", TextSize("2 cm")),
    ]


def test_none_removes_an_entry():
    before = json_store(Small)
    after = json_store(TextSize, migrate=lambda old: None)
    assert list(migrated_entries(after, before.schema, store_of(before, {"a": Small(1)}))) == [("a", None)]


def test_keys_of_windowed_stores_are_pairs():
    before = json_store(Small, retention=60_000)
    after = json_store(TextSize, retention=60_000, migrate=lambda old: TextSize(str(old["size"])))
    entries = list(migrated_entries(after, before.schema, store_of(before, {(1000, "a"): Small(1)})))
    assert entries == [((1000, "a"), TextSize("1"))]


def test_times_beside_values_stay():
    def text(old: Any) -> TextSize:
        return TextSize(str(old["size"]))

    cases: list[tuple[Any, Any, Any]] = [
        (StampedSerde, (Small(1), -7), (TextSize("1"), -7)),
        (ExpiringSerde, Expiring(Small(1), 20, 10), Expiring(TextSize("1"), 20, 10)),
    ]
    for wrapper, old, new in cases:
        before = StoreDefinition(name="s", key=Text(), value=wrapper(Json(Small)))
        after = StoreDefinition(name="s", key=Text(), value=wrapper(Json(TextSize)), migrate=text)
        store = store_of(before, {"a": old})
        assert check(after, before.schema)
        assert list(migrated_entries(after, before.schema, store)) == [("a", new)]


@pytest.mark.parametrize(("serde", "value", "seen"), [(Text(), "ü", "ü"), (Bytes(), b"\xff", b"\xff")])
def test_what_is_neither_json_nor_avro_is_given_as_it_is(serde, value, seen):
    before = StoreDefinition(name="s", key=Text(), value=serde)
    after = StoreDefinition(name="s", key=Text(), value=Json(int), migrate=lambda old: int(old == seen))
    assert list(migrated_entries(after, before.schema, store_of(before, {"a": value}))) == [("a", 1)]


def broken(_old: Any) -> Any:
    raise LookupError("no such size")


@pytest.mark.parametrize(
    ("migrate", "says"),
    [
        (broken, "cannot be migrated: LookupError: no such size"),
        (lambda _: {"size": 5}, "cannot be written by Json.TextSize.: ValidationError"),
        (lambda _: object(), "cannot be written by Json.TextSize.: TypeError"),
    ],
)
def test_a_failure_is_reported_with_the_key(migrate, says):
    before = json_store(Small)
    entries = migrated_entries(
        json_store(TextSize, migrate=migrate), before.schema, store_of(before, {"a": Small(1)})
    )
    with pytest.raises(StateError, match=f"store 'orders': the value of key 'a' {says}"):
        list(entries)


def test_an_entry_that_does_not_match_the_stored_schema_is_reported_with_the_key():
    before = json_store(Small)
    database = database_of(before, {})
    database.write({before.name: Changes({b"a": b"{"})}, {})
    store = database.store(before.name)
    with pytest.raises(StateError, match="the value of key 'a' cannot be read: DecodeError"):
        list(migrated_entries(json_store(TextSize, migrate=dict), before.schema, store))


# --- stores of Avro


def avro_store(path: Path, **settings: Any) -> StoreDefinition:
    return StoreDefinition(name="orders", key=Text(), value=Avro(path), **settings)


def written(path: Path, *fields: Any) -> Path:
    path.write_text(json.dumps(record(*fields)))
    return path


def test_after_a_compatible_change_of_a_schema_in_its_file_the_store_is_read(tmp_path):
    path = written(tmp_path / "shop.Order.avsc", field("int"))
    first = avro_store(path)
    store = store_of(first, {"a": {"size": 1}})
    written(path, field("long"))
    second = avro_store(path)
    assert not check(second, first.schema)
    text = kept(first.schema, second.schema)
    written(path, field("double"))
    third = avro_store(path)
    # The folder has never had the first schema beside this one, and the stored schema is the second.
    assert not check(third, text)
    assert list(third.value.deserialize([store.get(b"a")])) == [{"size": 1.0}]


def test_a_field_that_is_new_in_a_store_has_its_default_as_a_value_of_its_type(tmp_path):
    path = written(tmp_path / "shop.Order.avsc", field("int"))
    first = avro_store(path)
    store = store_of(first, {"a": {"size": 1}})
    money = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    written(path, field("int"), field(money, "price", default="\x00"))
    second = avro_store(path)
    assert not check(second, first.schema)
    (read,) = second.value.deserialize([store.get(b"a")])
    assert read == {"size": 1, "price": Decimal("0.00")}
    assert isinstance(read["price"], Decimal)
    assert list(second.value.deserialize(list(second.value.serialize([read])))) == [read]


def test_values_of_several_schemas_are_migrated(tmp_path):
    path = written(tmp_path / "shop.Order.avsc", field("int"))
    first = avro_store(path)
    database = database_of(first, {"a": {"size": 1}})
    written(path, field("long"))
    second = avro_store(path)
    added = next(iter(second.value.serialize([{"size": 2}])))
    database.write({first.name: Changes({b"b": added})}, {})
    store = database.store(first.name)
    written(path, field("string"))
    third = avro_store(path, migrate=lambda old: {"size": str(old["size"])})
    text = kept(first.schema, second.schema)
    assert check(third, text)
    assert list(migrated_entries(third, text, store)) == [("a", {"size": "1"}), ("b", {"size": "2"})]


# --- shapes


def test_a_type_is_described_by_what_is_read_and_written():
    class Order(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="order"):
        at: dt.datetime
        prices: dict[int, float]
        tags: set[str] = msgspec.field(default_factory=set)
        extra: int | msgspec.UnsetType = msgspec.UNSET

    assert shape(Order) == {
        "$ref": "#/$defs/1",
        "$defs": {
            "1": {
                "type": "object",
                "properties": {
                    "type": {"enum": ["order"]},
                    "at": {"type": "string", "format": "date-time"},
                    "prices": {
                        "type": "object",
                        "additionalProperties": {"type": "number"},
                        "propertyNames": {"type": "integer"},
                    },
                    "tags": {
                        "type": "array",
                        "items": {"type": "string"},
                        "uniqueItems": True,
                        "default": [],
                    },
                    "extra": {"type": "integer"},
                },
                "required": ["type", "at", "prices"],
                "additionalProperties": False,
                "omitsDefaults": True,
            }
        },
    }


class _Remembers:
    def open(self, context):
        self.latest = context.store("latest")

    def process(self, record, context):
        self.latest.put(record.key, record.value)
        context.forward(record)


class _Numbered(msgspec.Struct):
    number: int


class _Labelled(msgspec.Struct):
    number: int
    label: str


def _remembering(kind: Any, **options: Any) -> App:
    app = App("remembering", on_error=fail)
    store = key_value_store("latest", value=Json(kind), **options)
    app.stream("in", key=Text(), value=Json(kind)).process(_Remembers, stores=[store]).to("out")
    return app


def _restarted(app: App, driver: TopologyDriver) -> TopologyDriver:
    driver.restart(app)
    return driver


class _Site(MemoryCluster):
    """The topics of ``_remembering``, and the databases of its workers."""

    def __init__(self) -> None:
        super().__init__({"in": 1, "out": 1})
        self.databases = MemoryDatabases()

    def start(self, app: App) -> Worker:
        worker = self.make_worker(
            app, "slot", partitions=self.prepare(app, create_outputs=False), databases=self.databases
        )
        worker.start()
        return worker

    def run(self, worker: Worker, *records: tuple[str, Any]) -> None:
        """Let the worker process and commit these records."""
        keys: list[bytes | None] = [key.encode() for key, _ in records]
        values: list[bytes | None] = [msgspec.json.encode(value) for _, value in records]
        self.write(Output("in", keys, values, [0] * len(records)))
        for _ in range(500):
            worker.run_once()
            if not self.uncommitted("remembering", {"in": 1}):
                return
        pytest.fail("the records are not committed")

    def latest(self) -> dict[str, _Labelled]:
        """What the store of a worker that is closed holds."""
        database = self.databases.open(["latest"], 0)
        found = {
            key.decode(): msgspec.json.decode(value, type=_Labelled)
            for key, value in database.store("latest").scan()
        }
        database.close()
        return found

    def abort_commit(self) -> None:
        """Let the next commit fail."""

        def abort(step: str) -> None:
            if step == "commit.before":
                self.broker.before = None
                raise TransactionAborted("made to fail")

        self.broker.before = abort


def test_an_incompatible_store_refuses_to_start_with_a_hint():
    driver = TopologyDriver(_remembering(_Numbered))
    driver.send("in", _Numbered(1), key="a")
    with pytest.raises(StateError, match=r"(?s)'label'.*migrate="):
        _restarted(_remembering(_Labelled), driver).send("in", _Labelled(2, "b"), key="b")


def test_a_migration_reaches_the_store_with_the_first_commit_also_after_an_aborted_one():
    driver = TopologyDriver(_remembering(_Numbered))
    driver.send_all("in", [Record("a", _Numbered(1), 0), Record("b", _Numbered(2), 0)])
    app = _remembering(_Labelled, migrate=lambda old: _Labelled(old["number"], "old"))
    later = _restarted(app, driver)
    later.send("in", _Labelled(3, "new"), key="c")
    expected = {"a": _Labelled(1, "old"), "b": _Labelled(2, "old"), "c": _Labelled(3, "new")}
    assert later.store("latest") == expected
    assert _restarted(_remembering(_Labelled), later).store("latest") == {}

    site = _Site()
    worker = site.start(_remembering(_Numbered))
    site.run(worker, ("a", _Numbered(1)), ("b", _Numbered(2)))
    worker.close()
    worker = site.start(app)
    site.run(worker, ("c", _Labelled(3, "new")))
    site.abort_commit()
    site.run(worker, ("c", _Labelled(3, "new")))
    assert site.broker.before is None
    worker.close()
    assert site.latest() == expected


def test_a_migration_whose_first_commit_is_aborted_is_part_of_the_next():
    site = _Site()
    worker = site.start(_remembering(_Numbered))
    site.run(worker, ("a", _Numbered(1)))
    worker.close()
    worker = site.start(_remembering(_Labelled, migrate=lambda old: _Labelled(old["number"], "old")))
    site.abort_commit()
    site.run(worker, ("c", _Labelled(3, "new")))
    assert site.broker.before is None
    worker.close()
    worker = site.start(_remembering(_Labelled))
    site.run(worker, ("d", _Labelled(4, "newer")))
    worker.close()
    assert site.latest() == {
        "a": _Labelled(1, "old"),
        "c": _Labelled(3, "new"),
        "d": _Labelled(4, "newer"),
    }


def test_a_reduced_value_may_get_a_field_with_a_default():
    class Wider(msgspec.Struct):
        number: int
        label: str = "none"

    def reducing(kind: Any) -> App:
        app = App("reducing")
        stream = app.stream("in", key=Text(), value=Json(kind))
        stream.group_by_key().reduce("largest", lambda one, other: max(one, other, key=_number)).to("out")
        return app

    driver = TopologyDriver(reducing(_Numbered))
    driver.send("in", _Numbered(7), key="a")
    assert [value["number"] for value in driver.values("out")] == [7]
    later = _restarted(reducing(Wider), driver)
    later.send("in", Wider(3, "small"), key="a")
    assert [value["label"] for value in later.values("out")] == ["none"]


def _number(value: Any) -> int:
    return int(value.number)
