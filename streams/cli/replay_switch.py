"""``streams replay switch``: another version of an app takes over at an exact offset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from streams.cli.apps import load_app
from streams.cli.options import AsJson, Servers, Target, into_environment
from streams.cli.output import out, print_line, warn
from streams.errors import ConfigurationError
from streams.replay.bounded.effects import differences_by_design
from streams.replay.switch import CatchUp, Switch

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.app import App
    from streams.runtime.switch_topic import SwitchPhase


def switch(
    target: Target,
    *,
    pair: Annotated[
        str | None,
        typer.Option("--pair", metavar="NAME", help="The blue/green pair; default: the app's blue_green."),
    ] = None,
    pause_limit: Annotated[
        float,
        typer.Option(
            min=0.1, metavar="SECONDS", help="Abort if the pause without results would be longer than this."
        ),
    ] = 30.0,
    max_lag: Annotated[
        int,
        typer.Option(min=0, metavar="NUMBER", help="Begin when the two apps are at most so far apart."),
    ] = 10_000,
    abort: Annotated[
        bool, typer.Option("--abort", help="Abort the pair's switch; the emitter continues.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Print which app emits, and the lag of all.")
    ] = False,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Let this app's results begin where those of the other version end, at one offset of each partition.

    Both must run, with the same blue_green and different names. It waits until this app has caught up. If it
    is killed, run it again. To switch back, run it with the other app.
    """
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    name = pair or app.settings.blue_green
    if name is None:
        raise ConfigurationError(
            f"app {app.name!r} belongs to no blue/green pair",
            hint="set blue_green to the same name in both versions, and start their workers with it",
        )
    work = Switch(
        app.broker(),
        pair=name,
        app=app.name,
        pause_limit=pause_limit,
        max_lag=max_lag,
        waiting=_catching_up(),
        entered=_entered,
    )
    if status or abort:
        try:
            if abort:
                work.abort("requested")
            _show(work.status(), as_json=as_json)
        finally:
            work.close()
        return
    for line in [*_notes(app), *work.differences()]:
        warn(f"note: {line}")
    result = work.run()
    if as_json:
        print_line({"pair": name, **result._asdict()})
        return
    took = "" if result.pause is None else f", after a pause of {result.pause:.2f} s"
    out.print(
        f"{result.emitter} {'emits already' if result.already else f'emits now{took}'}",
        markup=False,
        highlight=False,
    )
    if result.before is not None:
        out.print(f"to switch back, run this command with {result.before}", markup=False, highlight=False)


def _notes(app: App) -> list[str]:
    """What makes results differ between the two apps, beside their programs."""
    return [
        line.replace(" is ignored, as no time passes without records", " follows each worker's wall clock")
        for line in differences_by_design(app.topology)
    ]


def _catching_up() -> Callable[[CatchUp], None]:
    shown: list[str] = []

    def show(found: CatchUp) -> None:
        without = [group for group, members in found.members.items() if not members]
        seconds = found.seconds
        eta = "" if seconds is None else f", about {seconds:.0f} s left"
        text = (
            f"waiting: {', '.join(without)} has no running worker"
            if without
            else f"{found.apart:,} offsets apart{eta}"
        )
        if shown[-1:] != [text]:
            shown[:] = [text]
            warn(text)

    return show


def _entered(phase: SwitchPhase) -> None:
    warn(phase.value)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_line(found)
        return
    table = Table("app", "emits", "members", "lag")
    for app, row in found["apps"].items():
        table.add_row(app, "yes" if row["emits"] else "no", str(row["members"]), f"{row['lag']:,}")
    out.print(table)
    if found["phase"] != "running":
        out.print(f"switching to {found['follower']}: {found['phase']}", markup=False, highlight=False)
    if found["aborted"]:
        out.print(f"the last switch was aborted: {found['aborted']}", markup=False, highlight=False)
