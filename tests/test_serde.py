"""Serdes: what goes in comes out, and what cannot be read says why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from streams.errors import ConfigurationError
from streams.serde import Avro, Bytes, Json, Text, nullable

if TYPE_CHECKING:
    from pathlib import Path

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**60), 2**60),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=10,
)


def round_trip(serde: Any, values: list[Any]) -> list[Any]:
    return list(serde.deserialize(list(serde.serialize(values))))


@given(st.lists(st.binary()))
def test_bytes_stay_as_they_are(values):
    assert round_trip(Bytes(), values) == values


@given(st.lists(st.text()))
def test_text_survives(values):
    assert round_trip(Text(), values) == values


@given(st.lists(json_values))
def test_json_survives(values):
    assert round_trip(Json(), values) == values


class Order(msgspec.Struct):
    number: int
    note: str | None = None


orders = st.builds(Order, number=st.integers(-(2**63), 2**63 - 1), note=st.one_of(st.none(), st.text()))


@given(st.lists(orders))
def test_typed_json_survives(values):
    assert round_trip(Json(Order), values) == values


def write_schema(folder: Path, name: str, fields: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text(json.dumps({"type": "record", "name": "shop.Order", "fields": fields}))
    return path


NUMBER = {"name": "number", "type": "long"}
NOTE = {"name": "note", "type": ["null", "string"], "default": None}


@pytest.fixture(scope="module")
def schema(tmp_path_factory) -> Path:
    return write_schema(tmp_path_factory.mktemp("schemas"), "shop.Order.avsc", [NUMBER, NOTE])


@given(st.lists(orders))
def test_typed_avro_survives(schema, values):
    assert round_trip(Avro(schema, Order), values) == values


def test_avro_is_in_the_registries_wire_format(schema):
    (payload,) = Avro(schema).serialize([{"number": 1, "note": None}])
    assert payload[0] == 0
    assert payload[5:] == b"\x02\x00"


def test_records_of_an_older_schema_in_the_folder_stay_readable(tmp_path):
    old = write_schema(tmp_path, "shop.Order.1.avsc", [NUMBER])
    payloads = list(Avro(old).serialize([{"number": 5}]))
    new = write_schema(tmp_path, "shop.Order.avsc", [NUMBER, NOTE])
    assert list(Avro(new, Order).deserialize(payloads)) == [Order(5)]


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "wire format"),
        (b"\x01\x00\x00\x00\x01x", "wire format"),
        (b"\x00\x00\x00\x00\x01\x02", "no schema with id 1"),
    ],
)
def test_what_is_not_avro_says_why(schema, payload, says):
    with pytest.raises((ValueError, LookupError), match=says):
        list(Avro(schema).deserialize([payload]))


def test_bytes_left_over_are_an_error(schema):
    serde: Avro[Any] = Avro(schema)
    (payload,) = serde.serialize([{"number": 1, "note": None}])
    with pytest.raises(ValueError, match="1 bytes left over"):
        list(serde.deserialize([payload + b"x"]))


def test_another_type_is_not_written(schema):
    with pytest.raises(TypeError, match="writes Order, got dict"):
        list(Avro(schema, Order).serialize([{"number": 1}]))  # type: ignore[list-item]  # what this test is about
    with pytest.raises(TypeError, match="writes bytes, got str"):
        list(Bytes().serialize([b"a", "b"]))  # type: ignore[list-item]  # what this test is about


def test_a_schema_that_is_missing_or_broken_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Avro(tmp_path / "none.avsc")
    broken = tmp_path / "broken.avsc"
    broken.write_text("{")
    with pytest.raises(ConfigurationError, match="is no Avro schema"):
        Avro(broken)


@given(st.lists(st.one_of(st.none(), st.text(max_size=2))))
def test_nulls_pass_a_transform_by(values):
    seen: list[str] = []

    def mark(column):
        for value in column:
            seen.append(value)
            yield value + "!"

    assert list(nullable(mark)(values)) == [None if value is None else value + "!" for value in values]
    assert seen == [value for value in values if value is not None]
