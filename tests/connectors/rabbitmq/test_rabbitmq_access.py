"""Servers that are away, freeze, block or refuse; TLS; passwords that are never shown; rights."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from streams import App, Text
from streams.connectors.rabbitmq import RabbitMQQueue, RabbitMQSink
from streams.connectors.source import SourceContext
from streams.devstack.kafka.ports import free_ports
from streams.devstack.rabbitmq import LocalRabbitMQ
from streams.errors import ConfigurationError, ConnectorError, SinkUnavailable, SourceUnavailable
from streams.records import Output
from tests.support.cluster import AppCluster
from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows
from tests.support.source_runs import SourceRun, read_on
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.connectors.rabbitmq.sink_writer import MessageWriter
    from streams.connectors.sink import SinkContext

PASSWORD = "s3cret/pass word"  # quoted in URLs
QUOTED = "s3cret%2Fpass%20word"
OPENED = SourceContext(application="shop", name="in", task=0, position=b"")

LARGEST = 500_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> tuple[trustme.CA, Path]:
    made = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    made.cert_pem.write_to_path(path)
    return made, path


@pytest.fixture(scope="module")
def secured_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(authority, secured_port, tmp_path_factory) -> Iterator[LocalRabbitMQ]:
    """A server that tests freeze, kill and fill. It recognises users by certificates too."""
    if missing := LocalRabbitMQ.missing():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("server")
    certificate = authority[0].issue_cert("localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    settings = {
        "consumer_timeout": 1_500,
        "max_message_size": LARGEST,
        "listeners.ssl.1": f"127.0.0.1:{secured_port}",
        "ssl_options.cacertfile": authority[1],
        "ssl_options.certfile": folder / "certificate.pem",
        "ssl_options.keyfile": folder / "key.pem",
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true",
        "auth_mechanisms.1": "PLAIN",
        "auth_mechanisms.2": "EXTERNAL",
        "ssl_cert_login_from": "common_name",
    }
    with LocalRabbitMQ.create(
        settings=settings,
        plugins=["rabbitmq_auth_mechanism_ssl"],
        erlang_arguments="-rabbit channel_tick_interval 300",
    ) as server:
        server.control("add_user", "shop", PASSWORD)
        yield server


def with_password(server: LocalRabbitMQ, password: str = QUOTED, user: str = "shop") -> str:
    return server.url(user=user, password=password)


def allow(server: LocalRabbitMQ, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
    server.control("set_permissions", "-p", "/", "shop", configure, write, read)


# --- users and passwords


def test_a_password_opens_the_server_and_is_shown_nowhere(server, program, caplog):
    allow(server)
    program.queue("guarded")
    source = RabbitMQQueue(with_password(server), "guarded")
    sink = RabbitMQSink(with_password(server), exchange="", routing_key="guarded", value=Text())
    source.check("shop", "in")
    sink.check(context())
    writer = sink.open(context())
    writer.claim({ORDERS: TOPIC_ID})
    writer.write([sink_rows(["1"])])
    writer.commit()
    writer.close()
    with SourceRun(source) as run:
        assert run.until(1) == ["1"]
    for shown in (repr(source), repr(sink), sink.target, caplog.text):
        assert "s3cret" not in shown


@pytest.mark.parametrize("password", ["wr0ng%2Fpass", ""])
def test_a_refused_login_ends_a_start_and_is_an_outage_later(server, password):
    url = with_password(server, password)
    source = RabbitMQQueue(url, "guarded")
    sink = RabbitMQSink(url, exchange="", routing_key="guarded")
    for check in (lambda: source.check("shop", "in"), lambda: sink.check(context())):
        with pytest.raises(ConnectorError, match=r"403 ACCESS_REFUSED(?s:.*)RABBITMQ_PASSWORD") as refused:
            check()
        assert "wr0ng" not in str(refused.value)
    with pytest.raises(SourceUnavailable) as unavailable:
        source.open(OPENED)
    with pytest.raises(SinkUnavailable) as sink_unavailable:
        sink.open(context())
    for error in (unavailable, sink_unavailable):
        assert "wr0ng" not in str(error.value)


def test_user_and_password_may_come_from_the_environment_or_a_file(server, program, monkeypatch, tmp_path):
    allow(server)
    program.queue("guarded")
    source = RabbitMQQueue(f"amqp://127.0.0.1:{server.port}", "guarded")
    source.check("shop", "in")  # as guest
    monkeypatch.setenv("RABBITMQ_USERNAME", "shop")
    with pytest.raises(ConnectorError):
        source.check("shop", "in")
    monkeypatch.setenv("RABBITMQ_PASSWORD", PASSWORD)
    source.check("shop", "in")
    monkeypatch.delenv("RABBITMQ_PASSWORD")
    file = tmp_path / "password"
    monkeypatch.setenv("RABBITMQ_PASSWORD_FILE", str(file))
    with pytest.raises(ConnectorError, match="RABBITMQ_PASSWORD_FILE"):
        source.check("shop", "in")
    file.write_text(f"{PASSWORD}\n")
    source.check("shop", "in")


def test_a_virtual_host_that_is_missing_ends_a_start(server):
    with pytest.raises(ConnectorError, match=r"530 NOT_ALLOWED.*none"):
        RabbitMQQueue(server.url("none"), "guarded").check("shop", "in")


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@host",
        "amqp://:s3cret@host:port",
        "amqp://:s3cret@/vhost",
        "amqp://:s3cret@host/a/b",
        "amqp://:s3cret@host?frame_max=1",
        "amqp://:s3cret@host?heartbeat=0",
        "amqp://:s3cret@host?cacertfile=/ca.pem",
        "amqps://:s3cret@host?verify=maybe",
        "amqps://:s3cret@host?auth_mechanism=any",
        "s3cret",
    ],
)
def test_a_wrong_url_is_refused_without_being_shown(url):
    for make in (
        lambda: RabbitMQQueue(url, "queue"),
        lambda: RabbitMQSink(url, exchange="", routing_key="queue"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            make()
        assert "s3cret" not in str(refused.value)


def rights() -> dict[str, dict[str, str]]:
    """The rights of the documentation's table, by what needs them."""
    page = Path(__file__).parents[3] / "docs" / "bridges.md"
    table = page.read_text().partition("## RabbitMQ")[2].partition("**Rights**")[2].partition("\n## ")[0]
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and cells[0].startswith("`"):
            names = [", ".join(re.findall(r"`([^`]+)`", cell)) for cell in cells[1:]]
            found[cells[0].strip("`")] = dict(zip(("configure", "write", "read"), names, strict=True))
    return found


