"""Avro: values that are read and written again are unchanged, new fields have defaults, payloads have limits.

The generator and the reader of bytes here follow the specification (Apache Avro 1.12), not the library.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import struct
import tempfile
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro.schema
import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from streams.errors import ConfigurationError
from streams.serde import Avro
from streams.serde.round_trip import RoundTrip
from streams.serde.schema_folder import schema_id

# --- bytes by the specification


def zigzag(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    written = bytearray()
    while number > 0x7F:
        written.append((number & 0x7F) | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def long_at(payload: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = payload[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at


def kind_of(schema: Any) -> str:
    if isinstance(schema, list):
        return "union"
    return str(schema["type"] if isinstance(schema, dict) else schema)


def named(schema: Any, found: dict[str, Any] | None = None) -> dict[str, Any]:
    found = {} if found is None else found
    if isinstance(schema, list):
        for branch in schema:
            named(branch, found)
    elif isinstance(schema, dict):
        if "name" in schema:
            found[schema["name"]] = schema
        for part in [
            *(field["type"] for field in schema.get("fields", [])),
            schema.get("items"),
            schema.get("values"),
        ]:
            named(part, found)
    return found


def meaning(schema: Any, payload: bytes, at: int, types: dict[str, Any]) -> tuple[Any, int]:
    """The meaning of the bytes: numbers by value and type, all others with their branches."""
    schema = types.get(schema, schema) if isinstance(schema, str) else schema
    kind = kind_of(schema)
    logical = schema.get("logicalType") if isinstance(schema, dict) else None
    match kind:
        case "null":
            return None, at
        case "boolean":
            return bool(payload[at]), at + 1
        case "int" | "long":
            number, at = long_at(payload, at)
            if logical is not None and logical.startswith("time-"):
                # One time of day, in whichever unit.
                return ("time of day", number * 1000 if logical == "time-millis" else number), at
            return ("integer", logical, number), at
        case "float" | "double":
            size = 4 if kind == "float" else 8
            (real,) = struct.unpack_from("<f" if size == 4 else "<d", payload, at)
            return ("real", repr(real)), at + size
        case "bytes" | "string":
            size, at = long_at(payload, at)
            content: Any = payload[at : at + size]
            if logical == "decimal":
                content = int.from_bytes(content, "big", signed=True)
            return (kind, logical, content), at + size
        case "fixed":
            return (schema["name"], payload[at : at + schema["size"]]), at + schema["size"]
        case "enum":
            symbol, at = long_at(payload, at)
            return (schema["name"], symbol), at
        case "array" | "map":
            items: list[Any] = []
            while True:
                count, at = long_at(payload, at)
                if count == 0:
                    return (kind, items if kind == "array" else sorted(items, key=repr)), at
                if count < 0:
                    _, at = long_at(payload, at)
                for _ in range(abs(count)):
                    name = None
                    if kind == "map":
                        name, at = meaning("string", payload, at, types)
                    item, at = meaning(schema["items" if kind == "array" else "values"], payload, at, types)
                    items.append((name, item))
        case "union":
            place, at = long_at(payload, at)
            return meaning(schema[place], payload, at, types)
    values = []
    for field in schema["fields"]:
        value, at = meaning(field["type"], payload, at, types)
        values.append(value)
    return (schema["name"], values), at


def means(schema: Any, payload: bytes) -> Any:
    found, end = meaning(schema, payload, 5, named(schema))
    assert end == len(payload)
    return found


PLAIN = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"]
LOGICAL = [
    {"type": "int", "logicalType": "date"},
    {"type": "int", "logicalType": "time-millis"},
    {"type": "long", "logicalType": "time-micros"},
    {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "long", "logicalType": "timestamp-micros"},
    {"type": "long", "logicalType": "local-timestamp-millis"},
    {"type": "long", "logicalType": "local-timestamp-micros"},
    {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2},
    {"type": "string", "logicalType": "uuid"},
]


class Schemas:
    """Draws schemas with names of their own; ``depth`` bounds how they nest."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw
        self._names = 0

    def name(self) -> str:
        self._names += 1
        return f"test.n{self._names}"

    def leaf(self) -> Any:
        return self._draw(st.sampled_from([*PLAIN, *LOGICAL, "enum", "fixed", "money"]))

    def made(self, leaf: Any) -> Any:
        if leaf == "enum":
            return {
                "type": "enum",
                "name": self.name(),
                "symbols": self._draw(st.sampled_from([["A"], ["A", "B"], ["B", "C"]])),
            }
        if leaf == "fixed":
            return {"type": "fixed", "name": self.name(), "size": self._draw(st.integers(0, 2))}
        if leaf == "money":
            return {
                "type": "fixed",
                "name": self.name(),
                "size": 3,
                "logicalType": "decimal",
                "precision": 6,
                "scale": 2,
            }
        return leaf

    def any(self, depth: int, *, in_union: bool = False) -> Any:
        kinds = ["leaf", "leaf"]
        if depth:
            kinds += ["record", "array", "map"] + ([] if in_union else ["union", "union"])
        kind = self._draw(st.sampled_from(kinds))
        if kind == "leaf":
            return self.made(self.leaf())
        if kind == "record":
            return self.record(depth - 1)
        if kind == "union":
            return self.union(depth - 1)
        return {"type": kind, "items" if kind == "array" else "values": self.any(depth - 1)}

    def record(self, depth: int) -> Any:
        # Few names, so that records of a union have the same fields.
        names = self._draw(st.sampled_from([[], ["a"], ["a"], ["a", "b"]]))
        return {
            "type": "record",
            "name": self.name(),
            "fields": [{"name": name, "type": self.any(depth)} for name in names],
        }

    def union(self, depth: int) -> Any:
        branches: list[Any] = []
        unnamed: set[str] = set()
        for _ in range(self._draw(st.integers(1, 4))):
            branch = self.any(depth, in_union=True)
            kind = kind_of(branch)
            # A decimal could be of either branch, as bytes and as a fixed type.
            logical = branch.get("logicalType") if isinstance(branch, dict) else None
            kinds = {"decimal"} if logical == "decimal" else set()
            if kind not in {"record", "enum", "fixed"}:
                kinds.add(kind)
            if not kinds & unnamed:
                unnamed |= kinds
                branches.append(branch)
        return branches


