"""One server of a cluster, which can be killed, paused, resumed, stopped and started again."""

from __future__ import annotations

import signal
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from streams.devstack.kafka.folders import last_lines
from streams.devstack.kafka.java import java_command
from streams.devstack.kafka.ports import PortTaken, require_free
from streams.devstack.kafka.process import ServerProcess, until
from streams.devstack.kafka.properties import ABORT_CHECK
from streams.errors import LocalKafkaError
from streams.local_cluster import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from streams.devstack.kafka.installation import Installation
    from streams.devstack.kafka.plan import Plan
    from streams.local_cluster import Seat


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The status of a node. ``resident_mb`` is its memory in MB; it and ``pid`` are ``None`` if stopped."""

    number: int
    state: Literal["running", "paused", "stopped"]
    address: str
    pid: int | None
    resident_mb: int | None
    log_file: Path


class Node:
    """One server of a :class:`LocalKafka`, broker and controller in one. The cluster creates it.

    ``installation`` is called when the node is started, ``on_change`` whenever its process changes.
    """

    def __init__(
        self,
        plan: Plan,
        seat: Seat,
        process: ServerProcess | None,
        installation: Callable[[], Installation],
        on_change: Callable[[], None],
    ) -> None:
        self.seat = seat
        self.number = seat.number
        self.address = seat.address
        self.folder = plan.folder / f"node-{seat.number}"
        self.log_file = self.folder / "node.log"
        self.process = process
        self._plan = plan
        self._installation = installation
        self._on_change = on_change

    @property
    def pid(self) -> int | None:
        """The process id, ``None`` while the node is stopped."""
        return self.status().pid

    def status(self) -> NodeStatus:
        """The current status of the node's process."""
        status = self.process.status() if self.process else None
        if self.process is None or status is None:
            return NodeStatus(self.number, "stopped", self.address, None, None, self.log_file)
        state: Literal["running", "paused"] = "paused" if status.state == "T" else "running"
        pid = self.process.identity.pid
        return NodeStatus(self.number, state, self.address, pid, status.resident_mb, self.log_file)

    def start(self, *, wait: bool = True, timeout: float = 60.0) -> None:
        """Start the stopped node again, with the same data and ports; a running node is left as it is.

        Returns once the node serves clients, or at once with ``wait=False``: in a cluster of three, two nodes
        must run before either serves clients.

        :raises LocalKafkaError: a port is in use, or the node was not ready within ``timeout`` seconds.
        """
        if self.pid is None:
            for port in filter(None, (self.seat.port, self.seat.controller_port, self.seat.secured_port)):
                require_free(port)
            overrides: list[str] = []
            if self.log_file.exists():
                self.log_file.replace(self.log_file.with_suffix(".previous.log"))
                overrides = self._overrides_of_a_restart()
            kafka = self._installation()
            options = [f"-XX:AOTCache={kafka.start_cache}"] if kafka.start_cache else []
            server = [*options, *self._plan.java_options, "kafka.Kafka", "server.properties", *overrides]
            command = java_command(kafka.java, kafka.class_path, self._plan.heap_mb, *server)
            spawn = ServerProcess.detached if self._plan.detached else ServerProcess.owned
            self.process = spawn(command, self.folder, self.log_file)
            self._on_change()
        if wait:
            self.wait(timeout=timeout)

    def _overrides_of_a_restart(self) -> list[str]:
        """Properties against the loss of transaction markers, for the only broker of a cluster.

        After a crash the broker is its partitions' leader in the old metadata, loses them when its earlier
        registration expires, and leads them again once it is registered. A transaction that times out while
        they have no leader is ended without markers (KAFKA-20734, seen with 4.3.0): the next commit of the
        same producer then commits the aborted records too. With this interval, Kafka's default, the first
        look at timed-out transactions comes after that.
        """
        if self._plan.nodes > 1 or ABORT_CHECK in self._plan.properties:
            return []
        return ["--override", f"{ABORT_CHECK}=10000"]

    def wait(self, *, knows: Sequence[Node] = (), timeout: float = 60.0) -> None:
        """Wait until the node serves clients, and its metadata has itself and the nodes in ``knows``.

        :raises LocalKafkaError: the node ended, or this took more than ``timeout`` seconds.
        """
        wanted = {self.number, *(node.number for node in knows)}
        done = until(lambda: self.pid is None or wanted <= _brokers_seen(self.seat.port), timeout)
        if done and self.pid is not None:
            return
        log = last_lines(self.log_file.read_text(encoding="utf-8", errors="replace"))
        if not done:
            raise LocalKafkaError(
                f"node {self.number} is not ready after {timeout:.0f} s:\n{log}",
                hint=f"on a busy machine, set a longer timeout; the complete log is in {self.log_file}",
            )
        message = f"node {self.number} ended while it was starting:\n{log}"
        if "Address already in use" in log:
            raise PortTaken(message, hint=f"end the program that uses one of the ports of {self.seat}")
        if "No space left" in log:
            raise LocalKafkaError(message, hint=f"free some space on the disk of {self.folder}")
        raise LocalKafkaError(message, hint=f"the complete log is in {self.log_file}")

    def kill(self) -> None:
        """End the node like a crash (SIGKILL); its data is kept."""
        self._signal(signal.SIGKILL, "stopped")

    def pause(self) -> None:
        """Freeze the node (SIGSTOP): its connections stay open without any response."""
        self._signal(signal.SIGSTOP, "paused", "stopped")

    def resume(self) -> None:
        """Continue a paused node (SIGCONT)."""
        self._signal(signal.SIGCONT, "running", "stopped")

    def stop(self, *, timeout: float = 30.0) -> None:
        """Shut the node down (SIGTERM): it first moves the leadership of its partitions to other nodes.

        A node that takes longer than ``timeout`` seconds is killed, which loses no record.
        """
        self.request_stop()
        if until(lambda: self.pid is None, timeout):
            self._on_change()
        else:
            self.kill()

    def request_stop(self) -> None:
        """Start a shutdown as in :meth:`stop`, without waiting for its end."""
        if self.process is not None:
            self.process.signal(signal.SIGTERM)
            # A paused process handles SIGTERM only after it is continued.
            self.process.signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals, *states: str) -> None:
        if self.process is not None:
            self.process.signal(number)
            until(lambda: self.status().state in states, 10.0)
            self._on_change()


def _brokers_seen(port: int) -> set[int]:
    """Request the ids of the active brokers from the broker at ``port``; empty if it does not answer."""
    # A metadata request, version 1, for no topic: key, version, correlation id, no client id, no topic.
    request = struct.pack(">hhihi", 3, 1, 0, -1, 0)
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answer:
                _length, _correlation, count = struct.unpack(">iii", answer.read(12))
                brokers = set()
                for _ in range(count):
                    number, host_length = struct.unpack(">ih", answer.read(6))
                    answer.read(host_length + 4)
                    (rack_length,) = struct.unpack(">h", answer.read(2))
                    answer.read(max(rack_length, 0))
                    brokers.add(number)
                return brokers
    except (OSError, struct.error):
        return set()
