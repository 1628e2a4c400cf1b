from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
import zmq

from streams import Json
from streams.connectors.zeromq import PubSink, PushSink
from streams.testing.sinks import DeliveringSinkContract
from tests.support.messages import Receiver, free_address

if TYPE_CHECKING:
    from collections.abc import Iterator


class _MessagesContract(DeliveringSinkContract):
    receiver: Receiver
    address: str

    def rows(self):
        values = [json.loads(message[1]) for message in list(self.receiver.messages)]
        return [(value["id"], value["text"]) for value in values]

    def refused_value(self, number):
        return {"id": number, "text": math.nan}


class TestPushThatConnects(_MessagesContract):
    @pytest.fixture(autouse=True)
    def target(self) -> Iterator[None]:
        self.address = free_address()
        with Receiver(zmq.PULL, bind=self.address) as self.receiver:
            yield

    def connector(self):
        return PushSink(connect=self.address, key=Json(int), value=Json())


class TestPushThatIsBound(_MessagesContract):
    @pytest.fixture(autouse=True)
    def target(self) -> Iterator[None]:
        self.address = free_address()
        with Receiver(zmq.PULL, connect=self.address) as self.receiver:
            yield

    def connector(self):
        return PushSink(bind=self.address, key=Json(int), value=Json())


class TestPub(_MessagesContract):
    @pytest.fixture(autouse=True)
    def target(self) -> Iterator[None]:
        self.address = free_address()
        with Receiver(zmq.SUB, bind=self.address) as self.receiver:
            yield

    def connector(self):
        # The tests write as many rows as the sink takes, at once: its buffer must hold them.
        return PubSink(
            connect=self.address, key=Json(int), value=Json(), subscribers=1, high_water_mark=10_000
        )
