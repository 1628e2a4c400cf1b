"""Find free ports on this machine, and assign them to nodes."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

from streams.errors import LocalKafkaError
from streams.local_cluster import HOST, Seat

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from streams.devstack.kafka.plan import Plan

# Below the ephemeral ports of outgoing connections (from 32768 on Linux, 49152 on macOS): otherwise a client
# that keeps trying to reach a stopped node is sometimes given that node's port, and blocks it.
_PORTS = range(20_000, 32_000)


class PortTaken(LocalKafkaError):
    """Another program uses the port; another port may work."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does: closing connections (TIME_WAIT) of an earlier server do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def require_free(port: int) -> None:
    """Raise ``PortTaken`` if another program listens on the port."""
    if not _is_free(port):
        raise PortTaken(
            f"port {port} on {HOST} is in use by another program",
            hint="end that program, or start the cluster without a port: a free one is then chosen",
        )


def free_ports(count: int, taken: Collection[int] = ()) -> list[int]:
    """Choose free ports at random, none of them in ``taken``. Raises ``LocalKafkaError``."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            return found
        if port not in taken and _is_free(port):
            found.append(port)
    raise LocalKafkaError(
        f"{count} free ports are needed on {HOST} from {_PORTS.start} to {_PORTS.stop - 1}, "
        f"{len(found)} were found",
        hint="end programs that listen on these ports",
    )


def choose_seats(plan: Plan, remembered: Sequence[Seat]) -> list[Seat]:
    """Assign each node the requested port, else the one it had before, else a free one."""
    requested = plan.requested_ports
    for port in requested:
        require_free(port)
    before = [seat.port for seat in remembered] + [seat.controller_port for seat in remembered]
    kinds = 2
    if plan.security is not None:
        kinds = 3
        before += [seat.secured_port for seat in remembered if seat.secured_port is not None]
    ports = free_ports(kinds * plan.nodes, {*requested, *before})
    for index, port in enumerate(before):
        if port not in requested and _is_free(port):
            ports[index] = port
    ports[: len(requested)] = requested
    return [
        Seat(index + 1, *(ports[kind * plan.nodes + index] for kind in range(kinds)))
        for index in range(plan.nodes)
    ]
