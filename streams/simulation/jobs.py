"""How jobs are compared between runs: without what depends on times, offsets and attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from streams.jobs.job_store import STORE, stored_jobs
from streams.jobs.operator import RunJobs
from streams.jobs.record import JobEnd, JobRecord, Release, ends_topic, jobs_topic, releases_topic
from streams.runtime.letter import PREFIX
from streams.topology.graph import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from streams.records import Fetched, Headers
    from streams.topology.graph import Topology

JOBS: Final = (
    "every job, by function, arguments, ending and result, in any order: ids, times and tries differ; of "
    "schedules, that no instant is released or ended twice"
)

_OF_THE_RECORD: Final = frozenset(f"{PREFIX}{name}" for name in ("partition", "offset", "timestamp"))
"""Headers of a dead letter that say where the job's record is, and from when."""

_job = msgspec.json.Decoder(JobRecord).decode
_end = msgspec.json.Decoder(JobEnd).decode
_release = msgspec.json.Decoder(Release).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


class Compared(NamedTuple):
    """What a record says about a job in every run: the function's name, and the rest as JSON."""

    job: bytes
    value: bytes


class QueueTopics(NamedTuple):
    """The topics of an app's queue."""

    jobs: str
    ends: str
    releases: str
    changelog: str

    @classmethod
    def of(cls, topology: Topology, application: str) -> QueueTopics | None:
        """``None`` for an app without jobs."""
        if not any(isinstance(node, Step) and isinstance(node.operator, RunJobs) for node in topology.nodes):
            return None
        return cls(
            jobs_topic(application),
            ends_topic(application),
            releases_topic(application),
            f"{application}-{STORE}-changelog",
        )


class JobComparison:
    """Reads a run's records of jobs. ``enqueued`` are the values of the queue's records, by the jobs' ids.

    How many jobs schedules release depends on how long a run takes, so these are compared with nothing: each
    instant, and each end, must be there once, unless records ``may_repeat`` (at least once).
    """

    def __init__(self, topics: QueueTopics, enqueued: Mapping[str, bytes], *, may_repeat: bool) -> None:
        self._enqueued = enqueued
        self._may_repeat = may_repeat
        self._read: dict[str, Callable[[Fetched], Iterable[Compared]]] = {
            topics.jobs: self._jobs,
            topics.ends: self._ends,
            topics.releases: self._releases,
        }
        self._topics = topics
        self._stored: dict[tuple[int, bytes], bytes | None] = {}
        self._instants: set[tuple[str | None, int | None]] = set()
        """The instants of schedules that were released."""
        self._ended: set[str] = set()
        """The ids of jobs of schedules that have ended."""

    def take(self, fetched: Fetched) -> Iterable[Compared] | None:
        """What records say about jobs; ``None`` if their topic is not one of those."""
        if fetched.topic == self._topics.changelog:
            # Of its metadata, no key begins as a job's.
            for key, value in zip(fetched.keys(), fetched.values(), strict=True):
                self._stored[fetched.partition, key or b""] = value
            return ()
        read = self._read.get(fetched.topic)
        return None if read is None else read(fetched)

    def left(self) -> list[Compared]:
        """The jobs that are in the stores after all changelogs were taken."""
        return [
            _compared(job, state=stored.state.name)
            for stored in stored_jobs(self._stored.items())
            if (job := _job(stored.value)).schedule is None
        ]

    def letter(self, value: bytes | None, headers: Headers) -> tuple[bytes | None, Headers] | None:
        """A dead letter of the queue as it is in every run; ``None`` if that depends on times."""
        try:
            record = _job(value or b"")
        except msgspec.DecodeError:
            return value, _without_place(headers)
        if _depends_on_times(record) or record.schedule is not None:
            return None
        return _compared(record).value, _without_place(headers)

    def is_letter_of_queue(self, headers: Mapping[str, bytes | None]) -> bool:
        """Whether a dead letter is a job's."""
        return headers.get(f"{PREFIX}topic") == self._topics.jobs.encode()

    def _jobs(self, fetched: Fetched) -> Iterable[Compared]:
        for value in fetched.values():
            try:
                record = _job(value or b"")
            except msgspec.DecodeError:
                # It becomes a dead letter.
                yield Compared(b"", value or b"")
                continue
            if record.schedule is None:
                yield _compared(record)
                continue
            instant = record.schedule, record.scheduled
            if instant in self._instants and not self._may_repeat:
                yield _compared(record, released="twice")
            self._instants.add(instant)

    def _ends(self, fetched: Fetched) -> Iterable[Compared]:
        for value in fetched.values():
            end = _end(value or b"")
            record = self._of(end.id, end.job)
            if record.schedule is not None:
                if end.id in self._ended and not self._may_repeat:
                    yield _compared(record, ended="twice")
                self._ended.add(end.id)
            elif _depends_on_times(record):
                # Whether it was executed at all: only that it has ended is compared.
                yield _compared(record)
            else:
                # What a traceback goes through depends on what executes the job.
                error = end.error and msgspec.structs.replace(end.error, traceback="")
                yield _compared(record, ending=end.ending, result=end.result, error=error)

    def _releases(self, fetched: Fetched) -> Iterable[Compared]:
        for value in fetched.values():
            release = _release(value or b"")
            record = self._of(release.id, release.job)
            if record.schedule is None:
                yield _compared(record)

    def _of(self, identifier: str, job: str) -> JobRecord:
        """The record of a job; only its name if the record was deleted by somebody else."""
        value = self._enqueued.get(identifier)
        return JobRecord(job) if value is None else _job(value)


def _compared(record: JobRecord, **more: Any) -> Compared:
    timeless = msgspec.structs.replace(record, due=None, expires=None)
    kind = {"delayed": record.due is not None, "expires": record.expires is not None}
    return Compared(record.job.encode(), _encode({"record": timeless, **kind, **more}))


def _depends_on_times(record: JobRecord) -> bool:
    """Whether another run may rightly leave the job out: as a duplicate, or as it has expired."""
    return record.unique is not None or record.expires is not None


def _without_place(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name not in _OF_THE_RECORD]
