from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis


@pytest.fixture(scope="module")
def module_server() -> Iterator[RedisServer]:
    with RedisServer.create() as server:
        yield server


@pytest.fixture
def server(module_server: RedisServer) -> RedisServer:
    """A server that runs, with no keys."""
    with module_server.client() as client:
        client.flushall()
    return module_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client
