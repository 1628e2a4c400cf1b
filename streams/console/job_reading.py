"""An app's queue of jobs, read from its topics in the background."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from streams.broker.reading import read_from
from streams.console.store_queries import ask_any
from streams.jobs.commands import Command, commands_topic, scope_text
from streams.jobs.fields import end_fields
from streams.jobs.lookup import MOST_SKEW
from streams.jobs.reasons import JobState
from streams.jobs.record import Ending
from streams.jobs.survey import survey, surveyed
from streams.jobs.unfinished import find_end, read_ends, read_unfinished
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.broker import Broker
    from streams.console.watched import Watched
    from streams.jobs.job import BaseJob
    from streams.jobs.record import JobEnd, JobId
    from streams.jobs.survey import Surveyed
    from streams.jobs.unfinished import PartitionJobs

MOST_COMMANDS: Final = 1_000
"""How many of the latest commands are read."""

DAY: Final = 24 * 3_600_000
MOST_ENDS: Final = 50_000
"""How many of the latest results are read, at most."""

KEPT_ENDS: Final = 2_000
"""How many of them are kept of each ending, the latest."""

ASKED_JOBS: Final = 100
"""For how many jobs that may run a worker is asked whether they do."""

ASKED_AT_ONCE: Final = 8

COULD_RUN: Final = (JobState.WAITING, JobState.HELD, JobState.LIMITED, JobState.UNKNOWN, JobState.EXPIRED)
"""The states of jobs that are due and not paused."""

_command = msgspec.json.Decoder(Command).decode


class Given(NamedTuple):
    """A command, and by how many partitions of the queue it was applied."""

    offset: int
    command: Command
    applied: int


class Pause(NamedTuple):
    """A scope of jobs that is paused."""

    scope: str
    text: str
    by: str
    since: int
    applied: int
    """In how many partitions of the queue; others apply it when a worker has them."""

    @property
    def target(self) -> Mapping[str, str]:
        """The fields of the form that ends it."""
        kind, _, name = self.scope.partition(":")
        return {"f": {"function": name}, "k": {"key": name}}.get(kind, {"all": "1"})


class QueueReading(NamedTuple):
    """The jobs that have not ended. Times are milliseconds since the epoch."""

    time: int
    jobs: Sequence[Surveyed]
    """Oldest first."""
    states: Sequence[str]
    """The state of each of them: ``running`` where a worker says so."""
    running: Mapping[str, Mapping[str, Any]]
    """What workers say of those that run, by id."""
    counts: Mapping[tuple[str, str], int]
    """By function and state."""
    oldest_due: Mapping[str, int]
    """Since when the job of a function has been due that has waited longest and is not known to run."""
    pauses: Sequence[Pause]
    commands: Sequence[Given]
    """The latest first."""
    partitions: int
    unread: int
    """Records that are no jobs."""
    workers: bool
    """Whether the group has members."""
    seconds: float
    """How long it took to read."""


class JobReading(NamedTuple):
    """One job."""

    fields: Mapping[str, Any] | None
    """As ``streams jobs show --json`` prints them; ``None`` if there is no such job."""
    end: JobEnd | None
    """How it has ended, if its result exists."""
    commands: Sequence[Given]
    """Those that name it, the earliest first."""


class EndsReading(NamedTuple):
    """Jobs that have ended within a day."""

    ends: Sequence[JobEnd]
    """Those that were kept, the latest first."""
    counts: Mapping[tuple[str, str], int]
    """By function and ending."""
    cut: bool
    """Whether there were too many, so that only the latest were read."""


def read_queue(
    broker: Broker,
    watched: Watched,
    addresses: Sequence[str],
    jobs: Mapping[str, BaseJob[Any, Any]] | None,
    running: int,
) -> QueueReading:
    """Read the queue. ``jobs`` are those that the program declares, if there is one.

    ``running`` is how many jobs the workers say run. Raises ``TopicError`` if the app has no queue,
    ``BrokerError``.
    """
    begun = time.monotonic()
    partitions = read_unfinished(broker, watched.name)
    admin = broker.admin()
    try:
        workers = bool(admin.group_members(watched.name))
    finally:
        admin.close()
    now = time.time_ns() // 1_000_000
    found = surveyed(partitions, jobs, workers=workers, now=now)
    states = [item.case.state.value for item in found]
    # A worker executes the jobs that have been due for longest first, as a rule.
    candidates = [
        str(item.job.id) for item, state in zip(found, states, strict=True) if state == JobState.WAITING
    ]
    runs = _ask_running(watched, addresses, candidates[:ASKED_JOBS], running) if addresses and running else {}
    states = [
        JobState.RUNNING.value if str(item.job.id) in runs else state
        for item, state in zip(found, states, strict=True)
    ]
    oldest: dict[str, int] = {}
    for item, state in zip(found, states, strict=True):
        if state in COULD_RUN:
            since = max(item.job.enqueued, item.job.due)
            oldest[item.job.record.job] = min(since, oldest.get(item.job.record.job, since))
    positions = [part.store.command_position() for part in partitions]
    return QueueReading(
        now,
        found,
        states,
        runs,
        Counter((item.job.record.job, state) for item, state in zip(found, states, strict=True)),
        oldest,
        _pauses(partitions),
        _read_commands(broker, watched.name, positions),
        len(partitions),
        sum(part.unread for part in partitions),
        workers,
        time.monotonic() - begun,
    )


def read_day(broker: Broker, application: str) -> EndsReading:
    """Read the results of the last day. Raises ``BrokerError``."""
    counts: Counter[tuple[str, str]] = Counter()
    kept: dict[Ending, list[JobEnd]] = {ending: [] for ending in Ending}
    since = time.time_ns() // 1_000_000 - DAY
    for end in read_ends(broker, application, since=since, most=MOST_ENDS):
        counts[end.job, end.ending.value] += 1
        kept[end.ending].append(end)
    ends = [
        end
        for found in kept.values()
        for end in sorted(found, key=lambda end: end.ended, reverse=True)[:KEPT_ENDS]
    ]
    return EndsReading(
        sorted(ends, key=lambda end: end.ended, reverse=True), counts, counts.total() >= MOST_ENDS * 0.9
    )


def read_job(
    broker: Broker,
    watched: Watched,
    addresses: Sequence[str],
    jobs: Mapping[str, BaseJob[Any, Any]] | None,
    job: JobId,
) -> JobReading:
    """Read one job: a worker knows whether it runs, the topics know the rest. Raises ``BrokerError``."""
    answer = ask_any(watched, addresses, f"/jobs/{job}")
    fields: dict[str, Any] | None = answer.content if answer.state == "found" else None
    if fields is None and answer.state != "no value":
        unfinished = survey(broker, watched.name, jobs)
        fields = next((item.fields for item in unfinished if item.job.id == job), None)
    end = None
    if fields is None or "ended" in fields:
        since = None if fields is None else fields["enqueued"] - MOST_SKEW
        end = find_end(broker, watched.name, job, since=since)
        fields = fields if end is None else end_fields(end)
    commands = [item for item in _read_commands(broker, watched.name, ()) if str(job) in item.command.jobs]
    return JobReading(fields, end, commands[::-1])


def _ask_running(
    watched: Watched, addresses: Sequence[str], jobs: Sequence[str], running: int
) -> dict[str, Mapping[str, Any]]:
    """What workers say of those of these jobs that run. It ends once all that run are found."""
    found: dict[str, Mapping[str, Any]] = {}

    def ask(job: str) -> Mapping[str, Any] | None:
        body = watched.read(addresses[hash(job) % len(addresses)], f"/jobs/{job}")
        try:
            return None if body is None else msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.MsgspecError:
            return None

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        for at in range(0, len(jobs), ASKED_AT_ONCE):
            some = jobs[at : at + ASKED_AT_ONCE]
            found |= {
                job: fields
                for job, fields in zip(some, pool.map(ask, some), strict=True)
                if fields is not None and fields.get("state") == JobState.RUNNING.value
            }
            if len(found) >= running:
                break
    return found


def _pauses(partitions: Sequence[PartitionJobs]) -> list[Pause]:
    found: dict[str, Pause] = {}
    for part in partitions:
        for scope, note in part.pauses.items():
            known = found.get(scope)
            applied = 1 if known is None else known.applied + 1
            found[scope] = Pause(scope, scope_text(scope), note.by, note.at, applied)
    return sorted(found.values(), key=lambda pause: pause.since)


def _read_commands(broker: Broker, application: str, positions: Sequence[int]) -> list[Given]:
    place = TopicPartition(commands_topic(application), 0)
    admin = broker.admin()
    try:
        if place.topic not in admin.topics():
            return []
        end = admin.end_offsets([place])[place]
        start = max(admin.beginning_offsets([place])[place], end - MOST_COMMANDS)
    finally:
        admin.close()
    found = []
    for fetched in read_from(broker, {place: start}):
        for offset, value in zip(fetched.offsets(), fetched.values(), strict=True):
            try:
                command = _command(value or b"")
            except msgspec.MsgspecError:
                continue
            found.append(Given(offset, command, sum(position > offset for position in positions)))
    return found[::-1]
