"""``streams replay run``, ``list`` and ``delete``: a range of the input, processed beside production."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from streams.cli.apps import load_app
from streams.cli.options import AsJson, Servers, Target, into_environment
from streams.cli.output import err, out, print_line, warn
from streams.errors import ConfigurationError
from streams.process.ownership import own_process, rare_garbage_collections
from streams.process.stop_request import stop_request
from streams.replay.bounded.bounds import EVERYTHING
from streams.replay.bounded.effects import differences_by_design, effects_left_out
from streams.replay.bounded.log import RunLog
from streams.replay.bounded.publish import delete_results
from streams.replay.bounded.run import BoundedRun, RunReport, RunRequest, run_folder
from streams.replay.bounded.run_lock import RunLock
from streams.replay.positions import parse_duration, parse_position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.app import App
    from streams.process.stop_request import StopRequest
    from streams.replay.bounded.log import RunRecord
    from streams.replay.bounded.plan import RunPlan

_BYTES: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB)?", re.IGNORECASE)
_UNITS: Final = {"B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}

From = Annotated[
    str,
    typer.Option(
        "--from", metavar="POSITION", help="earliest, a time, -DURATION, or a file of offsets (.json, .csv)."
    ),
]
To = Annotated[str, typer.Option("--to", metavar="POSITION", help="Where the range ends, written likewise.")]
Warmup = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION",
        help="How much before the range is read without results, e.g. 2h or all; default: twice the "
        "longest window with its grace, or everything where a store keeps entries for ever.",
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Number of processes.")]
MaxRate = Annotated[
    float | None, typer.Option(min=0.001, help="How many records a second are read, at most.")
]
MaxBytes = Annotated[
    str | None, typer.Option(metavar="BYTES", help="How many bytes a second are read, at most, e.g. 10MB.")
]


def run_range(
    target: Target,
    *,
    begin: From,
    end: To = "latest",
    name: Annotated[
        str, typer.Option("--as", metavar="NAME", help="Names the run: its results are in TOPIC-NAME.")
    ],
    warmup: Warmup = None,
    workers: Workers = 1,
    max_rate: MaxRate = None,
    max_bytes: MaxBytes = None,
    effects: Annotated[
        bool, typer.Option("--effects", help="Call the functions of peek, and write to the sinks.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin again although an interrupted run could be continued.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and do nothing.")] = False,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Process a range of the app's input beside production, and write the results to topics of their own.

    Nothing of the app's group, state and topics changes. The same range gives the same results, with any
    number of workers. An earlier run of the same name is replaced; one that was interrupted is continued.
    """
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    request = RunRequest(
        name=name,
        begin=parse_position(begin),
        end=parse_position(end),
        warmup=parse_warmup(warmup),
        workers=workers,
        max_records=max_rate,
        max_bytes=None if max_bytes is None else parse_bytes(max_bytes),
        effects=effects,
        restart=restart,
    )
    run = BoundedRun(app, request, load=partial(load_app, target))
    left_out = [] if effects else effects_left_out(app.topology)
    notes = [*(f"left out: {item}" for item in left_out), *differences_by_design(app.topology)]
    if dry_run:
        plan = run.plan()
        if as_json:
            print_line(plan_fields(plan) | {"left_out": left_out})
        else:
            show_plan(plan, notes)
        return
    own_process(app.settings.log_format, app.settings.log_level)
    with stop_request() as stop, rare_garbage_collections(), run_lock(app, name, stop) as lock:
        plan = run.plan()
        if not as_json:
            show_plan(plan, notes)
        with progress_bar("replay", plan.bounds.records, stop, quiet=as_json) as show:
            report = run.process(plan, show)
        lock.require_held()
        with progress_bar("write", report.counts.results.total(), stop, quiet=as_json) as show:
            record = run.publish(report, show)
    if as_json:
        print_line(report.fields())
    else:
        show_report(report, record)


