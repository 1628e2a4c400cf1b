"""The ``streams`` command."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from streams.cli.failures import run_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COMMANDS: Final[Mapping[str, str]] = {
    "run": "run:run",
    "source": "source:source",
    "bridge": "bridge:bridge",
    "describe": "describe:describe",
    "ingest": "ingest:ingest",
    "consume": "consume:consume",
    "lag": "lag:lag",
    "status": "status:status",
    "alerts": "alerts:alerts_cli",
    "size": "size:size",
    "console": "console:console",
    "query": "query:query",
    "trace": "trace:trace",
    "simulate": "simulate:simulate",
    "broker": "broker:broker_cli",
    "topics": "topics:topics_cli",
    "jobs": "jobs:jobs_cli",
    "dead-letters": "dead_letters:dead_letters_cli",
    "schemas": "schemas:schemas_cli",
    "sync": "sync:sync_cli",
    "replay": "replay:replay_cli",
}
"""The module and the function or group of each command, in the order of the help."""


class Commands(TyperGroup):
    """The commands. A module is imported when its command is used: all together take a fifth of a second."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The base class lists the names, also to correct a mistyped one.
        self.commands: Any = dict.fromkeys(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - of the base class
        """The command of a name, ``None`` if there is none."""
        if cmd_name in COMMANDS and self.commands[cmd_name] is None:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands.get(cmd_name)


def _load(name: str) -> Any:
    found = _imported(name)
    if isinstance(found, typer.Typer):
        group = get_group(found)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False)
    alone.command(name)(found)
    return get_command(alone)


def _imported(name: str) -> Any:
    module, _, attribute = COMMANDS[name].partition(":")
    return getattr(import_module(f"streams.cli.{module}"), attribute)


def import_command(arguments: Sequence[str]) -> None:
    """Import the module of the command that the first of these arguments names, if it names one."""
    for name in arguments[:1]:
        if name in COMMANDS:
            _imported(name)


cli = typer.Typer(
    name="streams",
    help="Stream processing on Kafka in plain Python.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@cli.callback()
def _everything() -> None:
    pass


def main() -> NoReturn:
    """Run the command line and exit: 0, or the exit code of the error (see ``streams.errors``)."""
    sys.exit(run_command(cli))
