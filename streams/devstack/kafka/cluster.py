"""Start, inspect, stop and find a cluster of one or three nodes."""

from __future__ import annotations

import atexit
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from streams.devstack.kafka.folders import KAFKA_VERSION, explained, require_space
from streams.devstack.kafka.installation import Installation, make_checkpoint, make_installation
from streams.devstack.kafka.node import Node
from streams.devstack.kafka.plan import Plan
from streams.devstack.kafka.ports import PortTaken, choose_seats, require_free
from streams.devstack.kafka.process import ServerProcess, until
from streams.devstack.kafka.properties import new_id, server_properties, write_properties
from streams.devstack.kafka.report import silent
from streams.devstack.kafka.security import make_certificate
from streams.devstack.watcher import Watcher
from streams.errors import ConfigurationError, LocalKafkaError
from streams.local_cluster import HOST, ClusterRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.devstack.kafka.node import NodeStatus
    from streams.devstack.kafka.report import Report
    from streams.devstack.kafka.security import Security
    from streams.local_cluster import Seat


class LocalKafka:
    """A Kafka cluster on this machine. Create it with :meth:`start`, ``start_detached`` or ``running``.

    As a context manager, it stops the cluster at the end.
    """

    def __init__(
        self,
        plan: Plan,
        cluster_id: str,
        seats: Mapping[Seat, ServerProcess | None],
        installation: Installation | None = None,
    ) -> None:
        self.folder = plan.folder
        self.cluster_id = cluster_id
        self.nodes = tuple(
            Node(plan, seat, process, self._installed, self._processes_changed)
            for seat, process in seats.items()
        )
        self._plan = plan
        self._installation = installation
        self._owner = os.getpid()
        self._watcher: Watcher | None = None
        if not plan.detached:
            self._watcher = Watcher(self._owner)
            atexit.register(self._stop_at_exit)

    @staticmethod
    def start(
        folder: str | Path,
        *,
        nodes: int = 1,
        heap_mb: int = 512,
        port: int | None = None,
        properties: Mapping[str, object] | None = None,
        security: Security | None = None,
        java_options: Sequence[str] = (),
        report: Report = silent,
        timeout: float = 60.0,
    ) -> LocalKafka:
        """Start a cluster that ends with this process, for whatever reason. Returns once it serves clients.

        ``folder`` keeps the data: a cluster that is started there again has the same data, and the same ports
        if they are free. ``heap_mb`` is the Java heap of each node. ``port`` is the first node's port, and
        further nodes use the next ones; without it, free ports are chosen. ``properties`` are added to every
        server's. With ``security`` there is a second listener that requires it. ``java_options`` are further
        options of each node's Java: with ``-XX:TieredStopAtLevel=1``, a cluster that serves a test for
        seconds or minutes takes a third less CPU time. ``report`` is called with lines about the progress.

        :raises ConfigurationError: an argument is wrong, or the folder has a cluster of another size.
        :raises LocalKafkaError: Kafka is missing and cannot be downloaded, a port is in use, the disk is
            full, or a node did not serve clients within ``timeout`` seconds.
        """
        plan = Plan(
            Path(folder),
            nodes,
            heap_mb,
            port,
            properties or {},
            timeout,
            security,
            java_options=tuple(java_options),
        )
        return start_planned(plan, report)

    @classmethod
    def found(cls, record: ClusterRecord) -> Self:
        """The detached cluster of a record."""
        seats = {seat: ServerProcess(process) if process else None for seat, process in record.nodes.items()}
        return cls(Plan(record.folder, len(seats), record.heap_mb, detached=True), record.cluster_id, seats)

    @property
    def bootstrap_servers(self) -> str:
        """The nodes' addresses, for a client's ``bootstrap.servers``."""
        return ",".join(node.address for node in self.nodes)

    def secured_settings(self, user: str | None = None) -> dict[str, str]:
        """A client's librdkafka settings for the listener with security.

        With ``user``, they include the credentials of one of the users in ``security``.

        :raises ConfigurationError: the cluster was started without security, or has no such user.
        """
        if self._plan.security is None:
            raise ConfigurationError(
                "this Kafka was started without security", hint="start it with security=Security(users=…)"
            )
        servers = ",".join(f"{HOST}:{node.seat.secured_port}" for node in self.nodes)
        return {"bootstrap.servers": servers} | self._plan.security.client_settings(user, self.folder)

    @property
    def log_files(self) -> list[Path]:
        """Each node's log since its last start; ``node.previous.log`` beside it is the log before that."""
        return [node.log_file for node in self.nodes]

    def node(self, number: int) -> Node:
        """Return the node with this number, counted from 1."""
        if not 1 <= number <= len(self.nodes):
            raise ConfigurationError(f"there is no node {number}: nodes are 1 to {len(self.nodes)}")
        return self.nodes[number - 1]

    def status(self) -> list[NodeStatus]:
        """The current status of each node's process."""
        return [node.status() for node in self.nodes]

    def wait(self, *, timeout: float = 60.0) -> None:
        """Wait until every node serves clients and knows all the others.

        :raises LocalKafkaError: a node ended, or this took more than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            node.wait(knows=self.nodes, timeout=max(0.0, deadline - time.monotonic()))

    def stop(self, *, timeout: float = 10.0) -> None:
        """Shut all nodes down; kill those not done after ``timeout`` seconds, which loses no record."""
        for node in self.nodes:
            node.request_stop()
        if len(self.nodes) > 1:
            until(lambda: sum(node.pid is not None for node in self.nodes) <= 1, timeout)
            # The last node would wait 5 s for another to lead the controllers' quorum, and none is left.
            timeout = min(timeout, 0.5)
        for node in self.nodes:
            node.stop(timeout=timeout)
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
            atexit.unregister(self._stop_at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _processes_changed(self) -> None:
        """Write the record of the running nodes, and update the watcher."""
        alive = {
            node.seat: node.process.identity if node.process is not None and node.pid is not None else None
            for node in self.nodes
        }
        # A test may already have deleted its folder.
        if self.folder.exists():
            ClusterRecord(self.folder, self.cluster_id, self._plan.heap_mb, alive).write()
        if self._watcher is not None:
            self._watcher.watch(process.pid for process in alive.values() if process)

    def _installed(self) -> Installation:
        self._installation = self._installation or prepare()
        return self._installation

    def _stop_at_exit(self) -> None:
        # A forked child inherits this atexit handler, but does not own the cluster.
        if os.getpid() == self._owner:
            self.stop()


def prepare(report: Report = silent) -> Installation:
    """Download Kafka and prepare fast starts, if this was not done yet. Every start does so if necessary.

    The first time it needs the network and takes about 30 s, later milliseconds. It is safe to call it from
    several processes at the same time.

    :raises LocalKafkaError: the extra ``broker`` is not installed, the download failed, or the disk is full.
    """
    return make_installation(_run_once, report)


def _run_once(installation: Installation, folder: Path, java_option: str) -> None:
    plan = Plan(folder, timeout=120.0, java_options=(java_option,))
    with _launch(plan, installation) as cluster:
        cluster.stop(timeout=120.0)


def start_planned(plan: Plan, report: Report) -> LocalKafka:
    """Start the planned cluster. Raises the same errors as :meth:`LocalKafka.start`."""
    if plan.nodes not in {1, 3}:
        raise ConfigurationError(f"a local Kafka has 1 or 3 nodes, not {plan.nodes}")
    if plan.heap_mb < 128:
        raise ConfigurationError(
            f"heap_mb={plan.heap_mb} is too little: Kafka needs 128 or more", hint="use 256 or more"
        )
    plan = replace(plan, folder=plan.folder.absolute())
    for port in plan.requested_ports:
        # Checked before the slow steps.
        require_free(port)
    require_space(plan.folder)
    kafka = prepare(report)
    report(f"Starting Kafka {KAFKA_VERSION} with {plan.nodes} node{'s' * (plan.nodes > 1)} …")
    begin = time.monotonic()
    with explained():
        cluster = _launch(plan, kafka)
    report(f"Kafka is ready at {cluster.bootstrap_servers} after {time.monotonic() - begin:.1f} s")
    return cluster


def _launch(plan: Plan, kafka: Installation) -> LocalKafka:
    cluster_id, remembered = _earlier_cluster(plan)
    checkpoint, properties = kafka.checkpoint, plan.properties
    if plan.security is not None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        make_certificate(kafka.java, plan.folder, HOST)
        properties = {**plan.security.server_properties(plan.folder), **properties}
        checkpoint = plan.folder / kafka.checkpoint.name
        if not checkpoint.exists():
            make_checkpoint(kafka.java, kafka.class_path, checkpoint, *plan.security.format_arguments)
    tries = 5
    while True:
        seats = choose_seats(plan, remembered)
        own = server_properties(seats, properties)
        cluster = LocalKafka(plan, cluster_id, dict.fromkeys(seats), kafka)
        try:
            for node, node_properties in zip(cluster.nodes, own, strict=True):
                _write_files(node, node_properties, cluster_id, checkpoint)
                node.start(wait=False)
            cluster.wait(timeout=plan.timeout)
        except BaseException as error:
            cluster.stop(timeout=0.0)
            tries -= 1
            if not isinstance(error, PortTaken) or not tries:
                raise
        else:
            return cluster


def _earlier_cluster(plan: Plan) -> tuple[str, list[Seat]]:
    """The id and the seats of the cluster that was in the folder before, to be started with the same ones."""
    try:
        before = LocalKafka.found(ClusterRecord.read(plan.folder))
    except FileNotFoundError:
        return new_id(), []
    if len(before.nodes) != plan.nodes:
        raise ConfigurationError(
            f"{plan.folder} has a cluster of {len(before.nodes)} nodes, not {plan.nodes}",
            hint="use another folder, or delete this one together with its data",
        )
    # If the program that started the nodes was just killed, its watcher is about to end them.
    if not until(lambda: all(node.pid is None for node in before.nodes), 2.0):
        pids = ", ".join(str(node.pid) for node in before.nodes)
        raise LocalKafkaError(
            f"a Kafka already runs in {plan.folder} (process {pids})",
            hint="use another folder, or stop that Kafka first",
        )
    return before.cluster_id, [node.seat for node in before.nodes]


def _write_files(node: Node, properties: Mapping[str, object], cluster_id: str, checkpoint: Path) -> None:
    """Write the files that Kafka's storage tool would write, without the time that Java takes to start.

    All of them but the ids are the same in every folder.
    """
    data = node.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_properties(node.folder / "server.properties", properties)
    if not (data / "meta.properties").exists():
        shutil.copyfile(checkpoint, data / checkpoint.name)
        ids = {"cluster.id": cluster_id, "node.id": node.number, "directory.id": new_id()}
        write_properties(data / "meta.properties", {"version": 1, **ids})
