"""Debezium with MongoDB: its connector is real, the server is a stand-in for the protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from streams.connectors.debezium import Debezium, jvm
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable
from tests.support.captured import Captured
from tests.support.mongodb import StandInMongoDB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROPERTIES = {"mongodb.connection.string": "mongodb://db1/?replicaSet=rs0", "mongodb.password": "secret"}
OID = '{"$oid": "65f0a1b2c3d4e5f60718293a"}'


@pytest.fixture(scope="module", autouse=True)
def java() -> None:
    jvm.start()


@pytest.fixture
def server() -> Iterator[StandInMongoDB]:
    with StandInMongoDB() as started:
        started.create("shop.orders")
        yield started


@pytest.fixture
def make(server: StandInMongoDB) -> Callable[..., Debezium]:
    def source(*collections: str, snapshot: str = "", **properties: object) -> Debezium:
        given = {name.replace("_", "."): value for name, value in properties.items()}
        given = {**server.properties(), "heartbeat.interval.ms": 300, **given}
        return Debezium.mongodb(given, collections or ["shop.orders"], snapshot=snapshot)

    return source


@pytest.fixture
def capture(make: Callable[..., Debezium]) -> Iterator[Callable[..., Captured]]:
    opened = []

    def begin(*collections: str, **options: Any) -> Captured:
        captured = Captured(make(*collections, **options))
        opened.append(captured)
        return captured

    yield begin
    for captured in opened:
        captured.close()


def documents(captured: Captured, name: str = "orders") -> dict[str, Any]:
    """The collection that results from the changes, by the keys' JSON."""
    found: dict[str, Any] = {}
    for change, key in zip(captured.changes, captured.keys_seen, strict=True):
        if change.source.table == name:
            if change.op == "d":
                found.pop(json.dumps(key["_id"]), None)
            else:
                found[json.dumps(key["_id"])] = change.after
    return found


def refusal(captured: Captured) -> str:
    with pytest.raises(ConnectorError) as caught:
        captured.until(lambda: False, deadline=30)
    return str(caught.value)


def test_a_snapshot_and_each_change_after_it(server, capture):
    server.put("shop.orders", f'{{"_id": {OID}, "v": "a"}}')
    server.put("shop.orders", '{"_id": 2, "v": "b"}')
    captured = capture()
    captured.streaming()
    assert captured.operations("orders") == ["r", "r"]
    server.put("shop.orders", '{"_id": 3, "v": "c"}')
    server.put("shop.orders", '{"_id": 2, "v": "bb", "more": {"x": [1, 2.5, null]}}')
    server.delete("shop.orders", OID)
    captured.count(5)
    assert captured.operations("orders") == ["r", "r", "c", "u", "d"]
    assert captured.keys_seen[-1] == {"_id": json.loads(OID)}
    assert captured.changes[-1].before == {"_id": json.loads(OID)}
    assert captured.changes[-1].after is None
    assert captured.changes[-2].after == {"_id": 2, "v": "bb", "more": {"x": [1, 2.5, None]}}
    source = captured.changes[-1].source
    assert (source.connector, source.db, source.schema, source.table) == ("mongodb", "shop", None, "orders")
    assert source.ts_ms == 1_800_000_005_000
    assert set(documents(captured)) == {"2", "3"}
    assert captured.source.change_topics("p") == ["p.shop.orders"]


def test_a_collection_without_documents_has_a_complete_snapshot(server, capture):
    captured = capture()
    captured.streaming()
    server.put("shop.orders", '{"_id": 1}')
    captured.count(1)
    assert captured.operations("orders") == ["c"]


