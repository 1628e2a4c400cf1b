"""Write results to standard output and everything else to standard error."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

out = Console()
err = Console(stderr=True)


def print_line(fields: dict[str, Any]) -> None:
    """Print one line of JSON to standard output."""
    print(json.dumps(fields), flush=True)  # noqa: T201 - the output itself


def warn(text: str) -> None:
    """Print one line to standard error, without markup or wrapping."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)
