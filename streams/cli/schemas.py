"""``streams schemas``: an app's schemas and those in a schema registry or its schema folder."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from streams.cli.apps import load_app
from streams.cli.options import AsJson, Target, into_environment
from streams.cli.output import out, print_line
from streams.errors import ConfigurationError, SchemaRefused
from streams.registry_topics import connect_registry, folder_differences, topic_schemas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.app import App
    from streams.registry_topics import RegistryConnection, TopicSchema

schemas_cli = typer.Typer(help="Check, register and compare an app's Avro schemas.", no_args_is_help=True)

RegistryUrl = Annotated[
    str | None,
    typer.Option("--registry", metavar="URL", help="The schema registry; default: that of the settings."),
]


@schemas_cli.command("check")
def check_schemas(target: Target, *, registry: RegistryUrl = None, as_json: AsJson = False) -> None:
    """Check, without changing anything, whether the registry would accept the app's schemas.

    Without a registry, they are compared with the other versions in their folder. The exit code is 14 if a
    schema does not fit; the fields are named.
    """
    app = _load(target, registry)
    if app.settings.schema_registry_url is None:
        rows = [
            (schema, schema.serde.path.name, folder_differences(schema.serde))
            for schema in topic_schemas(app.topology)
        ]
    else:
        with closing(connect_registry(app.topology, app.settings)) as connection:
            rows = [(schema, schema.subject, connection.check(schema)) for schema in connection.schemas()]
    _print(rows, as_json=as_json)
    wrong = [name for _, name, differences in rows if differences]
    if wrong:
        raise SchemaRefused(f"schemas do not fit their other versions: {', '.join(dict.fromkeys(wrong))}")


@schemas_cli.command("register")
def register_schemas(target: Target, *, registry: RegistryUrl = None) -> None:
    """Register the schemas of the app's output topics. What is registered already is left as it is."""
    into_environment(["register_schemas=true"])
    with closing(_connect(target, registry)) as connection:
        for schema in connection.schemas():
            if schema.use == "writes":
                identifier = connection.subjects.identifier(schema.subject, schema.serde.written)
                out.print(f"{schema.subject}: id {identifier}", highlight=False)


@schemas_cli.command("diff")
def compare_schemas(target: Target, *, registry: RegistryUrl = None, as_json: AsJson = False) -> None:
    """Show what differs between the app's schemas and the latest registered ones, in both directions."""
    with closing(_connect(target, registry)) as connection:
        rows = [
            (
                schema,
                schema.subject,
                connection.subjects.differences(schema.subject, schema.serde.written, "FULL"),
            )
            for schema in connection.schemas()
        ]
    _print(rows, as_json=as_json)


def _load(target: str, registry: str | None) -> App:
    if registry is not None:
        into_environment([f"schema_registry_url={registry}"])
    return load_app(target)


def _connect(target: str, registry: str | None) -> RegistryConnection:
    app = _load(target, registry)
    if app.settings.schema_registry_url is None:
        raise ConfigurationError(
            f"app {app.name!r} has no schema registry",
            hint="give --registry, or set schema_registry_url (STREAMS_SCHEMA_REGISTRY_URL)",
        )
    return connect_registry(app.topology, app.settings)


def _print(rows: Sequence[tuple[TopicSchema, str, list[str]]], *, as_json: bool) -> None:
    if as_json:
        for schema, name, differences in rows:
            fields: dict[str, Any] = {
                "schema": name,
                "topic": schema.topic,
                "part": schema.part,
                "use": schema.use,
                "differences": differences,
            }
            print_line(fields)
        return
    table = Table("schema", "topic", "app", "differences")
    for schema, name, differences in rows:
        table.add_row(name, schema.topic, schema.use, "\n".join(differences) or "none")
    out.print(table)