def test_each_change_is_captured_once_wherever_the_reader_is_killed(server, capture):
    captured = capture(max_batch_size=3, max_queue_size=4)
    captured.streaming()
    for number in range(30):
        server.put("shop.orders", json.dumps({"_id": number}))
    for number in range(0, 30, 3):
        server.delete("shop.orders", str(number))
    for kept in range(4):
        for _ in range(3):
            if (read := captured.read()) is not None:
                captured.commit(read, confirm=kept % 2 == 0)
        captured.read()
        captured.kill()
    captured.until(lambda: len(captured.changes) >= 40)
    assert captured.operations("orders") == ["c"] * 30 + ["d"] * 10
    assert set(documents(captured)) == {str(number) for number in range(30) if number % 3}


def test_a_snapshot_that_is_killed_begins_again_and_leaves_no_ghosts(server, capture):
    for number in range(300):
        server.put("shop.orders", json.dumps({"_id": number, "v": "old"}))
    captured = capture(max_batch_size=50, max_queue_size=100)
    captured.until(lambda: len(captured.changes) >= 100)
    captured.kill()
    server.delete("shop.orders", "7")
    server.put("shop.orders", '{"_id": 8, "v": "new"}')
    captured.streaming()
    captured.until(lambda: captured.sweep() is None and len(documents(captured)) == 299)
    assert "7" not in documents(captured)
    assert documents(captured)["8"]["v"] == "new"


def test_what_changes_while_a_snapshot_is_read_follows_it(server, capture):
    server.put("shop.orders", '{"_id": 1, "v": "a"}')
    server.put("shop.orders", '{"_id": 2, "v": "b"}')

    def change() -> None:
        server.delete("shop.orders", "1")
        server.put("shop.orders", '{"_id": 3, "v": "c"}')

    server.when_read(change)
    captured = capture()
    captured.streaming()
    captured.until(lambda: len(captured.changes) >= 4)
    assert captured.operations("orders") == ["r", "r", "d", "c"]
    assert set(documents(captured)) == {"2", "3"}


VALUES = {
    "int": ("5", 5),
    "long": ('{"$numberLong": "9007199254740993"}', 9007199254740993),
    "double": ("1.5", 1.5),
    "nan": ('{"$numberDouble": "NaN"}', {"$numberDouble": "NaN"}),
    "infinite": ('{"$numberDouble": "-Infinity"}', {"$numberDouble": "-Infinity"}),
    "decimal": ('{"$numberDecimal": "1.10"}', {"$numberDecimal": "1.10"}),
    "date": ('{"$date": "2026-11-30T01:02:03.012Z"}', {"$date": "2026-11-30T01:02:03.012Z"}),
    "half": ('{"$date": "2026-11-30T01:02:03.5Z"}', {"$date": "2026-11-30T01:02:03.5Z"}),
    "second": ('{"$date": "2026-11-30T01:02:03Z"}', {"$date": "2026-11-30T01:02:03Z"}),
    "old": ('{"$date": {"$numberLong": "-1"}}', {"$date": {"$numberLong": "-1"}}),
    "uuid": (
        '{"$binary": {"base64": "AAECAwQFBgcICQoLDA0ODw==", "subType": "04"}}',
        {"$binary": {"base64": "AAECAwQFBgcICQoLDA0ODw==", "subType": "04"}},
    ),
    "pattern": (
        '{"$regularExpression": {"pattern": "^a", "options": "i"}}',
        {"$regularExpression": {"pattern": "^a", "options": "i"}},
    ),
    "time": ('{"$timestamp": {"t": 5, "i": 6}}', {"$timestamp": {"t": 5, "i": 6}}),
    "reference": (OID, json.loads(OID)),
    "text": ('"ü€😀 NaN \\"$date\\""', 'ü€😀 NaN "$date"'),
    "java": ('["[Ljava.lang.String;@1b2c"]', ["[Ljava.lang.String;@1b2c"]),
    "nothing": ("null", None),
    "yes": ("true", True),
    "within": ('[{"a": {"$numberLong": "1"}}, []]', [{"a": 1}, []]),
}


