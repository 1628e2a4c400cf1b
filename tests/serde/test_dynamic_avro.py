"""Records of tables whose schemas are only known at run time."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from streams.errors import SchemaRefused
from streams.schema_registry import ConfluentRegistry
from streams.serde import Avro
from streams.serde.dynamic_avro import Column, DynamicAvro, FolderSchemas, table_schema
from streams.serde.schemas.avro_names import NameCollision, avro_name, avro_names, original_name
from streams.serde.subjects import Subjects

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ID = Column("id", "long", nullable=False)


@pytest.fixture
def client(registry) -> Iterator[ConfluentRegistry]:
    client = ConfluentRegistry(registry.url)
    yield client
    client.close()


@pytest.fixture
def folder(tmp_path: Path) -> DynamicAvro:
    return DynamicAvro(FolderSchemas(tmp_path))


def decimal(precision: int, scale: int) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}


def written(avro: DynamicAvro, topic: str, columns: Sequence[Column], *rows: dict[str, Any]) -> list[bytes]:
    return list(avro.serialize(topic, "value", table_schema(["shop", "public", "orders"], columns), rows))


def test_a_changed_table_becomes_a_new_version_and_earlier_records_keep_their_schema(client):
    topic = f"orders-{uuid.uuid4().hex[:8]}"
    avro = DynamicAvro(Subjects(client))
    first = [ID, Column("n", decimal(10, 2)), Column("k", "int"), Column("mood", "string")]
    second = [ID, Column("n", decimal(12, 4)), Column("k", "long"), Column("mood", "string")]
    payloads = written(avro, topic, first, {"id": 1, "n": Decimal("1.10"), "k": 1, "mood": "ok"})
    payloads += written(
        avro, topic, second, {"id": 2, "n": Decimal("1.2345"), "k": 3_000_000_000, "mood": "new"}
    )
    assert client.versions(f"{topic}-value") == [1, 2]
    read = list(DynamicAvro(Subjects(client)).deserialize(payloads))
    assert [(row["n"], row["k"], row["mood"]) for row in read] == [
        (Decimal("1.10"), 1, "ok"),
        (Decimal("1.2345"), 3_000_000_000, "new"),
    ]


def test_where_the_registry_refuses_a_change_the_error_names_the_column(client):
    topic = f"orders-{uuid.uuid4().hex[:8]}"
    avro = DynamicAvro(Subjects(client))
    written(avro, topic, [ID, Column("n", "string", nullable=False)], {"id": 1, "n": "1"})
    with pytest.raises(SchemaRefused, match="field 'n': was string, is long"):
        written(avro, topic, [ID, Column("n", "long", nullable=False)], {"id": 1, "n": 1})
    assert client.versions(f"{topic}-value") == [1]


def test_null_in_a_column_with_a_default_stays_null(folder, tmp_path):
    columns = [ID, Column("v", "string", default="dflt"), Column("n", "int", default=7)]
    payloads = written(folder, "d", columns, {"id": 1, "v": None, "n": None}, {"id": 2})
    expected = [{"id": 1, "v": None, "n": None}, {"id": 2, "v": "dflt", "n": 7}]
    assert list(folder.deserialize(payloads)) == expected
    (path,) = tmp_path.glob("*.avsc")
    assert list(Avro(path).deserialize(payloads)) == expected


def test_the_default_applies_where_the_field_is_missing(folder, tmp_path):
    payloads = written(folder, "d", [ID], {"id": 1})
    written(folder, "d", [ID, Column("v", "string", default="dflt")], {"id": 2, "v": None})
    newer = next(path for path in tmp_path.glob("*.avsc") if "dflt" in path.read_text())
    assert list(Avro(newer).deserialize(payloads)) == [{"id": 1, "v": "dflt"}]


def test_columns_of_any_name_arrive_under_their_names(client):
    names = ["select", "a-b", "a_b", "1st", "Übung", 'x"y', "a_u002db", "😀"]
    avro = DynamicAvro(Subjects(client))
    row = {name: f"value of {name}" for name in names}
    topic = f"items-{uuid.uuid4().hex[:8]}"
    schema = table_schema(["shop", "Order Items"], [Column(name, "string") for name in names])
    payloads = list(avro.serialize(topic, "value", schema, [row]))
    assert list(DynamicAvro(Subjects(client)).deserialize(payloads)) == [row]


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_are_encoded_reversibly_and_differ_where_they_differ(name, other):
    encoded = avro_name(name)
    assert encoded.isascii()
    assert encoded.isidentifier()
    assert original_name(encoded) == name
    assert (avro_name(other) == encoded) == (other == name)


@given(st.from_regex(r"[_u0-9a-f\-]{1,12}", fullmatch=True))
def test_names_that_look_like_encoded_ones_are_encoded_reversibly(name):
    assert original_name(avro_name(name)) == name


def test_ordinary_names_stay_as_they_are():
    assert avro_names(["order_id", "_x", "A9"], "columns") == {"order_id": "order_id", "_x": "_x", "A9": "A9"}


def test_a_column_that_occurs_twice_is_refused_with_both_names():
    with pytest.raises(NameCollision, match="columns 'a-b' and 'a-b'"):
        table_schema(["t"], [Column("a-b", "int"), Column("a-b", "int")])


def test_a_row_that_does_not_fit_fails_alone(folder):
    schema = table_schema(["t"], [ID])
    results = folder.serialize("t", "value", schema, [{"id": 1}, {"id": "x"}])
    assert next(results)
    with pytest.raises((TypeError, ValueError)):
        next(results)


def test_an_invalid_schema_is_refused(folder):
    with pytest.raises(SchemaRefused, match="'t': the value's schema is not valid"):
        folder.serialize(
            "t", "value", {"type": "record", "name": "T", "fields": [{"name": "x", "type": "nope"}]}, [{}]
        )