@pytest.mark.parametrize("what", ["RabbitMQQueue", "RabbitMQSink"])
def test_the_documented_rights_are_enough(server, program, what):
    program.exchange("shop")
    program.queue("orders", "shop", "#")
    own = {
        right: "^({})$".format("|".join(names.split(", "))) if names else "^$"
        for right, names in rights()[what].items()
    }
    assert set(own) == {"configure", "write", "read"}
    allow(server, **own)
    if what == "RabbitMQSink":
        sink = RabbitMQSink(with_password(server), exchange="shop", routing_key="x")
        sink.check(context())
        writer = sink.open(context())
        writer.write([sink_rows([1])])
        writer.close()
        assert program.bodies("orders") == [b"1"]
        allow(server, **{**own, "write": "^$"})
        writer = sink.open(context())
        with pytest.raises(SinkUnavailable, match=r"403.*'shop'"):
            writer.write([sink_rows([1])])
        return
    source = RabbitMQQueue(with_password(server), "orders")
    source.check("shop", "in")
    program.put("orders", ["1"])
    with SourceRun(source) as run:
        assert run.until(1) == ["1"]
        run.open().health()
    allow(server, **{**own, "read": "^$"})
    with pytest.raises(SourceUnavailable, match=r"403.*'orders'"):
        source.open(OPENED)


# --- TLS


