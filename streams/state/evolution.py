"""Schema evolution: check whether a program can read the entries of its stores, and migrate them.

A stored schema is the text of ``StoreDefinition.schema`` with additions. Values are only rewritten when they
change, so a store may have values from before several compatible changes. Their schemas are kept in the text,
as ``earlier``, and each must be readable, as compatibility is not transitive. ``began`` has, for each
aggregate that was added to an existing store of several, when that was (milliseconds since the epoch).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from streams.aggregates.resolution import (
    ACCUMULATORS,
    aggregate_differences,
    is_aggregate,
    names_within,
    stored_order,
)
from streams.coroutines.awaitables import settled
from streams.errors import StateError
from streams.serde.schemas.json_resolution import json_differences
from streams.state.expiring import Expiring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.serde import Serde
    from streams.state.definition import StoreDefinition
    from streams.state.store import Store

Relation: TypeAlias = Literal["same", "compatible", "incompatible"]

_WINDOW_START = Struct(">Q")

# The prefix before the payload of a value, and the function that makes a stored value of both.
_PREFIXES: dict[str, tuple[Struct, Callable[..., Any]]] = {
    "stamped": (Struct(">q"), lambda value, time: (value, time)),
    "expiring": (Struct(">QQ"), Expiring),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The relation of a stored schema to the program's own.

    ``differences`` describe what cannot be read, each with its field. ``migratable`` means that only values
    differ, so that a function of values can convert them.
    """

    relation: Relation
    differences: tuple[str, ...] = ()
    migratable: bool = False


def compare(stored: str, wanted: str) -> Verdict:
    """Compare schemas: whether everything written with ``stored`` can be read with ``wanted``.

    Raises ``StateError`` if ``stored`` is not a schema.
    """
    before, now = _parsed(stored), json.loads(wanted)
    fixed = []
    if before["purpose"] != now["purpose"]:
        fixed.append(f"purpose: was {before['purpose']!r}, is {now['purpose']!r}")
    # Compared as text: the order of fields determines the bytes of keys, but dictionaries ignore it.
    if json.dumps(before["key"]) != json.dumps(now["key"]):
        found = list(_differences(before["key"], now["key"], "key"))
        detail = "; ".join(found) or "key: the same values may be encoded as different bytes"
        fixed.append(f"{detail}; keys are looked up by their bytes, so no change of it is compatible")
    rewrapped = _unwrapped(before["value"])[0] != _unwrapped(now["value"])[0]
    values = [
        difference
        for schema in _value_schemas(before)
        for difference in _differences(schema, now["value"], "value")
    ]
    if fixed or values:
        return Verdict(
            "incompatible", (*fixed, *dict.fromkeys(values)), migratable=not fixed and not rewrapped
        )
    return Verdict("same" if before["value"] == now["value"] else "compatible")


def kept(stored: str | None, wanted: str, now_is: int = 0) -> str:
    """The schema to store once the store has new values in addition to those written with ``stored``.

    It is for schemas that ``compare`` finds the same or compatible. Without a stored one, or if all entries
    are migrated, it is ``wanted``. Aggregates that are new in a store of several begin at ``now_is``
    (milliseconds since the epoch).
    """
    if stored in (None, wanted):
        return wanted
    assert stored is not None
    before, now = _parsed(stored), json.loads(wanted)
    earlier: list[Any] = []
    for schema in _value_schemas(before):
        if schema != now["value"] and schema not in earlier:
            earlier.append(schema)
    began = dict(before.get("began", {}))
    for name in _new_aggregates(before, now):
        began[name] = [*began.get(name, []), now_is]
    notes = {"earlier": earlier, "began": began}
    found = {name: note for name, note in notes.items() if note}
    return json.dumps(now | found) if found else wanted


def new_aggregates(stored: str, wanted: str) -> list[str]:
    """The names of aggregates that are new in a store of several."""
    return _new_aggregates(_parsed(stored), json.loads(wanted))


