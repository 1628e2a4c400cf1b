"""The RabbitMQ sink on a real server: its contract, its messages, and those that no queue takes."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Bytes, Json, Text
from streams.connectors.rabbitmq import Header, Key, RabbitMQQueue, RabbitMQSink
from streams.connectors.sink import SinkRows
from streams.errors import ConfigurationError, ConnectorError, SinkUnavailable
from streams.records import Output, TopicPartition
from streams.testing.sinks import DeliveringSinkContract
from tests.support.cluster import AppCluster
from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows
from tests.support.source_runs import SourceRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.rabbitmq.sink_writer import MessageWriter
    from streams.connectors.sink import RefusedRow
    from streams.devstack.rabbitmq import LocalRabbitMQ
    from streams.records import Headers
    from tests.support.rabbitmq import Program


def opened(sink: RabbitMQSink) -> MessageWriter:
    sink.check(context())
    writer = sink.open(context())
    writer.claim({ORDERS: TOPIC_ID})
    return writer


def written(sink: RabbitMQSink, *rows: SinkRows) -> list[RefusedRow]:
    writer = opened(sink)
    refused = writer.write(rows)
    writer.commit()
    writer.close()
    return refused


def rows_with(headers: Sequence[Headers | None], values: Sequence[Any], start: int = 0) -> SinkRows:
    return SinkRows(
        partition=ORDERS,
        start=start,
        next_offset=start + len(values),
        keys=[None] * len(values),
        values=values,
        timestamps=[1_700_000_000_000] * len(values),
        headers=headers,
        offsets=range(start, start + len(values)),
    )


# --- the contract


class _OnRabbitMQ(DeliveringSinkContract):
    server: LocalRabbitMQ
    program: Program

    @pytest.fixture(autouse=True)
    def target(self, server: LocalRabbitMQ, program: Program):
        self.server, self.program = server, program
        self.received: list[tuple[int, str]] = []
        program.exchange("contract")
        program.queue("contract", "contract", "#")

    def rows(self) -> list[tuple[int, str]]:
        values: list[Any] = [json.loads(body) for body in self.program.bodies("contract")]
        self.received += [(value["id"], value["text"]) for value in values]
        return self.received

    def refused_value(self, number: int) -> dict[str, object]:
        return {"id": number, "text": math.nan}


class TestDefaultExchange(_OnRabbitMQ):
    def connector(self) -> RabbitMQSink:
        return RabbitMQSink(self.server.url(), exchange="", routing_key="contract", max_rows=1_000)


class TestTopicExchange(_OnRabbitMQ):
    def connector(self) -> RabbitMQSink:
        return RabbitMQSink(self.server.url(), exchange="contract", routing_key=Key(), max_rows=1_000)


# --- what messages are made of


@pytest.mark.parametrize(
    ("value", "given", "body", "content_type"),
    [
        (Json(), {"id": 1}, b'{"id":1}', "application/json"),
        (Text(), "ä", "ä".encode(), "text/plain; charset=utf-8"),
        (Bytes(), b"\xff", b"\xff", "application/octet-stream"),
        (Json(), None, b"", "application/json"),
    ],
)
def test_messages_have_value_coordinates_time_and_content_type(
    server, program, value, given, body, content_type
):
    program.queue("formats")
    sink = RabbitMQSink(server.url(), exchange="", routing_key="formats", value=value)
    assert written(sink, sink_rows([given], start=7)) == []
    (message,) = program.take("formats")
    assert (message.body if isinstance(message.body, bytes) else message.body.encode()) == body
    assert message.properties == {
        "content_type": content_type,
        "delivery_mode": 2,
        "message_id": "orders/0/7",
        "timestamp": 1_700_000_000,
    }


def test_rows_of_one_record_have_different_ids(server, program):
    program.queue("several")
    rows = sink_rows([1, 2, 3])
    rows = SinkRows(
        partition=rows.partition,
        start=5,
        next_offset=7,
        keys=rows.keys,
        values=rows.values,
        timestamps=rows.timestamps,
        headers=rows.headers,
        offsets=[5, 5, 6],
    )
    written(RabbitMQSink(server.url(), exchange="", routing_key="several"), rows)
    ids = [message.properties["message_id"] for message in program.take("several")]
    assert ids == ["orders/0/5", "orders/0/5/1", "orders/0/6"]


def test_headers_travel_and_some_are_properties(server, program):
    program.queue("travelling")
    headers: list[Headers | None] = [
        [("text", "ä".encode()), ("none", None), ("bytes", b"\xff"), ("text", b"last")],
        None,
        [
            ("rabbitmq.priority", b"4"),
            ("rabbitmq.correlation_id", b"c"),
            ("rabbitmq.content_type", b"application/x-own"),
            ("rabbitmq.message_id", b"another"),
            ("rabbitmq.redelivered", b"true"),
        ],
    ]
    sink = RabbitMQSink(server.url(), exchange="", routing_key="travelling", persistent=False)
    assert written(sink, rows_with(headers, [1, 2, 3])) == []
    first, second, third = program.take("travelling")
    assert first.headers == {"text": "last", "none": None, "bytes": b"\xff"}
    assert first.properties["delivery_mode"] == 1
    assert "application_headers" not in second.properties
    assert third.properties == {
        "content_type": "application/x-own",
        "delivery_mode": 1,
        "priority": 4,
        "correlation_id": "c",
        "message_id": "orders/0/2",
        "timestamp": 1_700_000_000,
    }


def test_what_a_sink_writes_a_source_reads_back(server, program):
    program.queue("round")
    headers: list[Headers | None] = [[("a", b"1"), ("rabbitmq.reply_to", b"answers")]]
    written(RabbitMQSink(server.url(), exchange="", routing_key="round"), rows_with(headers, [{"n": 1}]))
    source = RabbitMQQueue(server.url(), "round", dict, properties=["reply_to"])
    with SourceRun(source) as run:
        run.read(5.0)
        records = run.waiting[0].records
        assert records.headers() == [
            [("rabbitmq.message_id", b"orders/0/0"), ("a", b"1"), ("rabbitmq.reply_to", b"answers")]
        ]
        assert list(records.timestamps()) == [1_700_000_000_000]
        run.process()
        run.commit()
        assert run.values == [{"n": 1}]


def test_routing_keys_are_texts_keys_headers_or_made_of_values(server, program):
    program.exchange("routing")
    for name in ("fixed", "keys.a", "keys.7", "headers.x", "values.de"):
        program.queue(name, "routing", name)
    for rule, rows in (
        ("fixed", sink_rows(["1"])),
        (Key(), sink_rows(["2", "3"], keys=["keys.a", b"keys.7"])),
        (Header("to"), rows_with([[("to", b"headers.x")]], ["4"])),
        (lambda value: f"values.{value['country']}", sink_rows([{"country": "de"}])),
    ):
        sink = RabbitMQSink(server.url(), exchange="routing", routing_key=rule)
        assert written(sink, rows) == []
    found = {name: program.bodies(name) for name in ("fixed", "keys.a", "keys.7", "headers.x", "values.de")}
    assert found == {
        "fixed": [b'"1"'],
        "keys.a": [b'"2"'],
        "keys.7": [b'"3"'],
        "headers.x": [b'"4"'],
        "values.de": [b'{"country":"de"}'],
    }


def test_rows_without_a_routing_key_or_with_too_long_parts_are_refused_alone(server, program):
    program.queue("refusing")
    cases: list[tuple[Any, SinkRows, str]] = [
        (Key(), sink_rows([1, 2], keys=[None, "refusing"]), "null"),
        (Key(), sink_rows([1, 2], keys=[{"a": 1}, "refusing"]), "dict"),
        (Header("to"), rows_with([[("x", b"")], [("to", b"refusing")]], [1, 2]), "'to'"),
        (lambda value: 7 if value == 1 else "refusing", sink_rows([1, 2]), "int"),
        (Key(), sink_rows([1, 2], keys=["x" * 256, "refusing"]), "256 bytes"),
        ("refusing", rows_with([[("n" * 256, b"")], None], [1, 2]), "256 bytes"),
        ("refusing", rows_with([[("rabbitmq.priority", b"high")], None], [1, 2]), "a number"),
        ("refusing", rows_with([[("rabbitmq.priority", b"300")], None], [1, 2]), "0 to 255"),
        ("refusing", rows_with([[("large", b"x" * 140_000)], None], [1, 2]), "the headers have"),
    ]
    for rule, rows, text in cases:
        sink = RabbitMQSink(server.url(), exchange="", routing_key=rule)
        (refused,) = written(sink, rows)
        assert (refused.partition, refused.row) == (ORDERS, 0)
        assert text in str(refused.error)
        assert program.bodies("refusing") == [b"2"]


def test_rows_of_partitions_stay_in_order_in_transactions_of_every_size(server, program):
    program.queue("ordered")
    writer = opened(RabbitMQSink(server.url(), exchange="", routing_key="ordered"))
    position = 0
    for size in (1, 3, 1_000, 2):
        parts = [
            sink_rows(
                [{"p": number, "n": position + n} for n in range(size)],
                start=position,
                partition=TopicPartition("orders", number),
            )
            for number in (0, 1)
        ]
        assert writer.write(parts) == []
        writer.commit()
        position += size
    large = "x" * 1_000_000
    assert writer.write([sink_rows([{"p": 0, "n": position, "text": large}], start=position)]) == []
    writer.commit()
    writer.close()
    values = list(Json(dict).deserialize(program.bodies("ordered")))
    for partition in (0, 1):
        numbers = [value["n"] for value in values if value["p"] == partition]
        assert numbers == list(range(position + (partition == 0)))


# --- messages that nobody takes


def test_rows_that_no_queue_gets_are_refused_with_their_routing_key(server, program):
    program.exchange("partly")
    program.queue("partly", "partly", "known")
    sink = RabbitMQSink(server.url(), exchange="partly", routing_key=Key())
    keys = ["known", "unknown", "known", "nobody"]
    refused = written(sink, sink_rows([1, 2, 3, 4], keys=keys))
    assert [(item.partition, item.row) for item in refused] == [(ORDERS, 1), (ORDERS, 3)]
    assert str(refused[0].error) == "312 NO_ROUTE: exchange 'partly' has no queue for 'unknown'"
    assert program.bodies("partly") == [b"1", b"3"]


def test_rows_that_no_queue_gets_wait_or_are_ignored_by_choice(server, program):
    program.exchange("unbound")
    rows = sink_rows([1])
    assert (
        written(RabbitMQSink(server.url(), exchange="unbound", routing_key="x", unroutable="ignore"), rows)
        == []
    )
    sink = RabbitMQSink(server.url(), exchange="unbound", routing_key="x", unroutable="wait")
    with pytest.raises(SinkUnavailable, match=r"NO_ROUTE.*'x'"):
        opened(sink).write([rows])
    program.queue("unbound", "unbound", "x")
    assert written(sink, rows) == []
    assert program.bodies("unbound") == [b"1"]


def test_a_queue_that_is_full_is_an_outage(server, program):
    program.queue("full", **{"x-max-length": 3, "x-overflow": "reject-publish"})
    sink = RabbitMQSink(server.url(), exchange="", routing_key="full")
    with pytest.raises(SinkUnavailable, match=r"basic\.nack"):
        opened(sink).write([sink_rows(list(range(10)))])
    taken = program.bodies("full")
    assert taken == [b"0", b"1", b"2"]
    assert written(sink, sink_rows([3, 4], start=3)) == []
    assert program.bodies("full") == [b"3", b"4"]


def test_attempts_while_one_queue_is_full_do_not_fill_the_others(server, program):
    program.exchange("two", "topic")
    program.queue("two-open", "two", "#")
    program.queue("two-full", "two", "full.#", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    sink = RabbitMQSink(server.url(), exchange="two", routing_key=Key())
    keys = [f"{'full' if number >= 50 else 'open'}.{number}" for number in range(100)]
    rows = sink_rows(list(range(100)), keys=keys)
    for _ in range(5):
        with pytest.raises(SinkUnavailable, match=r"orders/0/51 \(basic\.nack\)"):
            opened(sink).write([rows])
    # The first attempt has published everything, the others the row in question.
    assert program.count("two-open") == 104
    program.channel.queue_delete("two-full")
    program.queue("two-full", "two", "full.#")
    program.bodies("two-open")
    assert written(sink, rows) == []
    assert program.bodies("two-open") == [b"51", *(b"%d" % number for number in range(100) if number != 51)]
    # Once it was taken, rows are published in their order again.
    assert written(sink, rows) == []
    assert program.bodies("two-open") == [b"%d" % number for number in range(100)]


def test_an_exchange_that_is_missing_ends_a_start_and_is_waited_for_later(server, program):
    sink = RabbitMQSink(server.url(), exchange="absent", routing_key="x")
    with pytest.raises(ConnectorError, match=r"404 NOT_FOUND.*'absent'(?s:.*)declare="):
        sink.check(context())
    with pytest.raises(SinkUnavailable, match="404"):
        sink.open(context())
    RabbitMQSink(server.url(), exchange="absent", routing_key="x", declare="fanout").check(context())
    with pytest.raises(ConnectorError, match="406"):
        RabbitMQSink(server.url(), exchange="absent", routing_key="x", declare="topic").check(context())
    writer = opened(sink)
    program.channel.exchange_delete("absent")
    with pytest.raises(SinkUnavailable, match="404"):
        writer.write([sink_rows([1])])


# --- in an app


class Site(AppCluster):
    def __init__(self, app: App) -> None:
        super().__init__(app, {"in": 2})

    def produce(self, values: Sequence[str]) -> None:
        encoded = [value.encode() for value in values]
        self.write(Output("in", encoded, encoded, [0] * len(encoded)))


def test_unroutable_rows_become_dead_letters_and_the_others_arrive(server, program):
    program.exchange("app")
    program.queue("app", "app", "known.*")
    app = App("out")
    app.stream("in", key=Text(), value=Text()).sink(
        RabbitMQSink(server.url(), exchange="app", routing_key=Key(), value=Text())
    )
    site = Site(app)
    site.produce([f"{'known' if number % 5 else 'lost'}.{number}" for number in range(50)])
    worker = site.worker()
    site.run(worker, until=lambda: len(site.payloads("out-dead-letters")) == 10)
    worker.close()
    assert sorted(site.payloads("out-dead-letters")) == sorted(b"lost.%d" % n for n in range(0, 50, 5))
    found = Counter(program.bodies("app"))
    assert found == Counter(b"known.%d" % number for number in range(50) if number % 5)


def test_a_full_queue_holds_back_reading_and_loses_nothing(server, program):
    program.queue("held", **{"x-max-length": 10, "x-overflow": "reject-publish"})
    app = App("out")
    app.stream("in", key=Text(), value=Text()).sink(
        RabbitMQSink(server.url(), exchange="", routing_key="held", value=Text())
    )
    site = Site(app)
    site.produce([str(number) for number in range(40)])
    worker = site.worker()
    site.run(worker, until=lambda: worker.problems)
    assert "basic.nack" in next(iter(worker.problems.values()))
    found: set[bytes] = set()

    def taking() -> bool:
        found.update(program.bodies("held"))
        return len(found) == 40

    # The app's commits are of all rows: they must fit.
    program.channel.queue_delete("held")
    program.queue("held")
    site.run(worker, until=taking)
    worker.close()
    assert found == {b"%d" % number for number in range(40)}
    assert not site.payloads("out-dead-letters")


# --- options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"declare": "queue"}, "declare"),
        ({"exchange": "", "declare": "topic"}, "default exchange"),
        ({"unroutable": "drop"}, "unroutable"),
        ({"routing_key": 7}, "routing_key"),
        ({"routing_key": "x" * 256}, "255"),
        ({"content_type": "x" * 256}, "255"),
        ({"max_rows": 0}, "max_rows"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, text):
    with pytest.raises(ConfigurationError, match=text):
        RabbitMQSink("amqp://host", **{"exchange": "shop", "routing_key": "x", **options})
