"""``streams simulate``: an app under many schedules of faults, in memory."""

from __future__ import annotations

import os
import shlex
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from streams.cli.apps import load_app
from streams.cli.options import AsJson, Target
from streams.cli.output import err, out, print_line
from streams.simulation.inputs import parse_files, read_inputs
from streams.simulation.pool import (
    Simulation,
    as_json as as_fields,
    explain,
    simulate as simulate_seeds,
)
from streams.simulation.schedule import parse_kinds
from streams.simulation.simulator import MOST, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def simulate(
    target: Target,
    *,
    seeds: Annotated[int, typer.Option(min=1, help="How many schedules, with the seeds from 0 on.")] = 1000,
    seed: Annotated[int | None, typer.Option(min=0, help="Only this one, to see it again.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="TOPIC=FILE", help="Each line is a value, as for ingest."),
    ] = None,
    records: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC=FILE", help="Each line is JSON: key, value, timestamp, headers, partition."
        ),
    ] = None,
    partitions: Annotated[int, typer.Option(min=1, help="Of each input topic.")] = 1,
    most: Annotated[int, typer.Option(min=1, help="Disturbances in a schedule.")] = MOST,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="Only these disturbances, see docs/testing.md."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="TOPIC", help="Topics that are not compared.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="One for each CPU if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run an app under many schedules of crashes, aborts and rebalances, and compare what it writes.

    It runs in memory, on an input of yours. Exit code 1 if a schedule gives other results than an undisturbed
    run; the schedule is shown as short as it can be made.
    """
    simulation = Simulation(
        load=partial(load_app, target),
        inputs=read_inputs(load_app(target).topology, parse_files(inputs or ()), parse_files(records or ())),
        partitions=partitions,
        most=most,
        kinds=parse_kinds(kinds) if kinds else None,
        ignore=ignore or (),
    )
    wanted = range(seeds) if seed is None else range(seed, seed + 1)
    count = processes or os.cpu_count() or 1
    report = Report()
    begun = time.monotonic()
    stopped = False
    with _schedules_bar(len(wanted), quiet=as_json) as show:
        try:
            for more in simulate_seeds(simulation, wanted, count):
                report.add(more)
                show(report)
        except KeyboardInterrupt:
            stopped = True
    seconds = time.monotonic() - begun
    if as_json:
        print_line(as_fields(report) | {"seconds": round(seconds, 3), "processes": count})
    else:
        _show_simulation(report, seconds, count)
        for difference in report.differences:
            replay = ["streams", "simulate", target, "--seed", str(difference.seed)]
            given = {"input": inputs, "records": records, "kind": kinds, "ignore": ignore}
            for option, values in given.items():
                for value in values or ():
                    replay += [f"--{option}", value]
            if partitions != 1:
                replay += ["--partitions", str(partitions)]
            if most != MOST:
                replay += ["--most", str(most)]
            out.print(f"[bold red]seed {difference.seed} gives other results[/], with this alone:")
            for line in [*explain(difference), f"again: {shlex.join(replay)}"]:
                out.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if stopped:
        raise typer.Exit(130)
    if report.differences:
        raise typer.Exit(1)


@contextmanager
def _schedules_bar(total: int, *, quiet: bool) -> Iterator[Callable[[Report], None]]:
    columns = (
        TextColumn("simulate"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} schedules, {task.fields[rate]:,.0f} a second"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task("simulate", total=total, rate=0.0)
        begun = time.monotonic()

        def show(report: Report) -> None:
            rate = report.schedules / max(time.monotonic() - begun, 1e-9)
            progress.update(task, completed=report.schedules, rate=rate)

        yield show


def _show_simulation(report: Report, seconds: float, processes: int) -> None:
    table = Table("disturbance", "times")
    for kind, times in sorted(report.disturbances.items()):
        table.add_row(kind, f"{times:,}")
    table.add_section()
    table.add_row("total", f"{report.disturbances.total():,}")
    out.print(table)
    for topic, how in report.compared.items():
        out.print(f"{topic}: {how}", highlight=False)
    rate = report.schedules / max(seconds, 1e-9)
    out.print(
        f"{report.schedules:,} schedules in {seconds:.1f} s ({rate:,.0f} a second, {processes} "
        f"{'process' if processes == 1 else 'processes'}): {report.records:,} records compared, "
        f"{report.again:,} records of the input read again, {len(report.differences)} "
        f"{'difference' if len(report.differences) == 1 else 'differences'}",
        highlight=False,
    )