BOUNDS = {
    "date": (-700_000, 2_900_000),
    "time-millis": (0, 86_399_999),
    "time-micros": (0, 86_399_999_999),
    "timestamp-millis": (-62_000_000_000_000, 250_000_000_000_000),
    "local-timestamp-millis": (-62_000_000_000_000, 250_000_000_000_000),
    "timestamp-micros": (-62_000_000_000_000_000, 250_000_000_000_000_000),
    "local-timestamp-micros": (-62_000_000_000_000_000, 250_000_000_000_000_000),
}


def written(draw: Any, schema: Any) -> bytes:
    """Bytes of any value of the schema."""
    return bytes(_written(draw, schema))


def _written(draw: Any, schema: Any) -> Any:
    kind = kind_of(schema)
    logical = schema.get("logicalType") if isinstance(schema, dict) else None
    match kind:
        case "null":
            return b""
        case "boolean":
            return draw(st.sampled_from([b"\0", b"\1"]))
        case "int" | "long":
            limit = 1 << (31 if kind == "int" else 63)
            low, high = BOUNDS.get(logical or "", (-limit, limit - 1))
            return zigzag(draw(st.one_of(st.integers(low, high), st.integers(max(low, -2), 2))))
        case "float":
            return struct.pack("<f", draw(st.floats(width=32)))
        case "double":
            return struct.pack("<d", draw(st.one_of(st.floats(), st.floats(width=32))))
        case "string" if logical == "uuid":
            content = str(draw(st.uuids())).encode()
            return zigzag(len(content)) + content
        case "bytes" if logical == "decimal":
            content = draw(st.integers(-999_999, 999_999)).to_bytes(
                draw(st.integers(3, 4)), "big", signed=True
            )
            return zigzag(len(content)) + content
        case "string":
            content = draw(st.one_of(st.sampled_from(["A", "B", "z"]), st.text(max_size=3))).encode()
            return zigzag(len(content)) + content
        case "bytes":
            content = draw(st.binary(max_size=2))
            return zigzag(len(content)) + content
        case "fixed" if logical == "decimal":
            return draw(st.integers(-999_999, 999_999)).to_bytes(3, "big", signed=True)
        case "fixed":
            return draw(st.binary(min_size=schema["size"], max_size=schema["size"]))
        case "enum":
            return zigzag(draw(st.integers(0, len(schema["symbols"]) - 1)))
        case "union":
            place = draw(st.integers(0, len(schema) - 1))
            return zigzag(place) + written(draw, schema[place])
        case "record":
            return b"".join(written(draw, field["type"]) for field in schema["fields"])
    blocks = b""
    used = 0
    for size in draw(st.lists(st.integers(1, 2), max_size=2)):
        items = b""
        for _ in range(size):
            if kind == "map":
                used += 1
                items += zigzag(1) + str(used).encode()
            items += written(draw, schema["items" if kind == "array" else "values"])
        blocks += (zigzag(-size) + zigzag(len(items)) if draw(st.booleans()) else zigzag(size)) + items
    return blocks + zigzag(0)


