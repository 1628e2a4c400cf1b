"""The types of RabbitMQ's source and sink: checked by mypy and pyright in ``make check``."""

from __future__ import annotations

from typing import assert_type

import msgspec

from streams import App, Bytes, Stream
from streams.connectors.rabbitmq import Header, Key, RabbitMQQueue, RabbitMQSink

URL = "amqp://127.0.0.1"


class Order(msgspec.Struct):
    id: int


def test_values_have_the_type_that_the_source_names():
    app = App("types")
    assert_type(app.source(RabbitMQQueue(URL, "q"), store="a"), Stream[str, str])
    assert_type(app.source(RabbitMQQueue(URL, "q", Order), store="b"), Stream[str, Order])
    assert_type(app.source(RabbitMQQueue(URL, "q", value=Bytes()), store="c"), Stream[str, bytes])
    header = RabbitMQQueue(URL, "q", key_from=Header("customer"), properties=["reply_to"])
    assert_type(app.source(header, store="d"), Stream[str, str])


def test_a_routing_key_is_a_text_the_key_a_header_or_a_function():
    made = [
        RabbitMQSink(URL, exchange="shop", routing_key="order"),
        RabbitMQSink(URL, exchange="shop", routing_key=Key()),
        RabbitMQSink(URL, exchange="shop", routing_key=Header("to"), unroutable="wait"),
        RabbitMQSink(URL, exchange="shop", routing_key=lambda order: f"order.{order.id}", declare="topic"),
    ]
    assert {sink.target for sink in made} == {"shop"}
