"""``streams source``: capture the changes of a database's tables into topics, without a program."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.app import App
from streams.cli.options import Servers
from streams.cli.properties_file import read_properties
from streams.cli.run import run_app
from streams.errors import ConfigurationError
from streams.topology.topic_names import topic_name_fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.connectors.debezium import Debezium

_SYSTEMS = ("mariadb", "mongodb", "mysql", "oracle", "sqlserver")
"""The databases that are captured by Debezium's properties."""
_POSTGRES = ("postgres", "postgresql")
_SYSTEM_OR_SCHEME = re.compile(r"([a-zA-Z]\w*)(://.*)?", re.DOTALL)


def source(
    database: Annotated[
        str,
        typer.Argument(
            metavar="URL|SYSTEM",
            help="A Postgres database: postgres://USER@HOST:PORT/DATABASE. What it does not say is read from "
            f"PGHOST, PGUSER, PGPASSWORD, … Or, with --properties, one of {', '.join(_SYSTEMS)}.",
        ),
    ],
    *,
    tables: Annotated[
        str,
        typer.Option(
            metavar="TABLE,…",
            help="The tables, with their schemas, e.g. public.customers,public.orders; of MySQL and MariaDB "
            "with their databases, of MongoDB the collections with their databases.",
        ),
    ],
    prefix: Annotated[str, typer.Option(help="A table's changes go to the topic <prefix>.<schema>.<table>.")],
    properties: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Debezium's properties of another database than Postgres: database.hostname=… "
            "${env:NAME} in a value is an environment variable.",
        ),
    ] = None,
    jars: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="All of Debezium's jars, for MariaDB or another version."),
    ] = None,
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
    slot: Annotated[
        str | None, typer.Option(help="The replication slot of Postgres; default: after the app.")
    ] = None,
    publication: Annotated[
        str | None,
        typer.Option(help="An existing publication of Postgres' tables; default: an own one."),
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
    arguments = ["source", database, f"--tables={tables}", f"--prefix={prefix}", f"--app={name}"]
    arguments += [f"--partitions={partitions}", f"--snapshot={snapshot}"]
    options = {"properties": properties, "jars": jars, "slot": slot, "publication": publication}
    given = {option: str(value) for option, value in options.items() if value is not None}
    arguments += [f"--{option}={value}" for option, value in given.items()]
    arguments += [f"--table-snapshot={each}" for each in table_snapshots or ()]
    texts = dict(map(_table_snapshot, table_snapshots or ()))

    def capture() -> App:
        if fault := topic_name_fault(prefix):
            raise ConfigurationError(f"--prefix {prefix!r} cannot begin the names of topics: {fault}")
        made = App(name, create_topics=True)
        connector = _connector(database, _names(tables), snapshot, texts, given)
        made.source(connector).to_change_topics(prefix, partitions=partitions)
        return made

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


def _names(tables: str) -> list[str]:
    return [table for each in tables.split(",") if (table := each.strip())]


def _connector(
    database: str,
    tables: list[str],
    snapshot: str,
    table_snapshots: Mapping[str, str],
    given: Mapping[str, str],
) -> Debezium:
    # Its packages are optional.
    from streams.connectors.debezium import Debezium  # noqa: PLC0415

    system = _system(database)
    for option in given:
        if (option in {"slot", "publication"}) != (system is None):
            raise ConfigurationError(
                f"--{option} is not for {system or 'Postgres'}",
                hint="the connection of Postgres is its URL; that of other databases is in --properties FILE",
            )
    if system is None:
        return Debezium.postgres(
            database,
            tables,
            slot=given.get("slot"),
            publication=given.get("publication"),
            snapshot=snapshot,
            table_snapshots=table_snapshots,
        )
    if table_snapshots:
        raise ConfigurationError(
            f"--table-snapshot is not for {system}: tables are read again beside their changes in Postgres",
            hint="another --snapshot reads all tables again",
        )
    if "properties" not in given:
        connection = (
            "mongodb.connection.string=…, mongodb.user=…, mongodb.password=…"
            if system == "mongodb"
            else "database.hostname=…, database.user=…, database.password=…"
        )
        raise ConfigurationError(
            f"{system} needs --properties FILE", hint=f"with Debezium's properties: {connection}"
        )
    properties = read_properties(Path(given["properties"]), os.environ)
    makers = {
        "mariadb": Debezium.mariadb,
        "mongodb": Debezium.mongodb,
        "mysql": Debezium.mysql,
        "oracle": Debezium.oracle,
        "sqlserver": Debezium.sqlserver,
    }
    return makers[system](properties, tables, snapshot=snapshot, jars=given.get("jars"))


def _system(database: str) -> str | None:
    """The system that is captured by properties; ``None`` for a connection string of Postgres.

    Raises ``ConfigurationError`` for another system.
    """
    match = _SYSTEM_OR_SCHEME.fullmatch(database)
    if match is None or (match[2] and match[1] in _POSTGRES):
        return None
    system = match[1]
    if system in _SYSTEMS and not match[2]:
        return system
    if system in _POSTGRES:
        raise ConfigurationError(
            f"{system!r} says no database", hint="write postgres://USER@HOST:PORT/DATABASE"
        )
    fault = "captured without a URL" if system in _SYSTEMS else "no system that can be captured"
    raise ConfigurationError(
        f"{system!r} is {fault}",
        hint="write postgres://USER@HOST:PORT/DATABASE, or one of "
        f"{', '.join(_SYSTEMS)} with its connection in --properties FILE",
    )
