"""What each unfinished job of a queue waits for, as far as the topics and the program tell."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.jobs.control import pausing
from streams.jobs.fields import unfinished_fields
from streams.jobs.job_store import StoredState
from streams.jobs.limits import Bucket
from streams.jobs.order import rank
from streams.jobs.reasons import Case, JobState
from streams.jobs.unfinished import read_unfinished

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from streams.broker import Broker
    from streams.jobs.job import BaseJob
    from streams.jobs.unfinished import Found, PartitionJobs


class Surveyed(NamedTuple):
    """An unfinished job, and what it waits for."""

    job: Found
    case: Case

    @property
    def fields(self) -> dict[str, Any]:
        """The job as the fields of a JSON object."""
        return unfinished_fields(str(self.job.id), self.job.enqueued, self.case)


class Misfit(NamedTuple):
    """A job that would fail in this program before it begins."""

    job: Found
    reason: str


def survey(
    broker: Broker, application: str, jobs: Mapping[str, BaseJob[Any, Any]] | None, *, now: int | None = None
) -> list[Surveyed]:
    """The unfinished jobs of an app, oldest first. See ``surveyed`` for ``jobs``.

    Raises ``TopicError`` if the app has no queue on this cluster, ``BrokerError``.
    """
    partitions = read_unfinished(broker, application)
    admin = broker.admin()
    try:
        workers = bool(admin.group_members(application))
    finally:
        admin.close()
    return surveyed(partitions, jobs, workers=workers, now=now)


def surveyed(
    partitions: Iterable[PartitionJobs],
    jobs: Mapping[str, BaseJob[Any, Any]] | None,
    *,
    workers: bool,
    now: int | None = None,
) -> list[Surveyed]:
    """What the unfinished jobs in these partitions of a queue wait for, oldest first.

    ``jobs`` are those that the program declares, ``None`` where the program is not known: then limits and
    functions that are not registered cannot be named. ``workers`` says whether the group has members.
    """
    now = time.time_ns() // 1_000_000 if now is None else now
    found = [item for part in partitions for item in _Partition(part, jobs, now, workers=workers).all()]
    return sorted(found, key=lambda item: (item.job.enqueued, item.job.id))


def misfits(
    broker: Broker, application: str, jobs: Mapping[str, BaseJob[Any, Any]]
) -> tuple[int, list[Misfit]]:
    """The number of unfinished jobs, and those whose function or arguments do not fit the program."""
    count, found = 0, []
    for part in read_unfinished(broker, application):
        for job in part.jobs:
            count += 1
            known = jobs.get(job.record.job)
            if known is None:
                found.append(Misfit(job, "no function of this name is registered"))
                continue
            try:
                known.arguments.decode(job.record.arguments)
            except (ValueError, TypeError) as error:
                found.append(Misfit(job, f"the arguments do not fit: {error}"))
    return count, found


class _Partition:
    """The jobs of one partition, in the order in which their keys and limits let them begin."""

    def __init__(
        self, part: PartitionJobs, jobs: Mapping[str, BaseJob[Any, Any]] | None, now: int, *, workers: bool
    ) -> None:
        self._part = part
        self._jobs = {} if jobs is None else jobs
        self._program_known = jobs is not None
        self._now = now
        self._workers = workers
        self._heads: dict[str, Found] = {}
        """The job that has each key."""
        limited: dict[str, list[Found]] = defaultdict(list)
        for closed in (True, False):
            for job in part.jobs:
                key = job.record.key
                if closed is (job.state is StoredState.RETRYING) and key is not None and self._holds(job):
                    self._heads.setdefault(key, job)
        for job in part.jobs:
            if job.state is StoredState.WAITING and job.record.limit is not None:
                limited[job.record.limit].append(job)
        self._ahead: dict[int, int] = {}
        """By offset, how many jobs of a limit run at once, for the jobs that have that many ahead of them."""
        self._opens: dict[str, float] = {}
        for name, waiting in limited.items():
            self._read_limit(name, waiting)

    def all(self) -> Iterator[Surveyed]:
        for job in self._part.jobs:
            yield Surveyed(job, self._case(job))

    def _holds(self, job: Found) -> bool:
        """Whether a job that does not run may have its key."""
        if job.state is StoredState.DELAYED:
            return False
        known = self._jobs.get(job.record.job)
        return job.state is StoredState.WAITING or known is None or known.definition.on_failure == "wait"

    def _read_limit(self, name: str, waiting: list[Found]) -> None:
        known = self._jobs.get(waiting[0].record.job)
        stored = self._part.store.limit(name)
        if known is None or known.definition.limit is None:
            self._opens[name] = stored.closed_until
            return
        limit = known.definition.limit
        opens = Bucket(limit, stored.starts, stored.closed_until).opens()
        self._opens[name] = opens or 0.0
        if limit.running is not None:
            ranked = sorted(waiting, key=lambda job: rank(max(job.enqueued, job.due), job.record.priority))
            self._ahead |= {job.id.offset: limit.running for job in ranked[limit.running :]}

    def _case(self, job: Found, *, alone: bool = False) -> Case:
        record, stored = job.record, job.stored
        known = self._jobs.get(record.job)
        case = Case(
            record,
            self._now,
            _STAGES[job.state],
            due=job.due,
            tries=0 if stored is None else stored.tries,
            most_tries=None if known is None else known.definition.retry.tries,
            error=None if stored is None else stored.error,
            failed_at=0 if stored is None else stored.failed_at,
            cancelled=self._part.cancelled.get(job.id.offset),
            registered=known is not None or not self._program_known,
            workers=self._workers,
            exact=False,
        )
        scope = pausing(self._part.pauses, record)
        if scope is not None:
            case.pause = scope, self._part.pauses[scope]
        if record.limit is not None:
            case.ahead = self._ahead.get(job.id.offset)
            case.opens = self._opens.get(record.limit, 0.0)
        if record.key is not None and not alone and job.state is StoredState.WAITING:
            head = self._heads[record.key]
            if head is not job:
                case.holder = str(head.id), self._case(head, alone=True).does()
        return case


_STAGES = {
    StoredState.WAITING: JobState.WAITING,
    StoredState.RETRYING: JobState.RETRYING,
    StoredState.DELAYED: JobState.DELAYED,
}
