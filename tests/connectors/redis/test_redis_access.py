"""Servers that are away or refuse: TLS, passwords that are never shown, clusters, eviction, outages."""

from __future__ import annotations

import re
import ssl
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from streams.connectors.redis import RedisChannel, RedisList, RedisSink, RedisStream
from streams.connectors.source import SourceContext
from streams.errors import ConfigurationError, ConnectorError, SinkUnavailable, SourceUnavailable
from tests.support.redis_server import RedisServer
from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows
from tests.support.source_runs import SourceRun, read_on
from tests.support.tls_relay import TlsRelay
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

PASSWORD = "s3cret/pass word"  # quoted in URLs
QUOTED = "s3cret%2Fpass%20word"
OPENED = SourceContext(application="shop", name="in", task=0, position=b"")


def sources(url: str) -> list[Any]:
    return [
        RedisStream(url, "in"),
        RedisStream(url, "in", group="g"),
        RedisList(url, "l"),
        RedisChannel(url, "c"),
    ]


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    with RedisServer.create("--requirepass", PASSWORD) as server:
        with server.client(password=PASSWORD) as client:
            client.execute_command(
                "ACL", "SETUSER", "reader", "on", f">{PASSWORD}", "+@all", "-lmove", "~*", "&*"
            )
        yield server


def with_password(server: RedisServer, password: str, user: str = "") -> str:
    return f"redis://{user}:{password}@127.0.0.1:{server.port}/0"


def test_a_password_opens_the_server_and_is_shown_nowhere(guarded):
    url = with_password(guarded, QUOTED)
    for source in sources(url):
        source.check("shop", "in")
        assert "s3cret" not in repr(source)
    with SourceRun(RedisStream(url, "in", field="n")) as run, guarded.client(password=PASSWORD) as client:
        client.xadd("in", {"n": "1"})
        assert run.drain() == ["1"]
    sink = RedisSink(url, stream="out")
    sink.check(context())
    assert "s3cret" not in repr(sink)
    assert "s3cret" not in sink.target


def test_the_password_may_come_from_the_environment(guarded, monkeypatch):
    monkeypatch.setenv("REDISCLI_AUTH", PASSWORD)
    RedisSink(guarded.url, stream="out").check(context())


@pytest.mark.parametrize("password", ["wr0ng%2Fpass", ""])
def test_a_refused_login_ends_a_start_and_is_an_outage_later(guarded, password):
    url = with_password(guarded, password) if password else guarded.url
    for source in sources(url):
        with pytest.raises(ConnectorError) as refused:
            source.check("shop", "in")
        assert "wr0ng" not in str(refused.value)
        assert "password" in str(refused.value)
        with pytest.raises(SourceUnavailable) as unavailable:
            source.open(OPENED)
        assert "wr0ng" not in str(unavailable.value)
    sink = RedisSink(url, stream="out")
    with pytest.raises(ConnectorError):
        sink.check(context())
    with pytest.raises(SinkUnavailable):
        sink.open(context())


def test_a_command_that_is_not_granted_is_named(guarded):
    url = with_password(guarded, QUOTED, "reader")
    with SourceRun(RedisList(url, "in")) as run, guarded.client(password=PASSWORD) as client:
        client.flushall()
        client.rpush("in", "1")
        with pytest.raises(SourceUnavailable, match=r"NOPERM.*lmove"):
            read_on(run.open())


def rights() -> dict[str, list[str]]:
    """The commands of the documentation's table, by what needs them."""
    page = Path(__file__).parents[3] / "docs" / "bridges.md"
    table = page.read_text().partition("**Rights**")[2].partition("**Clusters.**")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")]
    return {what.strip(" `"): re.findall(r"`([A-Z]+)`", commands) for what, commands in rows}


@pytest.mark.parametrize("what", ["RedisStream", "RedisList", "RedisChannel", "RedisSink"])
def test_the_documented_rights_are_enough(guarded, what):
    granted = [f"+{command.lower()}" for command in (*rights()["all"], *rights()[what])]
    with guarded.client(password=PASSWORD) as client:
        client.flushall()
        client.acl_deluser("limited")
        client.execute_command("ACL", "SETUSER", "limited", "on", f">{PASSWORD}", "~*", "&*", *granted)
        client.xadd("in", {"n": "1"})
        client.rpush("l", "1")
        url = with_password(guarded, QUOTED, "limited")
        if what == "RedisSink":
            for sink in (RedisSink(url, stream="s"), RedisSink(url, list="t"), RedisSink(url, hashes="h")):
                sink.check(context(sink.target))
                writer = sink.open(context(sink.target))
                writer.claim({ORDERS: TOPIC_ID})
                for values in ([{"a": 1, "b": None}], [None]):
                    writer.write([sink_rows(values, keys=["k"])])
                    writer.rollback()
                writer.write([sink_rows([{"a": 1, "b": None}], keys=["k"])])
                writer.commit()
                writer.close()
            return
        for source in sources(url):
            if type(source).__name__ == what:
                source.check("shop", "in")
                with SourceRun(source) as run:
                    run.step(0.05)
                    client.publish("c", "1")
                    run.until(1)
                    run.step(0.05)
                    run.step(0.05)
                    run.open().health()
                    # The next one takes over what this one had.
                    client.xadd("in", {"n": "2"})
                    client.rpush("l", "2")
                    run.read(0.05)
                    run.crash(zombie=True)
                    if what != "RedisChannel":
                        run.until(2)


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@host",
        "redis://:s3cret@host:port",
        "redis://:s3cret@/0",
        "redis://:s3cret@host/zero",
        "redis://:s3cret@host/0?socket_timeout=1",
        "s3cret",
    ],
)
def test_a_wrong_url_is_refused_without_being_shown(url):
    for make in (lambda: RedisSink(url, stream="s"), *(lambda i=i: sources(url)[i] for i in range(4))):
        with pytest.raises(ConfigurationError) as refused:
            make()
        assert "s3cret" not in str(refused.value)