@st.composite
def payloads(draw: Any) -> tuple[Any, bytes]:
    schemas = Schemas(draw)
    fields = [{"name": name, "type": schemas.any(3)} for name in ("a", "b")]
    schema = {"type": "record", "name": "Top", "fields": fields}
    return schema, written(draw, schema)


def head_of(schema: Any) -> bytes:
    """The prefix of payloads of the schema: a zero byte, and an id that is derived from it."""
    return b"\0" + schema_id(fastavro.parse_schema(schema)).to_bytes(4, "big")


def serde_of(schema: Any, folder: str, kind: Any = None, name: str = "Top.avsc", **bounds: Any) -> Avro[Any]:
    path = Path(folder) / name
    path.write_text(json.dumps(schema))
    return Avro(path, kind, **bounds)


@given(payloads())
@settings(max_examples=150)
def test_what_is_read_and_written_again_means_the_same(case):
    schema, body = case
    with tempfile.TemporaryDirectory() as folder:
        serde = serde_of(schema, folder)
        payload = head_of(schema) + body
        (value,) = serde.deserialize([payload])
        (again,) = serde.serialize([value])
        assert means(schema, again) == means(schema, payload)
        (kept,) = RoundTrip(serde).serialize([value])
        assert means(schema, kept) == means(schema, payload)
        (back,) = RoundTrip(serde).read_back([value])
        assert means(schema, next(iter(serde.serialize([back])))) == means(schema, payload)


def record(*fields: Any, name: str = "Top") -> Any:
    made = [dict(zip(("name", "type", "default"), field, strict=False)) for field in fields]
    return {"type": "record", "name": name, "fields": made}


def union_of(*branches: Any) -> Any:
    return record(("value", list(branches)))


COLOR = {"type": "enum", "name": "Color", "symbols": ["RED", "BLUE"]}
PAIR = {"type": "fixed", "name": "Pair", "size": 2}
DOG, CAT = (record(("name", "string"), name=name) for name in ("Dog", "Cat"))


