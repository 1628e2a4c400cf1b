"""Rules for jobs, judged by what the topics of a queue have and by what the attempts have noted.

Each function adds violations to a ``Verdict``, under a rule's letter:

* Q: each job of the queue's topic has exactly one end, of the kind that its function leads to.
* B: no attempt of a job begins after its end was appended to the topic of results.
* O: the jobs of a key succeed for the first time in the order of the queue, and never two of them at once.
* D: a delayed job is released once and never early.
* X: a job that failed for good, or has expired, is among the dead letters once; no other one is.
* R: a limit holds, but for attempts that were repeated as their worker had died.
* U: a job that was left out as another one is not finished was left out before that one ended.
* E: jobs whose enqueueing was acknowledged are in the queue, those of a transaction together, and each
  record of the input has enqueued its jobs once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.jobs.record import Ending, JobEnd, JobRecord, Release
from tests.faults.jobs_app import RATE, RUNNING, Note, failing_attempts, fails_for_good

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.faults.verdicts import Verdict

THAWED_MILLISECONDS = 1_000
"""How long a worker that was frozen may note attempts whose threads had left the gate when it was frozen.

Others do not begin before it knows whether they are its own. Results of what is another one's are refused.
"""

LATE_MILLISECONDS = 1_000
"""How much later than it was admitted an attempt may begin, waiting for its thread on a busy machine."""


class Enqueued(NamedTuple):
    """A record of the queue's topic."""

    id: str
    offset: int
    partition: int
    record: JobRecord

    @property
    def number(self) -> int:
        """The number among its arguments; -1 without one."""
        return int(msgspec.json.decode(self.record.arguments).get("number", -1))


class Appended(NamedTuple):
    """An end, and when it was appended, in milliseconds since the epoch."""

    end: JobEnd
    at: int


class Released(NamedTuple):
    """A release, and when it was appended."""

    release: Release
    at: int


class Frozen(NamedTuple):
    """A process that was stopped by SIGSTOP, or taken for dead by its group, and when.

    Times are milliseconds since the epoch.
    """

    pid: int
    start: int
    stop: int


@dataclass
class Attempt:
    """An attempt as it was noted. ``ended`` is ``None`` if its process ended before."""

    begun: Note
    ended: Note | None = None


@dataclass
class History:
    """All that a campaign has found."""

    topic: str
    jobs: list[Enqueued] = field(default_factory=list)
    ends: list[Appended] = field(default_factory=list)
    releases: list[Released] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)
    """The ids of the jobs of the dead letters."""
    attempts: list[Attempt] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    orders: int = 0
    """How many records the input has, numbered from 0."""
    acknowledged: list[str] = field(default_factory=list)
    """The ids of the jobs whose enqueueing returned."""

    def of(self, identifier: str) -> str:
        """The idempotency key of a job."""
        return f"{self.topic}-{identifier}"


def pair(notes: Iterable[Note]) -> list[Attempt]:
    """The attempts of one process, whose notes are in their order."""
    attempts: list[Attempt] = []
    running: dict[tuple[str, int], Attempt] = {}
    for note in notes:
        place = note.idempotency, note.attempt
        if note.ending:
            running.pop(place).ended = note
        else:
            running[place] = attempt = Attempt(note)
            attempts.append(attempt)
    return attempts


def judge(verdict: Verdict, history: History) -> None:
    """Apply all rules."""
    ends = _ends(verdict, history)
    _beginnings(verdict, history, ends)
    _order(verdict, history)
    _releases(verdict, history)
    _letters(verdict, history, ends)
    _limits(verdict, history)
    _unique(verdict, history, ends)
    _enqueued(verdict, history)


def _ends(verdict: Verdict, history: History) -> dict[str, Appended]:
    found: dict[str, Appended] = {}
    for appended in history.ends:
        verdict.checked["Q"] += 1
        if appended.end.id in found:
            verdict.add("Q", f"two ends: {found[appended.end.id].end}, {appended.end}")
        found[appended.end.id] = appended
    for job in history.jobs:
        appended_ = found.get(job.id)
        if appended_ is None:
            verdict.add("Q", f"no end of {job}")
        elif appended_.end.ending not in _possible(job):
            verdict.add("Q", f"{job} ended so: {appended_.end}")
        elif appended_.end.ending is Ending.SUCCEEDED:
            wanted = msgspec.json.decode(job.record.arguments)
            result = msgspec.json.decode(appended_.end.result)
            if result != wanted.get("number", wanted.get("what")):
                verdict.add("Q", f"{job} has another one's result: {appended_.end}")
            tries = 1 + failing_attempts(job.number) if job.record.job == "charge" else 1
            if appended_.end.tries != tries:
                verdict.add("Q", f"{job} succeeded in attempt {appended_.end.tries}, not {tries}")
    strangers = found.keys() - {job.id for job in history.jobs}
    if strangers:
        verdict.add("Q", f"{len(strangers)} ends of jobs that nobody enqueued, e.g. {min(strangers)}")
    return found


