"""Generated readers decode what fastavro decodes, and refuse what it refuses."""

from __future__ import annotations

import io
import json
from typing import Annotated, Any

import fastavro
import msgspec
import pytest
from hypothesis import given, strategies as st

from streams.serde import Avro

PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=200),
    "string": st.text(max_size=200),
}
TYPED = [
    ({"type": "enum", "name": "Color", "symbols": ["RED", "GREEN"]}, st.sampled_from(["RED", "GREEN"])),
    ({"type": "fixed", "name": "Pair", "size": 2}, st.binary(min_size=2, max_size=2)),
    ({"type": "long", "logicalType": "timestamp-micros"}, st.datetimes(timezones=st.just(None))),
    ({"type": "int", "logicalType": "date"}, st.dates()),
    ({"type": "string", "logicalType": "uuid"}, st.uuids()),
]


@st.composite
def types(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """A schema that values determine, and its values."""
    kinds = ["primitive", "optional"] + (["array", "map", "record"] if depth else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "primitive":
        name = draw(st.sampled_from([name for name in PRIMITIVES if name != "null"]))
        return name, PRIMITIVES[name]
    if kind == "record":
        return draw(records(depth - 1))
    schema, values = draw(types(depth=depth - 1 if depth else 0))
    if kind == "optional":
        if isinstance(schema, list):
            return schema, values
        return ["null", schema], st.none() | values
    if kind == "array":
        return {"type": "array", "items": schema}, st.lists(values, max_size=4)
    return {"type": "map", "values": schema}, st.dictionaries(st.text(max_size=5), values, max_size=4)


@st.composite
def records(draw: st.DrawFn, depth: int) -> tuple[Any, st.SearchStrategy[Any]]:
    number = draw(st.integers(0, 10**9))
    found = draw(st.lists(types(depth=depth), min_size=1, max_size=4))
    fields = [{"name": f"f{at}", "type": schema} for at, (schema, _) in enumerate(found)]
    values = st.fixed_dictionaries({f"f{at}": each for at, (_, each) in enumerate(found)})
    return {"type": "record", "name": f"R{number}", "fields": fields}, values


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, list[Any]]:
    schema, values = draw(records(2))
    return schema, draw(st.lists(values, min_size=1, max_size=3))


def serde_of(folder: Any, name: str, schema: Any) -> Avro[Any]:
    path = folder / name
    path.write_text(json.dumps(schema))
    return Avro(path)


def read_by_fastavro(payload: bytes, written: Any, wanted: Any = None) -> Any:
    buffer = io.BytesIO(payload[5:])
    value = fastavro.schemaless_reader(buffer, fastavro.parse_schema(written), wanted)
    if buffer.read():
        raise ValueError("something is left")
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("schemas")


def parsed_once(schema: Any) -> bool:
    try:
        fastavro.parse_schema(json.loads(json.dumps(schema)))
    except fastavro.schema.SchemaParseException:
        return False
    return True


@given(case=cases())
def test_values_are_decoded_as_fastavro_does(folder, case):
    schema, values = case
    if not parsed_once(schema):
        return
    serde = serde_of(folder, "any.avsc", schema)
    payloads = list(serde.serialize(values))
    (folder / "any.avsc").unlink()
    assert list(serde.deserialize(payloads)) == [read_by_fastavro(payload, schema) for payload in payloads]


@given(case=cases(), data=st.data())
def test_damaged_payloads_are_refused_where_fastavro_refuses_them(folder, case, data):
    schema, values = case
    if not parsed_once(schema):
        return
    serde = serde_of(folder, "any.avsc", schema)
    payload = bytearray(next(iter(serde.serialize(values))))
    (folder / "any.avsc").unlink()
    if len(payload) == 5:
        return
    at = data.draw(st.integers(5, len(payload) - 1))
    if data.draw(st.booleans()):
        payload[at] = data.draw(st.integers(0, 255))
    else:
        del payload[at:]
    try:
        expected = read_by_fastavro(bytes(payload), schema)
    except Exception:  # noqa: BLE001 - fastavro's errors are of many kinds
        with pytest.raises(ValueError):
            list(serde.deserialize([bytes(payload)]))
        return
    found: Any = None
    try:
        (found,) = serde.deserialize([bytes(payload)])
    except ValueError:
        # fastavro takes negative lengths and symbols for others.
        return
    assert msgspec.msgpack.encode(found) == msgspec.msgpack.encode(expected)


@pytest.mark.parametrize(("schema", "values"), TYPED)
@given(data=st.data())
def test_logical_types_and_named_ones_are_decoded_as_before(folder, schema, values, data):
    record = {"type": "record", "name": "R", "fields": [{"name": "f", "type": schema}]}
    value = {"f": data.draw(values)}
    serde = serde_of(folder, "typed.avsc", record)
    (payload,) = serde.serialize([value])
    (folder / "typed.avsc").unlink()
    assert list(serde.deserialize([payload])) == [read_by_fastavro(payload, record)]


def field(name: str, schema: Any, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "type": schema, **attributes}


@pytest.mark.parametrize(
    ("written", "wanted", "value", "read"),
    [
        ([field("a", "int"), field("b", "string")], [field("b", "string")], {"a": 1, "b": "x"}, {"b": "x"}),
        ([field("a", "int")], [field("a", "double")], {"a": 1}, {"a": 1.0}),
        ([field("a", "long")], [field("a", ["null", "long"])], {"a": 1}, {"a": 1}),
        ([field("a", ["null", "int"])], [field("a", ["null", "int"])], {"a": None}, {"a": None}),
        ([field("a", "string")], [field("a", "bytes")], {"a": "ä"}, {"a": "ä".encode()}),
        (
            [field("a", "int")],
            [field("b", "int", aliases=["a"]), field("c", {"type": "array", "items": "int"}, default=[])],
            {"a": 1},
            {"b": 1, "c": []},
        ),
        (
            [
                field("a", {"type": "array", "items": {"type": "fixed", "name": "F", "size": 3}}),
                field("b", "int"),
            ],
            [field("b", "int")],
            {"a": [b"abc"] * 300, "b": 7},
            {"b": 7},
        ),
        (
            [field("a", {"type": "map", "values": ["null", "double", "string"]}), field("b", "int")],
            [field("b", "int")],
            {"a": {"x": 1.5, "y": None, "z": "t"}, "b": 7},
            {"b": 7},
        ),
        (
            [field("a", {"type": "enum", "name": "E", "symbols": ["A", "B"]})],
            [field("a", {"type": "enum", "name": "E", "symbols": ["A", "Z"], "default": "Z"})],
            {"a": "B"},
            {"a": "Z"},
        ),
    ],
)
def test_a_payload_is_resolved_to_the_schema_that_reads_it(tmp_path, written, wanted, value, read):
    old = serde_of(tmp_path, "r.1.avsc", {"type": "record", "name": "R", "fields": written})
    (payload,) = old.serialize([value])
    new = serde_of(tmp_path, "r.avsc", {"type": "record", "name": "R", "fields": wanted})
    first, second = new.deserialize([payload, payload])
    assert first == second == read
    # A default belongs to one record alone.
    for name, inner in first.items():
        assert not isinstance(inner, list) or inner is not second[name]


def test_a_count_beyond_the_payload_ends_at_once(tmp_path):
    fixed = {"type": "array", "items": {"type": "fixed", "name": "F", "size": 3}}
    serde = serde_of(tmp_path, "r.avsc", {"type": "record", "name": "R", "fields": [field("a", fixed)]})
    endless = b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"
    (empty,) = serde.serialize([{"a": []}])
    with pytest.raises(ValueError, match="ends within the record"):
        list(serde.deserialize([empty[:5] + endless + b"abc"]))


class Inner(msgspec.Struct):
    street: str


class Plain(msgspec.Struct):
    second: Inner | None
    first: int
    more: list[Inner] = []
    absent: str = "a default of the struct"


class Checked(msgspec.Struct):
    first: Annotated[int, msgspec.Meta(ge=0)]


class Initialized(msgspec.Struct):
    first: int

    def __post_init__(self) -> None:
        self.first += 1


class Renamed(msgspec.Struct, rename="camel", kw_only=True):
    first_number: int


INNER = {"type": "record", "name": "Inner", "fields": [field("street", "string")]}


@pytest.mark.parametrize(
    ("kind", "fields", "value"),
    [
        (
            Plain,
            [
                field("first", "long"),
                field("second", ["null", INNER]),
                field("more", {"type": "array", "items": "Inner"}),
                field("unknown", "string"),
            ],
            {"first": 1, "second": {"street": "A"}, "more": [{"street": "B"}], "unknown": "x"},
        ),
        (Checked, [field("first", "int")], {"first": 5}),
        (Initialized, [field("first", "int")], {"first": 5}),
        (Renamed, [field("firstNumber", "int")], {"firstNumber": 5}),
    ],
)
def test_records_become_structs_as_msgspec_makes_them(tmp_path, kind, fields, value):
    path = tmp_path / "r.avsc"
    path.write_text(json.dumps({"type": "record", "name": "R", "fields": fields}))
    payloads = list(Avro(path).serialize([value]))
    assert list(Avro(path, kind).deserialize(payloads)) == [msgspec.convert(value, kind)]


def test_a_struct_with_a_constraint_is_validated(tmp_path):
    path = tmp_path / "r.avsc"
    path.write_text(json.dumps({"type": "record", "name": "R", "fields": [field("first", "int")]}))
    payloads = list(Avro(path).serialize([{"first": -1}]))
    with pytest.raises(msgspec.ValidationError):
        list(Avro(path, Checked).deserialize(payloads))
