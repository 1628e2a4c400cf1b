"""``streams source``: capture the changes of a database's tables into topics, without a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streams.app import App
from streams.cli.options import Servers
from streams.cli.run import run_app
from streams.errors import ConfigurationError
from streams.topology.topic_names import topic_name_fault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def source(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="The database: postgres://USER@HOST:PORT/DATABASE. What it does not say is read from "
            "PGHOST, PGUSER, PGPASSWORD, …",
        ),
    ],
    *,
    tables: Annotated[
        str,
        typer.Option(
            metavar="TABLE,…", help="The tables, with their schemas, e.g. public.customers,public.orders."
        ),
    ],
    prefix: Annotated[str, typer.Option(help="A table's changes go to the topic <prefix>.<schema>.<table>.")],
    app: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Names the consumer group, the position, and the slot; default: <prefix>-source.",
        ),
    ] = None,
    partitions: Annotated[
        int, typer.Option(min=1, help="Number of partitions of topics that have to be created.")
    ] = 4,
    slot: Annotated[str | None, typer.Option(help="The replication slot; default: after the app.")] = None,
    publication: Annotated[
        str | None, typer.Option(help="An existing publication of the tables; default: an own one.")
    ] = None,
    snapshot: Annotated[
        str, typer.Option(metavar="TEXT", help="Another text than before reads all rows again.")
    ] = "",
    table_snapshots: Annotated[
        list[str] | None,
        typer.Option(
            "--table-snapshot",
            metavar="TABLE=TEXT",
            help="Another text than before reads this table again, while all changes flow on. Repeatable.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of worker processes: one captures, the others stand by."),
    ] = None,
    bootstrap_servers: Servers = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting of the app.")
    ] = None,
    supervised_by: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Capture the changes of a database's tables into topics, until SIGTERM or Ctrl-C.

    First all rows, then every change, each exactly once, as JSON in Debezium's form. A restart continues
    after the last committed change.
    """
    name = f"{prefix}-source" if app is None else app
    chosen = [table for each in tables.split(",") if (table := each.strip())]
    arguments = ["source", url, f"--tables={tables}", f"--prefix={prefix}", f"--app={name}"]
    arguments += [f"--partitions={partitions}", f"--snapshot={snapshot}"]
    arguments += [] if slot is None else [f"--slot={slot}"]
    arguments += [] if publication is None else [f"--publication={publication}"]
    arguments += [f"--table-snapshot={each}" for each in table_snapshots or ()]
    texts = dict(_table_snapshot(each) for each in table_snapshots or ())

    def capture() -> App:
        return _capture(url, chosen, prefix, name, partitions, slot, publication, snapshot, texts)

    run_app(
        capture,
        arguments,
        settings=settings or (),
        bootstrap_servers=bootstrap_servers,
        workers=workers,
        supervised_by=supervised_by,
    )


def _table_snapshot(text: str) -> tuple[str, str]:
    table, given, label = text.rpartition("=")
    if not given:
        raise ConfigurationError(f"--table-snapshot {text!r} has no text for the table", hint="TABLE=TEXT")
    return table, label


def _capture(
    url: str,
    tables: Sequence[str],
    prefix: str,
    name: str,
    partitions: int,
    slot: str | None,
    publication: str | None,
    snapshot: str,
    table_snapshots: Mapping[str, str],
) -> App:
    if fault := topic_name_fault(prefix):
        raise ConfigurationError(f"--prefix {prefix!r} cannot begin the names of topics: {fault}")
    # Its packages are optional.
    from streams.connectors.debezium import Debezium  # noqa: PLC0415

    app = App(name, create_topics=True)
    connector = Debezium.postgres(
        url,
        tables,
        slot=slot,
        publication=publication,
        snapshot=snapshot,
        table_snapshots=table_snapshots,
    )
    app.source(connector).to_change_topics(prefix, partitions=partitions)
    return app