def _possible(job: Enqueued) -> set[Ending]:
    """How a job may end."""
    match job.record.job:
        case "charge":
            return {Ending.FAILED if fails_for_good(job.number) else Ending.SUCCEEDED}
        case "once":
            return {Ending.SUCCEEDED, Ending.DUPLICATE}
        case "fleeting":
            return {Ending.SUCCEEDED, Ending.EXPIRED}
        case _:
            return {Ending.SUCCEEDED}


def _beginnings(verdict: Verdict, history: History, ends: Mapping[str, Appended]) -> None:
    appended = {history.of(identifier): end for identifier, end in ends.items()}
    for attempt in history.attempts:
        note = attempt.begun
        verdict.checked["B"] += 1
        end = appended.get(note.idempotency)
        if end is None or note.at <= end.at:
            continue
        if _has_thawed(history, note):
            verdict.repeated["B"] += 1
            continue
        verdict.add("B", f"{note} began {note.at - end.at} ms after its end was appended: {end}")


def _has_thawed(history: History, note: Note) -> bool:
    """Whether the process had been frozen just before, and so could not know that it owns nothing."""
    return any(
        frozen.pid == note.pid and frozen.start <= note.at <= frozen.stop + THAWED_MILLISECONDS
        for frozen in history.frozen
    )


def _order(verdict: Verdict, history: History) -> None:
    first: dict[str, int] = {}
    spans: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for attempt in history.attempts:
        note, end = attempt.begun, attempt.ended
        if end is not None and end.ending == "succeeded":
            first[note.idempotency] = min(end.at, first.get(note.idempotency, end.at))
        if not _has_thawed(history, note) and not _frozen_while(history, attempt):
            # Of an attempt whose process has ended, only the beginning is known.
            spans[note.idempotency].append((note.at, note.at if end is None else end.at, note.idempotency))
    lines: dict[str, list[Enqueued]] = defaultdict(list)
    for job in history.jobs:
        if job.record.key is not None:
            lines[job.record.key].append(job)
    for key, jobs in lines.items():
        verdict.checked["O"] += len(jobs)
        jobs.sort(key=lambda job: job.offset)
        if len({job.partition for job in jobs}) != 1:
            verdict.add("O", f"the jobs of key {key} are in several partitions")
            continue
        places = [history.of(job.id) for job in jobs]
        succeeded = [(first[place], place) for place in places if place in first]
        for (earlier, one), (later, other) in pairwise(succeeded):
            if later < earlier:
                verdict.add("O", f"key {key}: {other} succeeded at {later}, before {one} at {earlier}")
        for (_, stop, one), (start, _, other) in pairwise(
            sorted(span for place in places for span in spans[place])
        ):
            if start < stop:
                verdict.add("O", f"key {key}: {other} began at {start}, before {one} ended at {stop}")


def _frozen_while(history: History, attempt: Attempt) -> bool:
    """Whether its process was frozen while it ran: meanwhile another worker may have executed the job."""
    begun, end = attempt.begun, attempt.ended
    return any(
        frozen.pid == begun.pid and frozen.stop >= begun.at and (end is None or frozen.start <= end.at)
        for frozen in history.frozen
    )


def _releases(verdict: Verdict, history: History) -> None:
    delayed = {job.id: job for job in history.jobs if job.record.due is not None}
    seen: Counter[str] = Counter()
    for released in history.releases:
        release = released.release
        verdict.checked["D"] += 1
        seen[release.id] += 1
        job = delayed.get(release.id)
        if job is None:
            verdict.add("D", f"release of what is not delayed: {release}")
        elif min(released.at, release.released) < (job.record.due or 0) or release.due != job.record.due:
            verdict.add("D", f"released early: {job}, {release}, appended at {released.at}")
    for job in delayed.values():
        if seen[job.id] != 1:
            verdict.add("D", f"released {seen[job.id]} times: {job}")
    due = {history.of(job.id): job.record.due or 0 for job in delayed.values()}
    for attempt in history.attempts:
        if attempt.begun.at < due.get(attempt.begun.idempotency, 0):
            verdict.add("D", f"began before it was due at {due[attempt.begun.idempotency]}: {attempt.begun}")


def _letters(verdict: Verdict, history: History, ends: Mapping[str, Appended]) -> None:
    letters = Counter(history.letters)
    wanted = {
        identifier for identifier, end in ends.items() if end.end.ending in (Ending.FAILED, Ending.EXPIRED)
    }
    verdict.checked["X"] += letters.total()
    for identifier, number in letters.items():
        if identifier not in wanted or number != 1:
            verdict.add(
                "X", f"{number} dead letters of job {identifier}, which ended so: {ends.get(identifier)}"
            )
    for identifier in wanted - letters.keys():
        verdict.add("X", f"no dead letter of {ends[identifier].end}")


