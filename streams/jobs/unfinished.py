"""Reads from the topics alone which jobs of a queue have not ended, so that no worker is needed."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.broker import BEGINNING
from streams.broker.reading import read_from
from streams.errors import TopicError
from streams.jobs.control import pausing
from streams.jobs.job_store import STORE, JobStore, StoredJob, StoredState
from streams.jobs.record import JobEnd, JobId, JobRecord, ends_topic, jobs_topic
from streams.partitioning import partition_for
from streams.records import TopicPartition
from streams.state.changelog import changelog_topic, entry_key
from streams.state.definition import StoreDefinition

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from streams.broker import Admin, Broker
    from streams.jobs.commands import CommandNote

_record = msgspec.json.Decoder(JobRecord).decode
_end = msgspec.json.Decoder(JobEnd).decode


class Found(NamedTuple):
    """A job that has not ended."""

    id: JobId
    record: JobRecord
    value: bytes
    enqueued: int
    """When, in milliseconds since the epoch."""
    state: StoredState
    """``WAITING`` for one that is not in the store."""
    due: int
    """When the state ends, in milliseconds since the epoch, if it ends by time."""
    stored: StoredJob | None


class PartitionJobs(NamedTuple):
    """One partition of a queue."""

    partition: int
    store: JobStore
    pauses: Mapping[str, CommandNote]
    cancelled: Mapping[int, CommandNote]
    jobs: list[Found]
    """Those that have not ended, by offset."""
    unread: int
    """How many records at its end are no jobs of which a worker knows, e.g. as they cannot be decoded."""


class _Entries:
    """A store as its changelog has it."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self._ordered: list[bytes] | None = None

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def prefix(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        if self._ordered is None:
            self._ordered = sorted(self.entries)
        for at in range(bisect_left(self._ordered, prefix), len(self._ordered)):
            key = self._ordered[at]
            if not key.startswith(prefix):
                return
            yield key, self.entries[key]

    def put(self, key: bytes, value: bytes | None) -> None:  # noqa: ARG002 - of the protocol
        raise AssertionError("a changelog is only read")

    def delete(self, key: bytes) -> None:  # noqa: ARG002 - of the protocol
        raise AssertionError("a changelog is only read")


def read_unfinished(broker: Broker, application: str) -> list[PartitionJobs]:
    """Read the jobs of an app's queue that have not ended, by partition.

    Unfinished are the records from the committed offset on, without those that the store lists as finished,
    and the jobs in the store. Raises ``TopicError`` if the app has no queue on this cluster, ``BrokerError``.
    """
    topic, ends = jobs_topic(application), ends_topic(application)
    changelog = changelog_topic(application, StoreDefinition(name=STORE))
    admin = broker.admin()
    try:
        existing = admin.topics()
        if topic not in existing:
            raise TopicError(
                f"topic {topic} does not exist: app {application!r} has no queue on this cluster",
                hint="it is created by the first worker, or when the first job is enqueued",
            )
        places = [TopicPartition(topic, number) for number in range(existing[topic].partitions)]
        # In this order: what ends while the topics are read is among the ends that come after it.
        since = _ends_now(admin, ends, existing[ends].partitions if ends in existing else 0)
        committed = admin.committed_offsets(application, places)
        beginnings = admin.beginning_offsets(places)
    finally:
        admin.close()
    count = existing[changelog].partitions if changelog in existing else 0
    entries = _read_changelog(broker, changelog, range(count))
    stores = {place.partition: JobStore(entries.get(place.partition, _Entries())) for place in places}
    progress = {number: store.progress() for number, store in stores.items()}
    listed = {
        number: {offset for start, stop in own.unfinished for offset in range(start, stop)}
        for number, own in progress.items()
        if own is not None
    }
    starts = {place: max(committed.get(place, 0), beginnings[place]) for place in places}
    found: dict[int, dict[int, Found]] = {place.partition: {} for place in places}
    unread: dict[int, int] = dict.fromkeys(found, 0)
    for number, store in stores.items():
        for offset, stored in (*store.jobs(), *store.all_delayed()):
            found[number][offset] = _of_store(JobId(number, offset), stored)
    for fetched in read_from(broker, starts):
        own, before = found[fetched.partition], progress[fetched.partition]
        columns = fetched.offsets(), fetched.values(), fetched.timestamps()
        for offset, value, timestamp in zip(*columns, strict=True):
            if offset in own:
                continue
            if before is not None and offset < before.position and offset not in listed[fetched.partition]:
                continue
            try:
                record = _record(value or b"")
            except msgspec.MsgspecError:
                unread[fetched.partition] += 1
                continue
            own[offset] = Found(
                JobId(fetched.partition, offset),
                record,
                value or b"",
                timestamp,
                StoredState.WAITING,
                0,
                None,
            )
    for fetched in read_from(broker, since):
        keys = fetched.keys()
        for key in keys:
            job = JobId.parse((key or b"").decode())
            found.get(job.partition, {}).pop(job.offset, None)
    now = time.time_ns() // 1_000_000
    return [
        PartitionJobs(
            number,
            stores[number],
            dict(stores[number].pauses()),
            dict(stores[number].cancelled()),
            [_due(job, now) for _, job in sorted(jobs.items())],
            unread[number],
        )
        for number, jobs in found.items()
    ]


def find_end(broker: Broker, application: str, job: JobId, *, since: int | None = None) -> JobEnd | None:
    """How a job has ended, if its result still exists. Raises ``BrokerError``.

    Only results that were written ``since``, in milliseconds since the epoch, are read.
    """
    topic, key = ends_topic(application), str(job).encode()
    admin = broker.admin()
    try:
        existing = admin.topics()
        if topic not in existing:
            return None
        place = TopicPartition(topic, partition_for(key, existing[topic].partitions))
        start = BEGINNING if since is None else admin.offsets_for_times({place: since})[place]
    finally:
        admin.close()
    found = None
    for fetched in read_from(broker, {place: start}):
        for row, own in enumerate(fetched.keys()):
            if own == key and (value := fetched.values([row])[0]) is not None:
                found = _end(value)
    return found


def read_ends(
    broker: Broker, application: str, *, since: int | None = None, most: int | None = None
) -> Iterator[JobEnd]:
    """The results that still exist, those of a partition in their order. Raises ``BrokerError``.

    Only those that were written ``since`` then, in milliseconds since the epoch, and of many about the last
    ``most`` ones, as equally many of each partition.
    """
    topic = ends_topic(application)
    admin = broker.admin()
    try:
        existing = admin.topics()
        count = existing[topic].partitions if topic in existing else 0
        places = [TopicPartition(topic, number) for number in range(count)]
        starts = dict.fromkeys(places, BEGINNING)
        if since is not None and places:
            starts = dict(admin.offsets_for_times(dict.fromkeys(places, since)))
        if most is not None and places:
            for place, end in admin.end_offsets(places).items():
                starts[place] = max(starts[place], end - most // count)
    finally:
        admin.close()
    for fetched in read_from(broker, starts):
        yield from (_end(value) for value in fetched.values() if value is not None)


def _ends_now(admin: Admin, topic: str, partitions: int) -> dict[TopicPartition, int]:
    return dict(admin.end_offsets([TopicPartition(topic, number) for number in range(partitions)]))


def read_store(broker: Broker, application: str, partition: int) -> JobStore:
    """What a partition of the queue has stored. Raises ``BrokerError``."""
    topic = changelog_topic(application, StoreDefinition(name=STORE))
    return JobStore(_read_changelog(broker, topic, [partition])[partition])


def _read_changelog(broker: Broker, topic: str, partitions: Iterable[int]) -> dict[int, _Entries]:
    stores: dict[int, _Entries] = {number: _Entries() for number in partitions}
    places = {TopicPartition(topic, number): BEGINNING for number in stores}
    for fetched in read_from(broker, places):
        entries = stores[fetched.partition].entries
        headers = fetched.headers() or [None] * len(fetched)
        for key, value, own in zip(fetched.keys(), fetched.values(), headers, strict=True):
            entry = None if key is None else entry_key(key, own)
            if entry is None:
                continue
            if value is None:
                entries.pop(entry, None)
            else:
                entries[entry] = value
    return stores


def _of_store(identifier: JobId, stored: StoredJob) -> Found:
    return Found(
        identifier, _record(stored.value), stored.value, stored.timestamp, stored.state, stored.due, stored
    )


def _due(job: Found, now: int) -> Found:
    """A job whose record no worker has read may be delayed; one whose time has come only waits."""
    if job.stored is None and job.record.due is not None and job.record.due > now:
        return job._replace(state=StoredState.DELAYED, due=job.record.due)
    return job


def count_due(partitions: Iterable[PartitionJobs], now: int) -> dict[int, int]:
    """For each partition of the queue, how many unfinished jobs could run: what its lag is.

    These are all but the jobs that wait for a time, and the paused ones.
    """
    return {
        part.partition: part.unread
        + sum(
            not (job.due > now and job.state is not StoredState.WAITING)
            and pausing(part.pauses, job.record) is None
            for job in part.jobs
        )
        for part in partitions
    }
