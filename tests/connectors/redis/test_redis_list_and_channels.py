"""``RedisList`` and ``RedisChannel`` on a real server."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import Bytes, Json
from streams.connectors.redis import RedisChannel, RedisList
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable
from tests.support.redis_server import RedisServer
from tests.support.source_runs import SourceRun, read_on
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    import redis

MOVED = "streams:processing:{in}:shop/in"


class Order(msgspec.Struct):
    id: int


@pytest.mark.parametrize(
    ("options", "elements", "values"),
    [
        ({}, ["a", "ä"], ["a", "ä"]),
        ({"type": Order}, ['{"id":1}', '{"id":2}'], [Order(1), Order(2)]),
        ({"value": Bytes()}, [b"\xff", b""], [b"\xff", b""]),
        ({"value": Json(), "take": "right"}, ["2", "1"], [1, 2]),
    ],
)
def test_elements_are_read_from_an_end_as_text_or_by_a_serde(server, client, options, elements, values):
    client.rpush("in", *elements)
    with SourceRun(RedisList(server.url, "in", **options)) as run:
        assert run.drain() == values
        assert run.keys == [None, None]
        assert client.llen("in") == 0


def test_elements_stay_in_the_sources_list_until_they_are_committed(server, client):
    client.rpush("in", "1", "2", "3")
    with SourceRun(RedisList(server.url, "in", max_records=2)) as run:
        run.read()
        assert client.lrange(MOVED, 0, -1) == ["1", "2"]
        run.process()
        run.commit()
        run.read()
        assert client.lrange(MOVED, 0, -1) == ["3"]
        assert run.open().health().metrics == {"lag": 0.0, "processing": 1.0}


def test_a_stop_removes_what_is_committed(server, client):
    client.rpush("in", "1", "2", "3")
    with SourceRun(RedisList(server.url, "in")) as run:
        run.step()
        run.reopen()
        assert client.llen(MOVED) == 0


def test_other_programs_may_take_from_the_same_list(server, client):
    client.rpush("in", *range(4))
    with SourceRun(RedisList(server.url, "in", max_records=1)) as run:
        run.step()
        assert client.lpop("in") == "1"
        assert run.drain() == ["0", "2", "3"]


def test_two_sources_of_one_list_share_its_elements(server, client):
    client.rpush("in", *range(4))
    source = RedisList(server.url, "in", max_records=1)
    with SourceRun(source) as first, SourceRun(source, name="other") as second:
        for _ in range(2):
            first.step()
            second.step()
        assert (first.values, second.values) == (["0", "2"], ["1", "3"])


def test_a_waiting_read_returns_as_soon_as_there_is_an_element_or_the_source_is_closed(server, client):
    with SourceRun(RedisList(server.url, "in")) as run, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run.open().read, 60.0)
        wait_until(lambda: client.info("clients")["blocked_clients"], what="a blocked client")
        client.rpush("in", "1")
        batch = waiting.result(10)
        assert batch is not None
        assert batch.records.values() == [b"1"]
        waiting = pool.submit(run.open().read, 60.0)
        wait_until(lambda: client.info("clients")["blocked_clients"], what="a blocked client")
        run.open().close()
        assert waiting.result(10) is None


def test_a_source_whose_position_was_reset_continues_with_what_is_there(server, client):
    client.rpush("in", "1", "2")
    source = RedisList(server.url, "in")
    with SourceRun(source) as run:
        run.step()
        run.read()
    client.rpush("in", "3")
    with SourceRun(source) as run:
        assert run.drain() == ["3"]


def test_no_element_is_lost_when_the_server_loses_its_last_writes(server, client):
    """As a crash does with ``appendfsync everysec``: the moves are undone, the commit in Kafka is not."""
    client.rpush("in", *range(6))
    with SourceRun(RedisList(server.url, "in", max_records=2)) as run:
        run.step()
        run.step()
        before = {key: client.dump(key) for key in client.scan_iter("*")}
        run.step()
        client.flushall()
        for key, content in before.items():
            client.restore(key, 0, content)
        run.reopen()
        client.rpush("in", 6)
        # What was lost comes again, and whatever follows is there.
        assert run.drain() == ["0", "1", "2", "3", "4", "5", "4", "5", "6"]
        client.flushall()
        run.reopen()
        client.rpush("in", "new")
        assert run.drain()[-1] == "new"


def test_a_key_of_another_type_and_options_that_mean_nothing_are_refused(server, client):
    client.set("in", "1")
    with pytest.raises(ConnectorError, match="the key 'in' is a string, no list"):
        RedisList(server.url, "in").check("shop", "in")
    bad: Any = "middle"
    with pytest.raises(ConfigurationError, match="take='middle'"):
        RedisList(server.url, "in", take=bad)
    with pytest.raises(ConfigurationError, match="a channel or a pattern"):
        RedisChannel(server.url)


# --- channels


def published(client: redis.Redis, channel: str, *messages: str | bytes) -> None:
    for message in messages:
        client.publish(channel, message)


def test_messages_of_channels_and_patterns_are_read_while_the_source_is_connected(server, client):
    source = RedisChannel(server.url, ["orders", "returns"], patterns="news.*")
    published(client, "orders", "before")
    with SourceRun(source) as run:
        run.step()
        published(client, "orders", "1", "2")
        published(client, "returns", "3")
        published(client, "news.today", "4")
        published(client, "other", "5")
        run.until(4)
        assert (run.values, run.keys) == (
            ["1", "2", "3", "4"],
            [b"orders", b"orders", b"returns", b"news.today"],
        )
        run.reopen()
        published(client, "orders", "lost")
        run.step()
        published(client, "orders", "6")
        assert run.until(5)[-1] == "6"
        assert run.open().health().metrics == {"messages": 5.0, "connections": 2.0}
        assert run.offsets == [0, 1, 2, 3, 4]


def test_many_messages_come_in_batches(server, client):
    with SourceRun(RedisChannel(server.url, "c", max_records=100)) as run:
        run.step()
        sender = threading.Thread(
            target=published, args=(client, "c", *(str(number) for number in range(1_000)))
        )
        sender.start()
        run.until(1_000)
        sender.join()
        assert run.values == [str(number) for number in range(1_000)]


def test_connections_are_counted_over_outages():
    with RedisServer.create() as server, SourceRun(RedisChannel(server.url, "c", type=Order)) as run:
        run.step()
        server.kill()
        with pytest.raises(SourceUnavailable):
            read_on(run.open())
        run.reader = None
        server.start()
        run.step()
        with server.client() as client:
            published(client, "c", '{"id":7}')
        assert run.until(1) == [Order(7)]
        assert run.open().health().metrics["connections"] == 2
