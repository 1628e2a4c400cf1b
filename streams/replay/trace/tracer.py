"""Traces a result, a dead letter or a store's entry back to the input records that made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.errors import ConfigurationError
from streams.lineage import HEADER, Lineage, header_of, read_text
from streams.origin import Origin, origin_of_value
from streams.replay.positions import as_time
from streams.replay.trace.node import TraceNode, record_fields
from streams.replay.trace.paths import inputs, notes_of, path_of, reads, sinks_of, way_of
from streams.runtime.dead_letter_rows import LINEAGE
from streams.topology.topic_format import topic_format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.app import App
    from streams.lineage import Contribution
    from streams.replay.trace.reader import Bytes, RecordReader
    from streams.topology.graph import Node, Topology

DEEPEST: Final = 20
"""The number of results of results that are followed, where an app reads topics that it writes."""

HOW_TO: Final = (
    "switch lineage on (App(lineage=True) or STREAMS_LINEAGE=true): results written from then on name their "
    "input records"
)


class Tracer:
    """Traces results of an app. ``topology`` is the app's, connected to its registry if it has one."""

    def __init__(self, app: App, reader: RecordReader, topology: Topology | None = None) -> None:
        self.app = app
        self.reader = reader
        self.topology = app.topology if topology is None else topology

    def record(self, topic: str, partition: int, offset: int) -> TraceNode:
        """The tree of a record: of an output topic, the dead-letter topic, an internal or an input topic.

        Raises ``ConfigurationError`` for a topic that the app neither writes nor reads, and ``TopicError`` if
        the record does not exist.
        """
        topology, app = self.topology, self.app
        own = topic == app.dead_letter_topic or sinks_of(topology, topic) or reads(topology, topic)
        if not own:
            written = ", ".join((*topology.output_topics, app.dead_letter_topic))
            raise ConfigurationError(
                f"{app.name} neither writes nor reads the topic {topic}",
                hint=f"it writes {written} and reads {', '.join(inputs(topology)) or 'no topic'}; for the "
                "entry of a store use --store and --key",
            )
        record = self.reader.required(topic, partition, offset)
        if topic == app.dead_letter_topic:
            return self._dead_letter(record)
        return self._result(record, 0)

    def dead_letter(self, partition: int, offset: int) -> TraceNode:
        """The tree of a dead letter. Raises ``TopicError`` if it does not exist."""
        return self._dead_letter(self.reader.required(self.app.dead_letter_topic, partition, offset))

    def sources(self, lineage: Lineage, depth: int = 0) -> list[TraceNode]:
        """The input records that a lineage names."""
        first, last = lineage.first, lineage.last
        if first is None or last is None:
            return []
        if first == last:
            return [self.input(first, "", depth)]
        return [self.input(first, "first: ", depth), self.input(last, "last: ", depth)]

    def input(self, place: Contribution, label: str, depth: int = 0) -> TraceNode:
        """The node of an input record, or of why it cannot be read."""
        time, topic, partition, offset = place
        title = f"{label}{topic}-{partition} offset {offset}"
        coordinates = {"topic": topic, "partition": partition, "offset": offset}
        source = reads(self.topology, topic)
        if source is None or source.connector is not None:
            connectors = [item.store for item in self.topology.sources if item.connector is not None]
            if connectors:
                return TraceNode(
                    "input",
                    f"{label}record {offset} of {topic}, as a source connector "
                    f"({', '.join(connectors)}) counts them",
                    coordinates,
                    ["source connectors read another system: the record is not in a topic"],
                )
            return TraceNode(
                "gone", title, coordinates, [f"the app does not read the topic {topic} any more"]
            )
        found = self.reader.read(topic, partition, offset)
        if isinstance(found, str):
            if time >= 0:
                title += f" ({as_time(time)})"
            return TraceNode("gone", title, coordinates, [f"the input record no longer exists: {found}"])
        if source.internal or sinks_of(self.topology, topic):
            node = self._result(found, depth + 1)
            node.title = label + node.title
            return node
        return self._input(found, label)

    def ways_to(self, node: Node) -> list[TraceNode]:
        """What the topology knows of a node's records."""
        return path_of(self.topology, node)

    def describe_lineage(self, lineage: Lineage) -> str:
        """The number of records, in words."""
        if not lineage.complete:
            if not lineage.records:
                return "made of records from before lineage was on, which are not known"
            return f"made of {lineage.records:,} known records, and others from before lineage was on"
        return "made of 1 record" if lineage.records == 1 else f"made of {lineage.records:,} records"

    def through(self, nodes: Sequence[Node], lineage: Lineage, depth: int = 0) -> TraceNode:
        """The node that says how many records made something, and on which ways they came."""
        found = TraceNode("path", self.describe_lineage(lineage))
        first, last = lineage.first, lineage.last
        found.record["lineage"] = {
            "first": None if first is None else list(first[1:]),
            "last": None if last is None else list(last[1:]),
            "records": lineage.records,
            "complete": lineage.complete,
        }
        ends = {place[1] for place in (first, last) if place is not None}
        for node in nodes:
            ways = way_of(self.topology, node)
            fitting = [way for way in ways if any(f"from {topic} " in f"{way} " for topic in ends)]
            found.remarks += notes_of(self.topology, node)
            found.record.setdefault("ways", []).extend(fitting or ways)
        if found.record.get("ways"):
            found.title += ": " + "; ".join(found.record["ways"])
        found.children = self.sources(lineage, depth)
        return found

    def _input(self, record: Bytes, label: str = "") -> TraceNode:
        node = TraceNode("input", label + _titled(record), self._fields(record))
        made = header_of(record.headers or [])
        if made is not None:
            if made.application == self.app.name:
                node.remarks.append("it has a lineage header of this app: the app reads what it has written")
            else:
                node.remarks.append(f"it is a result of the app {made.application}: trace it with that app")
        return node

    def _result(self, record: Bytes, depth: int) -> TraceNode:
        topology = self.topology
        sinks = sinks_of(topology, record.topic)
        source = reads(topology, record.topic)
        if not sinks and not (source is not None and source.internal):
            node = self._input(record)
            node.remarks.append("it is an input record of the app: nothing made it")
            return node
        node = TraceNode("result", _titled(record), self._fields(record))
        lineage = self._lineage(record, node)
        if lineage is None:
            node.remarks.append(self._missing(record))
            for sink in sinks:
                node.children += self.ways_to(sink)
        elif depth >= DEEPEST:
            node.remarks.append(f"not followed further: {DEEPEST} results of results")
        else:
            node.children.append(self.through(sinks, lineage, depth))
        return node

    def _lineage(self, record: Bytes, node: TraceNode) -> Lineage | None:
        """The lineage that a record carries: in the header, or before the value in an internal topic."""
        found = header_of(record.headers or [])
        if found is not None and found.application == self.app.name:
            return found.lineage
        if found is not None:
            node.remarks.append(
                f"its lineage header is of the app {found.application}, which made what this app passed on"
            )
        if record.topic in self.topology.repartitions:
            origin = origin_of_value(record.value)
            if origin is not None and origin.offset >= 0 and not origin.is_result:
                place = (record.timestamp, origin.topic, origin.partition, origin.offset)
                return Lineage(place, place, 1)
        return None

    def _missing(self, record: Bytes) -> str:
        if any(name == HEADER and read_text(value) is None for name, value in record.headers or ()):
            return "its lineage header cannot be read; this is what the topology knows"
        return f"it names no input records; this is what the topology knows. To know more, {HOW_TO}"

    def _dead_letter(self, record: Bytes) -> TraceNode:
        headers = dict(record.headers or ())

        def header(name: str) -> str:
            return (headers.get(f"__streams.errors.{name}") or b"").decode(errors="replace")

        step, exception, message = header("step"), header("exception"), header("message")
        node = TraceNode("dead_letter", f"{_titled(record)}: step {step!r} failed", self._fields(record))
        node.record["step"], node.record["error"] = step, f"{exception}: {message}"
        node.title += f": {exception}: {message}"
        node.record.pop("headers", None)
        if header("application") != self.app.name:
            node.remarks.append(f"it was written by the app {header('application') or '(unknown)'}")
        for name in ("via", "payload", "left_out"):
            if text := header(name):
                node.record[name] = text
                node.remarks.append(f"{name.replace('_', ' ')}: {text}")
        made = read_text(headers.get(LINEAGE))
        topic, partition, offset = header("topic"), header("partition"), header("offset")
        failed = next((item for item in self.topology.nodes if item.name == step), None)
        if made is not None:
            node.children.append(self.through([] if failed is None else [failed], made.lineage))
        elif topic and partition.isdigit() and offset.isdigit():
            origin = Origin(topic, int(partition), int(offset))
            time = header("timestamp")
            place = (int(time) if time.isdigit() else -1, *origin[:3])
            node.children.append(self.input(place, ""))
        else:
            node.remarks.append("it names no input record: a timer made it, or it is not a dead letter")
        return node

    def _fields(self, record: Bytes) -> dict[str, object]:
        topology = self.topology
        if record.topic == self.app.dead_letter_topic:
            headers = dict(record.headers or ())
            origin = (headers.get("__streams.errors.topic") or b"").decode(errors="replace")
            form = topic_format(topology, self.app.name, origin)
            if form.relayed and origin_of_value(record.value) is None:
                form = form._replace(relayed=False)
            return record_fields(record, form)
        return record_fields(record, topic_format(topology, self.app.name, record.topic))


def _titled(record: Bytes) -> str:
    when = f" ({as_time(record.timestamp)})" if record.timestamp >= 0 else ""
    return f"{record.topic}-{record.partition} offset {record.offset}{when}"