def test_documents_are_in_the_relaxed_form_of_extended_json_from_stream_and_snapshot(server, make, capture):
    fields = ", ".join(f'"{name}": {value}' for name, (value, _) in VALUES.items())
    expected = {name: value for name, (_, value) in VALUES.items()}
    captured = capture()
    captured.streaming()
    server.put("shop.orders", f'{{"_id": 1, {fields}}}')
    captured.count(1)
    assert captured.changes[0].after == {"_id": 1, **expected}
    again = capture(snapshot="again")
    again.count(1)
    assert again.changes[0].after == {"_id": 1, **expected}


@pytest.mark.parametrize(
    "kind", ["int", "long", "double", "decimal", "date", "half", "second", "old", "uuid", "reference", "text"]
)
def test_a_key_has_the_form_that_it_has_in_the_document(server, capture, kind):
    value, expected = VALUES[kind]
    server.put("shop.orders", f'{{"_id": {value}}}')
    captured = capture()
    captured.count(1)
    assert captured.keys_seen == [{"_id": expected}]
    assert captured.changes[0].after == {"_id": expected}


def test_an_update_of_a_document_that_was_deleted_meanwhile_is_left_out(server, capture):
    captured = capture()
    captured.streaming()
    server.put("shop.orders", '{"_id": 1}')
    server.put("shop.orders", '{"_id": 1, "v": 2}', kept=False)
    server.put("shop.orders", '{"_id": 2}')
    server.delete("shop.orders", "1")
    captured.count(3)
    assert captured.operations("orders") == ["c", "c", "d"]


def test_documents_that_the_server_should_have_kept_must_not_be_missing(server, capture):
    captured = capture(capture_mode_full_update_type="post_image")
    captured.streaming()
    server.put("shop.orders", '{"_id": 1}')
    server.put("shop.orders", '{"_id": 1, "v": 2}', kept=False)
    assert "has not kept the document of an update in shop.orders" in refusal(captured)


def test_documents_before_a_change_if_the_server_keeps_them(server, capture):
    captured = capture(capture_mode="change_streams_update_full_with_pre_image")
    captured.streaming()
    server.put("shop.orders", '{"_id": 1, "v": null}')
    server.put("shop.orders", '{"_id": 1, "v": 2}', fullDocumentBeforeChange={"_id": 1, "v": None})
    server.delete("shop.orders", "1", before=True)
    captured.count(3)
    assert [change.before for change in captured.changes] == [None, {"_id": 1, "v": None}, {"_id": 1, "v": 2}]


def test_a_collection_whose_name_has_other_capitals_is_another_one(server, capture):
    server.create("shop.Orders")
    server.put("shop.Orders", '{"_id": 1}')
    server.put("shop.orders", '{"_id": 2}')
    captured = capture()
    captured.streaming()
    server.put("shop.Orders", '{"_id": 3}')
    server.put("shop.orders", '{"_id": 4}')
    captured.count(2)
    assert [change.after for change in captured.changes] == [{"_id": 2}, {"_id": 4}]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_collection_that_is_dropped_ends_the_source_and_a_new_snapshot_continues(
    server, make, capture, stopped
):
    server.put("shop.orders", '{"_id": 1}')
    captured = capture()
    captured.streaming()
    if stopped:
        captured.kill()
    server.drop("shop.orders")
    server.create("shop.orders")
    server.put("shop.orders", '{"_id": 2}')
    message = refusal(captured)
    assert "the collection shop.orders was dropped or renamed, and created again" in message
    assert "give the source src another snapshot= than ''" in message
    captured.kill()
    captured.use(make(snapshot="again"))
    captured.until(lambda: captured.sweep() is None and set(documents(captured)) == {"2"})


def test_a_collection_that_does_not_exist_is_refused(capture):
    assert "there is no collection shop.missing" in refusal(capture("shop.orders", "shop.missing"))


def test_a_position_that_the_server_has_no_longer_ends_the_source(server, make, capture):
    captured = capture()
    captured.streaming()
    captured.kill()
    server.put("shop.orders", '{"_id": 1}')
    server.forget()
    assert "give the source src another snapshot=" in refusal(captured)
    captured.kill()
    captured.use(make(snapshot="again"))
    captured.until(lambda: set(documents(captured)) == {"1"})


