"""The contract of sinks, on Valkey: streams, lists, hashes and strings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from streams.connectors.redis import RedisSink
from streams.testing.sinks import KeyedRefusingSinkContract, RefusingSinkContract

if TYPE_CHECKING:
    from streams.connectors.sink import SinkWriter


class _OnRedis:
    @pytest.fixture(autouse=True)
    def target(self, server, client):
        self.url, self.client = server.url, client

    def refused_value(self, number: int) -> dict[str, object]:
        return {"id": number, "text": object()}

    def crash(self, writer: SinkWriter) -> None:
        """The server sees the connections end, as the kernel closes those of a dead process."""
        self.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


class TestStream(_OnRedis, RefusingSinkContract):
    def connector(self) -> RedisSink:
        return RedisSink(self.url, stream="target")

    def rows(self) -> list[tuple[int, str]]:
        return [(int(entry["id"]), entry["text"]) for _, entry in self.client.xrange("target")]


class TestList(_OnRedis, RefusingSinkContract):
    def connector(self) -> RedisSink:
        return RedisSink(self.url, list="target")

    def rows(self) -> list[tuple[int, str]]:
        values: list[Any] = [json.loads(text) for text in self.client.lrange("target", 0, -1)]
        return [(value["id"], value["text"]) for value in values]


class TestHashes(_OnRedis, KeyedRefusingSinkContract):
    def connector(self) -> RedisSink:
        return RedisSink(self.url, hashes="target:")

    def rows(self) -> list[tuple[int, str]]:
        found = [self.client.hgetall(key) for key in self.client.scan_iter("target:*", count=10_000)]
        return [(int(row["id"]), row["text"]) for row in found]


class TestStrings(_OnRedis, KeyedRefusingSinkContract):
    def connector(self) -> RedisSink:
        return RedisSink(self.url, strings="target:")

    def rows(self) -> list[tuple[int, str]]:
        texts = [self.client.get(key) for key in self.client.scan_iter("target:*", count=10_000)]
        values: list[Any] = [json.loads(text) for text in texts]
        return [(value["id"], value["text"]) for value in values]
