"""``streams describe``: an app's topology."""

from __future__ import annotations

from typing import Annotated

import typer

from streams.cli.apps import load_app
from streams.cli.options import Target
from streams.topology.graph import parse_format


def describe(
    target: Target,
    form: Annotated[str, typer.Option("--format", help="text, mermaid or json")] = "text",
) -> None:
    """Show an app's topology."""
    print(load_app(target).topology.describe(parse_format(form)))  # noqa: T201 - the output itself
