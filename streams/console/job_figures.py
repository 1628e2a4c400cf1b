"""What the console says of a queue: its functions, the jobs that are selected, and what happened to one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams.console.job_actions import declared_jobs
from streams.jobs.fields import end_fields
from streams.jobs.reasons import JobState
from streams.jobs.record import Ending
from streams.jobs.selection import JobSelection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.job_reading import EndsReading, Given, QueueReading

HELD: Final = (JobState.HELD, JobState.LIMITED, JobState.UNKNOWN, JobState.EXPIRED)
"""The states of jobs that are due and wait for something else than a free place."""


class FunctionRow(NamedTuple):
    """The jobs of one function. ``None`` is unknown."""

    name: str
    declared: bool
    oldest_due: float | None
    """For how long its oldest job has been due that does not run, in seconds; ``None`` without one."""
    running: int | None
    waiting: int
    held: int
    paused: int
    retrying: int
    later: int
    succeeded: int | None
    failed: int | None
    is_paused: bool


def selected(
    queue: QueueReading | None, day: EndsReading | None, selection: JobSelection, start: int, most: int
) -> tuple[list[dict[str, Any]], int]:
    """The fields of the selected jobs from ``start`` on, and how many jobs are selected.

    ``most`` of them are returned.
    """
    if selection.ended:
        ends = [] if day is None else list(selection.of_ends(day.ends))
        return [end_fields(end) for end in ends[start : start + most]], len(ends)
    if queue is None:
        return [], 0
    wanted = selection.states
    bare = JobSelection(selection.function, (), selection.key, selection.since, selection.until)
    chosen = list(bare.unfinished(queue.jobs))
    if wanted:
        states = dict(zip(map(id, queue.jobs), queue.states, strict=True))
        chosen = [item for item in chosen if states[id(item)] in wanted]
    return [
        dict(queue.running.get(str(item.job.id), item.fields)) for item in chosen[start : start + most]
    ], len(chosen)


def functions(
    app: AppSnapshot, queue: QueueReading | None, day: EndsReading | None, running: Mapping[str, int] | None
) -> list[FunctionRow]:
    """The functions, those whose jobs have waited longest first."""
    declared = declared_jobs(app.program) or {}
    counts = {} if queue is None else queue.counts
    ended = None if day is None else day.counts
    names = {
        *declared,
        *(name for name, _ in counts),
        *(name for name, _ in ended or {}),
        *(running or {}),
    }
    paused = set() if queue is None else {pause.scope for pause in queue.pauses}
    rows = []
    for name in names:

        def of(*states: str, name: str = name) -> int:
            return sum(counts.get((name, state), 0) for state in states)

        known = of(JobState.RUNNING)
        runs = None if running is None else max(running.get(name, 0), known)
        # Of those that run, not each was looked for: topics do not say which run.
        waiting = of(JobState.WAITING) - (0 if runs is None else runs - known)
        since = None if queue is None else queue.oldest_due.get(name)
        rows.append(
            FunctionRow(
                name,
                app.program is None or name in declared,
                None if since is None or queue is None else max(0, queue.time - since) / 1000,
                runs,
                max(0, waiting),
                of(*HELD),
                of(JobState.PAUSED),
                of(JobState.RETRYING),
                of(JobState.DELAYED),
                None if ended is None else ended.get((name, Ending.SUCCEEDED.value), 0),
                None
                if ended is None
                else sum(ended.get((name, ending.value), 0) for ending in (Ending.FAILED, Ending.EXPIRED)),
                f"f:{name}" in paused,
            )
        )
    return sorted(rows, key=lambda row: (-(row.oldest_due or 0.0), row.name))


def totals(rows: Sequence[FunctionRow]) -> FunctionRow:
    """The sums over all functions; a sum is unknown where one part is."""

    def total(name: str) -> Any:
        values = [getattr(row, name) for row in rows]
        return None if None in values else sum(values)

    oldest = max((row.oldest_due for row in rows if row.oldest_due is not None), default=None)
    return FunctionRow(
        "",
        True,
        oldest,
        total("running"),
        total("waiting"),
        total("held"),
        total("paused"),
        total("retrying"),
        total("later"),
        total("succeeded"),
        total("failed"),
        False,
    )


def events(fields: Mapping[str, Any], commands: Sequence[Given]) -> list[tuple[int, str]]:
    """What has happened to a job, and what is to come, the earliest first."""
    now = time.time_ns() // 1_000_000
    found = [(item.command.at, f"{item.command.action.value}, by {item.command.by}") for item in commands]
    if fields.get("enqueued"):
        found.append((fields["enqueued"], "enqueued"))
    if fields.get("due", 0) > fields.get("enqueued", 0):
        found.append((fields["due"], "due" if fields["due"] <= now else "will be due"))
    if fields.get("expires"):
        found.append((fields["expires"], "expires, if it has not begun"))
    if fields.get("failed"):
        found.append((fields["failed"], f"attempt {fields['tries']} failed: {fields.get('error', '')}"))
    if fields.get("began"):
        found.append((fields["began"], f"attempt {fields['tries'] + 1} began"))
    if fields.get("ended"):
        found.append((fields["ended"], fields["state"]))
    return sorted(found)
