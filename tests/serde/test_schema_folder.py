"""Folders of Avro schemas: payloads stay readable when the schema of a program changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from streams.errors import ConfigurationError
from streams.serde import Avro, avro_decoder
from tests.support.avro_schemas import NOTE, NUMBER, Order, orders, write_schema

if TYPE_CHECKING:
    from pathlib import Path


def round_trip(serde: Any, values: list[Any]) -> list[Any]:
    return list(serde.deserialize(list(serde.serialize(values))))


def test_records_of_an_older_schema_in_the_folder_stay_readable(tmp_path):
    old = write_schema(tmp_path, "shop.Order.1.avsc", [NUMBER])
    payloads = list(Avro(old).serialize([{"number": 5}]))
    new = write_schema(tmp_path, "shop.Order.avsc", [NUMBER, NOTE])
    assert list(Avro(new, Order).deserialize(payloads)) == [Order(5)]


def test_a_schema_that_is_missing_or_broken_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Avro(tmp_path / "none.avsc")
    broken = tmp_path / "broken.avsc"
    broken.write_text("{")
    with pytest.raises(ConfigurationError, match="is not a valid Avro schema"):
        Avro(broken)


@given(values=st.lists(orders), mixed=st.lists(st.booleans()))
def test_old_and_new_payloads_may_be_mixed_in_one_column(evolved, values, mixed):
    old, new = (Avro(evolved / name) for name in ("shop.Order.1.avsc", "shop.Order.avsc"))
    written: list[bytes] = []
    expected: list[Order] = []
    for value, is_old in zip(values, [*mixed, *[False] * len(values)], strict=False):
        record = msgspec.structs.asdict(value)
        written += (old if is_old else new).serialize([record])
        expected.append(Order(value.number) if is_old else value)
    assert list(Avro(evolved / "shop.Order.avsc", Order).deserialize(written)) == expected


@pytest.fixture(scope="module")
def evolved(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("evolved")
    write_schema(folder, "shop.Order.1.avsc", [NUMBER])
    write_schema(folder, "shop.Order.avsc", [NUMBER, NOTE])
    return folder


def test_a_program_with_the_older_schema_reads_what_a_newer_one_wrote(evolved):
    payloads = Avro(evolved / "shop.Order.avsc").serialize([{"number": 5, "note": "hello"}])
    assert list(Avro(evolved / "shop.Order.1.avsc").deserialize(list(payloads))) == [{"number": 5}]


@pytest.mark.parametrize(
    "change",
    [
        {"doc": "What a customer ordered."},
        {"fields": [NUMBER, {**NOTE, "doc": "Free text."}]},
        {"fields": [NUMBER, {"name": "note", "type": ["null", "string"]}]},
        {"aliases": ["shop.Purchase"]},
    ],
)
def test_a_file_that_differs_only_in_what_payloads_do_not_show_may_stand_beside_the_old_one(tmp_path, change):
    # Both have the same id, and what was written with either can be read with either.
    old = write_schema(tmp_path, "shop.Order.1.avsc", [NUMBER, NOTE])
    new = tmp_path / "shop.Order.avsc"
    new.write_text(json.dumps({**json.loads(old.read_text()), **change}))
    record = {"number": 1, "note": "x"}
    assert list(Avro(new).deserialize(list(Avro(old).serialize([record])))) == [record]


def test_two_schemas_of_one_folder_do_not_disturb_each_other(tmp_path):
    order = write_schema(tmp_path, "shop.Order.avsc", [NUMBER])
    item = tmp_path / "shop.Item.avsc"
    item.write_text(
        json.dumps({"type": "record", "name": "shop.Item", "fields": [{"name": "label", "type": "string"}]})
    )
    assert round_trip(Avro(order), [{"number": 1}]) == [{"number": 1}]
    assert round_trip(Avro(item), [{"label": "x"}]) == [{"label": "x"}]
    with pytest.raises(Exception, match=r"shop\.Order"):
        list(Avro(item).deserialize(list(Avro(order).serialize([{"number": 1}]))))


def test_an_avro_schema_has_what_a_reader_looks_at_and_no_more(tmp_path):
    stamp = {"type": "long", "logicalType": "timestamp-millis", "note": "of the order"}
    at = {"name": "at", "type": stamp, "doc": "When.", "order": "ignore", "aliases": ["time"]}
    path = write_schema(tmp_path, "shop.Order.avsc", [{"name": "number", "type": {"type": "long"}}, NOTE, at])
    described = {"type": "long", "logicalType": "timestamp-millis"}
    assert Avro(path).schema == {
        "avro": {
            "type": "record",
            "name": "shop.Order",
            "fields": [NUMBER, NOTE, {"name": "at", "type": described, "aliases": ["time"]}],
        }
    }


def test_a_serde_reads_what_was_written_with_a_schema_that_it_learned(tmp_path):
    old = Avro(write_schema(tmp_path, "shop.Order.avsc", [NUMBER]))
    (payload,) = old.serialize([{"number": 5}])
    new = Avro(write_schema(tmp_path, "shop.Order.avsc", [NUMBER, NOTE]), Order)
    with pytest.raises(LookupError, match="no schema with id"):
        list(new.deserialize([payload]))
    new.learn([old.schema["avro"]])
    assert list(new.deserialize([payload])) == [Order(5)]


def test_payloads_are_decoded_as_they_were_written(tmp_path):
    old = Avro(write_schema(tmp_path, "shop.Order.1.avsc", [NUMBER]))
    new = Avro(write_schema(tmp_path, "shop.Order.avsc", [NUMBER, NOTE]))
    decode = avro_decoder([old.schema["avro"], new.schema["avro"]])
    payloads = [*old.serialize([{"number": 5}]), *new.serialize([{"number": 6, "note": "x"}])]
    assert list(map(decode, payloads)) == [{"number": 5}, {"number": 6, "note": "x"}]
    with pytest.raises(LookupError, match="no schema with id"):
        avro_decoder([])(payloads[0])
    with pytest.raises(ValueError, match="1 bytes are left"):
        decode(payloads[0] + b"x")
