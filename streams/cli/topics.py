"""``streams topics``: list, create and delete them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from streams.broker import NewTopic
from streams.cli.options import AsJson, Servers, connected_cluster, name_and_value
from streams.cli.output import out, print_line
from streams.errors import ConfigurationError
from streams.topology.topic_names import ADVICE, topic_name_fault

topics_cli = typer.Typer(help="List, create and delete topics.", invoke_without_command=True)


@topics_cli.callback()
def list_topics(
    context: typer.Context,
    *,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """List the topics, except Kafka's internal ones."""
    if context.invoked_subcommand is not None:
        return
    found = [
        item
        for name, item in sorted(connected_cluster(bootstrap_servers).admin().topics().items())
        if name[:2] != "__"
    ]
    if as_json:
        for item in found:
            print_line(
                {
                    "topic": item.name,
                    "partitions": item.partitions,
                    "replication_factor": item.replication_factor,
                }
            )
        return
    table = Table("topic", "partitions", "replicas")
    for item in found:
        table.add_row(item.name, str(item.partitions), str(item.replication_factor))
    out.print(table)


@topics_cli.command("create")
def create_topics(
    names: Annotated[list[str], typer.Argument(metavar="TOPIC…")],
    *,
    partitions: Annotated[int, typer.Option(min=1)] = 4,
    replication_factor: Annotated[
        int | None, typer.Option(min=1, help="The broker's default if not given.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Topic settings, e.g. retention.ms=-1."),
    ] = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Create topics; existing ones are left unchanged."""
    pairs = dict(name_and_value(item) for item in settings or ())
    for name in names:
        fault = topic_name_fault(name)
        if fault:
            raise ConfigurationError(f"{name!r} cannot name a topic: {fault}", hint=ADVICE)
    created = (
        connected_cluster(bootstrap_servers)
        .admin()
        .create_topics(
            [
                NewTopic(
                    name=name, partitions=partitions, replication_factor=replication_factor, settings=pairs
                )
                for name in names
            ]
        )
    )
    for name in names:
        out.print(f"{name}: {'created' if name in created else 'exists already'}")


@topics_cli.command("delete")
def delete_topics(
    names: Annotated[list[str], typer.Argument(metavar="TOPIC…")], *, bootstrap_servers: Servers = None
) -> None:
    """Delete topics with all their records."""
    connected_cluster(bootstrap_servers).admin().delete_topics(names)
