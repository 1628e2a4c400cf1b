"""Records between a real Redis (Valkey) and a real Kafka while workers and the server are killed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from streams.broker.reading import read_to_end
from tests.integration.conftest import Copy
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka

COUNT = 1_500


class Bridge(Copy):
    """The app of ``redis_app``, and the server."""

    name = "redis"
    server: RedisServer

    def begin(self, direction: str) -> None:
        self.create_topics()
        self.environment |= {"REDIS_DIRECTION": direction, "REDIS_URL": self.server.url}


@pytest.fixture
def bridge(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Bridge]:
    made = Bridge(kafka_bootstrap, prefix, tmp_path)
    with RedisServer.create() as server:
        made.server = server
        yield made
        made.end()


def test_streams_groups_and_lists_arrive_once_while_worker_and_server_are_killed(bridge: Bridge):
    bridge.begin("in")

    def put(numbers: range) -> None:
        with bridge.server.client() as client:
            pipeline = client.pipeline()
            for number in numbers:
                pipeline.xadd("stream", {"n": str(number)})
                pipeline.rpush("list", str(number))
            pipeline.execute()

    def arrived() -> int:
        return sum(map(len, read_to_end(bridge.broker, [bridge.output])))

    third = COUNT // 3
    put(range(third))
    worker = bridge.start(transaction_timeout=3)
    bridge.wait_for(lambda: arrived() > 0, 90, "the first records")
    worker.kill()
    put(range(third, 2 * third))
    bridge.start(transaction_timeout=3)
    bridge.wait_for(lambda: arrived() > 3 * third, 90, "more records")
    bridge.server.kill()
    bridge.server.start()
    put(range(2 * third, COUNT))
    bridge.wait_for(lambda: arrived() >= 3 * COUNT, 120, "all records")
    expected = (f"{name}-{number}" for name in ("stream", "group", "list") for number in range(COUNT))
    assert bridge.outputs() == Counter(expected)

    def settled() -> bool:
        with bridge.server.client() as client:
            kept = sum(client.llen(key) for key in client.scan_iter("streams:processing:*", _type="list"))
            return not kept and not client.xpending("stream", "g")["pending"]

    bridge.wait_for(settled, 30, "everything is acknowledged and removed")


def test_records_take_effect_in_redis_once_while_worker_and_server_are_killed(bridge: Bridge):
    bridge.begin("out")

    def there() -> int:
        with bridge.server.client() as client:
            return int(client.xlen("stream"))

    third = COUNT // 3
    bridge.produce([str(number) for number in range(third)])
    worker = bridge.start(transaction_timeout=3, commit_interval=0.1)
    bridge.wait_for(lambda: there() > 0, 90, "the first records")
    worker.kill()
    bridge.produce([str(number) for number in range(third, 2 * third)])
    bridge.start(transaction_timeout=3, commit_interval=0.1)
    bridge.wait_for(lambda: there() > third, 90, "more records")
    bridge.server.kill()
    bridge.produce([str(number) for number in range(2 * third, COUNT)])
    bridge.server.start()

    expected = Counter(str(number) for number in range(COUNT))
    with bridge.server.client() as client:

        def complete() -> bool:
            found = client.xlen("stream"), client.llen("list"), len(list(client.scan_iter("hash:*", 1_000)))
            return bool(min(found) >= COUNT)

        bridge.wait_for(complete, 120, "all records")
        assert Counter(entry["n"] for _, entry in client.xrange("stream")) == expected
        assert Counter(client.lrange("list", 0, -1)) == expected
        assert Counter(client.hget(key, "n") for key in client.scan_iter("hash:*", 1_000)) == expected
