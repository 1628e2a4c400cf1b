"""``streams bridge``: messages between other systems and topics, on real servers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
import zmq
from typer.testing import CliRunner

from streams.broker.reading import read_to_end
from streams.cli.main import cli
from streams.errors import ConfigurationError, ConnectorError
from streams.records import TopicPartition
from tests.support.messages import Receiver, Sender, free_address
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from streams.broker.kafka import KafkaBroker
    from streams.records import Headers

PASSWORD = "s3cret"


@contextlib.contextmanager
def bridging(
    folder: Path, servers: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run the command, which must end with exit code 0 when it is asked to stop."""
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "streams", "bridge", *arguments],
            env=os.environ
            | {"STREAMS_BOOTSTRAP_SERVERS": servers, "STREAMS_STATE_DIR": str(folder / "state")}
            | dict(environment or {}),
            stdout=log,
            stderr=log,
            text=True,
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (folder / "log").read_text()
        finally:
            process.kill()
            process.wait()


def wait_for(kafka: KafkaBroker, topic: str, count: int) -> None:
    """Wait until a topic of one partition has so many records, and the marker of their transaction."""
    place = TopicPartition(topic, 0)
    with contextlib.closing(kafka.admin()) as admin:
        wait_until(lambda: topic in admin.topics(), 120, what=topic)
        wait_until(lambda: admin.end_offsets([place])[place] > count, 120, what=f"{count} records")


def records(kafka: KafkaBroker, topic: str) -> list[tuple[bytes | None, bytes | None, Headers | None]]:
    found: list[tuple[bytes | None, bytes | None, Headers | None]] = []
    for fetched in read_to_end(kafka, [topic]):
        headers = fetched.headers() or [None] * len(fetched)
        found += zip(fetched.keys(), fetched.values(), headers, strict=True)
    return found


