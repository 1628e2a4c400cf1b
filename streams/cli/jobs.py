"""``streams jobs``: the jobs of an app's queue, why they are not running, and what to do about them."""

from __future__ import annotations

import getpass
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import click
import msgspec
import typer
from rich.table import Table

from streams.app import queue_of
from streams.cli.apps import load_app
from streams.cli.job_lines import (
    JobPlace,
    OfFunction,
    OfKey,
    Since,
    States,
    Until,
    select,
)
from streams.cli.job_schedules import schedules
from streams.cli.letter_lines import iso_time
from streams.cli.options import AsJson, Servers, Target, into_environment
from streams.cli.output import out, print_line, warn
from streams.errors import ConfigurationError, JobUnknown
from streams.jobs.applied_commands import AppliedCommands
from streams.jobs.commands import MOST_JOBS, Action, Command, scope_text
from streams.jobs.fields import end_fields, end_sentence
from streams.jobs.reasons import JobState
from streams.jobs.record import Ending, JobId
from streams.jobs.survey import misfits, survey
from streams.jobs.unfinished import find_end, read_ends
from streams.replay.dead_letters.ended_job import ended_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.app import App
    from streams.jobs.survey import Surveyed

jobs_cli = typer.Typer(
    help="List, show, check, cancel, pause, resume, retry and purge the jobs of an app's queue.",
    no_args_is_help=True,
)

jobs_cli.command("schedules")(schedules)

Wait = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the workers.")]
PausedFunction = Annotated[
    str | None, typer.Argument(metavar="[FUNCTION]", help="The function, by its name in the queue.")
]
PausedKey = Annotated[str | None, typer.Option("--key", help="The jobs of this key instead.")]
Everything = Annotated[bool, typer.Option("--all", help="All jobs instead.")]


