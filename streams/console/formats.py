"""How figures, times and values are written on pages."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Collection

UNKNOWN: Final = Markup('<span class="unknown">unknown</span>')
LONGEST_VALUE: Final = 2_000
"""Characters of a value that are shown; what is longer is cut."""

MASK: Final = "•••"


def number(value: float | None) -> str:
    """A count, with separators."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Records for each second."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}/s" if value >= 100 or value == 0 else f"{value:,.1f}/s"


def share(value: float | None) -> str:
    """A share of the time or of records, in percent."""
    return UNKNOWN if value is None else f"{value:.0%}"


def size(value: float | None) -> str:
    """Bytes."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} GB"


def duration(seconds: float | None) -> str:
    """A time span, to two digits or so."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds > 0.05 else "0 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def clock(milliseconds: int | None) -> str:
    """A moment, as a ``time`` element: the browser shows it in its own time zone."""
    if milliseconds is None:
        return UNKNOWN
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return Markup('<time datetime="{}" data-clock>{} UTC</time>').format(
        moment.isoformat(timespec="milliseconds"), moment.strftime("%Y-%m-%d %H:%M:%S")
    )


def ago(milliseconds: int | None) -> str:
    """A moment, as a ``time`` element that says how long ago it was."""
    if milliseconds is None:
        return UNKNOWN
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return Markup('<time datetime="{}" data-ago>{} UTC</time>').format(
        moment.isoformat(timespec="milliseconds"), moment.strftime("%Y-%m-%d %H:%M:%S")
    )


def cut(text: str, longest: int = LONGEST_VALUE) -> str:
    """A text that is not longer than so many characters, and says how much is missing."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text) - longest:,} more characters)"


class ValueFormat:
    """Values of records and stores as JSON, without the fields that are masked.

    A masked field is a name, ``email``, which is masked wherever it is, or a path from the value's top,
    ``customer.email``.
    """

    def __init__(self, masked: Collection[str] = ()) -> None:
        self._names = {name for name in masked if "." not in name}
        self._paths = {tuple(name.split(".")) for name in masked if "." in name}

    @property
    def names(self) -> frozenset[str]:
        """The last parts of what is masked: bytes that have none of these texts have no masked field."""
        return frozenset(self._names | {path[-1] for path in self._paths})

    def hides(self, path: tuple[str, ...]) -> bool:
        """Whether the field at a path is masked, or is part of one that is."""
        fields = tuple(part for part in path if not part.isdecimal())
        return any(part in self._names for part in path) or any(
            fields[: len(own)] == own for own in self._paths
        )

    def masked(self, value: Any, path: tuple[str, ...] = ()) -> Any:
        """A plain value (dictionaries, lists, numbers, strings) without the masked fields' values."""
        if not self._names and not self._paths:
            return value
        if isinstance(value, dict):
            return {
                key: MASK
                if key in self._names or (*path, key) in self._paths
                else self.masked(item, (*path, str(key)))
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.masked(item, path) for item in value]
        return value

    def field(self, path: str, value: Any, longest: int = LONGEST_VALUE) -> str:
        """A field's value as JSON, masked and cut. ``path`` is as in comparisons: ``items[].price``."""
        names = path.replace("[]", "").split(".")
        nested = value
        for name in reversed(names):
            nested = {name: nested}
        nested = self.masked(nested)
        for name in names:
            if nested == MASK:
                break
            nested = nested[name]
        return self.text(nested, longest)

    def text(self, value: Any, longest: int = LONGEST_VALUE, *, indent: int | None = None) -> str:
        """A plain value as JSON, masked and cut."""
        return cut(json.dumps(self.masked(value), ensure_ascii=False, indent=indent, default=str), longest)