@pytest.mark.kafka
def test_a_list_of_redis_goes_through_a_topic_into_a_stream_once_over_a_restart(
    tmp_path, kafka, kafka_bootstrap, prefix
):
    with RedisServer.create("--requirepass", PASSWORD) as server:
        from_list = ["env:SHOP_REDIS", "--list=jobs", f"--topic={prefix}", "--partitions=1"]
        secret = {"SHOP_REDIS": f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"}
        to_stream = [server.url, f"--from-topic={prefix}", "--stream=done", "--field=payload"]
        with server.client(password=PASSWORD, encoding="latin-1") as client:
            client.rpush("jobs", "one", b"no text \xff\x00")
            supervised = [*from_list, "--workers=1"]
            with bridging(tmp_path, kafka_bootstrap, *supervised, environment=secret) as supervisor:
                wait_for(kafka, prefix, 2)
                tree = [psutil.Process(supervisor.pid), *psutil.Process(supervisor.pid).children()]
                assert len(tree) >= 2
                assert not [process for process in tree if PASSWORD in " ".join(process.cmdline())]
            client.rpush("jobs", "three")
            auth = {"REDISCLI_AUTH": PASSWORD}
            with (
                bridging(tmp_path, kafka_bootstrap, *from_list, environment=secret),
                bridging(tmp_path, kafka_bootstrap, *to_stream, environment=auth),
            ):
                wait_until(lambda: client.xlen("done") == 3, 120, what="the entries")
            payloads = [fields["payload"] for _, fields in client.xrange("done")]
            assert payloads == ["one", "no text \xff\x00", "three"]
        assert [value for _, value, _ in records(kafka, prefix)] == [b"one", b"no text \xff\x00", b"three"]
        with contextlib.closing(kafka.admin()) as admin:
            assert admin.topics()[prefix].partitions == 1
    assert PASSWORD not in (tmp_path / "log").read_text()


@pytest.mark.kafka
def test_messages_of_zeromq_go_through_a_topic_with_their_headers(tmp_path, kafka, kafka_bootstrap, prefix):
    come, go = free_address(), free_address()
    frames = "--frames=key,value,headers"
    pull = [f"zeromq+{come}", "--pull", f"--topic={prefix}", "--partitions=1", frames]
    push = [f"zeromq+{go}", "--push", f"--from-topic={prefix}", frames]
    with (
        Sender(zmq.PUSH, bind=come) as sender,
        Receiver(zmq.PULL, bind=go) as receiver,
        bridging(tmp_path, kafka_bootstrap, *pull),
    ):
        sender.send([b"k", b"\xff", b"trace", b"1"], [b"", b"{}"])
        wait_for(kafka, prefix, 2)
        with bridging(tmp_path, kafka_bootstrap, *push):
            wait_until(lambda: len(receiver.messages) == 2, 120, what="the messages")
    key_and_value = [(b"k", b"\xff", [("trace", b"1")]), (None, b"{}", None)]
    assert records(kafka, prefix) == key_and_value
    assert receiver.messages == [[b"k", b"\xff", b"trace", b"1"], [b"", b"{}"]]


RABBITMQ = "amqp://shop:s3cret@localhost:1/"
REDIS = "redis://:s3cret@localhost:1/0"
ZEROMQ = "zeromq+tcp://localhost:5555"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([RABBITMQ, "--topic=t"], "from RabbitMQ to a topic needs one of --queue"),
        ([RABBITMQ, "--queue=q", "--exchange=e", "--from-topic=t"], "--queue and --exchange are two bridges"),
        ([RABBITMQ, "--exchange=e", "--topic=t"], "--exchange is not for the way from RabbitMQ to a topic"),
        ([RABBITMQ, "--queue=q", "--routing-key=k", "--from-topic=t"], "--routing-key is not for --queue"),
        ([RABBITMQ, "--queue=q", "--topic=t", "--key-from=id"], "key_from= has 'id', which is no property"),
        (
            [RABBITMQ, "--list=l", "--topic=t"],
            "write streams bridge amqp://USER@HOST/VHOST --queue Q --topic T",
        ),
        ([REDIS, "--list=l"], "a bridge needs either --topic or --from-topic"),
        ([REDIS, "--list=l", "--topic=t", "--from-topic=u"], "a bridge needs either --topic or --from-topic"),
        ([REDIS, "--topic=t"], "from Redis to a topic needs one of --stream, --list, --channel"),
        ([REDIS, "--topic=t"], "write streams bridge redis://HOST:6379/0 --stream S --topic T"),
        (
            [REDIS, "--from-topic=t"],
            "from a topic to Redis needs one of --stream, --list, --hashes, --strings",
        ),
        ([REDIS, "--hashes=h:", "--topic=t"], "--hashes is not for the way from Redis to a topic"),
        ([REDIS, "--hashes=h:", "--expires=5", "--from-topic=t"], "--expires is not for --hashes"),
        ([REDIS, "--stream=s", "--list=l", "--topic=t"], "--stream and --list are two bridges"),
        ([REDIS, "--list=l", "--group=g", "--topic=t"], "--group is not for --list from Redis to a topic"),
        ([REDIS, "--list=l", "--group=g", "--topic=t"], "--list takes --take"),
        ([REDIS, "--list=l", "--topic=my topic"], "--topic 'my topic' cannot name a topic"),
        ([REDIS, "--list=l", "--from-topic=t", "--partitions=2"], "--partitions is for --topic"),
        ([REDIS, "--stream=s", "--topic=t", "--tasks=2"], "only a group can be read by 2 tasks"),
        (["redis://:s3cret@/0", "--list=l", "--topic=t"], "the url names no host"),
        (["kafka://u:s3cret@h", "--topic=t"], "kafka://… is no system that can be bridged"),
        (["localhost:s3cret", "--topic=t"], "an argument without :// is no system that can be bridged"),
        (["redis", "--list=l", "--topic=t"], "'redis' is no system that can be bridged"),
        (["env:NOT_THERE", "--list=l", "--topic=t"], "the environment has no variable NOT_THERE"),
        ([ZEROMQ, "--topic=t"], "from ZeroMQ to a topic needs one of --pull, --sub"),
        ([ZEROMQ, "--push", "--topic=t"], "--push is not for the way from ZeroMQ to a topic"),
        ([ZEROMQ, "--push", "--from-topic=t", "--subscribe=a"], "--subscribe is not for --push"),
        ([f"{ZEROMQ},{ZEROMQ}6", "--pull", "--bind", "--topic=t"], "--bind is for one address, got 2"),
        ([ZEROMQ, "--pull", "--topic=t", "--curve-secret-key=env:K"], "keys are --curve-secret-key and"),
        ([ZEROMQ, "--pull", "--topic=t", "--frames=key"], "has no 'value'"),
        (["zeromq+tcp://localhost", "--pull", "--topic=t"], "'tcp://localhost' is no address"),
    ],
)
def test_what_cannot_be_bridged_is_refused_with_what_to_write(arguments, message):
    result = CliRunner().invoke(cli, ["bridge", *arguments])
    assert isinstance(result.exception, ConfigurationError), result.exception
    assert message in str(result.exception)
    assert PASSWORD not in str(result.exception)


def test_a_password_as_an_argument_is_warned_about():
    result = CliRunner().invoke(cli, ["bridge", REDIS, "--topic=t"])
    assert "everyone on this machine can read the password in the URL" in result.output
    assert PASSWORD not in result.output


@pytest.mark.kafka
def test_a_server_that_cannot_be_used_ends_the_command_before_it_joins(kafka_bootstrap, prefix, monkeypatch):
    monkeypatch.setenv("STREAMS_BOOTSTRAP_SERVERS", kafka_bootstrap)
    with RedisServer.create("--requirepass", PASSWORD) as server:
        result = CliRunner().invoke(cli, ["bridge", server.url, "--list=l", f"--topic={prefix}"])
    assert isinstance(result.exception, ConnectorError), result.exception
    assert "Authentication required" in str(result.exception)
