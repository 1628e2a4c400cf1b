"""What a worker serves on its HTTP port: metrics, health, its status, the values of stores, and jobs.

Only a worker with an ``http_port`` imports it: the server and what it answers take a tenth of a second.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.errors import ConfigurationError
from streams.events import Event, get_logger
from streams.monitoring.metrics import WorkerMetrics
from streams.monitoring.worker_report import history_json, status_json
from streams.queries.endpoints import StoreRoutes
from streams.queries.http import JSON, Response, Tls, client_tls, refusal
from streams.queries.http_server import HttpServer
from streams.queries.job_routes import DIRECTORY_NAME, JobRoutes

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager, ExitStack

    from streams.alerts.watch import AlertWatch
    from streams.broker import Broker
    from streams.config import Settings
    from streams.monitoring.observer import Observer
    from streams.monitoring.program_metrics import Metrics
    from streams.monitoring.watchdog import Stall, Watchdog
    from streams.queries.directory import Replicas, Trouble
    from streams.queries.http import Request
    from streams.queries.query import Queries
    from streams.runtime.worker import Worker

PUBLIC_ROUTES = ("/healthz", "/readyz")
"""Routes that need no token: probes of orchestrators have none, and the responses reveal only a state."""


class Served(NamedTuple):
    """What the other workers must know of a worker's HTTP port."""

    address: str
    jobs: JobRoutes | None

    def held(self) -> dict[str, list[int]]:
        """The partitions of the queue of jobs that this worker answers for, as the directory names them."""
        return {} if self.jobs is None else {DIRECTORY_NAME: self.jobs.partitions}


def serve(
    stack: ExitStack,
    settings: Settings,
    port: int,
    *,
    application: str,
    cluster: Broker,
    worker: Worker,
    queries: Queries,
    replicas: Replicas,
    watchdog: Watchdog,
    observer: Observer,
    program: Metrics,
    alerts: AlertWatch | None,
    has_jobs: bool,
    topology: str,
    console: AbstractContextManager[Any] | None,
) -> Served:
    """Serve on a port, 0 for a free one, until the stack is closed.

    ``topology`` is the app's graph as JSON, ``console`` an ASGI application, which is served below
    ``/console``.

    Raises ``ConfigurationError`` if the port, the host or the certificate cannot be used.
    """
    token, tls = settings.http_token, _tls(settings)
    trusted = tls and client_tls(settings.http_tls_ca)
    jobs: JobRoutes | None = None
    templates = StoreRoutes(queries, replicas, token, trusted).templates
    if has_jobs:
        jobs = JobRoutes(application, cluster, worker, replicas, token, trusted)
        stack.callback(jobs.close)
        templates = {**templates, **jobs.templates}
    templates = {**templates, "/history": partial(_history, worker, observer)}
    server = stack.enter_context(
        HttpServer(
            settings.http_host,
            port,
            _routes(worker, watchdog, replicas, program, observer, alerts, topology, reasons=token is None),
            templates,
            mounts={} if console is None else {"/console": stack.enter_context(console)},
            token=token,
            public=PUBLIC_ROUTES,
            tls=tls,
        )
    )
    get_logger().info(Event.HTTP_LISTENING, url=server.url)
    return Served(_address(settings, server.port), jobs)


def _tls(settings: Settings) -> Tls | None:
    certificate, key = settings.http_tls_certificate, settings.http_tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing, other = (
            ("http_tls_certificate", "http_tls_key")
            if certificate is None
            else ("http_tls_key", "http_tls_certificate")
        )
        raise ConfigurationError(
            f"{other} is set without {missing}", hint="set both, to PEM files of one certificate, or neither"
        )
    return Tls(certificate, key)


def _address(settings: Settings, port: int) -> str:
    """The address under which other workers reach this one's HTTP port."""
    host = settings.http_advertised_host or settings.http_host
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _routes(
    worker: Worker,
    watchdog: Watchdog,
    replicas: Replicas,
    program: Metrics,
    observer: Observer,
    alerts: AlertWatch | None,
    topology: str,
    *,
    reasons: bool,
) -> dict[str, Callable[[], Response]]:
    """The routes for metrics and health. With ``reasons``, health responses name the causes of failures."""
    metrics = WorkerMetrics(
        worker, watchdog, replicas, program, observer, None if alerts is None else alerts.counts
    )

    def health(stalls: list[Stall], trouble: Trouble | None) -> Response:
        lines = [f"stalled: {stall if reasons else stall.partition}\n" for stall in stalls]
        if trouble is not None:
            lines.append(f"other workers unknown{f': {trouble}' if reasons else ''}\n")
        return Response(503, "".join(lines).encode()) if lines else Response(200, b"ok\n")

    def healthy() -> Response:
        # An orchestrator restarts an unhealthy process, so only problems that a restart may fix count.
        trouble = replicas.trouble
        return health(
            [stall for stall in watchdog.stalls if stall.fixed_by_restart],
            trouble if trouble is not None and trouble.fixed_by_restart else None,
        )

    def ready() -> Response:
        if worker.state.value != "running":
            return Response(503, f"{worker.state.value}\n".encode())
        problems = worker.problems
        if problems:
            lines = [f"{name}: {text if reasons else 'not available'}\n" for name, text in problems.items()]
            return Response(503, "".join(lines).encode())
        if not worker.ready:
            return Response(503, b"restoring stores\n")
        return health(list(watchdog.stalls), replicas.trouble)

    return {
        "/metrics": lambda: Response(200, metrics.exposition(), metrics.content_type),
        "/healthz": healthy,
        "/readyz": ready,
        "/status": lambda: Response(
            200, status_json(worker, observer, watchdog, [] if alerts is None else alerts.firing), JSON
        ),
        "/topology": lambda: Response(200, topology.encode(), JSON),
    }


def _history(worker: Worker, observer: Observer, request: Request) -> Response:
    """``/history?since=MILLISECONDS``: the samples after a moment."""
    since = request.query.get("since", "0")
    if not since.isdecimal():
        return refusal(400, "bad request", f"since={since!r:.40} is no time in milliseconds since the epoch")
    return Response(200, history_json(worker, observer, int(since)), JSON)
