"""A producer and a consumer with RabbitMQ.

``python -m apps.queues.producer_consumer 500`` is the producer: it publishes orders to the queue ``orders``,
and waits until the server has each. ``streams run apps.queues.producer_consumer:app`` is the consumer: it
keeps a total for each customer, and publishes those above 1,000 to the queue ``bonus``. A message that cannot
be read becomes a dead letter, and does not come back again and again. If the consumer is killed, the next one
continues, and no order counts twice, as each message has an id.
"""

# pyright: basic
# As amqp has no types.

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp
import msgspec

from streams import App, Json, total
from streams.connectors.rabbitmq import Queue, RabbitMQQueue, RabbitMQSink

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1/")


class Order(msgspec.Struct):
    """What a message says."""

    id: int
    customer: str
    price: float


app = App(f"{os.environ.get('QUEUES_PREFIX', '')}orders")

orders = app.source(RabbitMQQueue(URL, "orders", Order, declare=Queue()))
totals = orders.group_by(lambda order: order.customer).aggregate("totals", total("price"))
passed = totals.to_stream().filter(lambda spent: spent > 1_000)
bonus = RabbitMQSink(URL, exchange="", routing_key="bonus", value=Json(float))
passed.sink(bonus, store="bonus", value=Json(float))


def produce(count: int) -> None:
    """Publish as many orders."""
    server = urlsplit(URL)
    with amqp.Connection(
        f"{server.hostname}:{server.port or 5672}",
        unquote(server.username or "guest"),
        unquote(server.password or "guest"),
        login_method="PLAIN",
        confirm_publish=True,
    ) as connection:
        channel: Any = connection.channel()
        Queue().declare(channel, "orders")
        channel.queue_declare("bonus", durable=True, auto_delete=False)
        for number in range(count):
            order = Order(number, f"customer-{number % 10}", 25.0)
            message = amqp.Message(
                msgspec.json.encode(order).decode(), message_id=f"order-{number}", delivery_mode=2
            )
            channel.basic_publish(message, "", "orders")


if __name__ == "__main__":
    produce(int(sys.argv[1]))