def list_runs(target: Target, *, bootstrap_servers: Servers = None, as_json: AsJson = False) -> None:
    """List the replays of an app and the topics with their results."""
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    found = RunLog(app.broker(), app.name).read()
    if as_json:
        for record in found.values():
            print_line(
                {
                    "name": record.name,
                    "state": record.state,
                    "from": record.begin,
                    "to": record.end,
                    "begun": record.begun,
                    "ended": record.ended,
                    "records": record.records,
                    "results": {name: result.records for name, result in record.results.items()},
                }
            )
        return
    table = Table("replay", "state", "from", "to", "begun", "records", "results")
    for record in sorted(found.values(), key=lambda item: item.begun):
        table.add_row(
            record.name,
            record.state,
            record.begin,
            record.end,
            datetime.fromtimestamp(record.begun / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
            f"{record.records:,}",
            ", ".join(f"{name} ({result.records:,})" for name, result in sorted(record.results.items())),
        )
    out.print(table)


def delete_run(
    target: Target,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name that was given with --as.")],
    *,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Delete the topics with the results of a replay."""
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    broker = app.broker()
    log = RunLog(broker, app.name)
    found = log.read()
    files = run_folder(app, name)
    if name not in found and files.exists():
        # It was interrupted before there were results.
        with run_lock(app, name):
            shutil.rmtree(files)
        if as_json:
            print_line({"name": name, "deleted": []})
        else:
            typer.echo("deleted: the files of an interrupted replay, which has written no results")
        return
    if name not in found:
        raise ConfigurationError(
            f"{app.name} has no replay of the name {name!r}",
            hint=f"its replays: {', '.join(sorted(found)) or 'none'}",
        )
    admin = broker.admin()
    try:
        with run_lock(app, name):
            deleted = delete_results(admin, found[name])
            shutil.rmtree(files, ignore_errors=True)
            log.delete(name)
    finally:
        admin.close()
    if as_json:
        print_line({"name": name, "deleted": deleted})
    else:
        typer.echo(f"deleted: {', '.join(deleted) or 'no topics'}")


def run_lock(app: App, name: str, stop: StopRequest | None = None) -> RunLock:
    """What keeps other commands from the replay of this name. Reasons for waiting are shown once."""
    shown: set[str] = set()

    def waiting(reason: str) -> None:
        if stop:
            raise KeyboardInterrupt
        if reason not in shown:
            shown.add(reason)
            warn(f"waiting: {reason}")

    broker = app.broker()
    return RunLock(broker, RunLog(broker, app.name), name, waiting=waiting)


def parse_warmup(text: str | None) -> int | None:
    """A warm-up in milliseconds: a duration, or ``all``. Raises ``ConfigurationError``."""
    if text is None:
        return None
    return EVERYTHING if text == "all" else parse_duration(text)


def parse_bytes(text: str) -> float:
    """A number of bytes, e.g. ``10MB``. Raises ``ConfigurationError``."""
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} is not a number of bytes", hint="write e.g. 500KB or 10MB")
    return float(match[1]) * _UNITS[(match[2] or "B").upper()]


def show_plan(plan: RunPlan, remarks: list[str]) -> None:
    """Print what a run reads."""
    table = Table("partition", "from", "to", "records", "warm-up")
    for place, bounds in sorted(plan.bounds.partitions.items()):
        table.add_row(
            str(place),
            f"{bounds.begin:,}",
            f"{bounds.end:,}",
            f"{bounds.end - bounds.begin:,}",
            f"{bounds.begin - bounds.start:,}",
        )
    err.print(table)
    warn(f"warm-up: {plan.bounds.warmup}")
    if plan.continues:
        begun = datetime.fromtimestamp(plan.begun / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        warn(
            f"continues the run that was begun at {begun} and interrupted, after {plan.continues} complete "
            "tasks (--restart begins again)"
        )
    for remark in remarks:
        warn(remark)


def plan_fields(plan: RunPlan) -> dict[str, Any]:
    """The plan as plain data."""
    return {
        "name": plan.replay.name,
        "continued": plan.continues > 0,
        "warmup": plan.bounds.warmup,
        "partitions": {
            str(place): {"start": item.start, "begin": item.begin, "end": item.end}
            for place, item in sorted(plan.bounds.partitions.items())
        },
    }


@contextmanager
def progress_bar(what: str, total: int, stop: StopRequest, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar with the remaining time; the function that it yields takes the number that is done.

    That function raises ``KeyboardInterrupt`` once a stop was requested.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} records"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def show(done: int) -> None:
            if stop:
                raise KeyboardInterrupt
            progress.update(task, completed=done)

        yield show


def show_report(report: RunReport, record: RunRecord) -> None:
    """Print what a run has done."""
    table = Table("results", "records")
    for name, result in sorted(record.results.items()):
        table.add_row(name, f"{result.records:,}")
    out.print(table)
    counts = report.counts
    rate = counts.records / max(report.seconds, 1e-9)
    out.print(
        f"{counts.records:,} records in {report.seconds:.1f} s ({rate:,.0f} a second), "
        f"{counts.dead_letters:,} dead letters, {counts.late.total():,} late, "
        f"{counts.skipped.total():,} skipped",
        highlight=False,
    )
    if counts.muted:
        rows = ", ".join(f"{sink} ({number:,})" for sink, number in sorted(counts.muted.items()))
        out.print(f"rows for sink connectors that were left out: {rows}", highlight=False)