@pytest.mark.parametrize(
    ("branches", "value", "place"),
    [
        (("float", "double"), 0.5, 0),
        (("float", "double"), 0.1, 1),
        (("double", "long"), 5, 1),
        (("int", "long"), 1 << 40, 1),
        (("double", "int"), 1 << 40, 0),
        (("null", {"type": "array", "items": "int"}, "bytes"), b"ab", 2),
        (({"type": "int", "logicalType": "date"}, "long"), 5, 1),
        (
            ({"type": "int", "logicalType": "date"}, {"type": "long", "logicalType": "timestamp-micros"}),
            dt.datetime(2026, 7, 25, tzinfo=dt.UTC),
            1,
        ),
        (({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, PAIR), b"ab", 1),
        ((COLOR, "string"), "RED", 0),
        ((COLOR, "string"), "GREEN", 1),
        (({"type": "map", "values": "string"}, DOG), {"name": "Rex"}, 0),
        ((DOG, {"type": "map", "values": "string"}), {"name": "Rex"}, 0),
        ((DOG, {"type": "map", "values": "string"}), {"nome": "Rex"}, 1),
        ((DOG, CAT), ("Cat", {"name": "Tom"}), 1),
        (("string", "null"), None, 1),
    ],
)
def test_a_value_goes_into_the_first_branch_that_holds_it_as_it_is(tmp_path, branches, value, place):
    (payload,) = serde_of(union_of(*branches), str(tmp_path)).serialize([{"value": value}])
    assert long_at(payload, 5)[0] == place


def test_a_value_that_matches_no_branch_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="matches no branch of the union int, string"):
        list(serde_of(union_of("int", "string"), str(tmp_path)).serialize([{"value": b"x"}]))


class Dog(msgspec.Struct, tag=True):
    name: str


class Cat(msgspec.Struct, tag=True):
    name: str


class Owner(msgspec.Struct):
    pet: Dog | Cat | None
    others: list[Dog | Cat]


def test_structs_with_tags_are_the_records_of_a_union(tmp_path):
    pets = {"type": "array", "items": ["Dog", "Cat"]}
    serde = serde_of(record(("pet", ["null", DOG, CAT]), ("others", pets)), str(tmp_path), Owner)
    owners = [Owner(Cat("Tom"), [Dog("Rex"), Cat("Kit")]), Owner(None, []), Owner(Dog("Rex"), [])]
    assert list(RoundTrip(serde).read_back(owners)) == owners


# --- new fields and their defaults

