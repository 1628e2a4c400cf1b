"""``streams replay reset``: a group begins again at other offsets, with the state that belongs to them."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from streams.cli.apps import load_app
from streams.cli.options import AsJson, Servers, Target, into_environment
from streams.cli.output import err, out, print_line, warn
from streams.errors import ConfigurationError
from streams.replay.positions import (
    Ago,
    AtTime,
    Earliest,
    Latest,
    parse_duration,
    parse_position,
    parse_time,
    read_offsets,
)
from streams.replay.reset import Reset, wait_for_members
from streams.replay.reset_plan import ResetPlan, ResetPosition, ShiftBy, ToOffset, plan_reset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.broker import GroupMember


def reset(
    target: Target,
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="POSITION",
            help="earliest, latest, a time (2026-11-30T08:00Z; without a zone it is UTC), milliseconds since "
            "the epoch, a duration before now (-2h, -PT2H), or a file of offsets (.json, .csv).",
        ),
    ] = None,
    to_earliest: Annotated[bool, typer.Option("--to-earliest", help="As --to earliest.")] = False,
    to_latest: Annotated[bool, typer.Option("--to-latest", help="As --to latest.")] = False,
    to_datetime: Annotated[
        str | None, typer.Option(metavar="TIME", help="To the first record at that time or later.")
    ] = None,
    by_duration: Annotated[
        str | None, typer.Option(metavar="DURATION", help="To that long before now: 2h, 1d12h, PT2H.")
    ] = None,
    to_offset: Annotated[
        int | None, typer.Option(min=0, metavar="OFFSET", help="To this offset in each partition.")
    ] = None,
    shift_by: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Move the committed offsets; back if negative.")
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='To the offsets in a file: {"topic": {"0": 12}}, or lines of topic,partition,offset.',
        ),
    ] = None,
    topics: Annotated[
        list[str] | None,
        typer.Option("--topic", metavar="TOPIC", help="An input topic; repeatable. Default: all of them."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long to wait until the group has no members."),
    ] = 0,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Records a second that the app processes, to estimate the time."),
    ] = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Let a stopped app process its input again from another position, with state that begins again.

    Stores and repartition topics of the affected part are emptied, and the state on all workers' disks
    becomes invalid, also on machines that are away. Results are written to the output topics again.
    """
    position = _position(
        {
            "--to": None if to is None else lambda: parse_position(to),
            "--to-earliest": Earliest if to_earliest else None,
            "--to-latest": Latest if to_latest else None,
            "--to-datetime": None if to_datetime is None else lambda: AtTime(parse_time(to_datetime)),
            "--by-duration": None if by_duration is None else lambda: Ago(parse_duration(by_duration)),
            "--to-offset": None if to_offset is None else lambda: ToOffset(to_offset),
            "--shift-by": None if shift_by is None else lambda: ShiftBy(shift_by),
            "--from-file": None if from_file is None else lambda: read_offsets(from_file),
        }
    )
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    broker = app.broker()
    admin = broker.admin()
    try:
        if not dry_run:
            wait_for_members(admin, app.name, wait, _countdown())
        plan = plan_reset(
            app.topology,
            broker,
            application=app.name,
            position=position,
            topics=topics or (),
            waiting=_waiting(),
        )
        _show(plan, rate, as_json=as_json)
        if dry_run:
            members = admin.group_members(app.name)
            if members:
                warn(f"the group has members now, so it could not be reset: {'; '.join(map(str, members))}")
            return
    finally:
        admin.close()
    _confirm(plan, yes=yes, as_json=as_json)
    begun = time.monotonic()
    work = Reset(broker, plan, done=warn, waiting=_waiting())
    work.run()
    seconds = round(time.monotonic() - begun, 3)
    if as_json:
        print_line({"group": plan.group, "reset": True, "epoch": work.epoch, "seconds": seconds})
    else:
        out.print(f"{plan.group} is reset; its workers can be started", highlight=False)


def _position(options: dict[str, Callable[[], ResetPosition] | None]) -> ResetPosition:
    """The position of the only option that is used. Raises ``ConfigurationError``."""
    used = {name: read for name, read in options.items() if read is not None}
    if len(used) != 1:
        raise ConfigurationError(
            f"{' and '.join(used)} contradict each other" if used else "no position to reset to",
            hint=f"use exactly one of {', '.join(options)}",
        )
    return next(iter(used.values()))()


def _show(plan: ResetPlan, rate: float | None, *, as_json: bool) -> None:
    if as_json:
        print_line(plan.fields(rate))
        return
    affected = plan.affected
    table = Table("topic", "partition", "committed", "new", "end", "again", "skipped")
    for item in plan.partitions:
        requested = "" if item.requested is None else f" (not {item.requested:,}: not in the log)"
        table.add_row(
            item.partition.topic,
            str(item.partition.partition),
            "none" if item.committed is None else f"{item.committed:,}",
            f"{item.new:,}{requested}",
            f"{item.end:,}",
            f"{item.again:,}",
            f"{item.skipped:,}",
        )
    out.print(table)
    took = (
        "unknown time: the app is stopped; --rate RECORDS estimates it"
        if rate is None
        else f"about {timedelta(seconds=round(plan.left / rate))} at {rate:,g} a second"
    )
    lines = [
        f"{plan.group} to {plan.position}" + (", continuing an interrupted reset" if plan.resumes else ""),
        f"{plan.again:,} records are processed again, {plan.left:,} until the end: {took}",
        "(differences of offsets, so transactions' markers count too)",
        _listed("stores that begin again", affected.stores),
        _listed("changelog topics that are emptied", [topic.name for topic in plan.changelogs]),
        _listed("repartition topics that are emptied", affected.repartitions),
        _listed("own results as input, continued at the end", affected.intermediate),
        _listed("results are written again to", affected.outputs),
        *(
            f"note: {topic} deletes records {timedelta(milliseconds=retention)} after their event time, "
            "older ones at once"
            for topic, retention in plan.retention.items()
        ),
        _listed("and to topics that these steps choose", affected.choosing),
        _listed("and to the targets of sinks", affected.sinks),
        *(
            f"not reset: {topic}, as sink {store!r} keeps its position in it; to fill its target again: "
            f"streams sync rebuild MODULE:APP {store}"
            for topic, store in affected.left_out.items()
        ),
    ]
    for line in filter(None, lines):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what}: {', '.join(names)}" if names else ""


def _confirm(plan: ResetPlan, *, yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise ConfigurationError(
            "nothing was changed: a reset has to be confirmed", hint="add --yes, or --dry-run for the plan"
        )
    if not typer.confirm(f"Reset {plan.group}?", err=True):
        raise ConfigurationError("nothing was changed: not confirmed")


def _countdown() -> Callable[[Sequence[GroupMember], float], None]:
    named: set[str] = set()

    def show(members: Sequence[GroupMember], left: float) -> None:
        for member in members:
            if member.name not in named:
                named.add(member.name)
                warn(f"waiting for member {member} to leave")
        if err.is_terminal:
            err.print(f"{len(members)} members, {left:.0f} s left ", end="\r")

    return show


def _waiting() -> Callable[[str], None]:
    """Shows each reason once."""
    shown: set[str] = set()

    def show(reason: str) -> None:
        if reason not in shown:
            shown.add(reason)
            warn(f"waiting: {reason}")

    return show
