"""The topology of a program: its sources, steps and sinks, and their connections, as frozen data.

Nothing here opens a connection or runs user code: validation, drawing, tests and tasks all read the same
graph.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias, cast, get_args

import msgspec

from streams.errors import ConfigurationError, TopologyError
from streams.operators.deliver import Deliver
from streams.operators.sink import Encode
from streams.operators.source import Decode
from streams.policy import ErrorPolicy, dead_letter
from streams.topology.topic_names import ADVICE, topic_name_fault
from streams.topology.topic_pattern import TopicPattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streams.connectors.sink import SinkConnector
    from streams.connectors.source import SourceConnector
    from streams.operators import Operator
    from streams.operators.sink_columns import SinkColumns
    from streams.serde import Serde
    from streams.state.definition import StoreDefinition

Topic: TypeAlias = "str | re.Pattern[str]"
"""A topic's name, or a pattern that must match the full name."""

SourceTopic: TypeAlias = "str | TopicPattern"
"""A source's topic: a name, or a pattern with the topics that it excludes."""

_STORE_NAME = re.compile(r"[A-Za-z0-9._-]{1,150}")

DescriptionFormat: TypeAlias = Literal["text", "mermaid", "json"]


@dataclass(frozen=True, slots=True)
class OwnTopic:
    """A topic that the app creates, with these settings, unless it exists."""

    partitions: int
    settings: tuple[tuple[str, str], ...] = ()
    """Settings of the topic by their names in Kafka."""
    purged: bool = False
    """Whether its records are deleted once they are committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceNode:
    """Reads topics. ``timestamp`` returns the event time (milliseconds since the epoch) of a value."""

    role: ClassVar[str] = "source"

    name: str
    topics: tuple[SourceTopic, ...]
    key: Serde[Any]
    value: Serde[Any]
    timestamp: Callable[[Any], int] | None = None
    policy: ErrorPolicy = dead_letter
    table: bool = False
    """Whether it reads changes of a table: at equal event times they are processed before other records."""

    tombstones: bool = False
    """Whether steps see null values, as ``None``; without it, a stream's null value meets the policy."""

    needs_key: bool = False
    needs_value: bool = False
    """Whether the app writes only records with it to this topic: others get the policy."""
    internal: bool = False
    """Whether it reads an internal topic that another subtopology writes."""

    connector: SourceConnector[Any, Any] | None = None
    """What its records come from, if not from a topic. Its topic is an empty one, whose partitions are the
    tasks that the group distributes.
    """
    store: str = ""
    """Names what the connector keeps."""
    own: OwnTopic | None = None
    """How its topic is created, if it is one that the app creates: for a queue."""

    parents: tuple[str, ...] = ()
    place: str = field(default="", compare=False)
    """Where the program declares it, as ``file:line``."""

    @property
    def positions(self) -> str:
        """The store that has the connector's position."""
        return f"{self.store}-positions"

    @property
    def operator(self) -> Decode:
        """What it does with what was fetched."""
        return Decode(
            key=self.key,
            value=self.value,
            timestamp=self.timestamp,
            tombstones=self.tombstones,
            needs_key=self.needs_key,
            needs_value=self.needs_value,
            internal=self.internal,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Transforms the records of its parents.

    ``owns`` are its own stores; ``uses`` names stores of other steps that it reads or changes too, and which
    therefore run in the same task.
    """

    role: ClassVar[str] = "step"

    name: str
    parents: tuple[str, ...]
    operator: Operator
    policy: ErrorPolicy = dead_letter
    owns: tuple[StoreDefinition, ...] = ()
    uses: tuple[str, ...] = ()
    place: str = field(default="", compare=False)
    """Where the program declares it, as ``file:line``."""


@dataclass(frozen=True, slots=True)
class Repartition:
    """Makes a sink's topic an internal one, between two subtopologies, with ``partitions`` partitions.

    Without a number it has as many as the topics with which it is joined, else as the largest that feeds it.
    Its records are deleted after they are processed and committed; with ``kept``, not before a week later, so
    that a target that was restored from a backup can continue from its older position.
    """

    partitions: int | None = None
    kept: bool = False
    compacted: bool = False
    """Whether the last record of each key stays, so that a table's target can be filled again."""


@dataclass(frozen=True, slots=True)
class TableTopics:
    """Topics of tables, created as compacted ones with ``partitions`` partitions."""

    names: tuple[str, ...]
    partitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkNode:
    """Writes to one topic, or to the topic that a function chooses for each value.

    ``closed`` are the app's patterns: choosing a topic that one of them matches fails, as the app would read
    its own output.
    """

    role: ClassVar[str] = "sink"

    name: str
    parents: tuple[str, ...]
    topic: str | Callable[[Any], str]
    key: Serde[Any]
    value: Serde[Any]
    policy: ErrorPolicy = dead_letter
    repartition: Repartition | None = None
    place: str = field(default="", compare=False)
    """Where the program declares it, as ``file:line``."""
    closed: tuple[TopicPattern, ...] = ()
    columns: SinkColumns | None = None
    """Partitions, headers and event times to write, where the program chooses them."""
    tables: TableTopics | None = None
    """The topics that the function chooses, where they are known: those of captured tables."""
    lineage: str | None = None
    """The app's name, if results name the input records that made them."""
    own: OwnTopic | None = None
    """How its topic is created, if it is one that the app always creates."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that it writes to, as far as they are known in advance."""
        if isinstance(self.topic, str):
            return (self.topic,)
        return () if self.tables is None else self.tables.names

    @property
    def operator(self) -> Encode:
        """What it does with its batches."""
        return Encode(
            topic=self.topic,
            key=self.key,
            value=self.value,
            internal=self.repartition is not None,
            check_name=self.check_name,
            columns=self.columns,
            lineage=self.lineage,
        )

    def check_name(self, topic: str) -> None:
        """Check a name that its function gave. Raises ``ValueError`` for one that it must not write to."""
        fault = topic_name_fault(topic)
        if fault:
            raise ValueError(f"{topic!r} cannot name a topic: {fault}")
        for pattern in self.closed:
            if pattern.fullmatch(topic):
                raise ValueError(
                    f"the app would read its own output: topic {topic!r} is matched by its pattern "
                    f"/{pattern.pattern}/; narrow the pattern or write to another topic"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkConnectorNode:
    """Writes to another system, which keeps the positions of the input partitions itself.

    ``key`` and ``value`` write the records to an internal topic, where one has to be put before it; they are
    ``None`` where that is not known.
    """

    role: ClassVar[str] = "sink"

    name: str
    parents: tuple[str, ...]
    connector: SinkConnector
    store: str
    """Names its positions in the other system."""
    key: Serde[Any]
    value: Serde[Any] | None
    as_read: bool = False
    """Whether values are unchanged since ``value`` deserialized them."""
    table: bool = False
    """Whether the rows are the changes of a table."""
    policy: ErrorPolicy = dead_letter
    place: str = field(default="", compare=False)
    """Where the program declares it, as ``file:line``."""

    @property
    def operator(self) -> Deliver:
        """What it does with its batches."""
        return Deliver(self.connector.kind)


Node: TypeAlias = "SourceNode | Step | SinkNode | SinkConnectorNode"


@dataclass(frozen=True, slots=True)
class Subtopology:
    """Connected nodes: one task runs them for one partition number."""

    number: int
    nodes: tuple[Node, ...]

    @property
    def sources(self) -> tuple[SourceNode, ...]:
        return tuple(node for node in self.nodes if isinstance(node, SourceNode))

    @property
    def sink_connectors(self) -> tuple[SinkConnectorNode, ...]:
        return tuple(node for node in self.nodes if isinstance(node, SinkConnectorNode))

    @property
    def source_connector(self) -> SourceNode | None:
        """Its source that is a connector, if it has one."""
        return next((source for source in self.sources if source.connector is not None), None)

    @property
    def stores(self) -> tuple[StoreDefinition, ...]:
        """The stores of its tasks."""
        return tuple(store for node in self.nodes if isinstance(node, Step) for store in node.owns)

    def reads(self, topic: str) -> bool:
        """Whether one of its sources reads the topic."""
        return any(matches(wanted, topic) for source in self.sources for wanted in source.topics)

    def rank(self, topic: str) -> int:
        """The rank of a topic's records at equal event times: tables before streams, then by declaration."""
        ordered = sorted(self.sources, key=lambda source: not source.table)
        return next(
            rank
            for rank, source in enumerate(ordered)
            if any(matches(wanted, topic) for wanted in source.topics)
        )

    def children(self, name: str) -> tuple[Node, ...]:
        """The nodes that follow the named one, in the order they were declared."""
        return tuple(node for node in self.nodes if name in node.parents)

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def ancestors(self, name: str, stop: Callable[[Node], bool] = lambda _: False) -> tuple[Node, ...]:
        """The nodes upstream of the named one, nearest first; not beyond those for which ``stop`` is true."""
        found: dict[str, Node] = {}
        waiting = list(self.node(name).parents)
        while waiting:
            node = self.node(waiting.pop(0))
            if node.name not in found:
                found[node.name] = node
                waiting.extend(() if stop(node) else node.parents)
        return tuple(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalSource:
    """A topic that every worker reads completely, into a store for lookups by all its tasks."""

    topic: str
    key: Serde[Any]
    value: Serde[Any]
    store: StoreDefinition
    own: OwnTopic | None = None
    """How the app creates it, if it is the app's own."""


class Copartition(NamedTuple):
    """Topics that a step reads together, so that equal keys must be in equal partition numbers."""

    step: str
    topics: tuple[SourceTopic, ...]


@dataclass(frozen=True)
class Topology:
    """The complete graph, parents before children. Raises ``TopologyError`` if it is invalid."""

    nodes: tuple[Node, ...]
    global_tables: tuple[GlobalSource, ...] = ()

    def __post_init__(self) -> None:
        self._validate()

    @property
    def sources(self) -> tuple[SourceNode, ...]:
        return tuple(node for node in self.nodes if isinstance(node, SourceNode))

    @property
    def sinks(self) -> tuple[SinkNode, ...]:
        return tuple(node for node in self.nodes if isinstance(node, SinkNode))

    @property
    def sink_connectors(self) -> tuple[SinkConnectorNode, ...]:
        return tuple(node for node in self.nodes if isinstance(node, SinkConnectorNode))

    def sink_connector(self, name: str) -> SinkConnectorNode:
        """The sink connector of that name."""
        return next(node for node in self.sink_connectors if node.name == name)

    @property
    def source_topics(self) -> dict[str, SourceNode]:
        """The internal topics whose partitions are the tasks of source connectors."""
        return {
            topic: source
            for source in self.sources
            if source.connector is not None
            for topic in source.topics
            if isinstance(topic, str)
        }

    @property
    def own_topics(self) -> dict[str, OwnTopic]:
        """The topics that the app creates itself, besides internal ones: those of its queue."""
        nodes: tuple[SourceNode | SinkNode, ...] = (*self.sources, *self.sinks)
        return {
            topic: node.own
            for node in nodes
            if node.own is not None
            for topic in node.topics
            if isinstance(topic, str)
        } | {table.topic: table.own for table in self.global_tables if table.own is not None}

    @property
    def input_topics(self) -> tuple[SourceTopic, ...]:
        """The topics and patterns to subscribe to."""
        return tuple(topic for source in self.sources for topic in source.topics)

    @property
    def patterns(self) -> tuple[TopicPattern, ...]:
        """The patterns among the input topics."""
        return tuple(topic for topic in self.input_topics if isinstance(topic, TopicPattern))

    @property
    def output_topics(self) -> tuple[str, ...]:
        """The output topics known in advance."""
        return tuple(dict.fromkeys(topic for sink in self.sinks for topic in sink.topics))

    @property
    def writes_dead_letters(self) -> bool:
        """Whether any step's policy may send a record to the dead-letter topic."""
        return any(node.policy.action == "dead_letter" for node in self.nodes)

    @property
    def repartitions(self) -> dict[str, Repartition]:
        """The internal topics between subtopologies."""
        return {
            sink.topic: sink.repartition
            for sink in self.sinks
            if sink.repartition is not None and isinstance(sink.topic, str)
        }

    @cached_property
    def copartitions(self) -> tuple[Copartition, ...]:
        """The source topics that must have the same number of partitions, for each step that needs it."""
        found = []
        for subtopology in self.subtopologies:
            owner = {
                store.name: node
                for node in subtopology.nodes
                if isinstance(node, Step)
                for store in node.owns
            }
            for node in subtopology.nodes:
                if not isinstance(node, Step) or not (node.owns or node.uses):
                    continue
                feeding = {node.name, *(owner[name].name for name in node.uses)}
                topics = dict.fromkeys(
                    topic
                    for name in sorted(feeding)
                    for source in subtopology.ancestors(name)
                    if isinstance(source, SourceNode)
                    for topic in source.topics
                )
                found.append(Copartition(node.name, tuple(topics)))
        return tuple(found)

    @cached_property
    def subtopologies(self) -> tuple[Subtopology, ...]:
        """The connected parts, numbered from 0 in the order of their first node."""
        part: dict[str, int] = {}
        owners = {
            store.name: node.name for node in self.nodes if isinstance(node, Step) for store in node.owns
        }
        for number, node in enumerate(self.nodes):
            part[node.name] = number
            shared = [owners[name] for name in node.uses] if isinstance(node, Step) else []
            for neighbour in (*node.parents, *shared):
                old, new = part[node.name], part[neighbour]
                if old != new:
                    part = {name: new if group == old else group for name, group in part.items()}
        numbers = {group: index for index, group in enumerate(dict.fromkeys(part.values()))}
        return tuple(
            Subtopology(index, tuple(node for node in self.nodes if part[node.name] == group))
            for group, index in numbers.items()
        )

    def source_of(self, topic: str) -> tuple[Subtopology, SourceNode]:
        """The source that reads a topic, and its subtopology. Raises ``TopologyError`` if not exactly one."""
        found = [
            (subtopology, source)
            for subtopology in self.subtopologies
            for source in subtopology.sources
            if any(matches(wanted, topic) for wanted in source.topics)
        ]
        if not found:
            known = [wanted if isinstance(wanted, str) else wanted.pattern for wanted in self.input_topics]
            own = any(pattern.matches_own(topic) for pattern in self.patterns)
            raise TopologyError(
                f"the app does not read topic {topic!r}: it matches no source, but must match exactly one",
                hint="it is one of the app's own topics, which patterns exclude: to read it, give its name"
                if own
                else closest(topic, known),
            )
        if len(found) != 1:
            names = ", ".join(source.name for _, source in found)
            raise TopologyError(
                f"topic {topic!r} must belong to exactly one source, but it matches: {names}",
                hint="narrow the patterns, or read the topic once and use that stream twice",
            )
        return found[0]

    def describe(self, form: DescriptionFormat = "text") -> str:
        """The graph for people (``text``), for a drawing (``mermaid``), or for programs (``json``)."""
        return {"text": _as_text, "mermaid": _as_mermaid, "json": _as_json}[form](self)

    def _validate(self) -> None:
        if not self.nodes:
            raise TopologyError("the app has no stream", hint="start with app.stream(topic)")
        named: dict[str, Node] = {}
        for node in self.nodes:
            if node.name in named:
                raise two_steps(node.name, named[node.name].place, node.place)
            named[node.name] = node
        known: set[str] = set()
        for node in self.nodes:
            for parent in node.parents:
                if parent not in known:
                    raise TopologyError(f"step {node.name!r} follows {parent!r}, which is not before it")
            known.add(node.name)
        followed = {parent for node in self.nodes for parent in node.parents}
        for node in self.nodes:
            # A store may exist only to be queried.
            terminal = node.operator.terminal or (isinstance(node, Step) and bool(node.owns))
            if node.name not in followed and not terminal:
                raise TopologyError(
                    f"{node.name!r} is a dead end{_at(node.place)}: its records are not used",
                    hint="end it with .to(topic), .peek(function) or .process(…), or remove it",
                )
        self._validate_stores()
        self._validate_topics()

    def _validate_topics(self) -> None:
        for node in self.nodes:
            if isinstance(node, Step | SinkConnectorNode):
                continue
            for topic in node.topics if isinstance(node, SourceNode) else (node.topic,):
                _check_topic_name(topic, f"step {node.name!r}{_at(node.place)}")
        for table in self.global_tables:
            _check_topic_name(table.topic, f"global table {table.store.name!r}")
        readers: dict[str, list[SourceNode]] = {}
        for source in self.sources:
            for topic in source.topics:
                if isinstance(topic, str):
                    readers.setdefault(topic, []).append(source)
        for topic, found in readers.items():
            if len(found) > 1:
                places = [source.place for source in found if source.place]
                if found[0].internal:
                    raise TopologyError(
                        f"{len(found)} steps send records through one repartition topic, {topic!r}"
                        + (f", declared at {' and '.join(places)}" if places else ""),
                        hint="give one of them another store=, or call repartition(…) once and use that "
                        "stream twice",
                    )
                raise TopologyError(
                    f"topic {topic!r} is read by {len(found)} streams"
                    + (f", declared at {' and '.join(places)}" if places else ""),
                    hint="call app.stream for it once and use that stream twice",
                )

    def _validate_stores(self) -> None:
        known: dict[str, Step | None] = {}
        for node in self.nodes:
            if not isinstance(node, Step):
                continue
            for store in node.owns:
                name: object = store.name
                if not isinstance(name, str) or not _STORE_NAME.fullmatch(name):
                    raise TopologyError(
                        f"{store.name!r} cannot name a store: it becomes part of a topic's name",
                        hint="use letters, digits, '.', '_' and '-'",
                    )
                first = known.get(store.name)
                if first is not None:
                    raise TopologyError(
                        f"two stores are named {store.name!r}{_both(first.place, node.place)}",
                        hint="give one of them another name: names identify stores and their topics",
                    )
                known[store.name] = node
            for name in node.uses:
                if name not in known:
                    raise TopologyError(f"step {node.name!r} uses the store {name!r}, which is not before it")
        for table in self.global_tables:
            name = table.store.name
            if name in known or not _STORE_NAME.fullmatch(name):
                raise TopologyError(
                    f"{name!r} cannot name a global table: a store has this name, or it is invalid",
                    hint="give it a store=, of letters, digits, '.', '_' and '-'",
                )
            known[name] = None


def closest(name: str, known: Iterable[str]) -> str:
    """Advice for an unknown name: the closest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(map(repr, known)) or 'none'}"


def two_steps(name: str, first: str, second: str) -> TopologyError:
    """The error for two steps of one name, declared at those places (``file:line``)."""
    return TopologyError(
        f"two steps are named {name!r}{_both(first, second)}", hint="give one of them another name="
    )


def _both(first: str, second: str) -> str:
    return f": the first at {first}, another at {second}" if first and second else ""


def _at(place: str) -> str:
    return f" at {place}" if place else ""


def _check_topic_name(topic: object, whose: str) -> None:
    if isinstance(topic, str):
        fault = topic_name_fault(topic)
        if fault:
            raise TopologyError(f"{whose}: {topic!r} cannot name a topic: {fault}", hint=ADVICE)


def matches(wanted: SourceTopic, topic: str) -> bool:
    """Whether a topic is the wanted one, or is read by the wanted pattern."""
    return wanted == topic if isinstance(wanted, str) else wanted.fullmatch(topic)


def parse_format(text: str) -> DescriptionFormat:
    """A description format by its name. Raises ``ConfigurationError``."""
    for form in get_args(DescriptionFormat):
        if text == form:
            return cast("DescriptionFormat", form)
    raise ConfigurationError(f"unknown format {text!r}: {', '.join(get_args(DescriptionFormat))}")


def _topic_text(topic: SourceTopic) -> str:
    return topic if isinstance(topic, str) else f"/{topic.pattern}/"


def _sink_text(sink: SinkNode) -> str:
    return sink.topic if isinstance(sink.topic, str) else f"topic by {function_name(sink.topic)}"


def function_name(code: object) -> str:
    """A readable name of a function, class or callable object."""
    name = getattr(code, "__name__", None) or type(code).__name__
    return "lambda" if name == "<lambda>" else str(name)


def written_at(code: object) -> str:
    """What people call a function or class, and where it is written, as far as that is known."""
    source = getattr(code, "__code__", None)
    name = function_name(code)
    return f"{name}, {source.co_filename}:{source.co_firstlineno}" if source is not None else name


def _detail(node: Node) -> str:
    if isinstance(node, SinkConnectorNode):
        return f"{node.connector.kind} connector"
    if isinstance(node, SourceNode) and node.connector is not None:
        return f"{node.connector.kind} connector (key {node.key.name}, value {node.value.name})"
    if isinstance(node, SourceNode):
        return f"{', '.join(map(_topic_text, node.topics))} (key {node.key.name}, value {node.value.name})"
    if isinstance(node, SinkNode):
        return f"{_sink_text(node)} (key {node.key.name}, value {node.value.name})"
    code = node.operator.code
    return node.operator.kind + (f" {function_name(code)}" if code is not None else "")


def _as_text(topology: Topology) -> str:
    lines: list[str] = []
    for subtopology in topology.subtopologies:
        lines.append(f"Subtopology {subtopology.number}")
        for node in subtopology.nodes:
            children = ", ".join(child.name for child in subtopology.children(node.name))
            lines.append(f"  {node.role:<6} {node.name}: {_detail(node)}")
            if children:
                lines.append(f"           --> {children}")
            if isinstance(node, Step) and (node.owns or node.uses):
                lines.append(f"           stores: {', '.join([s.name for s in node.owns] + list(node.uses))}")
            lines.append(f"           on error: {node.policy}")
    lines += [
        f"Global table {table.store.name}: {table.topic} (key {table.key.name}, value {table.value.name})"
        for table in topology.global_tables
    ]
    return "\n".join(lines)


def _as_mermaid(topology: Topology) -> str:
    lines = ["flowchart TD"]
    numbers = {node.name: f"n{index}" for index, node in enumerate(topology.nodes)}
    for subtopology in topology.subtopologies:
        lines.append(f"  subgraph s{subtopology.number}[Subtopology {subtopology.number}]")
        for node in subtopology.nodes:
            text = f"{node.name}<br/>{_detail(node)}".replace('"', "#quot;")
            opening, closing = ("[", "]") if isinstance(node, Step) else ("([", "])")
            lines.append(f'    {numbers[node.name]}{opening}"{text}"{closing}')
        lines.append("  end")
    lines += [
        f"  {numbers[parent]} --> {numbers[node.name]}" for node in topology.nodes for parent in node.parents
    ]
    return "\n".join(lines)


def _as_json(topology: Topology) -> str:
    description = {
        "subtopologies": [
            {"number": subtopology.number, "nodes": [_node_json(node) for node in subtopology.nodes]}
            for subtopology in topology.subtopologies
        ]
    }
    if topology.global_tables:
        description["global_tables"] = [
            {
                "name": table.store.name,
                "topic": table.topic,
                "key": table.key.name,
                "value": table.value.name,
            }
            for table in topology.global_tables
        ]
    return msgspec.json.format(msgspec.json.encode(description), indent=2).decode()


def _node_json(node: Node) -> dict[str, Any]:
    common: dict[str, Any] = {
        "name": node.name,
        "role": node.role,
        "parents": list(node.parents),
        "on_error": {"action": node.policy.action, "retries": node.policy.retries},
    }
    if isinstance(node, Step):
        code = node.operator.code
        common |= {"operator": node.operator.kind, "code": None if code is None else function_name(code)}
        stores = [store.name for store in node.owns] + list(node.uses)
        return common | ({"stores": stores} if stores else {})
    if isinstance(node, SinkConnectorNode):
        return common | {"connector": node.connector.kind}
    if isinstance(node, SourceNode) and node.connector is not None:
        common["connector"] = node.connector.kind
    common |= {"key": node.key.name, "value": node.value.name}
    if isinstance(node, SourceNode):
        return common | {"topics": list(map(_topic_text, node.topics))}
    return common | {"topic": node.topic if isinstance(node.topic, str) else None}


def unique_name(wanted: str, taken: Iterable[str]) -> str:
    """``wanted``, with the first free number from 2 on appended if it is taken."""
    names = set(taken)
    candidates = (wanted if number == 1 else f"{wanted}-{number}" for number in range(1, len(names) + 2))
    return next(candidate for candidate in candidates if candidate not in names)
