"""Names of tables and columns as Avro names, which have only letters, digits and underscores."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_VALID = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ESCAPE = re.compile(r"_u([0-9a-f]{4})")
_TO_ESCAPE = re.compile(r"[^A-Za-z0-9_]|^[0-9]|_(?=u[0-9a-f]{4})")


class NameCollision(ValueError):
    """Two names become the same Avro name."""


def avro_name(name: str) -> str:
    """An Avro name for any name: valid ones stay as they are, other characters become ``_uXXXX``.

    Different names have different Avro names, and ``original_name`` returns the name again: an underscore
    that would begin such an escape is escaped too. Raises ``ValueError`` for the empty name.
    """
    if not name:
        raise ValueError("the empty name has no Avro name")
    if _VALID.fullmatch(name) and not _ESCAPE.search(name):
        return name
    return _TO_ESCAPE.sub(lambda found: _escaped(found[0]), name)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"_u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def original_name(name: str) -> str:
    """The name of which ``avro_name`` made an Avro name."""
    units = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), name)
    # Pairs of surrogates are one character.
    return units.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def avro_names(names: Iterable[str], what: str) -> dict[str, str]:
    """The Avro name of each name. Raises ``NameCollision`` with both names where two have the same."""
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in names:
        encoded = avro_name(name)
        other = taken.setdefault(encoded, name)
        if name in found or other != name:
            raise NameCollision(f"{what} {other!r} and {name!r} have the same Avro name, {encoded!r}")
        found[name] = encoded
    return found
