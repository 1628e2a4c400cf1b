"""``streams sync``: copies of tables in other databases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streams.app import resources_of_worker
from streams.cli.apps import load_app
from streams.cli.options import AsJson, Servers, Target, into_environment, name_and_value
from streams.cli.output import err, print_line, warn
from streams.connectors.comparison import compare
from streams.connectors.sqlite import SqliteTable
from streams.durations import seconds
from streams.errors import ConfigurationError, ConnectorUnavailable
from streams.runtime.rebuild import Rebuild

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.connectors.comparison.table import ComparableTable

sync_cli = typer.Typer(help="Check and rebuild copies of tables in other databases.", no_args_is_help=True)


@sync_cli.callback()
def sync() -> None:
    """Check and rebuild copies of tables in other databases."""


@sync_cli.command("verify")
def verify(
    *,
    source: Annotated[
        str, typer.Option(metavar="DSN", help="The source's database: postgresql://… or sqlite:PATH.")
    ],
    source_table: Annotated[str, typer.Option(metavar="TABLE")],
    target: Annotated[str, typer.Option(metavar="DSN", help="The target's database, written likewise.")],
    target_table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Default: the name of the source's table.")
    ] = None,
    key: Annotated[list[str], typer.Option(metavar="COLUMN", help="A column of the key; repeatable.")],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="COLUMN",
            help="A column to compare; repeatable. Default: all columns of the target.",
        ),
    ] = None,
    mapped: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=SQL",
            help="What the target's column must equal: an expression of the source's columns; repeatable.",
        ),
    ] = None,
    masked: Annotated[
        list[str] | None,
        typer.Option("--mask", metavar="COLUMN", help="Do not print the column's values; repeatable."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="1.10 is not 1.1, and -0 not 0: compare numbers by their text.")
    ] = False,
    settle: Annotated[
        float, typer.Option(min=0, help="How many seconds the target may be behind the source.")
    ] = 5,
    patience: Annotated[
        float, typer.Option(min=0, help="After so many seconds, rows that always change stay undecided.")
    ] = 60,
    rows_per_query: Annotated[int, typer.Option(min=1, help="How many rows a query reads, about.")] = 20_000,
    query_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds after which the database ends a query.")
    ] = 60,
    limit: Annotated[int, typer.Option(min=1, help="Stop after so many differences.")] = 1_000,
    as_json: AsJson = False,
) -> None:
    """Compare a table with its copy, also while both change, and print the keys whose rows differ.

    Exit code 0 if they are equal, 1 if not, 3 if rows changed so often that nothing can be said about them.
    """
    expressions = dict(map(name_and_value, mapped or ()))
    comparison = compare(
        _table(source, source_table, expressions, query_timeout),
        _table(target, target_table or source_table, {}, query_timeout),
        key=key,
        columns=columns,
        masked=masked or (),
        exact=exact,
        settle=seconds(settle),
        patience=seconds(patience),
        rows_per_query=rows_per_query,
        limit=limit,
        progress=_progress if err.is_terminal else None,
    )
    for difference in comparison.differences:
        if as_json:
            print_line(difference.fields())
        else:
            typer.echo(str(difference))
    if as_json:
        print_line(comparison.fields())
    else:
        typer.echo(str(comparison))
        if comparison.not_compared:
            warn(f"columns that were not compared: {', '.join(comparison.not_compared)}")
    if comparison.differences:
        raise typer.Exit(1)
    if not comparison.equal:
        keys = "; ".join(str(dict(item)) for item in comparison.unsettled[:5])
        raise ConnectorUnavailable(
            f"{len(comparison.unsettled):,} rows changed too often to be compared, e.g. {keys}",
            hint="repeat it with a longer --patience, and look at how far the target is behind",
        )


@sync_cli.command("rebuild")
def rebuild(
    target: Target,
    sink: Annotated[
        str, typer.Argument(metavar="STORE", help="The sink's store: what it writes to, unless it was named.")
    ],
    *,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Fill a sink's target again from its topics, while the app runs, and remove what should not be there.

    The rows are written to a copy first, which then replaces the target's content in one transaction; the
    sink waits for that transaction only.
    """
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    resources = resources_of_worker(app)
    resources.open()
    try:
        with resources.active():
            work = Rebuild(app.topology, app.broker(), application=app.name, store=sink)
            done = work.run(lambda records, left: err.print(f"{records:,} records, {left:,} left", end="\r"))
    finally:
        resources.close()
    added, changed, deleted = done.counts
    if as_json:
        fields = {"records": done.records, "refused": done.refused}
        print_line({**fields, "added": added, "changed": changed, "deleted": deleted})
        return
    typer.echo(
        f"{done.records:,} records read; rows of {sink}: {added:,} added, {changed:,} changed, "
        f"{deleted:,} deleted"
    )
    if done.refused:
        warn(f"{done.refused:,} records became no row, as at first: see the dead letters")


def _table(address: str, table: str, expressions: Mapping[str, str], query_timeout: float) -> ComparableTable:
    scheme, colon, path = address.partition(":")
    if scheme == "sqlite":
        if not colon or not path:
            raise ConfigurationError(f"{address!r} names no file", hint="write sqlite:PATH")
        return SqliteTable(path=path, table=table, expressions=expressions)
    # Its driver is optional.
    from streams.connectors.postgres import PostgresTable  # noqa: PLC0415

    return PostgresTable(
        dsn=address, table=table, expressions=expressions, query_timeout=seconds(query_timeout)
    )


def _progress(rows: int) -> None:
    err.print(f"{rows:,} rows compared", end="\r")
