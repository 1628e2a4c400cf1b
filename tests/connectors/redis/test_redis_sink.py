"""``RedisSink`` on a real server: what is written, what is refused, and what failures leave."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams.connectors.change import Change, ChangeSource
from streams.connectors.redis import RedisSink
from streams.durations import days
from streams.errors import (
    ConfigurationError,
    ConnectorError,
    SinkFenced,
    SinkOutcomeUnknown,
    SinkUnavailable,
)
from streams.records import TopicPartition
from tests.support.redis_server import RedisServer
from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows
from tests.support.tcp_proxy import CuttingProxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.sink import RefusedRow, SinkWriter

POSITION = "streams:positions:{out}:shop/out/orders/0"


class Order(msgspec.Struct, rename="camel"):
    order_id: int
    paid: bool = False
    note: str | None = None


@dataclasses.dataclass
class Point:
    x: float
    y: float


def opened(sink: RedisSink) -> SinkWriter:
    writer = sink.open(context())
    writer.claim({ORDERS: TOPIC_ID})
    return writer


def written(sink: RedisSink, values: Sequence[Any], keys: Sequence[Any] | None = None) -> list[RefusedRow]:
    sink.check(context())
    writer = opened(sink)
    refused = writer.write([sink_rows(values, keys=keys)])
    writer.commit()
    writer.close()
    return refused


def entries(client: Any) -> list[dict[str, str]]:
    return [entry for _, entry in client.xrange("out")]


def test_values_become_entries_with_their_fields(server, client):
    values = [
        {"id": 1, "text": "ä", "none": None, "list": [1, "a"], "yes": True, 5: 0.5},
        Order(7, note="n"),
        Point(1.5, -0.0),
        Change(op="u", after={"id": 8}, source=ChangeSource()),
        {"at": dt.datetime(2026, 3, 1, tzinfo=dt.UTC), "price": Decimal("1.10"), "raw": b"x"},
    ]
    assert written(RedisSink(server.url, stream="out"), values) == []
    assert entries(client) == [
        {"id": "1", "text": "ä", "list": '[1,"a"]', "yes": "true", "5": "0.5"},
        {"orderId": "7", "paid": "false", "note": "n"},
        {"x": "1.5", "y": "-0.0"},
        {"id": "8"},
        {"at": "2026-03-01T00:00:00Z", "price": "1.10", "raw": "x"},
    ]
    assert client.hget(POSITION, "next_offset") == "5"
    assert client.hget(POSITION, "topic_id") == TOPIC_ID


def test_other_values_become_one_field_and_null_values_nothing(server, client):
    sink = RedisSink(server.url, stream="out", field="payload", key_field="key")
    assert written(sink, ["a", b"\xc3\xa4", 7, None, [1]], keys=["k", None, 5, "x", b"raw"]) == []
    assert entries(client) == [
        {"payload": "a", "key": "k"},
        {"payload": "ä"},
        {"payload": "7", "key": "5"},
        {"payload": "[1]", "key": "raw"},
    ]


def test_a_stream_is_trimmed_to_about_its_length(server, client):
    assert written(RedisSink(server.url, stream="out", max_length=100), ["x"] * 2_000) == []
    assert 100 <= client.xlen("out") < 400


def test_values_are_appended_to_a_list_in_their_order(server, client):
    values = ["a", b"b", {"c": 1}, None, 5, *(str(number) for number in range(2_500))]
    assert written(RedisSink(server.url, list="out"), values) == []
    expected = ["a", "b", '{"c":1}', "5", *(str(number) for number in range(2_500))]
    assert client.lrange("out", 0, -1) == expected


def test_hashes_are_updated_by_key_and_deleted(server, client):
    sink = RedisSink(server.url, hashes="out")
    keys = ["a", 5, b"c", {"id": 9}, "a", 5, "a"]
    values = [{"x": 1, "y": 2}, {"x": 1}, Order(1), {"z": 1}, {"y": None, "z": "n"}, None, {"x": 3}]
    assert written(sink, values, keys) == []
    assert {key: client.hgetall(key) for key in client.scan_iter("out*")} == {
        "outa": {"x": "3", "z": "n"},
        "outc": {"orderId": "1", "paid": "false"},
        "out9": {"z": "1"},
    }
    assert sink.takes_retries
    assert not RedisSink(server.url, stream="out").takes_retries


def test_strings_are_set_by_key_deleted_and_published_and_expire(server, client):
    sink = RedisSink(server.url, strings="out:", expires=days(1), publish=True)
    keys = ["a", 5, "gone", "a", "gone"]
    with client.pubsub() as listener:
        listener.psubscribe("out:*")
        wait_until(listener.get_message, what="the subscription")
        assert written(sink, ["text", {"x": 1}, b"b", "new", None], keys) == []
        found = [wait_until(lambda: listener.get_message(True), what="a message") for _ in range(4)]
    assert [(message["channel"], message["data"]) for message in found] == [
        ("out:a", "text"),
        ("out:5", '{"x":1}'),
        ("out:gone", "b"),
        ("out:a", "new"),
    ]
    assert {key: client.get(key) for key in client.scan_iter("out:*")} == {"out:a": "new", "out:5": '{"x":1}'}
    assert 86_000 < client.ttl("out:a") <= 86_400
    assert sink.takes_retries
    assert written(RedisSink(server.url, strings="kept:"), ["x"], ["a"]) == []
    assert client.ttl("kept:a") == -1
    client.rpush("typed:list", "x")
    (refused,) = written(RedisSink(server.url, strings="typed:"), ["x", "y"], ["list", "b"])
    assert (refused.row, client.get("typed:b")) == (0, "y")
    assert "WRONGTYPE the key 'typed:list' is a list, no string" in str(refused.error)


def test_rows_that_have_no_form_are_refused_with_the_reason(server, client):
    refused = written(RedisSink(server.url, stream="out"), [{"a": object()}, {}, {"b": None}, {"c": 1}])
    assert [(item.row, type(item.error)) for item in refused] == [
        (0, TypeError),
        (1, ValueError),
        (2, ValueError),
    ]
    assert entries(client) == [{"c": "1"}]
    client.flushall()
    client.set("out:taken", "text")
    keys = ["taken", None, {"a": 1, "b": 2}, "fine", "plain", "empty"]
    values = [{"x": 1}, {"x": 1}, {"x": 1}, {"x": 1}, "text", {}]
    refused = written(RedisSink(server.url, hashes="out:"), values, keys)
    assert [item.row for item in refused] == [0, 1, 2, 4, 5]
    assert "WRONGTYPE the key 'out:taken' is a string" in str(refused[0].error)
    assert client.hgetall("out:fine") == {"x": "1"}
    assert client.get("out:taken") == "text"


def test_a_target_of_another_type_stops_the_worker(server, client):
    sink = RedisSink(server.url, stream="out")
    writer = opened(sink)
    client.rpush("out", "x")
    with pytest.raises(ConnectorError, match="WRONGTYPE the key 'out' is a list, no stream"):
        sink.check(context())
    with pytest.raises(ConnectorError, match="WRONGTYPE"):
        writer.write([sink_rows(["a"])])
    assert client.hget(POSITION, "next_offset") == "0"


def test_a_key_that_another_program_replaces_before_the_commit_stops_the_worker(server, client):
    writer = opened(RedisSink(server.url, hashes="out"))
    writer.write([sink_rows([{"x": 1}, {"x": 2}], keys=["a", "b"])])
    client.set("outa", "text")
    with pytest.raises(ConnectorError, match="1 of the commands for offsets 0 to 2 of orders-0") as error:
        writer.commit()
    assert "WRONGTYPE" in str(error.value)
    assert "next_offset in 'streams:positions:{out}:shop/out/orders/0'" in str(error.value)
    assert client.hgetall("outb") == {"x": "2"}


def test_workers_of_other_partitions_do_not_disturb_each_other(server, client):
    sink = RedisSink(server.url, list="out")
    one, other = sink.open(context()), sink.open(context())
    second = TopicPartition("orders", 1)
    one.claim({ORDERS: TOPIC_ID})
    other.claim({second: TOPIC_ID})
    one.write([sink_rows(["a"])])
    other.write([sink_rows(["b"], partition=second)])
    other.commit()
    one.commit()
    assert client.lrange("out", 0, -1) == ["b", "a"]


def test_a_transaction_that_another_worker_claims_away_fails_even_if_it_is_late(server, client):
    sink = RedisSink(server.url, list="out")
    zombie = opened(sink)
    zombie.write([sink_rows(["a"])])
    owner = opened(sink)
    owner.write([sink_rows(["a"])])
    owner.commit()
    with pytest.raises(SinkFenced):
        zombie.commit()
    assert client.lrange("out", 0, -1) == ["a"]


@pytest.mark.parametrize(("cut", "there"), [("before", []), ("after", ["a"])])
def test_a_connection_that_ends_in_a_commit_leaves_its_outcome_to_the_next_claim(server, client, cut, there):
    with CuttingProxy(("127.0.0.1", server.port), b"EXEC") as proxy:
        sink = RedisSink(f"redis://127.0.0.1:{proxy.port}/0", list="out")
        writer = opened(sink)
        writer.write([sink_rows(["a"])])
        proxy.cut = cut
        with pytest.raises(SinkOutcomeUnknown):
            writer.commit()
        proxy.cut = None
        writer.close()
        after = sink.open(context())
        assert after.claim({ORDERS: TOPIC_ID}) == {ORDERS: len(there)}
        assert client.lrange("out", 0, -1) == there
        after.close()


def test_a_full_server_refuses_the_complete_transaction_until_it_has_room(server, client):
    sink = RedisSink(server.url, stream="out")
    writer = opened(sink)
    try:
        client.config_set("maxmemory", 1)
        with pytest.raises(SinkUnavailable, match="OOM"):
            writer.write([sink_rows([{"x": "y" * 100}] * 100)])
    finally:
        client.config_set("maxmemory", 256 * 2**20)
    assert client.xlen("out") == 0
    assert written(sink, [{"x": "y"}]) == []
    writer = opened(sink)
    writer.write([sink_rows([{"x": "y"}], start=1)])
    try:
        client.config_set("maxmemory", 1)
        with pytest.raises(SinkUnavailable, match="OOM"):
            writer.commit()
    finally:
        client.config_set("maxmemory", 256 * 2**20)
    assert (client.xlen("out"), client.hget(POSITION, "next_offset")) == (1, "1")


@pytest.mark.parametrize("target", ["stream", "list", "hashes", "strings"])
def test_each_record_takes_effect_once_when_the_server_is_killed(target):
    """A worker that crashes or waits, and a server that is killed, at random steps; the oracle is the log."""
    chance = random.Random(7)
    log = [(chance.randrange(10), number) for number in range(300)]
    with RedisServer.create() as server:
        options: dict[str, Any] = {target: "out"}
        sink = RedisSink(server.url, **options)
        writer: SinkWriter | None = None
        position = 0
        kills = 0
        while position < len(log):
            try:
                if writer is None:
                    writer = sink.open(context())
                    position = writer.claim({ORDERS: TOPIC_ID})[ORDERS]
                    continue
                part = log[position : position + chance.randint(1, 12)]
                rows = sink_rows(
                    [{"n": number} for _, number in part], keys=[key for key, _ in part], start=position
                )
                fault = chance.random()
                if fault < 0.1:
                    server.kill()
                writer.write([rows])
                if 0.1 <= fault < 0.2:
                    server.kill()
                if fault < 0.9:
                    writer.commit()
                    position += len(part)
                else:
                    writer.rollback()
            except SinkUnavailable:
                assert writer is not None
                writer.close()
                writer = None
                kills += 1
                server.start()
        assert kills > 3
        with server.client() as client:
            if target == "stream":
                assert [int(entry["n"]) for entry in entries(client)] == [number for _, number in log]
            elif target == "list":
                found = [msgspec.json.decode(value)["n"] for value in client.lrange("out", 0, -1)]
                assert found == [number for _, number in log]
            elif target == "strings":
                last = {f"out{key}": f'{{"n":{number}}}' for key, number in log}
                assert {key: client.get(key) for key in client.scan_iter("out*")} == last
            else:
                last = {f"out{key}": str(number) for key, number in log}
                assert {key: client.hget(key, "n") for key in client.scan_iter("out*")} == last
        assert writer is not None
        writer.close()


def test_the_target_is_a_name_that_a_topic_may_have():
    assert RedisSink("redis://localhost", hashes="{shop}:customer:").target == "shop-customer"
    assert RedisSink("redis://localhost", stream="orders").target == "orders"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of stream=, list=, hashes= and strings="),
        ({"stream": "a", "list": "b"}, "one of stream=, list=, hashes= and strings="),
        ({"hashes": "a", "strings": "b"}, "one of stream=, list=, hashes= and strings="),
        ({"stream": "a", "publish": True}, "publish= is for strings"),
        ({"hashes": "a", "expires": days(1)}, "expires= is for strings"),
        ({"list": "a", "key_field": "k"}, "key_field= is for streams"),
        ({"hashes": "a", "max_length": 5}, "max_length= is for streams"),
        ({"stream": "a", "max_length": 0}, "max_length=0"),
        ({"stream": "a", "max_rows": 0}, "max_rows=0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        RedisSink("redis://localhost", **options)
