"""The properties of each server."""

from __future__ import annotations

import base64
import uuid
from typing import TYPE_CHECKING, Final

from streams.devstack.kafka.security import LISTENER
from streams.errors import ConfigurationError
from streams.local_cluster import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from streams.local_cluster import Seat

ABORT_CHECK: Final = "transaction.abort.timed.out.transaction.cleanup.interval.ms"
"""How often a broker looks for transactions that have timed out."""


def _listeners(seat: Seat) -> list[str]:
    """The listeners for clients, in Kafka's notation."""
    plain = [f"PLAINTEXT://{seat.address}"]
    return plain if seat.secured_port is None else [*plain, f"{LISTENER}://{HOST}:{seat.secured_port}"]


def server_properties(seats: Sequence[Seat], changes: Mapping[str, object]) -> list[dict[str, object]]:
    """Return each server's properties. ``changes`` override all but a node's identity and addresses."""
    count = len(seats)
    enough = min(2, count)
    common: dict[str, object] = {
        "auto.create.topics.enable": "false",
        "default.replication.factor": count,
        "min.insync.replicas": enough,
        # Internal topics: a replica on each node, and few partitions, so that their first use is fast.
        "offsets.topic.replication.factor": count,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": count,
        "transaction.state.log.min.isr": enough,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": count,
        "share.coordinator.state.topic.min.isr": enough,
        "share.coordinator.state.topic.num.partitions": 4,
        # Short time-outs, so that tests see a dead group member or an abandoned transaction within seconds.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 500,
        "group.consumer.min.session.timeout.ms": 500,
        "group.consumer.min.heartbeat.interval.ms": 100,
        ABORT_CHECK: 1000,
        # Only after this time do a killed node's partitions move to the others, and may the node restart.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        # By default the controller writes a record without content each half a second, which every node
        # applies: a third of the CPU time of an idle node.
        "metadata.max.idle.interval.ms": 10_000,
        # The default is 128 MB of a heap that has 512.
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
    }
    voters = ",".join(f"{seat.number}@{HOST}:{seat.controller_port}" for seat in seats)
    own: list[dict[str, object]] = [
        {
            "process.roles": "broker,controller",
            "node.id": seat.number,
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join([*_listeners(seat), f"CONTROLLER://{HOST}:{seat.controller_port}"]),
            "advertised.listeners": ",".join(_listeners(seat)),
            # Relative to the server's working folder, whose path may then contain any character.
            "log.dirs": "data",
        }
        for seat in seats
    ]
    if refused := sorted(own[0].keys() & changes.keys()):
        raise ConfigurationError(
            f"a local Kafka sets these properties itself: {', '.join(refused)}",
            hint="leave them out; the argument `port` chooses the port for clients",
        )
    return [common | dict(changes) | fixed for fixed in own]


def write_properties(path: Path, properties: Mapping[str, object]) -> None:
    """Write a properties file in Java's format."""
    lines = [f"{name}={value}\n".replace("\\", "\\\\") for name, value in properties.items()]
    path.write_text("".join(lines), encoding="utf-8")


def new_id() -> str:
    """Generate an id as Kafka does: 22 characters, not '-' first, which its tools take for an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text
