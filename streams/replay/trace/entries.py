"""Traces the entries of stores, as of the last commit: a store's changelog says what it contains."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.aggregates.traced import lineage_of
from streams.broker import BEGINNING
from streams.broker.reading import read_from
from streams.errors import ConfigurationError, QueryError, UnknownStore, error_text
from streams.lineage import UNKNOWN, combined
from streams.operators.sliding import Panes
from streams.partitioning import partition_for
from streams.records import Record, TopicPartition
from streams.replay.positions import as_time
from streams.replay.trace.node import TraceNode, record_fields
from streams.replay.trace.tracer import HOW_TO
from streams.serde import Bytes, Json, Text
from streams.state.changelog import changelog_topic, entry_key
from streams.state.store import START
from streams.topology.graph import Step, closest
from streams.topology.topic_format import topic_format

if TYPE_CHECKING:
    from streams.broker import Broker
    from streams.lineage import Lineage
    from streams.replay.trace.reader import Bytes as RawRecord
    from streams.replay.trace.tracer import Tracer
    from streams.state.definition import StoreDefinition

MOST_WINDOWS: Final = 50
"""The number of a key's windows that are shown, the newest."""


def trace_entry(
    tracer: Tracer, broker: Broker, store: str, key: str, window: int | None, *, in_base64: bool = False
) -> TraceNode:
    """The tree of a store's entry, or of all windows of the key.

    ``key`` is text as in ``streams query``, ``window`` the start of a window in milliseconds since the epoch.
    Raises ``UnknownStore``; ``QueryError`` for a key of another type, and if there is no such entry.
    """
    step, definition = _find(tracer, store)
    payload = _encoded(definition, key, in_base64=in_base64)
    topic = changelog_topic(tracer.app.name, definition)
    records = _records(tracer, broker, topic, definition, payload)
    if not records and definition.kept is not None:
        return trace_entry(tracer, broker, definition.kept.store, key, window, in_base64=in_base64)
    root = TraceNode("entry", f"store {store!r}, key {key}", {"store": store, "key": key})
    for start, record in records:
        root.children += _entry(tracer, step, definition, start, record, window)
    if not root.children:
        raise QueryError(
            f"store {store!r} has no entry of the key {key!r}"
            + ("" if window is None else f" and the window that starts at {window} ({as_time(window)})"),
            hint="what was not committed yet is not in its changelog, and what has expired is no longer",
        )
    if len(root.children) == 1 and not definition.lists_windows:
        only = root.children[0]
        only.title = f"{root.title}{only.title}"
        only.record = root.record | only.record
        return only
    for child in root.children:
        child.title = child.title.removeprefix(", ")
    left_out = len(root.children) - MOST_WINDOWS
    if left_out > 0:
        root.children = root.children[left_out:]
        root.remarks.append(f"{left_out:,} older windows are left out: choose one with --window")
    return root


def _find(tracer: Tracer, name: str) -> tuple[Step, StoreDefinition]:
    known: dict[str, tuple[Step, StoreDefinition]] = {}
    for node in tracer.topology.nodes:
        if isinstance(node, Step):
            known |= {store.name: (node, store) for store in node.owns}
    if name in known:
        return known[name]
    if any(table.store.name == name for table in tracer.topology.global_tables):
        raise UnknownStore(
            f"{name!r} is a global table", hint="its entries are the last records of its topic's keys"
        )
    raise UnknownStore(f"{tracer.app.name} has no store {name!r}", hint=closest(name, known))


def _encoded(definition: StoreDefinition, text: str, *, in_base64: bool) -> bytes:
    serde = definition.key
    try:
        if in_base64:
            return base64.b64decode(text, validate=True)
        if isinstance(serde, Bytes):
            return text.encode()
        key: Any = text
        if not isinstance(serde, Text):
            read = (
                serde.deserialize([text.encode()]) if isinstance(serde, Json) else [msgspec.json.decode(text)]
            )
            key = next(iter(read))
        return next(iter(serde.serialize([key])))
    except (ValueError, TypeError, msgspec.MsgspecError, binascii.Error) as error:
        raise QueryError(
            f"store {definition.name!r} has keys of {serde.name}, not {text!r}: {error_text(error)}",
            hint="write keys that are not text as JSON, or their bytes with --base64",
        ) from error


def _records(
    tracer: Tracer, broker: Broker, topic: str, definition: StoreDefinition, key: bytes
) -> list[tuple[int | None, RawRecord]]:
    """The last changelog records of the key, with their windows' starts, in the order of these."""
    if not tracer.reader.exists(topic):
        raise ConfigurationError(
            f"the changelog {topic} does not exist", hint="has the app run on this cluster?"
        )
    count = tracer.reader.partitions(topic)
    likely = partition_for(key, count)
    for number in (likely, *(other for other in range(count) if other != likely)):
        found = _in_partition(broker, TopicPartition(topic, number), definition, key)
        if found:
            return sorted(found.items(), key=lambda item: -1 if item[0] is None else item[0])
    return []