def _limits(verdict: Verdict, history: History) -> None:
    final: dict[tuple[str, int], Attempt] = {}
    for attempt in sorted(history.attempts, key=lambda attempt: attempt.begun.at):
        # Of attempts with the same number, all but the last one are those of workers that have died.
        final[attempt.begun.idempotency, attempt.begun.attempt] = attempt
    kept = [
        attempt
        for attempt in final.values()
        if not _has_thawed(history, attempt.begun) and not _frozen_while(history, attempt)
    ]
    begun = sorted(attempt.begun.at for attempt in kept if attempt.begun.name == "limited")
    verdict.checked["R"] += len(begun)
    for length in (1_000, 10_000, 60_000):
        most = RATE + (length + LATE_MILLISECONDS) * RATE // 1_000
        for place, time in enumerate(begun):
            number = bisect_left(begun, time + length) - place
            if number > most:
                verdict.add("R", f"{number} limited jobs began in the {length} ms from {time} on, not {most}")
                break
    narrow = [attempt for attempt in kept if attempt.begun.name == "narrow" and attempt.ended is not None]
    verdict.checked["R"] += len(narrow)
    changes = sorted(
        change
        for attempt in narrow
        if attempt.ended is not None
        for change in ((attempt.begun.at, 1), (attempt.ended.at, -1))
    )
    running = 0
    for time, change in changes:
        running += change
        if running > RUNNING:
            verdict.add("R", f"{running} jobs ran at once at {time}; the limit is {RUNNING}")
            break


def _unique(verdict: Verdict, history: History, ends: Mapping[str, Appended]) -> None:
    by_id = {job.id: job for job in history.jobs}
    for appended in ends.values():
        end = appended.end
        if end.ending is not Ending.DUPLICATE:
            continue
        verdict.checked["U"] += 1
        job, other = by_id.get(end.id), by_id.get(end.duplicate_of or "")
        if job is None or other is None or other.offset >= job.offset:
            verdict.add("U", f"duplicate of nothing before it: {end}")
        elif other.record.unique != job.record.unique:
            verdict.add("U", f"{job} is no duplicate of {other}")
        elif other.id in ends and ends[other.id].end.ended < end.ended:
            verdict.add("U", f"{end} was left out after {ends[other.id].end}")
    texts: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for job in history.jobs:
        if job.record.unique is not None and job.id in ends:
            end = ends[job.id].end
            if end.ending is Ending.SUCCEEDED:
                texts[job.record.unique].append((job.offset, end.ended, job.id))
    begun: dict[str, int] = {}
    for attempt in history.attempts:
        place = attempt.begun.idempotency
        begun[place] = min(attempt.begun.at, begun.get(place, attempt.begun.at))
    for text, executed in texts.items():
        executed.sort()
        for (_, ended, before), (_, _, after) in pairwise(executed):
            if begun.get(history.of(after), ended) < ended:
                verdict.add("U", f"{text}: {after} began before {before} ended at {ended}")


def _enqueued(verdict: Verdict, history: History) -> None:
    present = {job.id for job in history.jobs}
    verdict.checked["E"] += len(history.acknowledged)
    for identifier in history.acknowledged:
        if identifier not in present:
            verdict.add("E", f"job {identifier} was acknowledged and is not in the queue")
    numbers: dict[str, Counter[int]] = defaultdict(Counter)
    for job in history.jobs:
        if job.number >= 0:
            numbers[job.record.job][job.number] += 1
    _each_once(verdict, numbers, {"charge": 1, "later": 1, "limited": 1, "narrow": 2}, history.orders)


def _each_once(
    verdict: Verdict, numbers: Mapping[str, Counter[int]], steps: Mapping[str, int], orders: int
) -> None:
    for name, every in steps.items():
        verdict.checked["E"] += orders
        wrong = [number for number in range(orders) if numbers[name][number] != (number % every == 0)]
        if wrong:
            verdict.add(
                "E",
                f"{len(wrong)} orders have not enqueued {name} as they should, e.g. number {wrong[0]}: "
                f"{numbers[name][wrong[0]]} times",
            )


def judge_transactions(verdict: Verdict, jobs: Sequence[Enqueued], batch: int, first: int) -> None:
    """E: the jobs of a program, numbered from ``first``, are there ``batch`` by ``batch``, or not at all."""
    found = Counter((job.number - first) // batch for job in jobs if job.number >= first)
    for number, count in found.items():
        verdict.checked["E"] += 1
        if count != batch:
            verdict.add("E", f"{count} of {batch} jobs of transaction {number} are in the queue")
