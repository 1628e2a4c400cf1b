"""Progress reports, a line at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Report: TypeAlias = Callable[[str], None]


def silent(_message: str) -> None:
    """Ignore the report."""
