"""``RedisStream`` on a real server: values, groups, streams that are trimmed, deleted and created again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import Bytes, Json
from streams.connectors.redis import RedisStream
from streams.durations import seconds
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable
from tests.support.source_runs import SourceRun
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    import redis


class Order(msgspec.Struct):
    id: int
    price: float
    note: str = "none"


def add(client: redis.Redis, *numbers: int, **options: Any) -> None:
    for number in numbers:
        client.xadd("in", {"n": str(number)}, **options)


def test_all_fields_are_the_value_as_text(server, client):
    client.xadd("in", {"id": "7", "price": "1.50", "note": "ä"}, id="1700000000123-4")
    with SourceRun(RedisStream(server.url, "in")) as run:
        run.drain()
        assert run.values == [{"id": "7", "price": "1.50", "note": "ä"}]


def test_fields_are_converted_into_a_type(server, client):
    client.xadd("in", {"id": "7", "price": "1.50"})
    client.xadd("in", {"price": "2", "id": "8", "note": "x", "other": "left out"})
    with SourceRun(RedisStream(server.url, "in", Order)) as run:
        assert run.drain() == [Order(7, 1.5), Order(8, 2.0, "x")]


def test_a_field_alone_is_the_value_and_another_the_key(server, client):
    client.execute_command("XADD", "in", "5-1", "k", "a", "data", b"\x00\xff")
    client.execute_command("XADD", "in", "5-2", "data", b"{}", "data", b"2", "k", "b")
    with SourceRun(RedisStream(server.url, "in", value=Bytes(), field="data", key_field="k")) as run:
        run.drain()
        assert run.values == [b"\x00\xff", b"2"]
        assert run.keys == [b"a", b"b"]


def test_an_entry_that_is_no_text_fails_alone_and_shows_its_bytes(server, client):
    client.xadd("in", {"n": "1"})
    client.execute_command("XADD", "in", "*", "n", b"\xff")
    with SourceRun(RedisStream(server.url, "in", key_field="n")) as run:
        while run.read():
            pass
        good, bad = [payload or b"" for batch in run.waiting for payload in batch.records.values()]
        assert list(run.source.value.deserialize([good])) == [{"n": "1"}]
        assert b"\xff" in bad
        with pytest.raises(UnicodeDecodeError):
            list(run.source.value.deserialize([bad]))


def test_an_entry_without_the_field_has_a_null_value(server, client):
    client.xadd("in", {"n": "1"})
    client.xadd("in", {"m": "2"})
    with SourceRun(RedisStream(server.url, "in", field="n")) as run:
        while run.read():
            pass
        assert [value for batch in run.waiting for value in batch.records.values()] == [b"1", None]


def test_the_event_time_is_that_of_the_id(server, client):
    client.xadd("in", {"n": "1"}, id="1700000000123-4")
    client.xadd("in", {"n": "2"}, id="18446744073709551615-1")
    with SourceRun(RedisStream(server.url, "in", field="n")) as run:
        while run.read():
            pass
        times = [time for batch in run.waiting for time in batch.records.timestamps()]
        assert times == [1_700_000_000_123, 253_402_300_799_999]


def test_latest_begins_at_the_first_start_whenever_that_is_committed(server, client):
    add(client, 1, 2)
    with SourceRun(RedisStream(server.url, "in", field="n", begin="latest")) as run:
        run.step()
        run.crash()
        add(client, 3)
        assert run.drain() == ["3"]


def test_a_stream_that_does_not_exist_is_waited_for(server, client):
    with SourceRun(RedisStream(server.url, "in", field="n")) as run:
        assert run.drain() == []
        add(client, 1)
        assert run.until(1) == ["1"]


def test_a_waiting_read_returns_as_soon_as_there_is_an_entry_or_the_source_is_closed(server, client):
    with SourceRun(RedisStream(server.url, "in", field="n")) as run:
        run.drain()
        pool = ThreadPoolExecutor(2)
        waiting = pool.submit(run.open().read, 60.0)
        wait_until(lambda: blocked(client), what="a blocked client")
        add(client, 1)
        batch = waiting.result(10)
        assert batch is not None
        assert batch.records.values() == [b"1"]
        waiting = pool.submit(run.open().read, 60.0)
        wait_until(lambda: blocked(client), what="a blocked client")
        run.open().close()
        assert waiting.result(10) is None
        with pytest.raises(SourceUnavailable, match="is closed"):
            run.open().health()
        pool.shutdown()


def blocked(client: redis.Redis) -> bool:
    return bool(client.info("clients")["blocked_clients"])


# --- trimmed, deleted, created again


def read_two_of(server: Any, client: redis.Redis, *, added: int, **options: Any) -> SourceRun:
    """A source that has committed two entries of those that are added."""
    run = SourceRun(RedisStream(server.url, "in", field="n", max_records=2, **options))
    add(client, *range(added))
    run.step()
    run.step()
    assert run.values == ["0", "1"]
    run.crash()
    return run


def test_entries_that_were_trimmed_after_they_were_read_are_not_missed(server, client):
    with read_two_of(server, client, added=4) as run:
        client.xtrim("in", maxlen=2, approximate=False)
        assert run.drain() == ["0", "1", "2", "3"]
        client.xtrim("in", maxlen=0, approximate=False)
        run.crash()
        add(client, 4)
        assert run.drain() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("left", [0, 1, 3])
def test_entries_that_were_trimmed_before_they_were_read_stop_the_source(server, client, left):
    with read_two_of(server, client, added=6) as run:
        client.xtrim("in", maxlen=left, approximate=False)
        with pytest.raises(ConnectorError, match=f"{4 - left} entries after .* were removed before") as error:
            run.read()
        assert "out_of_range" in str(error.value)


def test_a_source_that_may_continues_with_what_is_there(server, client):
    with read_two_of(server, client, added=6, out_of_range="earliest") as run:
        client.xtrim("in", maxlen=1, approximate=False)
        assert run.until(3) == ["0", "1", "5"]
        assert run.open().health().metrics["lost"] == 3
        run.crash()
        add(client, 6)
        assert run.until(4) == ["0", "1", "5", "6"]


def test_entries_that_were_deleted_within_the_stream_are_no_reason_to_stop(server, client):
    ids = [client.xadd("in", {"n": str(number)}) for number in range(8)]
    with SourceRun(RedisStream(server.url, "in", field="n", max_records=3)) as run:
        run.step()
        run.step()
        client.xdel("in", ids[4], ids[5])
        run.crash()
        assert run.drain() == ["0", "1", "2", "3", "6", "7"]
        client.xtrim("in", maxlen=0, approximate=False)
        run.crash()
        add(client, 8)
        assert run.drain()[-1] == "8"


@pytest.mark.parametrize("entries", [1, 2, 5])
def test_a_stream_that_was_created_again_stops_the_source(server, client, entries):
    with read_two_of(server, client, added=2) as run:
        client.delete("in")
        assert not run.read()
        assert run.open().health().problem
        add(client, *range(10, 10 + entries))
        with pytest.raises(ConnectorError, match="was deleted and created again"):
            run.read()


def test_a_stream_with_earlier_ids_is_another_one(server, client):
    with read_two_of(server, client, added=2, out_of_range="earliest") as run:
        client.delete("in")
        client.xadd("in", {"n": "again"}, id="1-1")
        assert run.until(3) == ["0", "1", "again"]


# --- groups


def grouped(server: Any, **options: Any) -> RedisStream[str]:
    return RedisStream(server.url, "in", field="n", group="g", **options)


def test_entries_are_acknowledged_after_the_commit_only(server, client):
    with SourceRun(grouped(server)) as run:
        add(client, 1, 2, 3)
        run.read()
        run.process()
        run.read()
        assert client.xpending("in", "g")["pending"] == 3
        run.commit()
        run.read()
        assert client.xpending("in", "g")["pending"] == 0


def test_a_stop_acknowledges_what_is_committed_and_leaves_no_consumer(server, client):
    with SourceRun(grouped(server)) as run:
        add(client, 1, 2, 3)
        run.step()
        run.reopen()
        assert client.xpending("in", "g")["pending"] == 0
        assert client.xinfo_consumers("in", "g") == []


def test_entries_are_shared_with_other_consumers_and_those_of_dead_ones_taken_over(server, client):
    with SourceRun(grouped(server, claim_after=seconds(1), max_records=4)) as run:
        run.open()
        add(client, *range(10))
        mine = client.xreadgroup("g", "other program", {"in": ">"}, count=5)[0][1]
        client.xack("in", "g", mine[0][0])
        run.step()
        assert run.values == ["5", "6", "7", "8"]
        run.step()
        assert run.values == ["5", "6", "7", "8", "9"]
        # It never acknowledges the rest: those are taken over when they are idle for long enough.
        assert sorted(run.until(9)) == [str(number) for number in range(1, 10)]
        run.step()
        assert client.xpending("in", "g")["pending"] == 0


def test_a_living_consumer_of_another_program_keeps_what_it_has(server, client):
    with SourceRun(grouped(server, claim_after=seconds(3_600))) as run:
        run.open()
        add(client, 1, 2)
        client.xreadgroup("g", "other program", {"in": ">"}, count=1)
        run.drain()
        assert run.values == ["2"]
        assert client.xpending("in", "g")["pending"] == 1


def test_tasks_of_one_source_share_the_group_and_leave_each_others_entries(server, client):
    source = grouped(server, tasks=2, claim_after=seconds(1), max_records=3)
    assert source.tasks == 2
    with SourceRun(source) as first, SourceRun(source, task=1) as second:
        first.open()
        second.open()
        add(client, *range(6))
        first.read()
        second.read()
        wait_until(lambda: client.xpending_range("in", "g", "-", "+", 10, idle=1_100), what="idle entries")
        for run in (first, second):
            run.crash()
        # Each takes over what its own earlier reader had, at once, and nothing of the other one.
        assert first.drain() == ["0", "1", "2"]
        assert second.drain() == ["3", "4", "5"]


def test_a_group_that_was_deleted_continues_after_what_this_source_has(server, client):
    with SourceRun(grouped(server)) as run:
        add(client, 1, 2)
        run.drain()
        add(client, 3)
        client.xgroup_destroy("in", "g")
        assert run.until(3) == ["1", "2", "3"]


def test_a_group_that_is_set_back_is_read_again_but_not_what_is_in_progress(server, client):
    with SourceRun(grouped(server)) as run:
        add(client, 1, 2)
        run.drain()
        run.read()
        add(client, 3)
        run.read()
        client.xgroup_setid("in", "g", "0")
        run.read()
        while run.waiting:
            run.process()
        run.commit()
        assert run.values == ["1", "2", "3", "1", "2"]


def test_the_lag_and_what_is_pending_are_seen(server, client):
    with SourceRun(grouped(server, max_records=2)) as run:
        run.open()
        add(client, *range(5))
        run.read()
        assert run.open().health().metrics == {"read": 2.0, "pending": 2.0, "lag": 3.0}
    with SourceRun(RedisStream(server.url, "in", field="n", max_records=2), name="alone") as run:
        run.read()
        run.read()
        assert run.open().health().metrics == {"read": 2.0, "lost": 0.0, "lag": 3.0}


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": "newest"}, "begin='newest' is none of earliest, latest"),
        ({"tasks": 2}, "only a group can be read by 2 tasks"),
        ({"group": "g", "out_of_range": "earliest"}, "not for groups"),
        ({"max_records": 0}, "max_records=0"),
        ({"type": Order, "value": Json()}, "not both"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        RedisStream("redis://localhost", "in", **options)


def test_a_key_of_another_type_is_refused_at_the_start(server, client):
    client.rpush("in", "1")
    with pytest.raises(ConnectorError, match="the key 'in' is a list, no stream"):
        RedisStream(server.url, "in").check("shop", "in")
