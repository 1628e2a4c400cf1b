"""Where a command writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

out = Console()
err = Console(stderr=True)


def print_line(fields: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(fields), flush=True)  # noqa: T201 - the output itself


def warn(text: str) -> None:
    """One line on standard error, as it is."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)
