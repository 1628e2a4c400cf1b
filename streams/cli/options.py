"""Options and arguments that several commands share: the app, the cluster, settings, JSON output."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from streams.app import find_bootstrap_servers
from streams.broker.kafka import KafkaBroker
from streams.config import PREFIX, load_settings, read_setting
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

Target = Annotated[
    str, typer.Argument(metavar="MODULE:APP", help="The app's module and variable, e.g. shop.orders:app.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")]
Servers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        help="The cluster; default: that of the app's settings or the environment, else a local Kafka.",
    ),
]
WorkerUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        metavar="HOST:PORT",
        help="A worker's HTTP port, repeatable; default: those that workers publish.",
    ),
]


def into_environment(settings: Sequence[str]) -> None:
    """Put settings given as ``NAME=VALUE`` into the environment, which worker processes inherit."""
    for item in settings:
        name, value = name_and_value(item)
        read_setting(name.lower(), value, f"--set {name}")
        os.environ[PREFIX + name.upper()] = value


def name_and_value(item: str) -> tuple[str, str]:
    """Split ``NAME=VALUE``. Raises ``ConfigurationError`` if there is no ``=``."""
    name, equals, value = item.partition("=")
    if not equals:
        raise ConfigurationError(f"{item!r} is not a setting", hint="write NAME=VALUE")
    return name, value


def connected_cluster(bootstrap_servers: str | None) -> KafkaBroker:
    """The cluster at that address, or else of the environment, or else the local Kafka."""
    settings = load_settings({}, os.environ)
    named = bootstrap_servers or settings.bootstrap_servers or find_bootstrap_servers()
    return KafkaBroker(
        settings.client,
        servers=named,
        consumer=settings.consumer,
        producer=settings.producer,
    )
