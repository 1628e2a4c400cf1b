"""``streams replay shadow``: a new program beside production, compared with the old one."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from streams.cli.apps import load_app
from streams.cli.options import AsJson, Servers, Target, into_environment
from streams.cli.output import err, out, print_line, warn
from streams.cli.replay_runs import From, MaxBytes, MaxRate, To, Warmup, Workers, parse_bytes, parse_warmup
from streams.errors import ConfigurationError
from streams.process.ownership import own_process, rare_garbage_collections
from streams.process.stop_request import stop_request
from streams.replay.bounded.run import RunRequest
from streams.replay.diff.fields import Rules
from streams.replay.diff.kept import ComparisonLog, check_name, kept_comparison
from streams.replay.diff.page import page
from streams.replay.positions import Latest, parse_duration, parse_position
from streams.replay.shadow import Program, Shadow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.process.stop_request import StopRequest
    from streams.replay.shadow import ShadowReport

LOOK_SECONDS: Final = 0.5


def shadow(
    target: Target,
    *,
    against: Annotated[
        str, typer.Option(metavar="MODULE:APP", help="The program whose results are expected.")
    ],
    begin: From,
    end: To = "latest",
    live: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Wait so long for further input, e.g. 10m; the range ends with it."
        ),
    ] = None,
    warmup: Warmup = None,
    workers: Workers = 1,
    max_rate: MaxRate = None,
    max_bytes: MaxBytes = None,
    absolute: Annotated[
        float, typer.Option(min=0, help="Floats are equal that differ by so much at most.")
    ] = 0.0,
    relative: Annotated[
        float, typer.Option(min=0, max=1, help="Floats are equal that differ by this share at most.")
    ] = 1e-9,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD", help="Do not compare this field, e.g. total or items[].price; repeatable."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the comparison to this file, as a page (HTML).")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Keep the comparison in the topic APP-comparisons: the console shows it.",
        ),
    ] = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Run a new program over old input beside production, and compare its results with the old program's.

    Nothing outside is touched, except by --keep. The old program runs twice: what differs then is not the
    new program's doing, and is not compared. Exit code 1 if the results differ.
    """
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    if report is not None and not report.absolute().parent.is_dir():
        raise ConfigurationError(f"{report} cannot be written: its folder does not exist")
    if keep is not None:
        check_name(keep)
    new = Program(load_app(target), partial(load_app, target))
    old = Program(load_app(against), partial(load_app, against))
    request = RunRequest(
        name="shadow",
        begin=parse_position(begin),
        end=parse_position(end),
        warmup=parse_warmup(warmup),
        workers=workers,
        max_records=max_rate,
        max_bytes=None if max_bytes is None else parse_bytes(max_bytes),
    )
    rules = Rules(absolute=absolute, relative=relative, ignore=frozenset(ignore or ()))
    own_process(new.app.settings.log_format, new.app.settings.log_level)
    with stop_request() as stop, rare_garbage_collections(), _bars(stop, quiet=as_json) as show:
        if live is not None:
            _wait(request, live, show)
        found = Shadow(new, old, request, rules=rules).run(show)
    if report is not None:
        report.write_text(
            page(found.diff, title=f"{target} against {against}", facts=_facts(found)), encoding="utf-8"
        )
    if keep is not None:
        comparison = kept_comparison(
            keep,
            found.diff,
            time=time.time_ns() // 1_000_000,
            new=target,
            old=against,
            facts=_facts(found),
        )
        ComparisonLog(new.app.broker(), new.app.name).write(comparison)
    if as_json:
        print_line(found.as_fields())
    else:
        _show(found)
        if report is not None:
            warn(f"report: {report}")
    if not found.diff.equal:
        raise typer.Exit(1)


def _wait(request: RunRequest, live: str, show: Callable[[str, int, int], None]) -> None:
    if request.end != Latest():
        raise ConfigurationError("--live waits for input that comes: the range ends with it, without --to")
    total = parse_duration(live)
    begun = time.monotonic()
    while (passed := round((time.monotonic() - begun) * 1000)) < total:
        show("wait for input (ms)", passed, total)
        time.sleep(min(LOOK_SECONDS, (total - passed) / 1000))


@contextmanager
def _bars(stop: StopRequest, *, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as progress:

        def show(what: str, done: int, total: int) -> None:
            if stop:
                raise KeyboardInterrupt
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield show


def _facts(found: ShadowReport) -> list[tuple[str, str]]:
    """What was run, for the page."""
    bounds = found.old.plan.bounds
    read = sum(item.end - item.begin for item in bounds.partitions.values())
    facts = [
        ("range", f"{read:,} offsets of {len(bounds.partitions)} partitions"),
        ("warm-up", bounds.warmup),
        ("old program", f"{found.old.counts.records:,} records in {found.old.seconds:.1f} s"),
        ("new program", f"{found.new.counts.records:,} records in {found.new.seconds:.1f} s"),
    ]
    facts += [("left out", item) for item in found.new.left_out]
    return facts + [("otherwise than in a worker", item) for item in found.new.differences]


def _show(found: ShadowReport) -> None:
    diff = found.diff
    table = Table("topic", "equal", "changed", "added", "missing", "fields")
    for topic in diff.topics:
        table.add_row(
            topic.topic,
            f"{topic.equal:,}",
            *(f"{topic.kinds[kind]:,}" for kind in ("changed", "added", "missing")),
            ", ".join(f"{path} ({count:,})" for path, count in topic.changed_fields.most_common(5)),
        )
    out.print(table)
    for topic in diff.topics:
        for sample in topic.samples:
            for change in sample.fields:
                out.print(
                    f"{topic.topic} {sample.kind} {sample.key!r} {sample.when} {change.path}: "
                    f"{change.old!r:.200} -> {change.new!r:.200}",
                    markup=False,
                    highlight=False,
                )
    for name, fields in diff.noisy_fields.items():
        warn(f"not compared, as two runs of the old program differ in it: {name}: {', '.join(fields)}")
    for name in diff.noisy_topics:
        warn(f"two runs of the old program have other records: {name}; its counts are not exact")
    for item in found.new.left_out:
        warn(f"left out: {item}")
    out.print("[green]equal[/]" if diff.equal else "[bold red]different[/]")
