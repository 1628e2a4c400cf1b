"""``streams broker``: a real Kafka on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from streams.cli.options import AsJson
from streams.cli.output import err, out, print_line
from streams.devstack import kafka

broker_cli = typer.Typer(help="A real Apache Kafka on this machine, for development.", no_args_is_help=True)


@broker_cli.command("start")
def broker_start(
    *,
    nodes: Annotated[int, typer.Option(help="1 or 3.")] = 1,
    port: Annotated[int | None, typer.Option(help="Port of the first node; a free port by default.")] = None,
) -> None:
    """Start a local Kafka in the background; apps on this machine find it without further settings."""
    cluster = kafka.start_detached(nodes=nodes, port=port, report=err.print)
    out.print(cluster.bootstrap_servers)


@broker_cli.command("stop")
def broker_stop() -> None:
    """Stop the local Kafka; its data is kept."""
    kafka.stop(report=err.print)


@broker_cli.command("clean")
def broker_clean() -> None:
    """Stop the local Kafka and remove its data and the download."""
    kafka.clean(report=err.print)


@broker_cli.command("status")
def broker_status(*, as_json: AsJson = False) -> None:
    """Show whether the local Kafka is running, and its addresses. Exit code 1 if it is not running."""
    cluster = kafka.running()
    if cluster is None:
        err.print("no local Kafka is running")
        raise typer.Exit(1)
    rows = [
        {
            "node": item.number,
            "state": item.state,
            "address": item.address,
            "pid": item.pid,
            "memory_mb": item.resident_mb,
            "log": str(item.log_file),
        }
        for item in cluster.status()
    ]
    if as_json:
        for row in rows:
            print_line(row)
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)


@broker_cli.command("logs")
def broker_logs(
    *, lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Number of lines per node.")] = 40
) -> None:
    """Show the last lines of the local Kafka's logs."""
    cluster = kafka.running()
    if cluster is None:
        err.print("no local Kafka is running")
        raise typer.Exit(1)
    for file in cluster.log_files:
        err.print(f"{file}:")
        print("\n".join(file.read_text(errors="replace").splitlines()[-lines:]))  # noqa: T201 - the output itself
