"""What several commands take: the app, the cluster, settings, the form of the output."""

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

Target = Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the App is, e.g. shop.orders:app.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines instead of a table.")]
Servers = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", help="The cluster; else as for an app without the setting."),
]


def into_environment(settings: Sequence[str]) -> None:
    """Let settings given as ``NAME=VALUE`` win over the environment, also in processes begun here."""
    for item in settings:
        name, value = name_and_value(item)
        read_setting(name.lower(), value, f"--set {name}")
        os.environ[PREFIX + name.upper()] = value


def name_and_value(item: str) -> tuple[str, str]:
    """The parts of ``NAME=VALUE``."""
    name, equals, value = item.partition("=")
    if not equals:
        raise ConfigurationError(f"{item!r} is no setting", hint="write NAME=VALUE")
    return name, value


def connected_cluster(bootstrap_servers: str | None) -> KafkaBroker:
    """The cluster of that address; else that of the settings, of the environment, of this machine."""
    settings = load_settings({}, os.environ)
    named = bootstrap_servers or settings.bootstrap_servers or find_bootstrap_servers()
    return KafkaBroker(
        settings.client,
        servers=named,
        consumer=settings.consumer,
        producer=settings.producer,
    )