def _in_partition(
    broker: Broker, place: TopicPartition, definition: StoreDefinition, key: bytes
) -> dict[int | None, RawRecord]:
    found: dict[int | None, RawRecord] = {}
    for fetched in read_from(broker, {place: BEGINNING}):
        headers = fetched.headers() or [None] * len(fetched)
        keys = fetched.keys()
        for row, (raw, own) in enumerate(zip(keys, headers, strict=True)):
            if raw is None or not raw.endswith(key):
                continue
            entry = raw if definition.source_topic is not None else entry_key(raw, own)
            start = None
            if definition.retention is not None and entry is not None:
                start, entry = START.unpack_from(entry)[0], entry[START.size :]
            if entry != key:
                continue
            found.pop(start, None)
            if fetched.values([row])[0] is not None:
                found[start] = Record(
                    raw,
                    fetched.values([row])[0],
                    fetched.timestamps([row])[0],
                    own,
                    place.topic,
                    place.partition,
                    fetched.offsets([row])[0],
                )
    return found


def _entry(
    tracer: Tracer,
    step: Step,
    definition: StoreDefinition,
    start: int | None,
    record: RawRecord,
    window: int | None,
) -> list[TraceNode]:
    """The nodes of a changelog record: one, or one for each window of the key."""
    form = topic_format(tracer.topology, tracer.app.name, record.topic)
    fields = record_fields(record, form)
    place = {
        "changelog": f"{record.topic}-{record.partition} offset {record.offset}",
        "value": fields.get("value"),
    } | ({"errors": fields["errors"]} if "errors" in fields else {})
    if definition.source_topic is not None:
        node = TraceNode("entry", f" of the table {definition.source_topic}", place)
        source = (record.timestamp, record.topic, record.partition, record.offset)
        node.children.append(tracer.input(source, ""))
        return [node]
    try:
        # Stored lineage is read whatever the setting of the program that is traced.
        traced = getattr(definition.value, "traced", None)
        serde = definition.value if traced is None else traced()
        value = next(iter(serde.deserialize([record.value or b""])))
    except Exception as error:  # noqa: BLE001 - of the serde, for state of another version of the program
        return [TraceNode("entry", "", place, [f"the entry cannot be read: {error_text(error)}"])]
    parts = _windows(definition, start, value, fields.get("value"))
    nodes = []
    for begin, end, shown, lineage in parts:
        if window is not None and begin != window:
            continue
        title = (
            ""
            if begin is None
            else f", window from {as_time(begin)}" + ("" if end is None else f" to {as_time(end)}")
        )
        content = place | {"value": shown} | ({} if begin is None else {"start": begin, "end": end})
        node = TraceNode("entry", title, content)
        if lineage is None or (lineage == UNKNOWN and not tracer.app.settings.lineage):
            node.remarks.append(_unknown(step, definition))
            node.children += tracer.ways_to(step)
        else:
            node.children.append(tracer.through([step], lineage))
        nodes.append(node)
    return nodes


_Part = tuple["int | None", "int | None", Any, "Lineage | None"]


def _windows(definition: StoreDefinition, start: int | None, value: Any, shown: Any) -> list[_Part]:
    """Start, end, content and lineage of each window in an entry; one without a window for others."""
    if start is not None and definition.window_end is not None:
        return [(start, definition.window_end(start, value), shown, lineage_of(value))]
    if isinstance(value, Panes):
        found: list[_Part] = []
        for item in shown or ():
            made_of = [
                lineage
                for time, accumulator in value.panes
                if item["start"] <= time <= item["end"] and (lineage := lineage_of(accumulator)) is not None
            ]
            found.append((item["start"], item["end"], item["value"], combined(made_of) if made_of else None))
        return found
    if definition.purpose.endswith("aggregate") and isinstance(shown, list) and isinstance(value, tuple):
        # Sessions, and closed windows: start, end and accumulator.
        return [
            (begin, end, item["value"], lineage_of(accumulator))
            for (begin, end, accumulator), item in zip(value, shown, strict=True)
        ]
    accumulator = value[0] if isinstance(value, tuple) and value else value
    return [(start, None, shown, lineage_of(accumulator))]


def _unknown(step: Step, definition: StoreDefinition) -> str:
    if definition.purpose.endswith("aggregate"):
        return f"it names no input records; this is what the topology knows. To know more, {HOW_TO}"
    return (
        f"step {step.name!r} ({step.operator.kind}) does not record which input records made its entries; "
        "this is what the topology knows"
    )
