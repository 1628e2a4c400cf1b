"""Whether accumulators stored for one aggregate can be read for another, and which parts are new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.serde.schemas.json_resolution import json_differences

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCUMULATORS = frozenset({"accumulator", "timed accumulator", "sessions", "panes", "closed windows"})
"""The keys around an aggregate's schema in the schemas of stores."""


def aggregate_differences(stored: Any, wanted: Any, where: str) -> Iterator[str]:
    """The reasons why accumulators of ``stored`` cannot be read as ``wanted`` (both ``Aggregate.schema``).

    Added and removed fields among several aggregates are no difference: new ones begin empty. Earlier
    versions stored an aggregate's description, which does not contain the type of its values.
    """
    old, new = fields_of(stored), fields_of(wanted)
    if old is not None and new is not None:
        for name in old.keys() & new.keys():
            yield from aggregate_differences(old[name], new[name], f"{where} aggregate {name!r}")
        return
    if old is not None or new is not None or _is_reduced(stored) or _is_reduced(wanted):
        if not (_is_reduced(wanted) and stored == "reduce"):
            yield f"{where}: was {_named(stored)}, is {_named(wanted)}"
        return
    if _named(stored) != _named(wanted):
        yield f"{where}: was {_named(stored)}, is {_named(wanted)}"
        return
    if isinstance(stored, dict) and isinstance(wanted, dict):
        yield from json_differences(stored["of"]["json"], wanted["of"]["json"], where)
    elif stored != wanted and _named(stored).startswith(("minimum(", "maximum(", "top(")):
        yield f"{where}: its values were {_values(stored)}, are {_values(wanted)}"


def is_aggregate(schema: Any) -> bool:
    """Whether it is an aggregate's schema, and not a serde's for the results of a reducing function."""
    return isinstance(schema, str) or "combined" in schema or "aggregate" in schema


def fields_of(schema: Any) -> dict[str, Any] | None:
    """The schemas of several aggregates by name, in their order; ``None`` for a single one."""
    if isinstance(schema, dict) and schema.keys() == {"combined"}:
        return dict(schema["combined"])
    if isinstance(schema, str) and schema.startswith("combined("):
        return dict(_split(schema.removeprefix("combined(").removesuffix(")")))
    return None


def names_within(schema: Any, prefix: str = "") -> list[str]:
    """The names of all aggregates among several, nested ones with dots."""
    names = []
    for name, inner in (fields_of(schema) or {}).items():
        names += [prefix + name, *names_within(inner, f"{prefix}{name}.")]
    return names


def stored_order(schema: Any) -> dict[str, Any] | None:
    """The fields, with nested ones, of accumulators that were stored in this order, without names."""
    if not isinstance(schema, str):
        return None
    fields = fields_of(schema)
    return None if fields is None else {name: stored_order(inner) for name, inner in fields.items()}


def _is_reduced(schema: Any) -> bool:
    return schema == "reduce" or (isinstance(schema, dict) and schema.keys() == {"reduced"})


def _named(schema: Any) -> str:
    if fields_of(schema) is not None:
        return "several aggregates by name"
    if _is_reduced(schema):
        return "reduce"
    return str(schema["aggregate"] if isinstance(schema, dict) and "aggregate" in schema else schema)


def _values(schema: Any) -> str:
    return "numbers" if isinstance(schema, str) else str(schema["of"]["json"])


def _split(described: str) -> Iterator[tuple[str, str]]:
    """Names and descriptions, from ``a=count(), b=total('x')``."""
    depth, quoted, start = 0, "", 0
    parts = []
    for place, letter in enumerate(described):
        if quoted:
            # Quotes within quotes are written as repr() does.
            if letter == quoted and described[place - 1] != "\\":
                quoted = ""
        elif letter in "'\"":
            quoted = letter
        elif letter == ",":
            if depth == 0:
                parts.append(described[start:place])
                start = place + 1
        else:
            depth += (letter == "(") - (letter == ")")
    for part in [*parts, described[start:]]:
        name, _, inner = part.strip().partition("=")
        yield name, inner