@pytest.fixture
def certificate(authority, tmp_path) -> str:
    """The options of a URL with a certificate of the user shop."""
    made = authority[0].issue_cert("shop", common_name="shop")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    made.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    return f"certfile={tmp_path}/certificate.pem&keyfile={tmp_path}/key.pem"


def test_messages_pass_over_tls_with_a_certificate_as_the_user(
    server, program, secured_port, authority, certificate
):
    allow(server)
    program.queue("secured")
    options = f"cacertfile={authority[1]}&{certificate}&auth_mechanism=external"
    url = f"amqps://localhost:{secured_port}/%2F?{options}"
    sink = RabbitMQSink(url, exchange="", routing_key="secured", value=Text())
    sink.check(context())
    writer = sink.open(context())
    texts = [f"{number} {'x' * 3_000}" for number in range(500)]
    assert writer.write([sink_rows(texts)]) == []
    writer.close()
    source = RabbitMQQueue(url, "secured")
    with SourceRun(source) as run:
        assert run.until(500) == texts
        assert run.open().health().metrics["ready"] == 0
        # Closing from another thread ends a read that waits.
        waiting = threading.Thread(target=run.open().read, args=(60.0,))
        waiting.start()
        run.open().close()
        waiting.join(10)
        assert not waiting.is_alive()


def test_a_certificate_of_another_authority_or_host_is_refused(
    secured_port, authority, certificate, tmp_path
):
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    for host, file in (("localhost", other), ("127.0.0.1", authority[1])):
        url = f"amqps://shop:{QUOTED}@{host}:{secured_port}/?cacertfile={file}&{certificate}"
        sink = RabbitMQSink(url, exchange="", routing_key="x")
        with pytest.raises(ConnectorError, match=r"(?i)certificate") as refused:
            sink.check(context())
        assert "s3cret" not in str(refused.value)
        assert QUOTED not in str(refused.value)
        with pytest.raises(SinkUnavailable):
            sink.open(context())
    named = f"amqps://shop:{QUOTED}@127.0.0.1:{secured_port}/?cacertfile={authority[1]}&{certificate}"
    RabbitMQSink(f"{named}&server_name_indication=localhost", exchange="", routing_key="x").check(context())
    unchecked = f"amqps://shop:{QUOTED}@127.0.0.1:{secured_port}/?verify=verify_none&{certificate}"
    RabbitMQSink(unchecked, exchange="", routing_key="x").check(context())
    with pytest.raises(ConnectorError, match="certificates cannot be read"):
        RabbitMQSink("amqps://host?cacertfile=/nonexistent", exchange="", routing_key="x").check(context())


def test_a_server_without_tls_is_an_outage_for_amqps(server, authority, monkeypatch):
    monkeypatch.setattr("streams.connectors.rabbitmq.client.CONNECT_SECONDS", 0.5)
    url = f"amqps://localhost:{server.port}/?cacertfile={authority[1]}"
    with pytest.raises(SourceUnavailable):
        RabbitMQQueue(url, "x").check("shop", "in")


# --- a server that is away, freezes, blocks or gives up on a consumer


def test_a_server_that_is_away_is_waited_for():
    url = f"amqp://127.0.0.1:{free_ports(1)[0]}"
    source = RabbitMQQueue(url, "queue")
    sink = RabbitMQSink(url, exchange="", routing_key="queue")
    for unavailable, call in (
        (SourceUnavailable, lambda: source.check("shop", "in")),
        (SourceUnavailable, lambda: source.open(OPENED)),
        (SinkUnavailable, lambda: sink.check(context())),
        (SinkUnavailable, lambda: sink.open(context())),
    ):
        with pytest.raises(unavailable, match="does not answer"):
            call()


