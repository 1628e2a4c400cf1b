"""Provide a real broker for tests and demonstrations, without manual setup."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.broker.kafka import KafkaBroker
from streams.devstack.kafka import KAFKA_VERSION, LocalKafka
from streams.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CONTAINER_SECONDS = 60.0

QUICK_JAVA = ("-XX:TieredStopAtLevel=1",)
"""Compile quickly: for a broker that serves for seconds or minutes, better code takes more than it brings."""


@contextlib.contextmanager
def development_broker(
    report: Callable[[str], None] = print,
    *,
    heap_mb: int = 512,
    properties: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Provide a broker while the context is open; yields its ``bootstrap.servers``.

    It is the cluster in ``KAFKA_BOOTSTRAP_SERVERS``, if set; else a single node in a container, if a Docker
    engine answers and has or can pull the image; else a local single node. A broker that is started here gets
    a heap of ``heap_mb`` and the broker ``properties``, and is stopped and its data deleted at the end.
    Raises ``LocalKafkaError`` if the local node cannot be started.
    """
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if named:
        report(f"Using the Kafka in KAFKA_BOOTSTRAP_SERVERS: {named}")
        yield named
        return
    with contextlib.ExitStack() as stack:
        servers = _in_container(stack, report, heap_mb, properties or {})
        if servers is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="streams-kafka-"))
            kafka = stack.enter_context(
                LocalKafka.start(
                    Path(folder),
                    heap_mb=heap_mb,
                    properties=properties,
                    java_options=QUICK_JAVA,
                    report=report,
                )
            )
            servers = kafka.bootstrap_servers
        yield servers


def _in_container(
    stack: contextlib.ExitStack,
    report: Callable[[str], None],
    heap_mb: int,
    properties: Mapping[str, str],
) -> str | None:
    """Start Kafka in a container; ``None`` if there is no Docker engine, client library or image."""
    if not (os.environ.get("DOCKER_HOST") or Path("/var/run/docker.sock").exists()):
        return None
    try:
        import docker  # noqa: PLC0415 - optional, and slow to import
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - as above

        docker.from_env(timeout=5).ping()
    except Exception as error:  # noqa: BLE001 - after any failure of Docker, the local Kafka is used
        report(f"No Docker engine answers ({type(error).__name__}): using the local Kafka")
        return None
    report(f"Starting Kafka {KAFKA_VERSION} in a container (the first time its image is pulled) …")
    begun = time.monotonic()
    port = _free_port()
    servers = f"127.0.0.1:{port}"
    try:
        container = stack.enter_context(_container(DockerContainer, port, heap_mb, properties))
        _wait_until_usable(servers, container)
    except Exception as error:  # noqa: BLE001 - as above
        report(f"Kafka in the container does not work ({error}): using the local Kafka")
        return None
    report(f"Kafka in the container is ready after {time.monotonic() - begun:.1f} s")
    return servers


def _container(make: Any, port: int, heap_mb: int, properties: Mapping[str, str]) -> Any:
    # The port is the same inside and outside, so that the advertised address is valid in both.
    settings = {
        "NODE_ID": "1",
        "PROCESS_ROLES": "broker,controller",
        "LISTENERS": f"PLAINTEXT://:{port},CONTROLLER://:{port + 1}",
        "ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "CONTROLLER_QUORUM_VOTERS": f"1@localhost:{port + 1}",
        "OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
        "SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
        "GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "GROUP_CONSUMER_MIN_SESSION_TIMEOUT_MS": "1000",
        "GROUP_CONSUMER_MIN_HEARTBEAT_INTERVAL_MS": "100",
        "AUTO_CREATE_TOPICS_ENABLE": "false",
        "HEAP_OPTS": f"-Xmx{heap_mb}m",
        "OPTS": " ".join(QUICK_JAVA),
        **{name.upper().replace(".", "_"): value for name, value in properties.items()},
    }
    container = make(f"apache/kafka:{KAFKA_VERSION}").with_bind_ports(port, port)
    for name, value in settings.items():
        container = container.with_env(f"KAFKA_{name}", value)
    return container


def _wait_until_usable(servers: str, container: Any) -> None:
    deadline = time.monotonic() + CONTAINER_SECONDS
    while True:
        try:
            KafkaBroker({"bootstrap.servers": servers}).admin().topics()
        except BrokerError:
            if time.monotonic() > deadline:
                logs = b"".join(container.get_logs()).decode(errors="replace").splitlines()
                raise TimeoutError(
                    f"no answer in {CONTAINER_SECONDS:.0f} s; last log line: {logs[-1:]}"
                ) from None
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
