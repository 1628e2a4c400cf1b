"""Collects in the background what pages show, so that no request waits for a broker or a worker."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from streams.console.cluster_snapshot import ClusterSnapshot
from streams.console.watched import Watched
from streams.errors import BrokerError, StreamsError
from streams.events import Event, get_logger
from streams.queries.directory import read_replicas
from streams.queries.http import bearer, client_tls
from streams.records import TopicPartition
from streams.runtime.topics import input_partitions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from streams.app import App
    from streams.broker import Admin, Broker
    from streams.config import Settings
    from streams.console.app_snapshot import AppSnapshot

COLLECT_SECONDS: Final = 2.0
"""Seconds between two rounds of asking the workers."""

DIRECTORY_SECONDS: Final = 10.0
"""Seconds between two readings of the cluster's topics and of the directories of workers."""

THREADS: Final = 32
"""Workers that are asked at the same time."""

DIRECTORY_SUFFIX: Final = "-replicas"


class Collector:
    """Watches apps. ``apps`` are programs; with ``discover``, all other apps of the cluster are watched too.

    ``urls`` are the addresses of the workers, for apps whose workers have published none. ``settings`` have
    the token and the certificates for workers of discovered apps.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        apps: Sequence[App],
        *,
        urls: Sequence[str] = (),
        discover: bool = False,
    ) -> None:
        self.broker = broker
        self._settings = settings
        self._discover = discover
        self._watched = {app.name: self._watch(app.name, app, urls) for app in apps}
        self._snapshots: dict[str, AppSnapshot] = {}
        self._cluster = ClusterSnapshot(None, {})
        self._admin: Admin | None = None
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="streams-console-ask")
        self._threads = [
            threading.Thread(target=self._repeat, args=arguments, name=f"streams-console-{name}", daemon=True)
            for name, arguments in {
                "workers": (self.collect, COLLECT_SECONDS),
                "cluster": (self.read_cluster, DIRECTORY_SECONDS),
            }.items()
        ]

    @property
    def apps(self) -> Mapping[str, AppSnapshot]:
        """What is known of each app, by name."""
        return self._snapshots

    @property
    def cluster(self) -> ClusterSnapshot:
        """What is known of the cluster."""
        return self._cluster

    def watched(self, name: str) -> Watched:
        """An app that is watched, to ask its workers. Raises ``KeyError``."""
        return self._watched[name]

    def start(self) -> None:
        """Collect in threads, until ``close``."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop. Does not wait for pending requests."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def collect(self) -> None:
        """Ask all workers once."""
        now = time.time_ns() // 1_000_000
        self._snapshots = {
            name: watched.collect(self._pool, now) for name, watched in sorted(self._watched.copy().items())
        }

    def read_cluster(self) -> None:
        """Read topics and directories once. A broker that does not answer leaves what is known."""
        try:
            if self._admin is None:
                self._admin = self.broker.admin()
            topics = self._admin.topics()
        except BrokerError as error:
            self._forget_admin()
            self._cluster = self._cluster._replace(problem=error.message)
            return
        self._cluster = ClusterSnapshot(time.time_ns() // 1_000_000, topics)
        if self._discover:
            for topic in topics:
                name = topic.removesuffix(DIRECTORY_SUFFIX)
                if name != topic and name and name not in self._watched:
                    self._watched = {**self._watched, name: self._watch(name, None, ())}
        for watched in self._watched.values():
            if watched.program is not None:
                counts = input_partitions(watched.program.topology, topics)
                watched.input = [
                    TopicPartition(topic, number)
                    for topic, count in counts.items()
                    for number in range(count)
                ]
            if not watched.given:
                self._read_directory(watched, known=f"{watched.name}{DIRECTORY_SUFFIX}" in topics)

    def _read_directory(self, watched: Watched, *, known: bool) -> None:
        if not known:
            watched.addresses = ()
            watched.problem = "no worker has published an address: run them with http_port set"
            return
        try:
            replicas = read_replicas(self.broker, watched.name)
        except StreamsError as error:
            watched.problem = f"the directory of its workers could not be read: {error.message}"
            return
        watched.addresses = sorted(
            {address for replica in replicas.values() if (address := replica.address) is not None}
        )
        watched.problem = "" if watched.addresses else "no worker runs, or none has http_port set"

    def _watch(self, name: str, program: App | None, urls: Sequence[str]) -> Watched:
        settings = self._settings if program is None else program.settings
        secure = settings.http_tls_certificate is not None or settings.http_tls_ca is not None
        secure = secure or any(url.startswith("https://") for url in urls)
        return Watched(
            name,
            program,
            bearer(settings.http_token),
            client_tls(settings.http_tls_ca) if secure else None,
            urls,
        )

    def _repeat(self, work: object, seconds: float) -> None:
        assert callable(work)
        log, failure = get_logger(), ""
        while not self._stop.is_set():
            before = failure
            try:
                work()
                failure = ""
            except Exception as error:  # noqa: BLE001 - if this thread ended, pages would show old figures
                failure = f"{type(error).__name__}: {error}"
                if failure != before and not self._stop.is_set():
                    log.error(Event.CONSOLE_FAILED, error=failure)  # noqa: TRY400 - one line, repeated each round
            self._stop.wait(seconds)
        if work == self.read_cluster:
            self._forget_admin()

    def _forget_admin(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()