def _new_aggregates(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    (kind, old), (wrapper, new) = _kind(before["value"]), _kind(now["value"])
    if kind != wrapper or kind not in ACCUMULATORS:
        return []
    known = set(names_within(old))
    return [name for name in names_within(new) if name not in known] if known else []


def reading(definition: StoreDefinition, schema: str) -> Serde[Any]:
    """The serde for the values of a task's store, given the schema that ``kept`` returned for it."""
    reader = getattr(definition.value, "reading", None)
    if reader is None:
        return definition.value
    parsed = _parsed(schema)
    orders = (stored_order(_kind(value)[1]) for value in _value_schemas(parsed))
    serde: Serde[Any] = reader(parsed.get("began", {}), next(filter(None, orders), None))
    return serde


def check(definition: StoreDefinition, stored_schema: str) -> bool:
    """Whether the entries of a store must be migrated before its steps use them.

    If they can be read as they are, the store's value serde gets the schemas with which they may have been
    written, if it has a method ``learn``. Raises ``StateError``, with the differences and a hint, if the
    program cannot read the entries and ``migrate`` cannot convert them.
    """
    if stored_schema == definition.schema:
        return False
    try:
        verdict = compare(stored_schema, definition.schema)
    except StateError as error:
        raise StateError(f"store {definition.name!r}: {error}") from error
    except Exception as error:
        raise StateError(
            f"store {definition.name!r}: its stored schema {stored_schema!r:.80} is not valid: {error!r}"
        ) from error
    if verdict.relation != "incompatible":
        _learn(definition, stored_schema)
        return False
    if definition.migrate is not None and verdict.migratable and definition.source_topic is None:
        return True
    aggregates = _kind(json.loads(definition.schema)["value"])[0] in ACCUMULATORS
    rebuild = "give it another name and replay the input to build it again, or go back to the old program"
    if definition.source_topic is not None:
        hint = (
            f"its entries are the records of topic {definition.source_topic!r}: read them with a serde that "
            "fits, or give the table another name to build it again from the topic, or go back to the old "
            "program"
        )
    elif verdict.migratable and aggregates:
        hint = (
            "give the changed aggregate another name, as a field: aggregate(name, new=…), where it begins "
            f"empty and the others are kept; or, for the complete store: {rebuild}"
        )
    elif verdict.migratable:
        hint = f"give the store migrate=…, a function from old values to new ones; or {rebuild}"
    else:
        hint = f"migrate=… can only change values: {rebuild}"
    differences = "\n  ".join(verdict.differences)
    raise StateError(
        f"store {definition.name!r} has state that this program cannot read:\n  {differences}", hint=hint
    )


def migrated_entries(
    definition: StoreDefinition, stored_schema: str, store: Store
) -> Iterator[tuple[Any, Any]]:
    """All entries of ``store`` with decoded keys and the values that ``definition.migrate`` returns.

    The function receives old values as plain data: JSON and Avro as dictionaries, lists and so on, text as
    text, anything else as bytes; without the times that the store keeps with them, which stay unchanged. Its
    result is encoded and decoded once, so that values have the type that steps expect. ``None`` removes the
    entry. Keys are those of the task's view of the store; in windowed stores they are pairs of window start
    and key.

    It writes nothing: all entries belong into one commit, together with the new schema. Raises ``StateError``
    with the key if an entry cannot be read, migrated or written.
    """
    migrate = definition.migrate
    assert migrate is not None
    schemas = _value_schemas(_parsed(stored_schema))
    outermost, _ = _kind(schemas[0])
    prefix, stored_value = _PREFIXES.get(outermost, (Struct(""), lambda value: value))
    decode = _plain_decoder([_kind(schema)[1] if outermost in _PREFIXES else schema for schema in schemas])
    for encoded, payload in store.scan():
        key: Any = encoded
        doing = "be read"
        try:
            key = _decoded_key(definition, definition.key, encoded)
            held = _decoded_key(definition, definition.held_key, encoded)
            old = decode(payload[prefix.size :])
            doing = "be migrated"
            new = settled(migrate(old))
            doing = f"be written by {definition.value.name}"
            if new is not None:
                value = stored_value(new, *prefix.unpack_from(payload))
                (written,) = definition.value.serialize([value])
                (new,) = definition.value.deserialize([written])
        except Exception as error:
            raise StateError(
                f"store {definition.name!r}: the value of key {key!r:.80} cannot {doing}: "
                f"{type(error).__name__}: {error}",
                hint="nothing was changed: fix migrate=… and start again, or go back to the old program",
            ) from error
        yield held, new


def _parsed(stored: str) -> dict[str, Any]:
    try:
        schema = json.loads(stored)
    except ValueError as error:
        raise StateError(f"its stored schema is not JSON: {stored!r:.80}") from error
    if not isinstance(schema, dict) or not schema.keys() >= {"purpose", "key", "value"}:
        raise StateError(f"its stored schema has no purpose, key or value: {stored!r:.80}")
    # Earlier versions also had the aggregate's description there, which is in the value's schema.
    schema["purpose"] = re.sub(r"(^|, )aggregate .*", r"\1aggregate", schema["purpose"], flags=re.DOTALL)
    return schema


def _value_schemas(schema: dict[str, Any]) -> list[Any]:
    """The schemas with which values may have been written; the latest first."""
    return [schema["value"], *schema.get("earlier", [])]


def _kind(schema: Any) -> tuple[str, Any]:
    if isinstance(schema, dict) and len(schema) == 1:
        ((kind, inner),) = schema.items()
        return kind, inner
    return "", schema


def _unwrapped(schema: Any) -> tuple[tuple[str, ...], Any]:
    """The wrappers around the values, outermost first, and the schema inside them."""
    wrappers = []
    while (found := _kind(schema))[0] not in {"", "json", "avro"}:
        wrappers.append(found[0])
        schema = found[1]
    return tuple(wrappers), schema


def _differences(stored: Any, wanted: Any, where: str) -> Iterator[str]:
    (before, old), (now, new) = _kind(stored), _kind(wanted)
    if before == now == "json":
        yield from json_differences(old, new, where)
    elif before == now == "avro":
        from streams.serde.schemas.avro_resolution import avro_differences  # noqa: PLC0415 - only with Avro

        yield from avro_differences(old, new, where)
    elif before == now and before in ACCUMULATORS and (is_aggregate(old) or is_aggregate(new)):
        yield from aggregate_differences(old, new, where)
    elif before == now != "":
        yield from _differences(old, new, where)
    elif stored != wanted:
        yield f"{where}: was {_named(stored)}, is {_named(wanted)}"


def _named(schema: Any) -> str:
    kind, inner = _kind(schema)
    if kind in {"json", "avro"}:
        return {"json": "JSON", "avro": "Avro"}[kind]
    if kind:
        return f"{kind} {_named(inner)}"
    return schema if isinstance(schema, str) else json.dumps(schema)


def _learn(definition: StoreDefinition, stored_schema: str) -> None:
    learn = getattr(definition.value, "learn", None)
    if learn is None:
        return
    found = [_kind(_unwrapped(schema)[1]) for schema in _value_schemas(_parsed(stored_schema))]
    schemas = [schema for kind, schema in found if kind == "avro"]
    if schemas:
        learn(schemas)


def _plain_decoder(schemas: list[Any]) -> Callable[[bytes], Any]:
    kinds = [_kind(schema) for schema in schemas]
    # The schemas of a store only differ in kind if one was migrated to the other.
    match kinds[0]:
        case ("json", _):
            return msgspec.json.Decoder().decode
        case ("avro", _):
            from streams.serde import avro_decoder  # noqa: PLC0415 - as above

            return avro_decoder([schema for kind, schema in kinds if kind == "avro"])
        case (_, "Text"):
            return bytes.decode
        case _:
            return bytes


def _decoded_key(definition: StoreDefinition, serde: Serde[Any], encoded: bytes) -> Any:
    if definition.retention is None:
        (key,) = serde.deserialize([encoded])
        return key
    (start,) = _WINDOW_START.unpack_from(encoded)
    (key,) = serde.deserialize([encoded[_WINDOW_START.size :]])
    return start, key
