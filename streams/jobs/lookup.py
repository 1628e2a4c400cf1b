"""Finds one job of a queue in the topics, without reading all the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.broker.reading import read_from
from streams.jobs.record import JobEnd, JobId, JobRecord, jobs_topic
from streams.jobs.unfinished import find_end, read_store
from streams.records import TopicPartition

if TYPE_CHECKING:
    from streams.broker import Broker

MOST_SKEW = 3600 * 1000
"""How far the clock of a program that enqueues jobs may be ahead of the brokers', in milliseconds."""

_record = msgspec.json.Decoder(JobRecord).decode


class _Place(NamedTuple):
    """What the queue's topic has at the place of a job."""

    value: bytes | None
    """``None``: it was deleted, as the job is finished or stored."""
    since: int | None
    """When the job was enqueued, as far as that is known, in milliseconds since the epoch."""
    committed: bool


def look_up(broker: Broker, application: str, job: JobId) -> JobRecord | JobEnd | None:
    """How a job has ended, or else its record; ``None`` if there is none, or its result was deleted.

    Raises ``BrokerError``.
    """
    place = _look(broker, application, job)
    if place is None:
        return None
    # Read after the committed offset: a job that is committed later has ended later, or is stored.
    end = find_end(broker, application, job, since=None if place.since is None else place.since - MOST_SKEW)
    if end is not None:
        return end
    value = place.value
    if place.committed:
        store = read_store(broker, application, job.partition)
        stored = store.job(job.offset) or store.delayed(job.offset)
        if stored is None:
            # It has left the store meanwhile, or its result was deleted.
            return find_end(broker, application, job)
        value = stored.value
    try:
        return _record(value or b"")
    except msgspec.MsgspecError:
        return None


def _look(broker: Broker, application: str, job: JobId) -> _Place | None:
    topic = jobs_topic(application)
    place = TopicPartition(topic, job.partition)
    admin = broker.admin()
    try:
        topics = admin.topics()
        if topic not in topics or job.partition >= topics[topic].partitions:
            return None
        if job.offset >= admin.end_offsets([place])[place]:
            return None
        committed = job.offset < admin.committed_offsets(application, [place]).get(place, 0)
        deleted = job.offset < admin.beginning_offsets([place])[place]
    finally:
        admin.close()
    if deleted:
        return _Place(None, None, committed=True)
    for fetched in read_from(broker, {place: job.offset}):
        # It is a later one if the job's transaction was aborted.
        if fetched.offsets()[0] == job.offset:
            return _Place(fetched.values()[0], fetched.timestamps()[0], committed)
        break
    return None
