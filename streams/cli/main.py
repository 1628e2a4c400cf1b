"""The ``streams`` command."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from streams.cli.broker import broker_cli
from streams.cli.consume import consume
from streams.cli.dead_letters import dead_letters_cli
from streams.cli.describe import describe
from streams.cli.failures import run_command
from streams.cli.ingest import ingest
from streams.cli.jobs import jobs_cli
from streams.cli.lag import lag
from streams.cli.query import query
from streams.cli.replay import replay_cli
from streams.cli.run import run
from streams.cli.schemas import schemas_cli
from streams.cli.simulate import simulate
from streams.cli.source import source
from streams.cli.sync import sync_cli
from streams.cli.topics import topics_cli
from streams.cli.trace import trace

cli = typer.Typer(
    name="streams",
    help="Stream processing on Kafka in plain Python.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (run, source, describe, ingest, consume, lag, query, trace, simulate):
    cli.command()(command)
cli.add_typer(broker_cli, name="broker")
cli.add_typer(topics_cli, name="topics")
cli.add_typer(jobs_cli, name="jobs")
cli.add_typer(dead_letters_cli, name="dead-letters")
cli.add_typer(schemas_cli, name="schemas")
cli.add_typer(sync_cli, name="sync")
cli.add_typer(replay_cli, name="replay")


def main() -> NoReturn:
    """Run the command line and exit: 0, or the exit code of the error (see ``streams.errors``)."""
    sys.exit(run_command(cli))