NEW_FIELDS: list[tuple[str, Any, Any, Any]] = [
    (
        "price",
        {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
        "\x00",
        Decimal("0.00"),
    ),
    (
        "cost",
        {"type": "fixed", "name": "Cost", "size": 2, "logicalType": "decimal", "precision": 4, "scale": 2},
        "\u00ff\u009c",
        Decimal("-1.00"),
    ),
    ("at", {"type": "long", "logicalType": "timestamp-millis"}, 0, dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
    ("on", {"type": "int", "logicalType": "date"}, 1, dt.date(1970, 1, 2)),
    ("time", {"type": "int", "logicalType": "time-millis"}, 1, dt.time(0, 0, 0, 1000)),
    ("raw", "bytes", "\u00ff\u0001", b"\xff\x01"),
    ("pair", PAIR, "\u00ff\u0001", b"\xff\x01"),
    ("color", COLOR, "BLUE", "BLUE"),
    (
        "uuid",
        {"type": "string", "logicalType": "uuid"},
        "12345678-1234-5678-1234-567812345678",
        uuid.UUID("12345678-1234-5678-1234-567812345678"),
    ),
    ("ratio", "double", 1, 1.0),
    ("note", ["null", "string"], None, None),
    ("rated", ["double", "null"], 2, 2.0),
    (
        "paid",
        [{"type": "bytes", "logicalType": "decimal", "precision": 3}, "null"],
        "\u0005",
        Decimal(5),
    ),
    ("tags", {"type": "array", "items": "bytes"}, ["\u00ff"], [b"\xff"]),
    (
        "days",
        {"type": "map", "values": {"type": "int", "logicalType": "date"}},
        {"a": 0},
        {"a": dt.date(1970, 1, 1)},
    ),
    (
        "line",
        record(("raw", "bytes", "\u0001"), ("amount", "long"), name="Line"),
        {"amount": 7},
        {"raw": b"\x01", "amount": 7},
    ),
]


@pytest.mark.parametrize(("name", "kind", "default", "value"), NEW_FIELDS, ids=[it[0] for it in NEW_FIELDS])
def test_a_field_that_is_new_has_its_default_as_a_value_of_its_type(tmp_path, name, kind, default, value):
    old = serde_of(record(("id", "long")), str(tmp_path), name="Top.1.avsc")
    new = serde_of(record(("id", "long"), (name, kind, default)), str(tmp_path))
    first, second = new.deserialize(list(old.serialize([{"id": 1}, {"id": 2}])))
    assert first == {"id": 1, name: value}
    assert type(first[name]) is type(value)
    # And it can be written, and left out by those who write.
    assert list(RoundTrip(new).read_back([first])) == [first]
    assert list(new.deserialize(list(new.serialize([{"id": 1}])))) == [first]
    if isinstance(first[name], list | dict):
        first[name].clear()
        assert second == {"id": 2, name: value}


class Priced(msgspec.Struct):
    id: int
    price: Decimal
    at: dt.datetime
    raw: bytes
    tags: list[bytes]


def test_old_records_are_structs_of_the_new_schema(tmp_path):
    wanted = {"price", "at", "raw", "tags"}
    fields = [(name, kind, default) for name, kind, default, _ in NEW_FIELDS if name in wanted]
    old = serde_of(record(("id", "long")), str(tmp_path), name="Top.1.avsc")
    new = serde_of(record(("id", "long"), *fields), str(tmp_path), Priced)
    (read,) = new.deserialize(list(old.serialize([{"id": 1}])))
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert read == Priced(1, Decimal("0.00"), epoch, b"\xff\x01", [b"\xff"])


def test_an_invalid_default_is_an_error_with_its_field(tmp_path):
    cost = {"type": "fixed", "name": "Cost", "size": 1, "logicalType": "decimal", "precision": 2}
    for kind, default in ((cost, "\u007f"), ({"type": "string", "logicalType": "uuid"}, "none")):
        with pytest.raises(ConfigurationError, match=r"the default of Top\.cost"):
            serde_of(record(("cost", kind, default)), str(tmp_path))


# --- decimals


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1.234", "100000", "1E+9", "1E+999999", "-100000"])
def test_a_decimal_that_does_not_fit_is_refused_when_it_is_written(tmp_path, value):
    money = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}
    with pytest.raises(ValueError, match="decimal"):
        list(serde_of(record(("price", money)), str(tmp_path)).serialize([{"price": Decimal(value)}]))


@given(unscaled=st.integers(-(10**9) + 1, 10**9 - 1), zeros=st.integers(0, 2))
@settings(max_examples=50)
def test_decimals_are_written_as_java_writes_them(unscaled, zeros):
    money = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    with tempfile.TemporaryDirectory() as folder:
        serde = serde_of(record(("price", money)), folder)
        price = Decimal(unscaled).scaleb(-2)
        (payload,) = serde.serialize([{"price": Decimal(f"{price:.2f}{'0' * zeros}")}])
        # As short as two's complement can be: BigInteger.toByteArray.
        shortest = next(size for size in range(1, 9) if -(1 << 8 * size - 1) <= unscaled < 1 << 8 * size - 1)
        assert payload[5:] == zigzag(shortest) + unscaled.to_bytes(shortest, "big", signed=True)
        assert list(serde.deserialize([payload])) == [{"price": price}]


# --- bounds


def test_items_without_bytes_are_bounded(tmp_path):
    nothing = record(name="Nothing")
    empty = {"type": "fixed", "name": "Empty", "size": 0}
    for items in ("null", nothing, empty, record(("a", "null"), ("b", empty), name="Both")):
        schema = record(("id", "long"), ("items", {"type": "array", "items": items}))
        serde = serde_of(schema, str(tmp_path), max_items=1000)
        head = head_of(schema) + zigzag(1)
        (value,) = serde.deserialize([head + zigzag(600) + zigzag(-400) + zigzag(0) + zigzag(0)])
        assert len(value["items"]) == 1000
        for count in (1 << 40, 1001, -(1 << 62)):
            size = zigzag(0) if count < 0 else b""
            with pytest.raises(ValueError, match="max_items"):
                list(serde.deserialize([head + zigzag(count) + size + zigzag(0)]))
        with pytest.raises(ValueError, match="max_items"):
            list(serde.deserialize([head + zigzag(600) * 2 + zigzag(0)]))


def test_what_a_reader_leaves_out_is_bounded_too(tmp_path):
    written = record(("id", "long"), ("gone", {"type": "array", "items": "null"}))
    serde_of(written, str(tmp_path), name="Top.1.avsc")
    serde = serde_of(record(("id", "long")), str(tmp_path))
    payload = head_of(written) + zigzag(1)
    assert list(serde.deserialize([payload + zigzag(3) + zigzag(0)])) == [{"id": 1}]
    with pytest.raises(ValueError, match="max_items"):
        list(serde.deserialize([payload + zigzag(1 << 40) + zigzag(0)]))


LIST = record(("next", ["null", "Node"]), name="Node")
TREE = record(("below", {"type": "array", "items": "Node"}), name="Node")
MAPS = record(("below", {"type": "map", "values": "Node"}), name="Node")


@pytest.mark.parametrize(
    ("schema", "level", "end"),
    [(LIST, b"\x02", b"\x00"), (TREE, b"\x02", b"\x00"), (MAPS, b"\x02\x00", b"\x00")],
    ids=["list", "tree", "maps"],
)
def test_values_that_nest_too_deeply_are_refused_and_do_not_end_the_process(tmp_path, schema, level, end):
    serde = serde_of(schema, str(tmp_path), max_depth=100)
    for levels in (1_000, 100_000):
        with pytest.raises(ValueError, match="max_depth"):
            list(serde.deserialize([head_of(schema) + level * levels]))
    payload = head_of(schema) + level * 30 + (end if schema is LIST else end * 31)
    (value,) = serde.deserialize([payload])
    assert means(schema, next(iter(serde.serialize([value])))) == means(schema, payload)
    for _ in range(5_000):
        around = {LIST["fields"][0]["name"]: value}
        value = around if schema is LIST else {"below": [value] if schema is TREE else {"a": value}}
    with pytest.raises(ValueError, match="max_depth"):
        list(serde.serialize([value]))


def test_a_record_without_an_end_is_no_schema(tmp_path):
    with pytest.raises(ConfigurationError, match="would be infinite"):
        serde_of(record(("again", "Top")), str(tmp_path))


@pytest.mark.parametrize("bounds", [{"max_items": -1}, {"max_depth": 0}, {"max_depth": 100_000}])
def test_bounds_have_bounds(tmp_path, bounds):
    with pytest.raises(ConfigurationError, match="max_items"):
        serde_of(record(("id", "long")), str(tmp_path), **bounds)


def test_a_decimal_of_a_megabyte_costs_no_more_than_another(tmp_path):
    money = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    schema = record(("price", money))
    serde = serde_of(schema, str(tmp_path))
    with pytest.raises(ValueError, match="precision"):
        # It would take minutes to make a decimal of it.
        list(serde.deserialize([head_of(schema) + zigzag(1 << 20) + b"\x7f" * (1 << 20)]))


def test_nan_and_infinity_are_kept(tmp_path):
    serde = serde_of(record(("a", "double"), ("b", "float")), str(tmp_path))
    (value,) = RoundTrip(serde).read_back([{"a": math.nan, "b": -math.inf}])
    assert math.isnan(value["a"])
    assert value["b"] == -math.inf
