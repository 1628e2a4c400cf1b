from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
import zmq
import zmq.auth

from streams import App, Json, Text
from streams.connectors.sink import SinkContext, SinkRows
from streams.connectors.source import SourceContext
from streams.connectors.zeromq import CurveClient, CurveServer, PullSource, PushSink
from streams.errors import ConfigurationError, ConnectorError, SinkUnavailable
from streams.records import TopicPartition
from tests.support.messages import free_address
from tests.support.source_reading import Reading
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = SinkContext(application="shop", name="out", worker="w", lock_timeout=5)


class Keys:
    """Certificates in a folder, as the tools of ZeroMQ write them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.allowed = folder / "allowed"
        self.allowed.mkdir()
        for name in ("server", "client", "stranger"):
            zmq.auth.create_certificates(folder, name)
        self.allow("client")

    def allow(self, name: str) -> None:
        (self.allowed / f"{name}.key").write_bytes((self.folder / f"{name}.key").read_bytes())

    def secret(self, name: str) -> str:
        return f"file:{self.folder / name}.key_secret"

    def texts(self) -> list[str]:
        found = []
        for path in self.folder.glob("*.key_secret"):
            _, secret = zmq.auth.load_certificate(path)
            assert secret is not None
            found.append(secret.decode())
        return found

    def server(self) -> CurveServer:
        return CurveServer(secret_key=self.secret("server"), clients=self.allowed)

    def client(self, name: str = "client") -> CurveClient:
        return CurveClient(secret_key=self.secret(name), server_key=f"file:{self.folder / 'server.key'}")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def rows(*values: int) -> SinkRows:
    count = len(values)
    return SinkRows(
        partition=TopicPartition("numbers", 0),
        start=0,
        next_offset=count,
        keys=[None] * count,
        values=values,
        timestamps=[0] * count,
        headers=[None] * count,
        offsets=range(count),
    )


@pytest.mark.parametrize("source_is_bound", [True, False])
def test_a_client_that_is_allowed_is_connected(keys, source_is_bound):
    address = free_address()
    if source_is_bound:
        source = PullSource(bind=address, value=Json(int), curve=keys.server())
        sink = PushSink(connect=address, curve=keys.client())
    else:
        source = PullSource(connect=address, value=Json(int), curve=keys.client())
        sink = PushSink(bind=address, curve=keys.server())
    source.check("shop", "in")
    sink.check(CONTEXT)
    with Reading(source) as reading:
        writer = sink.open(CONTEXT)
        assert writer.write([rows(1, 2)]) == []
        assert reading.until(2) == [1, 2]
        writer.close()


def test_a_client_that_is_not_allowed_gets_nothing_until_its_key_is_there(keys):
    address = free_address()
    with Reading(PullSource(bind=address, value=Json(int), curve=keys.server())) as reading:
        stranger = PushSink(connect=address, curve=keys.client("stranger"))
        with pytest.raises(SinkUnavailable, match=rf"no receiver at {address}: the other side"):
            stranger.open(CONTEXT)
        assert reading.reader.health().metrics["failed_handshakes"] >= 1
        assert reading.drain() == []
        keys.allow("stranger")
        writer = stranger.open(CONTEXT)
        writer.write([rows(1)])
        assert reading.until(1) == [1]
        writer.close()


@pytest.mark.parametrize("wrong", ["no keys", "another server"])
def test_a_client_without_the_servers_key_gets_nothing(keys, wrong):
    address = free_address()
    curve = None
    if wrong == "another server":
        curve = CurveClient(
            secret_key=keys.secret("client"), server_key=f"file:{keys.folder / 'stranger.key'}"
        )
    with Reading(PullSource(bind=address, value=Json(int), curve=keys.server())) as reading:
        with pytest.raises(SinkUnavailable, match="no receiver at"):
            PushSink(connect=address, curve=curve).open(CONTEXT)
        assert reading.drain() == []


def test_any_client_that_knows_the_server_may_connect_if_the_program_says_so(keys):
    address = free_address()
    server = CurveServer(secret_key=keys.secret("server"), clients="any")
    with Reading(PullSource(bind=address, value=Json(int), curve=server)) as reading:
        writer = PushSink(connect=address, curve=keys.client("stranger")).open(CONTEXT)
        writer.write([rows(1)])
        assert reading.until(1) == [1]
        writer.close()


def test_keys_come_from_the_environment(keys, monkeypatch):
    public, secret = zmq.auth.load_certificate(keys.folder / "client.key_secret")
    server, _ = zmq.auth.load_certificate(keys.folder / "server.key")
    assert secret is not None
    monkeypatch.setenv("BRIDGE_KEY", secret.decode())
    client = CurveClient(secret_key="env:BRIDGE_KEY", server_key=server.decode())
    (keys.allowed / "client.key").write_bytes(public)
    address = free_address()
    with Reading(PullSource(bind=address, value=Json(int), curve=keys.server())) as reading:
        writer = PushSink(connect=address, curve=client).open(CONTEXT)
        writer.write([rows(7)])
        assert reading.until(1) == [7]
        writer.close()


def test_keys_are_in_no_description_log_or_error(keys, caplog, monkeypatch):
    address = free_address()
    _, secret = zmq.auth.load_certificate(keys.folder / "client.key_secret")
    assert secret is not None
    monkeypatch.setenv("BROKEN_KEY", secret.decode()[:-1])
    told: list[str] = []
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigurationError) as given:
        CurveClient(secret_key=secret.decode(), server_key="env:X")
    told.append(str(given.value))
    for broken in ("env:BROKEN_KEY", "env:NONE", "file:/none", f"file:{keys.folder / 'client.key'}"):
        with pytest.raises(ConnectorError) as error:
            PushSink(connect=address, curve=CurveClient(secret_key=broken, server_key=secret.decode())).check(
                CONTEXT
            )
        told.append(str(error.value))
    app = App("shop")
    source = PullSource(bind=address, key=Text(), value=Json(int), curve=keys.server())
    app.source(source).to("numbers", value=Json(int))
    sink = PushSink(connect=free_address(), curve=keys.client("stranger"))
    app.stream("numbers", value=Json(int)).sink(sink)
    told += [app.topology.describe("json"), app.topology.describe(), repr(source), repr(sink), repr(app)]
    with Reading(source) as reading:
        with pytest.raises(SinkUnavailable) as refused:
            PushSink(connect=address, curve=keys.client("stranger")).open(CONTEXT)
        told += [str(refused.value), json.dumps(dict(reading.reader.health().metrics))]
    told.append(caplog.text)
    for text in told:
        for key in keys.texts():
            assert key not in text
            assert key[:-1] not in text


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (CurveServer(secret_key="env:NO_SUCH_KEY", clients="any"), "has no variable NO_SUCH_KEY"),
        (
            CurveServer(secret_key="file:/no/such/file", clients="any"),
            "/no/such/file cannot be read: No such",
        ),
    ],
)
def test_missing_keys_end_the_worker_before_it_joins(curve, message):
    with pytest.raises(ConnectorError, match=message):
        PullSource(bind="tcp://127.0.0.1:1", value=Json(), curve=curve).check("shop", "in")
    with pytest.raises(ConnectorError, match=message):
        PullSource(bind="tcp://127.0.0.1:1", value=Json(), curve=curve).open(
            SourceContext(application="shop", name="in", task=0, position=b"")
        )


def test_the_folder_of_clients_must_exist(keys):
    server = CurveServer(secret_key=keys.secret("server"), clients=keys.folder / "none")
    with pytest.raises(ConnectorError, match="none is not a folder"):
        PushSink(bind="tcp://127.0.0.1:1", curve=server).check(CONTEXT)


def test_a_client_is_refused_once_its_key_is_removed(keys):
    address = free_address()
    with Reading(PullSource(bind=address, value=Json(int), curve=keys.server())) as reading:
        PushSink(connect=address, curve=keys.client()).open(CONTEXT).close()
        (keys.allowed / "client.key").unlink()
        with pytest.raises(SinkUnavailable):
            PushSink(connect=address, curve=keys.client()).open(CONTEXT)
        wait_until(lambda: reading.reader.health().metrics["failed_handshakes"] >= 1)
