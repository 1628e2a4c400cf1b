"""Avro records with the ids of a real schema registry."""

from __future__ import annotations

import json
import ssl
import uuid
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from streams.errors import (
    ConfigurationError,
    RegistryUnavailable,
    SchemaRefused,
    SchemaRegistryError,
)
from streams.schema_registry import ConfluentRegistry
from streams.serde import Avro
from streams.serde.registry import Reference
from streams.serde.subjects import Subjects
from tests.support.avro_schemas import NOTE, NUMBER, Order, write_schema
from tests.support.registry_gate import RegistryGate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.devstack.registry import LocalRegistry

REQUIRED = {"name": "place", "type": "string"}


@pytest.fixture(scope="module")
def client(registry: LocalRegistry) -> Iterator[ConfluentRegistry]:
    client = ConfluentRegistry(registry.url)
    yield client
    client.close()


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid.uuid4().hex[:8]}"


def written(serde: Avro[Any], values: list[Any]) -> list[bytes]:
    return list(serde.serialize(values))


def test_records_have_the_registrys_id_and_are_read_by_another_program(client, topic, tmp_path):
    path = write_schema(tmp_path, "shop.Order.avsc", [NUMBER, NOTE])
    serde = Avro(path, Order).connected(Subjects(client), "value").for_topic(topic)
    (payload,) = written(serde, [Order(5, "ä")])
    found = client.version(f"{topic}-value", 1)
    assert payload[:5] == b"\0" + found.identifier.to_bytes(4, "big")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    reader = Avro(write_schema(elsewhere, "shop.Order.avsc", [NUMBER])).connected(Subjects(client), "value")
    assert list(reader.deserialize([payload])) == [{"number": 5}]


def test_records_written_before_there_was_a_registry_stay_readable(client, topic, tmp_path):
    old = written(Avro(write_schema(tmp_path, "shop.Order.1.avsc", [NUMBER])), [{"number": 1}])
    plain = Avro(write_schema(tmp_path, "shop.Order.avsc", [NUMBER, NOTE]), Order)
    serde = plain.connected(Subjects(client), "value").for_topic(topic)
    mixed = [*old, *written(serde, [Order(2)]), *written(plain, [Order(3)])]
    assert list(serde.deserialize(mixed)) == [Order(1), Order(2), Order(3)]


@pytest.mark.parametrize(
    ("strategy", "subject"),
    [("topic", "{topic}-key"), ("record", "shop.Order"), ("topic-record", "{topic}-shop.Order")],
)
def test_the_subject_is_named_by_the_strategy(client, topic, tmp_path, strategy, subject):
    path = write_schema(tmp_path, "shop.Order.avsc", [NUMBER])
    serde = Avro(path).connected(Subjects(client, strategy=strategy), "key").for_topic(topic)
    written(serde, [{"number": 1}])
    assert client.versions(subject.format(topic=topic))


def test_an_incompatible_schema_is_refused_and_the_error_names_the_field(client, topic, tmp_path):
    first = Avro(write_schema(tmp_path, "shop.Order.1.avsc", [NUMBER]))
    written(first.connected(Subjects(client), "value").for_topic(topic), [{"number": 1}])
    changed = Avro(write_schema(tmp_path, "shop.Order.avsc", [NUMBER, REQUIRED]))
    serde = changed.connected(Subjects(client), "value").for_topic(topic)
    with pytest.raises(SchemaRefused) as caught:
        written(serde, [{"number": 1, "place": "x"}])
    assert f"'{topic}-value' is not compatible (BACKWARD)" in caught.value.message
    assert "field 'place': is new and has no default (version 1)" in caught.value.message
    assert "give new fields a default" in (caught.value.hint or "")
    assert client.versions(f"{topic}-value") == [1]


