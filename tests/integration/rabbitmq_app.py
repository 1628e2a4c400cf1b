"""An app between RabbitMQ and Kafka, in one of the directions, run as processes."""

from __future__ import annotations

import os

from streams import App, Text
from streams.connectors.rabbitmq import Queue, RabbitMQQueue, RabbitMQSink

PREFIX = os.environ["RABBITMQ_PREFIX"]
URL = os.environ["RABBITMQ_URL"]

app = App(f"{PREFIX}-rabbitmq")

if os.environ["RABBITMQ_DIRECTION"] == "in":
    for kind in ("classic", "quorum"):
        source = RabbitMQQueue(URL, kind, declare=Queue(type=kind), max_records=50)
        app.source(source, store=kind).to(f"{PREFIX}-out", value=Text())
else:
    records = app.stream(f"{PREFIX}-in", key=Text(), value=Text())
    records.sink(RabbitMQSink(URL, exchange="", routing_key="out", value=Text(), max_rows=100))