# --- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> tuple[trustme.CA, Path]:
    made = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    made.cert_pem.write_to_path(path)
    return made, path


@pytest.fixture
def relay(guarded, authority) -> Iterator[TlsRelay]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority[0].issue_cert("localhost").configure_cert(context)
    with TlsRelay(("127.0.0.1", guarded.port), context) as relay:
        yield relay


def test_records_pass_over_tls_in_both_directions(guarded, relay, authority):
    url = f"rediss://:{QUOTED}@localhost:{relay.port}/0?ssl_ca_certs={authority[1]}"
    with guarded.client(password=PASSWORD) as client:
        client.flushall()
        writer = RedisSink(url, stream="in").open(context())
        writer.claim({ORDERS: TOPIC_ID})
        writer.write([sink_rows([{"n": "1"}, {"n": "2"}])])
        writer.commit()
        writer.close()
        assert [entry for _, entry in client.xrange("in")] == [{"n": "1"}, {"n": "2"}]
        with SourceRun(RedisStream(url, "in", field="n")) as run:
            assert run.drain() == ["1", "2"]
            # Closing from another thread ends a read that waits.
            waiting = threading.Thread(target=run.open().read, args=(60.0,))
            waiting.start()
            wait_until(lambda: client.info("clients")["blocked_clients"], what="a blocked client")
            run.open().close()
            waiting.join(10)
            assert not waiting.is_alive()
        with SourceRun(RedisChannel(url, "c")) as run:
            run.step()
            client.publish("c", "hello")
            assert run.until(1) == ["hello"]


def test_a_certificate_of_another_authority_or_host_is_refused(relay, authority, tmp_path):
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    for host, file in (("localhost", other), ("127.0.0.1", authority[1])):
        url = f"rediss://:{QUOTED}@{host}:{relay.port}/0?ssl_ca_certs={file}"
        with pytest.raises(ConnectorError, match=r"(?i)certificate") as refused:
            RedisSink(url, stream="out").check(context())
        assert "s3cret" not in str(refused.value)
        assert QUOTED not in str(refused.value)
        with pytest.raises(SinkUnavailable):
            RedisSink(url, stream="out").open(context())


def test_a_server_without_tls_is_an_outage_for_rediss(guarded, monkeypatch):
    monkeypatch.setattr("streams.connectors.redis.connection.CONNECT_SECONDS", 0.3)
    with pytest.raises(SourceUnavailable):
        RedisStream(f"rediss://:{QUOTED}@localhost:{guarded.port}/0", "in").check("shop", "in")


# --- a server that is away, freezes or does not fit


def test_a_server_that_is_away_is_waited_for(tmp_path):
    with RedisServer.create() as server:
        url = server.url
    for source in sources(url):
        with pytest.raises(SourceUnavailable, match="does not answer"):
            source.check("shop", "in")
        with pytest.raises(SourceUnavailable, match="does not answer"):
            source.open(OPENED)
    sink = RedisSink(url, stream="out")
    with pytest.raises(SinkUnavailable):
        sink.check(context())
    with pytest.raises(SinkUnavailable):
        sink.open(context())


def test_a_frozen_server_ends_no_wait_for_ever(monkeypatch):
    monkeypatch.setattr("streams.connectors.redis.connection.ANSWER_SECONDS", 0.3)
    with RedisServer.create() as server:
        readers = [source.open(OPENED) for source in sources(server.url)[:3]]
        writer = RedisSink(server.url, stream="out").open(context())
        server.pause()
        try:
            for reader in readers:
                with pytest.raises(SourceUnavailable):
                    read_on(reader)
                reader.close()
            with pytest.raises(SinkUnavailable):
                writer.claim({ORDERS: TOPIC_ID})
        finally:
            server.resume()