def test_a_change_that_is_too_large_ends_the_source_with_what_to_do(server, capture):
    captured = capture()
    captured.streaming()
    server.exceed()
    message = refusal(captured)
    assert "a change is too large" in message
    assert "cursor.oversize.handling.mode=split" in message


def test_a_server_that_is_gone_is_unavailable(server, make, capture):
    source = make()
    source.check("captured", "src")
    captured = capture()
    captured.streaming()
    assert captured.open().health().problem == ""
    server.close()
    with pytest.raises(SourceUnavailable):
        captured.until(lambda: False, deadline=60)
    captured.kill()
    with pytest.raises(SourceUnavailable):
        captured.read()
    with pytest.raises(SourceUnavailable, match="mongodb does not answer"):
        source.check("captured", "src")


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        *(
            ({name: "x"}, f"the properties {name} are set by the source")
            for name in (
                *("snapshot.mode", "collection.include.list", "offset.storage", "filters.match.mode"),
                *("json.serialization.mode", "cursor.pipeline", "capture.start.op.time"),
                *("cursor.oversize.skip.threshold", "database.include.list"),
            )
        ),
        (
            {"capture.mode": "change_streams"},
            "with capture.mode=change_streams, changes would lack documents",
        ),
        ({"capture.mode": "change_streams_with_pre_image"}, "changes would lack documents"),
        ({"cursor.oversize.handling.mode": "skip"}, "changes would lack documents"),
        ({"capture.scope": "database", "capture.target": "crm"}, "only changes of the latter arrive"),
        ({"capture.scope": "database"}, "only changes of the latter arrive"),
        ({"capture.scope": "collection", "capture.target": "shop"}, "only changes of the latter arrive"),
    ],
)
def test_a_property_with_which_something_would_be_lost_is_refused(properties, message):
    with pytest.raises(ConfigurationError, match=message):
        Debezium.mongodb({**PROPERTIES, **properties}, ["shop.orders"])


def test_properties_that_lose_nothing_are_taken():
    allowed = {
        "capture.mode": "change_streams_update_full_with_pre_image",
        "capture.mode.full.update.type": "post_image",
        "cursor.oversize.handling.mode": "split",
        "capture.scope": "database",
        "capture.target": "shop",
    }
    Debezium.mongodb({**PROPERTIES, **allowed}, ["shop.orders", "shop.lines.archive"])


@pytest.mark.parametrize(
    ("name", "said"), [("orders", "need the name of what they"), ("shop.a,b", "a comma")]
)
def test_names_that_cannot_be_captured_are_refused(name, said):
    with pytest.raises(ConfigurationError, match=said):
        Debezium.mongodb(PROPERTIES, [name])


def test_the_description_has_no_secrets():
    text = "mongodb://sync:hidden@db1/?replicaSet=rs0"
    source = Debezium.mongodb({**PROPERTIES, "mongodb.connection.string": text}, ["shop.orders"])
    assert repr(source) == "Debezium.mongodb(…, tables=[shop.orders])"


def test_changes_of_a_transaction_say_so_if_asked(server, capture):
    captured = capture(provide_transaction_metadata=True)
    captured.streaming()
    session = {"id": {"$uuid": "00010203-0405-0607-0809-0a0b0c0d0e0f"}}
    for number in (1, 2):
        server.put("shop.orders", f'{{"_id": {number}}}', lsid=session, txnNumber={"$numberLong": "7"})
    server.put("shop.orders", '{"_id": 3}')
    captured.count(3)
    blocks = [change.transaction for change in captured.changes]
    assert [block and block.total_order for block in blocks] == [1, 2, None]
    assert blocks[0].id == blocks[1].id
    captured.kill()
    server.delete("shop.orders", "2")
    captured.count(4)
    assert captured.operations("orders") == ["c", "c", "c", "d"]
