"""Jobs over HTTP: how one has ended, or why it is not running.

``GET /jobs/ID`` may be sent to any worker. The end comes from the topic of results, the state from the worker
that has the job's partition. Responses are JSON, errors as in ``endpoints``: 404 for a job that does not
exist or whose result was deleted, 400 for a text that is no id.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING, Any

import msgspec

from streams.errors import BrokerError, ConfigurationError
from streams.jobs.ends_reader import EndsReader
from streams.jobs.fields import end_fields
from streams.jobs.queue import JobQueue
from streams.jobs.record import JobId, ends_topic, jobs_topic
from streams.jobs.unfinished import find_end
from streams.queries.endpoints import ASKED_BY, FORWARD_SECONDS, NO_ANSWER_HINT
from streams.queries.http import Response, ask, bearer
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from ssl import SSLContext

    from streams.broker import Broker
    from streams.queries.directory import Replicas
    from streams.queries.http import Request
    from streams.runtime.worker import Worker

DIRECTORY_NAME = "jobs"
"""The store of the queue, under which the directory of workers has its partitions."""

ANSWER_SECONDS = 2.0
"""How long a request waits until the worker's thread has looked at the job."""

END_SECONDS = 1.0
"""How long a request waits for the result of a job that has just ended."""


class JobRoutes:
    """The paths under ``/jobs``. ``replicas`` knows which worker has which partitions of the queue."""

    def __init__(
        self,
        application: str,
        broker: Broker,
        worker: Worker,
        replicas: Replicas,
        token: str | None = None,
        tls: SSLContext | None = None,
    ) -> None:
        self._application = application
        self._broker = broker
        self._worker = worker
        self._replicas = replicas
        self._token = token
        self._tls = tls
        self._lock = threading.Lock()
        self._reader: EndsReader | None = None

    @property
    def templates(self) -> Mapping[str, Callable[[Request], Response]]:
        """The path templates and their routes, for ``HttpServer``."""
        return {"/jobs/{id}": self._job}

    @property
    def partitions(self) -> list[int]:
        """The partitions of the queue that this worker has."""
        return sorted(queue.partition for queue in self._queues())

    def close(self) -> None:
        """End the thread that reads results, if there is one."""
        with self._lock:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _job(self, request: Request) -> Response:
        try:
            job = JobId.parse(request.parameters["id"])
            return self._answered(job, request)
        except ConfigurationError as error:
            return _failure(400, "bad request", str(error))
        except BrokerError as error:
            return _failure(503, "unavailable", str(error))

    def _answered(self, job: JobId, request: Request) -> Response:
        nothing = _failure(404, "no job", f"there is no job {job}, or its result was deleted")
        if ASKED_BY in request.headers:
            # From another worker, which has looked for the end.
            return self._own(job) or _failure(
                421, "held elsewhere", f"this worker has no partition {job.partition}"
            )
        end = self._ends().wait(str(job), 0.0)
        if end is not None:
            return _json(end_fields(end))
        if not self._exists(job):
            return nothing
        response = self._own(job) or self._asked(job, request)
        if response.status != 404:
            return response
        # It has ended, perhaps a moment ago, or so long ago that the reader does not keep its result.
        end = self._ends().wait(str(job), END_SECONDS) or find_end(self._broker, self._application, job)
        return nothing if end is None else _json(end_fields(end))

    def _own(self, job: JobId) -> Response | None:
        """The response of this worker, 404 if the job has ended; ``None`` if another has its partition."""
        for queue in self._queues():
            if queue.partition == job.partition:
                try:
                    fields = queue.ask(job.offset).result(ANSWER_SECONDS)
                except (TimeoutError, CancelledError):
                    return _failure(503, "unavailable", "the worker's thread does not answer")
                return _failure(404, "no job", "it has ended") if fields is None else _json(fields)
        return None

    def _asked(self, job: JobId, request: Request) -> Response:
        asked = {None, self._replicas.address}
        for refresh in (False, True):
            address = self._replicas.owners(DIRECTORY_NAME, refresh=refresh).get(job.partition)
            if address is None or address in asked:
                continue
            asked.add(address)
            headers = {ASKED_BY: self._replicas.address or "", **bearer(self._token)}
            try:
                response = ask(
                    address, request.target, headers=headers, timeout=FORWARD_SECONDS, tls=self._tls
                )
            except SSLCertVerificationError as error:
                return _failure(503, "unavailable", f"the certificate of {address} is not trusted: {error}")
            if response is not None and response.status in (200, 404):
                return response
        return _failure(
            503,
            "unavailable",
            f"no worker answers for partition {job.partition} of the queue; {NO_ANSWER_HINT}",
        )

    def _queues(self) -> list[JobQueue]:
        return [
            work
            for task in self._worker.tasks.values()
            for work in task.background_work
            if isinstance(work, JobQueue)
        ]

    def _exists(self, job: JobId) -> bool:
        """Whether a record was written at the job's place at any time."""
        topic = jobs_topic(self._application)
        admin = self._broker.admin()
        try:
            topics = admin.topics()
            if topic not in topics or job.partition >= topics[topic].partitions:
                return False
            place = TopicPartition(topic, job.partition)
            return job.offset < admin.end_offsets([place])[place]
        finally:
            admin.close()

    def _ends(self) -> EndsReader:
        with self._lock:
            if self._reader is None:
                self._reader = EndsReader(self._broker, ends_topic(self._application))
            return self._reader


def _json(fields: dict[str, Any], status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(fields) + b"\n", "application/json")


def _failure(status: int, reason: str, error: str) -> Response:
    return _json({"reason": reason, "error": error}, status)
