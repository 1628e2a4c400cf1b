"""The text of SQLite's values, as Postgres writes the value that they stand for.

SQLite has no types for decimals, times and booleans: they are stored as text or numbers, and what a column
means is taken from the other table.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from streams.connectors.comparison.floats import bits

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.connectors.comparison.table import Kind

_SPECIAL = {
    "nan": "NaN",
    "inf": "Infinity",
    "infinity": "Infinity",
    "-inf": "-Infinity",
    "-infinity": "-Infinity",
}
_TRUTH = {
    1: "true",
    0: "false",
    "1": "true",
    "0": "false",
    "t": "true",
    "f": "false",
    "true": "true",
    "false": "false",
}
_TIME = re.compile(
    r"(?P<date>\d{4,}-\d\d-\d\d)(?:[T ](?P<time>\d\d:\d\d(?::\d\d)?)(?:\.(?P<fraction>\d{1,6})\d*)?)?"
    r"\s*(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?(?P<bc> BC)?"
)


def text_of(kind: Kind, *, exact: bool) -> Callable[[Any], str | None]:
    """A function that makes text of a column's values; null stays null.

    What cannot be a value of that kind keeps its own text, so it differs.
    """
    functions: dict[Kind, Callable[[Any], str]] = {
        "integer": _integer,
        "decimal": partial(_decimal, exact=exact),
        "double_bits": partial(_float, form="d", exact=exact),
        "single_bits": partial(_float, form="f", exact=exact),
        "boolean": _boolean,
        "padded": lambda value: _plain(value).rstrip(" "),
        "jsonb": _jsonb,
        "date": partial(_time, kind="date"),
        "timestamp": partial(_time, kind="timestamp"),
        "timestamptz": partial(_time, kind="timestamptz"),
    }
    function = functions.get(kind, _plain)
    return lambda value: None if value is None else function(value)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    return str(value)


def _integer(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    try:
        return str(int(value)) if isinstance(value, int | str) else _plain(value)
    except ValueError:
        return _plain(value)


def _decimal(value: Any, *, exact: bool) -> str:
    text = _plain(value)
    if special := _SPECIAL.get(text.lower()):
        return special
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    written = format(number, "f")
    if exact:
        return written
    if "." in written:
        written = written.rstrip("0").rstrip(".")
    return "0" if written == "-0" else written


def _float(value: Any, *, form: Literal["d", "f"], exact: bool) -> str:
    try:
        return _plain(value) if isinstance(value, bytes) else bits(float(value), form, exact=exact)
    except ValueError:
        return _plain(value)


def _boolean(value: Any) -> str:
    known = _TRUTH.get(value.lower() if isinstance(value, str) else value)
    return _plain(value) if known is None else known


def _jsonb(value: Any) -> str:
    """JSON as the type ``jsonb`` writes it."""
    text = _plain(value)
    try:
        return _json(json.loads(text, parse_float=_Number, parse_int=_Number))
    except ValueError:
        return text


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


def _json(value: Any) -> str:
    if isinstance(value, _Number):
        return format(Decimal(value), "f") if Decimal(value) else format(abs(Decimal(value)), "f")
    if isinstance(value, dict):
        # Shorter keys first, then by their bytes.
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return (
            "{"
            + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {_json(value[key])}" for key in keys)
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _time(value: Any, *, kind: str) -> str:
    text = _plain(value)
    if special := {"infinity": "infinity", "-infinity": "-infinity"}.get(text.lower()):
        return special
    found = _TIME.fullmatch(text)
    if found is None:
        return text
    day, clock = found["date"], found["time"] or "00:00:00"
    clock += ":00" * (len(clock) == 5)
    if kind == "date":
        return day + (found["bc"] or "")
    zone = found["zone"] or "Z"
    if zone != "Z" and zone.strip("+-0:"):
        try:
            offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:].strip(":") or 0))
            local = datetime.fromisoformat(f"{day} {clock}")
            moment = local.replace(tzinfo=timezone(-offset if zone[0] == "-" else offset)).astimezone(UTC)
        except (ValueError, OverflowError):
            # Outside of the years that Python has.
            return text
        day, clock = moment.strftime("%Y-%m-%d").rjust(10, "0"), moment.strftime("%H:%M:%S")
    fraction = (found["fraction"] or "").rstrip("0")
    clock += f".{fraction}" if fraction else ""
    return f"{day} {clock}{'+00' if kind == 'timestamptz' else ''}{found['bc'] or ''}"