@pytest.mark.parametrize(
    ("level", "old", "new", "refused"),
    [
        ("BACKWARD", [NUMBER], [NUMBER, NOTE], ""),
        ("BACKWARD", [NUMBER, NOTE], [NUMBER], ""),
        ("FORWARD", [NUMBER], [NUMBER, REQUIRED], ""),
        ("FORWARD", [NUMBER, REQUIRED], [NUMBER], "'place'"),
        ("FULL", [NUMBER], [NUMBER, NOTE], ""),
        ("FULL", [NUMBER], [NUMBER, REQUIRED], "'place'"),
        ("NONE", [NUMBER], [REQUIRED], ""),
        ("BACKWARD_TRANSITIVE", [NUMBER], [{**NUMBER, "type": "string"}], "'number'"),
    ],
)
def test_a_level_of_the_app_is_checked_before_the_registrys(
    client, topic, tmp_path, level, old, new, refused
):
    no_check = Subjects(client)
    write = Avro(write_schema(tmp_path, "shop.Order.1.avsc", old)).connected(no_check, "value")
    client.register(write.subject(topic), write.written.source)
    serde = Avro(write_schema(tmp_path, "shop.Order.avsc", new)).connected(
        Subjects(client, level=level), "value"
    )
    subjects = Subjects(client, level=level)
    found = subjects.differences(serde.subject(topic), serde.written, level)
    assert (refused in " ".join(found)) if refused else not found


def test_a_transitive_level_compares_with_all_versions(client, topic, tmp_path):
    subject = f"{topic}-value"
    later = {**NOTE, "type": "string", "default": ""}
    histories: list[list[dict[str, Any]]] = [[NUMBER], [NUMBER, later]]
    for fields in histories:
        client.register(subject, json.loads(write_schema(tmp_path, "v.avsc", fields).read_text()))
    subjects = Subjects(client)
    new = Avro(write_schema(tmp_path, "v.avsc", [NUMBER, {"name": "note", "type": "string"}])).written
    assert subjects.differences(subject, new, "BACKWARD") == []
    (difference,) = subjects.differences(subject, new, "BACKWARD_TRANSITIVE")
    assert "field 'note': is new and has no default (version 1)" in difference


def test_a_schema_that_must_be_registered_already_is_refused_with_the_command(client, topic, tmp_path):
    path = write_schema(tmp_path, "shop.Order.avsc", [NUMBER])
    serde = Avro(path).connected(Subjects(client, register=False), "value").for_topic(topic)
    with pytest.raises(SchemaRefused, match="streams schemas register"):
        written(serde, [{"number": 1}])
    assert client.versions(f"{topic}-value") == []


def test_types_of_other_files_become_references(client, topic, tmp_path):
    address = {"type": "record", "name": "shop.Address", "fields": [{"name": "street", "type": "string"}]}
    (tmp_path / "shop.Address.avsc").write_text(json.dumps(address))
    fields: list[dict[str, Any]] = [
        {"name": "to", "type": "Address"},
        {"name": "billing", "type": ["null", "shop.Address"]},
    ]
    path = write_schema(tmp_path, "shop.Order.avsc", fields)
    serde = Avro(path).connected(Subjects(client), "value").for_topic(topic)
    value = {"to": {"street": "A"}, "billing": None}
    (payload,) = written(serde, [value])
    registered = client.version(f"{topic}-value", 1)
    assert registered.references == (Reference("shop.Address", "shop.Address", 1),)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    reader = Avro(write_schema(elsewhere, "shop.Order.avsc", [{"name": "to", "type": address}]))
    read = reader.connected(Subjects(client), "value").deserialize([payload])
    assert list(read) == [{"to": {"street": "A"}}]


def test_an_id_that_nobody_knows_is_an_error_of_its_record_alone(client, topic, tmp_path):
    path = write_schema(tmp_path, "shop.Order.avsc", [NUMBER])
    serde = Avro(path).connected(Subjects(client), "value").for_topic(topic)
    (good,) = written(serde, [{"number": 1}])
    unknown = b"\0" + (2**30).to_bytes(4, "big") + good[5:]
    results = serde.deserialize([good, unknown, good])
    assert next(results) == {"number": 1}
    with pytest.raises(LookupError, match="has no schema with id 1073741824, and no file"):
        next(results)


