"""The contract of sinks without positions, on a real RabbitMQ: the default exchange, and one of topics."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from streams.connectors.rabbitmq import Key, RabbitMQSink
from streams.testing.sinks import DeliveringSinkContract

if TYPE_CHECKING:
    from streams.devstack.rabbitmq import LocalRabbitMQ
    from tests.support.rabbitmq import Program


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
        return RabbitMQSink(self.server.url(), exchange="", routing_key="contract")


class TestTopicExchange(_OnRabbitMQ):
    def connector(self) -> RabbitMQSink:
        return RabbitMQSink(self.server.url(), exchange="contract", routing_key=Key(), max_rows=1_000)
