"""Sources of Redis at random failures between Redis and Kafka's commits: each record once, and in order."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from streams.connectors.redis import RedisList, RedisStream
from streams.durations import seconds
from tests.support.redis_server import RedisServer
from tests.support.source_runs import SourceRun
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from streams.connectors.source import SourceConnector

KINDS = ("stream", "group", "list")


def source(kind: str, url: str, size: int = 7) -> SourceConnector[Any, Any]:
    if kind == "stream":
        return RedisStream(url, "in", field="n", max_records=size)
    if kind == "group":
        return RedisStream(url, "in", field="n", group="g", max_records=size, claim_after=seconds(3_600))
    return RedisList(url, "in", max_records=size)


class Put:
    """Writes numbers to the source's key."""

    def __init__(self, kind: str, client: redis.Redis) -> None:
        self.kind, self.client, self.count = kind, client, 0

    def __call__(self, count: int) -> None:
        pipeline = self.client.pipeline()
        for number in range(self.count, self.count + count):
            if self.kind == "list":
                pipeline.rpush("in", str(number))
            else:
                pipeline.xadd("in", {"n": str(number)})
        pipeline.execute()
        self.count += count

    @property
    def expected(self) -> list[str]:
        return [str(number) for number in range(self.count)]


def finished(run: SourceRun, put: Put) -> None:
    """Every record is in Kafka once; and in order, unless pending ones of dead consumers came later."""
    wait_until(lambda: run.drain() and len(run.values) >= put.count, what="all records")
    run.drain()
    if put.kind == "group":
        assert sorted(map(int, run.values)) == list(range(put.count))
    else:
        assert run.values == put.expected
    assert len(set(run.offsets)) == len(run.offsets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_each_record_is_in_kafka_once_whatever_fails(server, client, kind, seed):
    chance = random.Random(seed)
    put = Put(kind, client)
    with SourceRun(source(kind, server.url, chance.randint(1, 12))) as run:
        for _ in range(chance.randint(50, 150)):
            match chance.randrange(10):
                case 0 | 1:
                    put(chance.randint(1, 20))
                case 2 | 3 | 4:
                    run.read()
                case 5 | 6:
                    run.process()
                case 7:
                    run.commit(confirm=chance.random() < 0.8)
                case 8:
                    if run.zombies and chance.random() < 0.5:
                        # Nothing that it reads is committed: its transactions are fenced.
                        chance.choice(run.zombies).read(0.0)
                    else:
                        run.reopen()
                case 9:
                    run.crash(zombie=chance.random() < 0.3)
        finished(run, put)


@pytest.fixture
def fragile() -> Iterator[RedisServer]:
    with RedisServer.create() as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
def test_each_record_is_in_kafka_once_when_the_server_is_killed(fragile, kind):
    chance = random.Random(5)
    with fragile.client() as client, SourceRun(source(kind, fragile.url)) as run:
        put = Put(kind, client)
        for _ in range(6):
            put(30)
            for _ in range(chance.randint(1, 6)):
                run.read()
                if chance.random() < 0.6:
                    run.process()
            if chance.random() < 0.7:
                run.commit(confirm=chance.random() < 0.5)
            fragile.kill()
            if chance.random() < 0.5:
                run.crash()
            fragile.start()
        finished(run, put)
        if kind == "list":
            wait_until(lambda: run.step() or client.llen("streams:processing:{in}:shop/in") == 0)
        if kind == "group":
            run.drain()
            assert client.xpending("in", "g")["pending"] == 0