def test_a_registry_that_does_not_answer_is_not_the_records_error(tmp_path):
    path = write_schema(tmp_path, "shop.Order.avsc", [NUMBER])
    away = ConfluentRegistry("http://127.0.0.1:1", {"timeout": 1})
    serde = Avro(path).connected(Subjects(away), "value").for_topic("orders")
    with pytest.raises(RegistryUnavailable, match="did not answer"):
        written(serde, [{"number": 1}])
    with pytest.raises(RegistryUnavailable, match="did not answer"):
        list(serde.deserialize([b"\0\0\0\0\7\2"]))


def test_the_error_of_a_registry_shows_no_credentials(tmp_path):
    away = ConfluentRegistry("http://127.0.0.1:1", {"timeout": 1, "basic.auth.user.info": "reader:hush-hush"})
    with pytest.raises(RegistryUnavailable) as caught:
        away.versions("orders-value")
    assert "hush" not in str(caught.value)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def served_by(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_a_registry_with_tls_and_credentials_is_used(registry, authority, tmp_path):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings = {"ssl.ca.location": str(tmp_path / "ca.pem"), "basic.auth.user.info": "reader:hush-hush"}
    gate = RegistryGate(registry.url, credentials="reader:hush-hush", tls=served_by(authority))
    with gate.open(), closing(ConfluentRegistry(gate.url, settings)) as client:
        assert client.versions("no-such-subject") == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"basic.auth.user.info": "reader:wrong-one"}, "ssl.ca.location"),
        ({"basic.auth.user.info": "reader:wrong-one", "ssl.ca.location": "ca.pem"}, "credentials"),
    ],
)
def test_wrong_tls_or_credentials_are_errors_with_advice(
    registry, authority, tmp_path, monkeypatch, settings, says
):
    monkeypatch.chdir(tmp_path)
    authority.cert_pem.write_to_path("ca.pem")
    gate = RegistryGate(registry.url, credentials="reader:hush-hush", tls=served_by(authority))
    with gate.open(), closing(ConfluentRegistry(gate.url, settings)) as client:
        with pytest.raises(SchemaRegistryError) as caught:
            client.versions("no-such-subject")
        assert says in (caught.value.hint or "")
        assert "wrong-one" not in str(caught.value)


def test_a_web_server_that_is_no_registry_is_not_the_records_error(registry):
    gate = RegistryGate(registry.url)
    gate.nonsense = True
    with gate.open(), closing(ConfluentRegistry(gate.url)) as client:
        for request in (lambda: client.schema(1), lambda: client.versions("orders-value")):
            with pytest.raises(SchemaRegistryError, match="unexpected answer"):
                request()


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("localhost", {}),
        ("http://localhost", {"no.such.setting": 1}),
        ("http://localhost", {"ssl.ca.location": "none.pem"}),
        ("http://localhost", {"basic.auth.user.info": "no-colon"}),
    ],
)
def test_settings_that_the_client_does_not_accept_are_refused_at_once(url, settings):
    with pytest.raises(ConfigurationError, match="the client of the schema registry"):
        ConfluentRegistry(url, settings)


def test_records_of_a_column_whose_scale_changed_keep_their_own_numbers(client, topic, tmp_path):
    def decimal(precision: int, scale: int) -> dict[str, Any]:
        kind = {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}
        return {"name": "number", "type": kind}

    subjects = Subjects(client)
    payloads = []
    for name, field in (("shop.Order.1", decimal(10, 2)), ("shop.Order", decimal(12, 4))):
        serde = Avro(write_schema(tmp_path, f"{name}.avsc", [field])).connected(subjects, "value")
        payloads += written(serde.for_topic(topic), [{"number": Decimal("1.10")}])
    assert [str(value["number"]) for value in serde.deserialize(payloads)] == ["1.10", "1.1000"]
    assert subjects.differences(serde.subject(topic), serde.written, "BACKWARD_TRANSITIVE") == []