@jobs_cli.command("list")
def list_jobs(
    target: Target,
    *,
    function: OfFunction = None,
    state: States = None,
    key: OfKey = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show so many at most.")] = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs that have not ended, oldest first, each with the reason why it is not running.

    With the states succeeded, failed, expired, cancelled and duplicate, also those that have ended, as long
    as their results exist. It reads the topics and needs no workers.
    """
    app = _app(target, bootstrap_servers)
    selection = select(function=function, states=state, key=key, since=since, until=until)
    broker = app.broker()
    lines = [item.fields for item in selection.unfinished(_survey(app))]
    if selection.ended:
        lines += [end_fields(end) for end in selection.of_ends(read_ends(broker, app.name))]
        lines.sort(key=lambda fields: fields["enqueued"])
    left_out = 0 if limit is None else max(0, len(lines) - limit)
    lines = lines[:limit]
    if as_json:
        for fields in lines:
            print_line(fields)
    else:
        table = Table("id", "function", "state", "key", "enqueued", "tries", "why")
        for fields in lines:
            table.add_row(
                fields["id"],
                click.unstyle(fields["job"]),
                fields["state"],
                click.unstyle(fields.get("key") or ""),
                iso_time(fields["enqueued"]),
                str(fields["tries"]),
                click.unstyle(fields["why"]),
            )
        out.print(table)
    if left_out:
        warn(f"{left_out:,} more jobs are left out by --limit")


@jobs_cli.command("show")
def show_job(
    target: Target, identifier: JobPlace, *, bootstrap_servers: Servers = None, as_json: AsJson = False
) -> None:
    """Show one job: arguments, times, attempts, last error, and why it is not running, or how it ended."""
    app = _app(target, bootstrap_servers)
    found = _find(app, JobId.parse(identifier))
    if as_json:
        print_line(found)
        return
    table = Table(show_header=False)
    for name, value in found.items():
        if name in _TIMES and isinstance(value, int):
            text = iso_time(value)
        else:
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        table.add_row(name, click.unstyle(text))
    out.print(table)


_TIMES = ("enqueued", "due", "expires", "failed", "ended")


@jobs_cli.command("check")
def check(target: Target, *, bootstrap_servers: Servers = None, as_json: AsJson = False) -> None:
    """Check that this program can execute all jobs that have not ended; to be run before a deployment.

    The arguments of each job, also of delayed ones, are read by the signature of its function. Those that do
    not fit are listed by function and reason, and the exit code is 1.
    """
    app = _app(target, bootstrap_servers)
    count, found = misfits(app.broker(), app.name, queue_of(app).jobs)
    groups: dict[tuple[str, str], list[str]] = {}
    for misfit in found:
        groups.setdefault((misfit.job.record.job, misfit.reason), []).append(str(misfit.job.id))
    if as_json:
        for (name, reason), jobs in sorted(groups.items()):
            print_line({"job": name, "reason": reason, "count": len(jobs), "first": jobs[0]})
    elif groups:
        table = Table("function", "reason", "jobs", "first")
        for (name, reason), jobs in sorted(groups.items()):
            table.add_row(click.unstyle(name), click.unstyle(reason), f"{len(jobs):,}", jobs[0])
        out.print(table)
    if found:
        warn(f"{len(found):,} of {count:,} jobs would fail in this program")
        raise typer.Exit(1)
    if not as_json:
        out.print(f"all {count:,} jobs fit this program")


@jobs_cli.command("cancel")
def cancel(
    target: Target, identifier: JobPlace, *, wait: Wait = 5.0, bootstrap_servers: Servers = None
) -> None:
    """Cancel a job: one that waits never begins, one that runs is asked to end.

    A function notices by current_job().cancelled; an async one is cancelled. If no worker runs, the job is
    cancelled before anything begins when one starts.
    """
    app = _app(target, bootstrap_servers)
    job = JobId.parse(identifier)
    found = _find(app, job)
    if "ended" in found:
        raise ConfigurationError(f"job {job} has ended: {found['why']}")
    client = queue_of(app).client
    try:
        client.command([_command(Action.CANCEL, jobs=[str(job)])])
        end = client.wait(str(job), wait) if wait else None
    finally:
        client.close()
    if end is None:
        out.print(f"job {job} is asked to end; see: streams jobs show {target} {job}", highlight=False)
    else:
        out.print(f"job {job}: {end_sentence(end)}", highlight=False, markup=False)


@jobs_cli.command("pause")
def pause(
    target: Target,
    function: PausedFunction = None,
    *,
    key: PausedKey = None,
    everything: Everything = False,
    wait: Wait = 5.0,
    bootstrap_servers: Servers = None,
) -> None:
    """Let no more jobs of a function or key begin, until they are resumed; those that run may finish.

    It returns once all workers do so. If no worker runs, nothing of them begins when one starts.
    """
    _control(Action.PAUSE, target, function, key, bootstrap_servers, everything=everything, wait=wait)


@jobs_cli.command("resume")
def resume(
    target: Target,
    function: PausedFunction = None,
    *,
    key: PausedKey = None,
    everything: Everything = False,
    wait: Wait = 5.0,
    bootstrap_servers: Servers = None,
) -> None:
    """End the pause of a function, a key, or of all jobs: that very pause, not others that a job is in."""
    _control(Action.RESUME, target, function, key, bootstrap_servers, everything=everything, wait=wait)


@jobs_cli.command("retry")
def retry(target: Target, identifier: JobPlace, *, bootstrap_servers: Servers = None) -> None:
    """Execute a job again: one that waits for its next attempt begins now.

    One that failed for good, expired or was cancelled is enqueued again, as a new job with an id of its own.
    """
    app = _app(target, bootstrap_servers)
    job = JobId.parse(identifier)
    client = queue_of(app).client
    try:
        waiting = next((item for item in _survey(app) if item.job.id == job), None)
        if waiting is not None:
            if waiting.case.stage is not JobState.RETRYING:
                raise ConfigurationError(
                    f"job {job} does not wait for another attempt: {waiting.case.sentence()}"
                )
            client.command([_command(Action.RETRY, jobs=[str(job)])])
            out.print(f"the next attempt of job {job} begins as soon as a worker is free", highlight=False)
            return
        record = ended_record(app.broker(), app.name, job, app)
        if record is None:
            raise _unknown(app, job)
        again = client.enqueue_again(record)
        out.print(f"job {job} is enqueued again, as job {again}", highlight=False)
    finally:
        client.close()


@jobs_cli.command("purge")
def purge(
    target: Target,
    *,
    function: OfFunction = None,
    state: States = None,
    key: OfKey = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Only jobs enqueued so long ago: 7d, 12h."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Needed if nothing restricts the selection.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Cancel many jobs that have not ended: shows how many, and asks."""
    app = _app(target, bootstrap_servers)
    if not (function or state or key or older_than or everything):
        raise ConfigurationError("nothing says which jobs to cancel", hint="select some, or give --all")
    selection = select(function=function, states=state, key=key, until=older_than)
    if selection.ended:
        endings = ", ".join(ending.value for ending in Ending)
        raise ConfigurationError(f"jobs that have ended ({endings}) cannot be cancelled")
    chosen = list(selection.unfinished(_survey(app)))
    if not as_json:
        for (name, of_state), count in sorted(_counted(chosen).items()):
            out.print(f"{count:,} jobs of {name}: {of_state}", highlight=False, markup=False)
    if chosen and not yes:
        typer.confirm(f"cancel {len(chosen):,} jobs?", abort=True, err=True)
    identifiers = [str(item.job.id) for item in chosen]
    client = queue_of(app).client
    try:
        if identifiers:
            client.command(
                [
                    _command(Action.CANCEL, jobs=identifiers[at : at + MOST_JOBS])
                    for at in range(0, len(identifiers), MOST_JOBS)
                ]
            )
    finally:
        client.close()
    if as_json:
        print_line({"jobs": len(identifiers)})
    else:
        out.print(f"{len(identifiers):,} jobs are cancelled, unless they end before")


def _counted(jobs: Sequence[Surveyed]) -> Counter[tuple[str, str]]:
    return Counter((item.job.record.job, item.case.state.value) for item in jobs)


def _control(
    action: Action,
    target: str,
    function: str | None,
    key: str | None,
    bootstrap_servers: str | None,
    *,
    everything: bool,
    wait: float,
) -> None:
    app = _app(target, bootstrap_servers)
    if (function is not None) + (key is not None) + everything != 1:
        raise ConfigurationError("give one of FUNCTION, --key and --all")
    queue = queue_of(app)
    if function is not None and function not in queue.jobs:
        warn(
            f"this program has no function {function!r}; there are: {', '.join(sorted(queue.jobs)) or 'none'}"
        )
    command = _command(action, function=function, key=key)
    applied = AppliedCommands(app.broker(), app.name)
    try:
        offset = queue.client.command([command])
    finally:
        queue.client.close()
    left = applied.wait(offset, wait) if wait and applied.expected else 0
    text = scope_text(command.scope)
    out.print(f"{text}: {'paused' if action is Action.PAUSE else 'resumed'}", highlight=False, markup=False)
    if left:
        warn(f"{left} partitions of the queue have not applied it within {wait:g} s; they will")


def _find(app: App, job: JobId) -> dict[str, Any]:
    """The fields of a job. Raises ``JobUnknown``."""
    broker, queue = app.broker(), queue_of(app)
    for item in survey(broker, app.name, queue.jobs):
        if item.job.id == job:
            return item.fields
    end = find_end(broker, app.name, job)
    if end is not None:
        return end_fields(end)
    raise _unknown(app, job)


def _survey(app: App) -> list[Surveyed]:
    return survey(app.broker(), app.name, queue_of(app).jobs)


def _unknown(app: App, job: JobId) -> JobUnknown:
    client = queue_of(app).client
    known = client.enqueued(str(job))
    client.close()
    return JobUnknown(
        f"there is no job {job} in the queue {client.topic}"
        + (": it has ended, and its result was deleted, or it never existed" if known else "")
    )


def _command(action: Action, **fields: Any) -> Command:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return Command(action, time.time_ns() // 1_000_000, f"{user}@{socket.gethostname()}", **fields)


def _app(target: str, bootstrap_servers: str | None) -> App:
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    queue_of(app)
    return app