def test_a_frozen_server_ends_no_wait_for_ever(server, program, monkeypatch):
    program.queue("frozen")
    monkeypatch.setattr("streams.connectors.rabbitmq.client.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("streams.connectors.rabbitmq.client.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("streams.connectors.rabbitmq.connection.CLOSE_SECONDS", 0.3)
    monkeypatch.setattr("streams.connectors.rabbitmq.sink_writer.CONFIRM_SECONDS", 0.5)
    url = f"{server.url()}?heartbeat=1"
    reader = RabbitMQQueue(url, "frozen").open(OPENED)
    sink = RabbitMQSink(url, exchange="", routing_key="frozen")
    writer = sink.open(context())
    server.pause()
    try:
        with pytest.raises(SinkUnavailable):
            writer.write([sink_rows([1])])
        with pytest.raises(SourceUnavailable, match="no sign of life"):
            read_on(reader)
        reader.close()
        with pytest.raises(SinkUnavailable):
            sink.open(context())
    finally:
        server.resume()


def test_an_unused_connection_is_kept_alive(server, program):
    program.queue("unused")
    url = f"{server.url()}?heartbeat=1"
    reader = RabbitMQQueue(url, "unused").open(OPENED)
    writer = RabbitMQSink(url, exchange="", routing_key="unused", value=Text()).open(context())
    # After two heartbeats' time without a word the server would end the connections.
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() > begun + 3.5)
    assert writer.write([sink_rows(["1"])]) == []
    batch = reader.read(10.0)
    assert batch is not None
    assert list(batch.records.values()) == [b"1"]
    reader.close()
    writer.close()
    program.bodies("unused")


def test_a_consumer_that_acknowledges_nothing_for_too_long_is_opened_again(server, program):
    program.queue("slow")
    program.put("slow", ["1"])
    with SourceRun(RabbitMQQueue(server.url(), "slow")) as run:
        assert run.read(5.0)
        with pytest.raises(SourceUnavailable, match=r"406 PRECONDITION_FAILED.*timed out"):
            read_on(run.open())
        run.crash()
        assert run.until(1) == ["1"]


def test_a_message_that_is_too_large_for_the_server_is_refused(server, program):
    program.queue("limited")
    app = App("out")
    app.stream("in", key=Text(), value=Text()).sink(
        RabbitMQSink(server.url(), exchange="", routing_key="limited", value=Text())
    )
    site = AppCluster(app, {"in": 1})
    values = [b"1", b"x" * (LARGEST + 1), b"3"]
    site.write(Output("in", [b"k"] * 3, values, [0] * 3))
    worker = site.worker()
    site.run(worker, until=lambda: site.payloads("out-dead-letters"))
    worker.close()
    assert {b"1", b"3"} == set(program.bodies("limited"))


def test_a_server_that_takes_no_messages_holds_back_reading_and_keeps_the_membership(server, program):
    program.queue("blocked")
    attempts: list[SinkContext] = []

    class Counted(RabbitMQSink):
        def open(self, context: SinkContext) -> MessageWriter:
            attempts.append(context)
            return super().open(context)

    app = App("out")
    app.stream("in", key=Text(), value=Text()).sink(
        Counted(server.url(), exchange="", routing_key="blocked", value=Text())
    )
    site = AppCluster(app, {"in": 1})

    def produce(numbers: range) -> None:
        encoded = [b"%d" % number for number in numbers]
        site.write(Output("in", encoded, encoded, [0] * len(encoded)))

    worker = site.worker()
    produce(range(10))
    site.run(worker, until=lambda: program.count("blocked") == 10)
    server.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        produce(range(10, 2_000))
        site.run(worker, until=lambda: "takes no messages" in str(worker.problems))
        assert "low on memory" in str(worker.problems)
        site.run(worker, until=lambda: len(attempts) >= 6)
        assert worker.problems
        assert worker.tasks
        assert program.count("blocked") == 10
    finally:
        server.control("set_vm_memory_high_watermark", "absolute", "400MB")
    site.run(worker, until=lambda: program.count("blocked") >= 2_000, seconds=60)
    worker.close()
    found = Counter(program.bodies("blocked"))
    assert set(found) == {b"%d" % number for number in range(2_000)}
    # What was on its way when the server began to block is there twice. Each later attempt sends one row.
    assert max(count for body, count in found.items() if body != b"10") <= 2
