"""``streams simulate``: run an app in memory under many schedules of faults."""

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
from streams.errors import ConfigurationError
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
    seeds: Annotated[int, typer.Option(min=1, help="Number of schedules; their seeds count from 0.")] = 1000,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Run only this seed, to reproduce a difference.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="TOPIC=FILE", help="Input whose lines are values, as for ingest."),
    ] = None,
    records: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC=FILE",
            help="Input whose lines are JSON: key, value, timestamp, headers, partition.",
        ),
    ] = None,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of each input topic.")] = 1,
    most: Annotated[int, typer.Option(min=1, help="Maximum number of faults in a schedule.")] = MOST,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="Inject only this kind of fault; repeatable."),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Reset the group once in each run, as streams replay reset does.")
    ] = False,
    begin: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="POSITION", help="Simulate a bounded run (streams replay run) from here on."
        ),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="POSITION", help="The same up to here; default: latest.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="TOPIC", help="Do not compare this topic; repeatable.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; default: one per CPU.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run an app under many schedules of crashes, aborts and rebalances, and compare its results.

    It runs in memory, on your own input. Exit code 1 if the results under a schedule differ from those of a
    run without faults; that schedule is then reduced to the fewest faults and printed.
    """
    if reset and (begin, end) != (None, None):
        raise ConfigurationError(
            "--reset is for the app's group, and a bounded run (--from, --to) belongs to none",
            hint="simulate one after the other",
        )
    simulation = Simulation(
        load=partial(load_app, target),
        inputs=read_inputs(load_app(target).topology, parse_files(inputs or ()), parse_files(records or ())),
        partitions=partitions,
        most=most,
        kinds=parse_kinds(kinds) if kinds else None,
        ignore=ignore or (),
        reset=reset,
        begin=begin,
        end=end,
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
            for option, position in {"from": begin, "to": end}.items():
                if position is not None:
                    replay.append(f"--{option}={position}")
            if reset:
                replay.append("--reset")
            if partitions != 1:
                replay += ["--partitions", str(partitions)]
            if most != MOST:
                replay += ["--most", str(most)]
            out.print(f"[bold red]seed {difference.seed} gives different results[/] with this schedule:")
            for line in [*explain(difference), f"to reproduce: {shlex.join(replay)}"]:
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
    table = Table("fault", "injected")
    for kind, times in sorted(report.faults.items()):
        table.add_row(kind, f"{times:,}")
    table.add_section()
    table.add_row("total", f"{report.faults.total():,}")
    out.print(table)
    for topic, how in report.compared.items():
        out.print(f"{topic}: {how}", highlight=False)
    rate = report.schedules / max(seconds, 1e-9)
    out.print(
        f"{report.schedules:,} schedules in {seconds:.1f} s ({rate:,.0f} a second, {processes} "
        f"{'process' if processes == 1 else 'processes'}): {report.records:,} records compared, "
        f"{report.again:,} input records read again, {len(report.differences)} "
        f"{'difference' if len(report.differences) == 1 else 'differences'}",
        highlight=False,
    )
