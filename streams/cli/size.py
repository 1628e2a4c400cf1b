"""``streams size``: how many workers an app needs, and how many jobs at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from streams.cli.apps import load_app
from streams.cli.options import AsJson, Servers, Target, WorkerUrls, into_environment
from streams.cli.output import out, print_line, warn
from streams.cli.worker_ports import WorkerPorts, published_addresses
from streams.errors import ConfigurationError, StateUnavailable
from streams.monitoring.load import Observed, measure_load
from streams.monitoring.scrape import Scrape
from streams.monitoring.sizing import LARGEST_SHARE, Verdict, concurrency_needed, workers_needed
from streams.replay.positions import parse_duration

if TYPE_CHECKING:
    from streams.monitoring.load import Load
    from streams.monitoring.sizing import ConcurrencyNeeded, WorkersNeeded

SHOWN_TASKS = 10
"""The table has so many tasks, those that take most."""


def size(
    target: Target,
    *,
    over: Annotated[
        str,
        typer.Option(metavar="DURATION", help="Arrivals are those of this time; its busiest tenth counts."),
    ] = "1h",
    measure: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the workers are measured.")
    ] = "10s",
    busy: Annotated[
        float, typer.Option(min=0.05, max=1.0, help="The share of its time that a worker may be busy.")
    ] = LARGEST_SHARE,
    drain: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Also process what waits now within this time.")
    ] = None,
    url: WorkerUrls = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Say how many workers an app needs, whether more would help, and which task takes most.

    Little's law on what was measured: the records that arrive, times what each takes of a worker's time. The
    workers must run, under load, with http_port set; nothing is changed. For jobs: how many must run at once.
    """
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    seconds, past = _seconds(measure, "--measure"), _seconds(over, "--over")
    drained = None if drain is None else _seconds(drain, "--drain")
    app = load_app(target)
    ports = WorkerPorts(app.settings, url or published_addresses(app))
    admin = app.broker().admin()
    try:
        load = measure_load(
            app.topology,
            admin,
            app.name,
            lambda: _observe(ports, app.name, seconds),
            lambda: time.time_ns() // 1_000_000,
            over=past,
        )
    finally:
        admin.close()
    needed = workers_needed(load.tasks, load.workers, share=busy, drain=drained)
    jobs = concurrency_needed(load.jobs, load.places, share=busy, drain=drained) if load.jobs else None
    if as_json:
        print_line(_fields(load, needed, jobs))
        return
    _show(load, needed, jobs, busy, past)


def _seconds(text: str, option: str) -> float:
    found = parse_duration(text) / 1000
    if found <= 0:
        raise ConfigurationError(f"{option} {text} is no time", hint="write e.g. 10s, 5m or 1h")
    return found


def _observe(ports: WorkerPorts, name: str, seconds: float) -> list[Observed]:
    """Read the metrics of the workers that answer, twice. Raises ``StateUnavailable`` if none does."""
    before = _scrape(ports, name)
    if not before:
        raise StateUnavailable(
            f"no worker of {name!r} answers at {', '.join(ports.addresses)}",
            hint="start the app's workers with http_port set; a token is read from STREAMS_HTTP_TOKEN",
        )
    time.sleep(seconds)
    after = _scrape(ports, name)
    for address in sorted(before.keys() - after.keys()):
        warn(f"the worker at {address} has stopped meanwhile, and is left out")
    return [
        Observed(address, before[address], after[address]) for address in sorted(before.keys() & after.keys())
    ]


def _scrape(ports: WorkerPorts, name: str) -> dict[str, Scrape]:
    found: dict[str, Scrape] = {}
    for address, body in ports.read("/metrics").items():
        if body is None:
            continue
        try:
            scrape = Scrape.parse(body.decode(), time.monotonic())
        except ValueError:
            continue
        if any(labels[0] == name for labels in scrape.samples.get("streams_worker_info", {})):
            found[address] = scrape
    return found


def _fields(load: Load, needed: WorkersNeeded, jobs: ConcurrencyNeeded | None) -> dict[str, Any]:
    return {
        "verdict": needed.verdict.value,
        "workers": needed.running,
        "wanted": needed.wanted,
        "busy": round(needed.busy, 4),
        "records_per_second": round(load.rate, 3),
        "mean_records_per_second": round(load.mean, 3),
        "since_start": load.since_start,
        "stages": {stage: round(seconds * 1e6, 3) for stage, seconds in load.stages.items()},
        "processor": {address: round(share, 3) for address, share in load.processor.items()},
        "tasks": [
            {
                "task": item.task,
                "records_per_second": round(item.rate, 3),
                "microseconds": round(item.each * 1e6, 3),
                "busy": round(item.busy, 4),
                "lag": item.lag,
            }
            for item in needed.demands
        ],
        "jobs": None
        if jobs is None
        else {
            "enough": jobs.enough,
            "places": jobs.places,
            "wanted": jobs.wanted,
            "at_once": round(jobs.at_once, 3),
            "functions": [
                {
                    "job": item.job,
                    "per_second": round(item.rate, 3),
                    "seconds": None if item.each is None else round(item.each, 6),
                    "at_once": round(item.at_once, 3),
                    "waiting": item.backlog,
                }
                for item in jobs.demands
            ],
        },
    }


