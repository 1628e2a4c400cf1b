"""The error for malformed lines."""

from __future__ import annotations

from typing import Literal, TypeAlias

Reason: TypeAlias = Literal[
    "not a known format",
    "line ends early",
    "bad client",
    "bad user",
    "bad time",
    "no request",
    "bad status",
    "bad size",
    "bad text",
]
"""The reasons: few and fixed, so that malformed lines can be counted by reason."""


class MalformedLine(ValueError):
    """A line that cannot be parsed.

    ``reason`` says why, ``column`` (from 1) where, ``needed`` what was expected there and ``got`` what was
    found.
    """

    def __init__(self, reason: Reason, column: int, needed: str, got: str) -> None:
        # Passing the arguments on makes the exception picklable.
        super().__init__(reason, column, needed, got)
        self.reason: Reason = reason
        self.column = column
        self.needed = needed
        self.got = got

    def __str__(self) -> str:
        got = f"{self.got[:40]!r}{' …' if len(self.got) > 40 else ''}" if self.got else "nothing"
        return f"{self.reason} at column {self.column}: needed {self.needed}, got {got}"