def test_a_silent_connection_to_channels_is_asked_whether_it_is_alive(monkeypatch):
    monkeypatch.setattr("streams.connectors.redis.channel_source.PING_SECONDS", 0.05)
    monkeypatch.setattr("streams.connectors.redis.channel_source.ANSWER_SECONDS", 0.5)
    with (
        RedisServer.create() as server,
        SourceRun(RedisChannel(server.url, "c")) as run,
        server.client() as client,
    ):
        run.step()

        def pings() -> int:
            return int(client.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"])

        before = pings()
        wait_until(lambda: (run.step(0.05), pings() >= before + 3)[1], what="pings")
        client.publish("c", "still there")
        assert run.until(1) == ["still there"]
        server.pause()
        try:
            with pytest.raises(SourceUnavailable, match="no answer"):
                read_on(run.open())
        finally:
            server.resume()


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_a_server_that_may_remove_positions_is_refused(policy):
    with (
        RedisServer.create("--maxmemory-policy", policy) as server,
        pytest.raises(ConnectorError, match=policy),
    ):
        RedisSink(server.url, stream="out").check(context())


def test_a_replica_is_refused_at_the_start(server):
    with (
        RedisServer.create("--replicaof", f"127.0.0.1 {server.port}") as replica,
        pytest.raises(ConnectorError, match="is a replica"),
    ):
        RedisSink(replica.url, stream="out").check(context())


# --- a cluster


def knows_all_slots(client: redis.Redis) -> bool:
    state = str(client.execute_command("CLUSTER", "INFO"))
    return "cluster_state:ok" in state and len(client.execute_command("CLUSTER", "SLOTS")) == 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[RedisServer, RedisServer]]:
    """Two servers, each of which has one half of the slots."""
    with (
        RedisServer.create("--cluster-enabled", "yes") as one,
        RedisServer.create("--cluster-enabled", "yes") as other,
    ):
        with one.client() as first, other.client() as second:
            first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
            second.execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
            first.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, other.cluster_port)
            for client in (first, second):
                wait_until(partial(knows_all_slots, client), what="the cluster")
        yield one, other


@pytest.mark.parametrize("number", range(6))
def test_keys_are_written_and_read_at_their_server_of_a_cluster(cluster, number):
    one, _ = cluster
    key = f"orders-{number}"
    sinks: list[RedisSink] = [
        RedisSink(one.url, stream=key),
        RedisSink(one.url, list=f"l{key}"),
        RedisSink(one.url, hashes=f"{{{key}}}:row:"),
    ]
    for sink in sinks:
        sink.check(context(sink.target))
        writer = sink.open(context(sink.target))
        writer.claim({ORDERS: TOPIC_ID})
        assert writer.write([sink_rows([{"n": "1"}, {"n": "2"}], keys=["a", "b"])]) == []
        writer.commit()
        writer.close()
    for source, values in (
        (RedisStream(one.url, key, field="n"), ["1", "2"]),
        (RedisStream(one.url, key, field="n", group="g"), ["1", "2"]),
        (RedisList(one.url, f"l{key}"), ['{"n":"1"}', '{"n":"2"}']),
    ):
        source.check("shop", "in")
        with SourceRun(source) as run:
            assert run.drain() == values


def test_hashes_without_a_tag_are_refused_in_a_cluster(cluster):
    with pytest.raises(ConnectorError, match="is a cluster") as refused:
        RedisSink(cluster[0].url, hashes="customer:").check(context())
    assert 'hashes="{customer}:"' in str(refused.value)
    with pytest.raises(ConnectorError, match="is a cluster") as refused:
        RedisSink(cluster[0].url, strings="page:").check(context())
    assert 'strings="{page}:"' in str(refused.value)


def test_a_slot_that_moves_to_another_server_is_followed(cluster):
    one, other = cluster
    with one.client() as first, other.client() as second:
        key = next(f"k{number}" for number in range(99) if first.cluster("KEYSLOT", f"k{number}") < 8192)
        slot = first.cluster("KEYSLOT", key)
        sink, source = RedisSink(one.url, stream=key, field="n"), RedisStream(one.url, key, field="n")
        writer = sink.open(context())
        writer.claim({ORDERS: TOPIC_ID})
        writer.write([sink_rows(["1"])])
        writer.commit()
        with SourceRun(source) as run:
            assert run.drain() == ["1"]
            writer.write([sink_rows(["2"], start=1)])
            first.cluster("MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", second.cluster("MYID"))
            wait_until(lambda: second.cluster("COUNTKEYSINSLOT", slot), what="the slot at the other server")
            with pytest.raises(SinkUnavailable):
                writer.commit()
            writer.close()
            writer = sink.open(context())
            assert writer.claim({ORDERS: TOPIC_ID}) == {ORDERS: 1}
            writer.write([sink_rows(["2"], start=1)])
            writer.commit()
            writer.close()
            assert run.until(2) == ["1", "2"]
