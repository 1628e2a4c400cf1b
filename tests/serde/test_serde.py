"""Serdes: values survive a round trip, and undecodable payloads are errors with a reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from streams.operators.guard import Guard
from streams.policy import skip
from streams.records import Batch, FetchedLists
from streams.serde import Avro, Bytes, Json, Text, nullable
from tests.support.avro_schemas import NOTE, NUMBER, Order, orders, write_schema

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from streams.coroutines.event_loop import Calls
    from streams.origin import Origin
    from streams.policy import Action
    from streams.records import Record

finite = st.floats(allow_nan=False, allow_infinity=False)
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


@given(st.lists(orders))
def test_typed_json_survives(values):
    assert round_trip(Json(Order), values) == values


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


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "wire format"),
        (b"\x01\x00\x00\x00\x01x", "wire format"),
        (b"\x00\x00\x00\x00\x01\x02", "no schema with id 1"),
    ],
)
def test_invalid_avro_is_an_error_with_its_reason(schema, payload, says):
    with pytest.raises((ValueError, LookupError), match=says):
        list(Avro(schema).deserialize([payload]))


def test_bytes_left_over_are_an_error(schema):
    serde: Avro[Any] = Avro(schema)
    (payload,) = serde.serialize([{"number": 1, "note": None}])
    with pytest.raises(ValueError, match="1 bytes are left"):
        list(serde.deserialize([payload + b"x"]))


def test_another_type_is_not_written(schema):
    with pytest.raises(TypeError, match="needs Order, got dict"):
        list(Avro(schema, Order).serialize([{"number": 1}]))  # type: ignore[list-item]  # what this test is about
    with pytest.raises(TypeError, match="needs bytes, got str"):
        list(Bytes().serialize([b"a", "b"]))  # type: ignore[list-item]  # what this test is about


@given(st.lists(st.one_of(st.none(), st.text(max_size=2))))
def test_nulls_pass_a_transform_by(values):
    seen: list[str] = []

    def mark(column):
        for value in column:
            seen.append(value)
            yield value + "!"

    assert list(nullable(mark)(values)) == [None if value is None else value + "!" for value in values]
    assert seen == [value for value in values if value is not None]


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


@pytest.mark.parametrize("kind", [Circle | Square, int | None, list[int], dict[str, Circle]])
def test_every_type_that_json_reads_has_a_name_to_be_described_with(kind):
    assert Json(kind).name.startswith("Json(")


@given(st.lists(st.one_of(st.builds(Circle, finite), st.builds(Square, finite))))
def test_json_of_one_of_several_types_survives(values):
    assert round_trip(Json(Circle | Square), values) == values  # type: ignore[arg-type]  # a union is no class to mypy


@pytest.mark.parametrize(
    "payload", [b"", b"{", b'{"number": "x"}', b'{"number": 1} trailing', b"\xff", b"[]"]
)
def test_invalid_json_is_an_error_at_its_position(payload):
    results = iter(Json(Order).deserialize([b'{"number": 1}', payload, b'{"number": 2}']))
    assert next(results) == Order(1)
    with pytest.raises((msgspec.MsgspecError, ValueError)):
        next(results)


@pytest.mark.parametrize("value", ["\ud800", 5, b"bytes"])
def test_invalid_text_is_an_error_at_its_position(value):
    results = iter(Text().serialize(["a", value]))
    assert next(results) == b"a"
    with pytest.raises((TypeError, ValueError)):
        next(results)


# --- Avro


@given(st.lists(orders))
def test_untyped_avro_survives(schema, values):
    records = [msgspec.structs.asdict(order) for order in values]
    assert round_trip(Avro(schema), records) == records


class Line(msgspec.Struct):
    article: str


class Basket(msgspec.Struct):
    first: Line
    others: list[Line]


def test_typed_records_within_records_survive(tmp_path):
    line = {"type": "record", "name": "shop.Line", "fields": [{"name": "article", "type": "string"}]}
    fields = [
        {"name": "first", "type": line},
        {"name": "others", "type": {"type": "array", "items": "shop.Line"}},
    ]
    path = write_schema(tmp_path, "shop.Order.avsc", fields)
    baskets = [Basket(Line("tea"), [Line("milk"), Line("sugar")]), Basket(Line("bread"), [])]
    assert round_trip(Avro(path, Basket), baskets) == baskets


@pytest.mark.parametrize("damage", [lambda payload: payload[:3], lambda payload: payload[:-1]])
def test_a_truncated_record_is_an_error_and_what_was_before_it_is_read(schema, damage):
    serde: Avro[Any] = Avro(schema)
    first, second = serde.serialize([{"number": 1, "note": None}, {"number": 300, "note": "note"}])
    results = serde.deserialize([first, damage(second)])
    assert next(results) == {"number": 1, "note": None}
    with pytest.raises((ValueError, EOFError, IndexError)):
        next(results)


def test_a_value_that_the_schema_does_not_fit_is_an_error_and_leaves_no_trace_in_the_next(schema):
    serde: Avro[Any] = Avro(schema)
    with pytest.raises((TypeError, ValueError)):
        list(serde.serialize([{"number": "x", "note": None}]))
    good = {"number": 1, "note": "a longer text than before"}
    assert round_trip(serde, [good, {"number": 2, "note": None}]) == [good, {"number": 2, "note": None}]


# --- what serdes say about their bytes


def test_a_schema_is_plain_data(schema):
    serdes: list[Any] = [Bytes(), Text(), Json(), Json(Order), Json(list[Circle]), Avro(schema)]
    for serde in serdes:
        described = serde.schema
        assert json.loads(json.dumps(described)) == described
    assert Json().schema == {"json": "any"}


# --- nulls, with a transform that fails


@given(
    st.lists(st.one_of(st.none(), st.just(""), st.text(max_size=2), st.sampled_from(["raise", "stop"]))),
    st.sampled_from(["map", "generator"]),
)
def test_a_transform_that_fails_in_a_column_with_nulls_fails_at_the_right_element(column, form):
    def mark(value: str) -> str:
        if value == "raise":
            raise ValueError("made to fail")
        if value == "stop":
            raise StopIteration
        return value + "!"

    def transform(values):
        return map(mark, values) if form == "map" else (mark(value) for value in values)

    notes: list[int] = []
    runtime = Noting(notes)
    results, rows = Guard("step", skip, runtime, runtime.failed, "step").each(
        nullable(transform), column, batch_of(column)
    )
    good = [row for row, value in enumerate(column) if value not in {"raise", "stop"}]
    assert results == [None if (value := column[row]) is None else value + "!" for row in good]
    assert list(range(len(column)) if rows is None else rows) == good
    assert notes == [row for row in range(len(column)) if row not in good]


class Noting:
    """The runtime around a guard, which notes the rows that failed."""

    def __init__(self, rows: list[int]) -> None:
        self._rows = rows
        self.inline = True

    def wall_clock(self) -> int:
        return 0

    def stopwatch(self) -> float:
        return 0

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:
        return {}

    def keep_alive(self) -> None: ...

    def attend(self, calls: Calls) -> None: ...

    def wait(self, seconds: float, step: str, error: Exception) -> None: ...

    def failed(self, action: Action, batch: Batch[Any, Any], row: int, step: str, error: Exception) -> None:
        self._rows.append(row)


def batch_of(column: list[Any]) -> Batch[Any, Any]:
    nothing = [None] * len(column)
    return Batch(FetchedLists("t", 0, nothing, nothing, [0] * len(column), range(len(column))), column)


class Wrapped(msgspec.Struct):
    number: int
    part: msgspec.Raw
    other: float | None = None


def test_json_with_parts_that_are_json_already():
    # The bytes of this number look like those of an infinite float in a first, quick check.
    number = 0x00CB7FF000000001
    (payload,) = Json(Wrapped).serialize([Wrapped(number, msgspec.Raw(b'{"a":null}'))])
    assert msgspec.json.decode(payload) == {"number": number, "part": {"a": None}, "other": None}
    with pytest.raises(ValueError, match=r"cannot represent inf at \.other"):
        list(Json(Wrapped).serialize([Wrapped(1, msgspec.Raw(b"null"), float("inf"))]))
