"""Ports on this machine: which are free, and which each node gets."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

from streams.errors import LocalKafkaError
from streams.local_cluster import HOST, Seat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.devstack.kafka.plan import Plan

# Below the ports that systems hand to outgoing connections (from 32768 on Linux, 49152 on macOS): a client
# that keeps trying to reach a stopped node would now and then be given that node's port, and block it.
_PORTS = range(20_000, 32_000)


class PortTaken(LocalKafkaError):
    """Another program has the port; other ports may still do."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server itself does: connections of an earlier one that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def require_free(port: int) -> None:
    """Raise ``PortTaken`` where another program listens."""
    if not _is_free(port):
        raise PortTaken(
            f"port {port} on {HOST} is taken by another program",
            hint="end that program, or start a cluster without naming a port: a free one is found then",
        )


def _free_ports(count: int, taken: set[int]) -> list[int]:
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            return found
        if port not in taken and _is_free(port):
            found.append(port)
    raise LocalKafkaError(
        f"no {count} ports on {HOST} between {_PORTS.start} and {_PORTS.stop} are free",
        hint="end programs that listen there",
    )


def choose_seats(plan: Plan, remembered: Sequence[Seat]) -> list[Seat]:
    """Give each node the port requested, or else the one it had, or else a free one."""
    requested = plan.requested_ports
    for port in requested:
        require_free(port)
    before = [seat.port for seat in remembered] + [seat.controller_port for seat in remembered]
    kinds = 2
    if plan.security is not None:
        kinds = 3
        before += [seat.secured_port for seat in remembered if seat.secured_port is not None]
    ports = _free_ports(kinds * plan.nodes, {*requested, *before})
    for index, port in enumerate(before):
        if port not in requested and _is_free(port):
            ports[index] = port
    ports[: len(requested)] = requested
    return [
        Seat(index + 1, *(ports[kind * plan.nodes + index] for kind in range(kinds)))
        for index in range(plan.nodes)
    ]