def _show(
    load: Load, needed: WorkersNeeded, jobs: ConcurrencyNeeded | None, share: float, past: float
) -> None:
    table = Table("task", "records/s", "µs each", "of a worker", "lag")
    for item in needed.demands[:SHOWN_TASKS]:
        table.add_row(
            item.task, f"{item.rate:,.1f}", f"{item.each * 1e6:,.1f}", f"{item.busy:.1%}", f"{item.lag:,}"
        )
    if len(needed.demands) > SHOWN_TASKS:
        table.add_row(f"{len(needed.demands) - SHOWN_TASKS} more", "", "", "", "")
    table.add_section()
    lag = sum(item.lag for item in needed.demands)
    table.add_row(
        "all", f"{sum(item.rate for item in needed.demands):,.1f}", "", f"{needed.busy:.1%}", f"{lag:,}"
    )
    out.print(table)
    if load.stages:
        each = ", ".join(f"{stage} {seconds * 1e6:,.1f}" for stage, seconds in load.stages.items())
        since = " since the workers' start, as hardly any arrived meanwhile" if load.since_start else ""
        out.print(f"µs for each record{since}: {each}")
    busiest = f"{load.rate:,.1f} records/s at the busiest, {load.mean:,.1f} on average over {past:,.0f} s"
    out.print(f"{busiest}.")
    out.print(workers_text(needed, share))
    if jobs is not None:
        _show_jobs(load, jobs, share)


def workers_text(needed: WorkersNeeded, share: float) -> str:
    """What the figures say, in a sentence or two."""
    hottest = needed.hottest
    if needed.verdict is Verdict.UNKNOWN or hottest is None:
        return (
            "Nothing was processed since the workers' start: run them under load to know what a record takes."
        )
    wanted, running = _count(needed.wanted, "worker"), _count(needed.running, "worker")
    unlimited = _count(needed.unlimited, "worker")
    if needed.verdict is Verdict.SKEW:
        more = "More workers do not help"
        if needed.running < needed.wanted:
            more = f"{wanted} are needed ({running} now), and they are not enough"
        of_all = hottest.busy / needed.busy if needed.busy else 1.0
        return (
            f"{more}: task {hottest.task} alone takes {hottest.busy:.0%} of a worker ({of_all:.0%} of all "
            "work), and a task is processed by one worker. What helps: more partitions, keys that spread the "
            "records over them, or faster steps (functions of batches, work downstream of a repartition)."
        )
    if needed.verdict is Verdict.PARTITIONS:
        tasks = _count(len(needed.demands), "task")
        return (
            f"{unlimited} are needed, but a worker needs a task, and there are {tasks}, "
            "one for each partition: more partitions let more workers help."
        )
    if needed.verdict is Verdict.MORE:
        return (
            f"{wanted} are needed, so that none is busy for more than {share:.0%} of its time: now {running}."
        )
    spare = f"; {needed.wanted} would do" if needed.wanted < needed.running else ""
    return f"{running} are enough{spare}. More would not help: they wait for records."


def _show_jobs(load: Load, jobs: ConcurrencyNeeded, share: float) -> None:
    table = Table("function", "jobs/s", "seconds each", "at once", "waiting")
    for item in jobs.demands:
        each = "unknown" if item.each is None else f"{item.each:,.3f}"
        table.add_row(item.job, f"{item.rate:,.2f}", each, f"{item.at_once:,.2f}", f"{item.backlog:,}")
    out.print(table)
    text = (
        f"{jobs.at_once:,.2f} jobs run at once on average: {jobs.wanted} places are needed so that no more "
        f"than {share:.0%} are taken, and there are {jobs.places}."
    )
    if not jobs.enough:
        places = -(-jobs.wanted // max(1, load.workers))
        text += f" Set job_concurrency={places} for {_count(load.workers, 'worker')}, or run more workers."
        if load.processor and max(load.processor.values()) > share:
            text += (
                " But a worker's process keeps a processor busy already: threads help functions that wait, "
                "not those that compute, which need executor='process' or more workers."
            )
    out.print(text)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)
