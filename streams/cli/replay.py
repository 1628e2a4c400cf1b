"""``streams replay``: reprocess topics."""

from __future__ import annotations

import typer

from streams.cli.replay_reset import reset
from streams.cli.replay_runs import delete_run, list_runs, run_range
from streams.cli.replay_shadow import shadow
from streams.cli.replay_switch import switch

replay_cli = typer.Typer(help="Reprocess topics, beside production or in place.", no_args_is_help=True)


@replay_cli.callback()
def replay() -> None:
    """Reprocess topics, beside production or in place."""


replay_cli.command("reset")(reset)
replay_cli.command("run")(run_range)
replay_cli.command("shadow")(shadow)
replay_cli.command("switch")(switch)
replay_cli.command("list")(list_runs)
replay_cli.command("delete")(delete_run)
