"""A program as data: which sources, steps and sinks there are, and how they hang together.

Nothing here opens a connection or runs user code: validation, drawing, tests and tasks all read the same
frozen graph.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast, get_args

import msgspec

from streams.errors import ConfigurationError, TopologyError
from streams.policy import ErrorPolicy, dead_letter, fail
from streams.topology.topic_names import ADVICE, topic_name_fault
from streams.topology.topic_pattern import TopicPattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streams.operators import Operator
    from streams.operators.sink_columns import SinkColumns
    from streams.serde import Serde
    from streams.state.definition import StoreDefinition

Topic: TypeAlias = "str | re.Pattern[str]"
"""A topic's name, or a pattern that must match a whole name."""

SourceTopic: TypeAlias = "str | TopicPattern"
"""The same as a source has it: a pattern knows which topics it leaves out."""

_STORE_NAME = re.compile(r"[A-Za-z0-9._-]{1,150}")

DescriptionFormat: TypeAlias = Literal["text", "mermaid", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Reads topics. ``timestamp`` takes the event time (milliseconds since the epoch) from the value."""

    name: str
    topics: tuple[SourceTopic, ...]
    key: Serde[Any]
    value: Serde[Any]
    timestamp: Callable[[Any], int] | None = None
    policy: ErrorPolicy = dead_letter
    table: bool = False
    """Whether it reads changes of a table: at equal event times they come before other records."""

    needs_key: bool = False
    needs_value: bool = False
    """Whether the app writes no record without it to this topic: one that comes meets the policy."""
    internal: bool = False
    """Whether it reads what another subtopology writes to a topic between them."""

    parents: tuple[str, ...] = ()
    place: str = field(default="", compare=False)
    """Where the program declares it, as ``file:line``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Transforms what its parents send.

    ``owns`` are the stores it keeps; ``uses`` names those of other steps that it reads or changes too, which
    therefore run in the same task.
    """

    name: str
    parents: tuple[str, ...]
    operator: Operator
    policy: ErrorPolicy = fail
    owns: tuple[StoreDefinition, ...] = ()
    uses: tuple[str, ...] = ()
    place: str = field(default="", compare=False)
    """Where the program declares it, as ``file:line``."""


@dataclass(frozen=True, slots=True)
class Repartition:
    """Makes a sink's topic an internal one, between two subtopologies, with ``partitions`` partitions.

    Without a number it gets as many as the topics that it is joined with, else as the largest that feeds it.
    Its records are deleted once they are processed and committed.
    """

    partitions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """Writes to one topic, or to the topic that a function names for each value.

    ``closed`` are the app's patterns: a function that names a topic which one of them matches fails, as the
    app would read its own output.
    """

    name: str
    parents: tuple[str, ...]
    topic: str | Callable[[Any], str]
    key: Serde[Any]
    value: Serde[Any]
    policy: ErrorPolicy = fail
    repartition: Repartition | None = None
    place: str = field(default="", compare=False)
    """Where the program declares it, as ``file:line``."""
    closed: tuple[TopicPattern, ...] = ()
    columns: SinkColumns | None = None
    """Partitions, headers and event times to write, where the program chooses them."""


Node: TypeAlias = "Source | Step | Sink"


@dataclass(frozen=True, slots=True)
class Subtopology:
    """Nodes that are connected: what one task runs, for one partition number."""

    number: int
    nodes: tuple[Node, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(node for node in self.nodes if isinstance(node, Source))

    @property
    def stores(self) -> tuple[StoreDefinition, ...]:
        """The stores of its tasks."""
        return tuple(store for node in self.nodes if isinstance(node, Step) for store in node.owns)

    def reads(self, topic: str) -> bool:
        """Whether one of its sources reads the topic."""
        return any(matches(wanted, topic) for source in self.sources for wanted in source.topics)

    def rank(self, topic: str) -> int:
        """Whose records come first at equal event times: tables before streams, then as declared."""
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
        """The nodes that feed the named one, nearest first, without looking behind those that ``stop``."""
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
    """A topic that every worker reads as a whole, into a store that all its tasks may look things up in."""

    topic: str
    key: Serde[Any]
    value: Serde[Any]
    store: StoreDefinition


class Copartition(NamedTuple):
    """Topics whose partitions of one number hold the same keys, as a step reads them together."""

    step: str
    topics: tuple[SourceTopic, ...]


@dataclass(frozen=True)
class Topology:
    """The whole graph, parents before children. Raises ``TopologyError`` if it is unsound."""

    nodes: tuple[Node, ...]
    global_tables: tuple[GlobalSource, ...] = ()

    def __post_init__(self) -> None:
        self._validate()

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(node for node in self.nodes if isinstance(node, Source))

    @property
    def sinks(self) -> tuple[Sink, ...]:
        return tuple(node for node in self.nodes if isinstance(node, Sink))

    @property
    def input_topics(self) -> tuple[SourceTopic, ...]:
        """What to subscribe to."""
        return tuple(topic for source in self.sources for topic in source.topics)

    @property
    def patterns(self) -> tuple[TopicPattern, ...]:
        """The patterns among the input topics."""
        return tuple(topic for topic in self.input_topics if isinstance(topic, TopicPattern))

    @property
    def output_topics(self) -> tuple[str, ...]:
        """The topics known before running: those of sinks that name one topic."""
        return tuple(dict.fromkeys(sink.topic for sink in self.sinks if isinstance(sink.topic, str)))

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
                    if isinstance(source, Source)
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

    def source_of(self, topic: str) -> tuple[Subtopology, Source]:
        """Which source, in which subtopology, reads a topic. Raises ``TopologyError`` if not exactly one."""
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
                f"the app reads no topic {topic!r}: it must belong to exactly one source, it matches: none",
                hint="it is one of the app's own topics, which no pattern reads: name it to read it"
                if own
                else closest(topic, known),
            )
        if len(found) != 1:
            names = ", ".join(source.name for _, source in found)
            raise TopologyError(
                f"topic {topic!r} must belong to exactly one source, it matches: {names}",
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
            # A store may be there to be asked for what it holds.
            terminal = isinstance(node, Sink) or (
                isinstance(node, Step) and (node.operator.terminal or bool(node.owns))
            )
            if node.name not in followed and not terminal:
                raise TopologyError(
                    f"{node.name!r} is a dead end{_at(node.place)}: what reaches it goes nowhere",
                    hint="end it with .to(topic), .peek(function) or .process(…), or remove it",
                )
        self._validate_stores()
        self._validate_topics()

    def _validate_topics(self) -> None:
        for node in self.nodes:
            if isinstance(node, Step):
                continue
            for topic in node.topics if isinstance(node, Source) else (node.topic,):
                _check_topic_name(topic, f"step {node.name!r}{_at(node.place)}")
        for table in self.global_tables:
            _check_topic_name(table.topic, f"global table {table.store.name!r}")
        readers: dict[str, list[Source]] = {}
        for source in self.sources:
            for topic in source.topics:
                if isinstance(topic, str):
                    readers.setdefault(topic, []).append(source)
        for topic, found in readers.items():
            if len(found) > 1:
                places = [source.place for source in found if source.place]
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
                if not _STORE_NAME.fullmatch(store.name):
                    raise TopologyError(
                        f"{store.name!r} cannot name a store: it becomes part of a topic's name",
                        hint="use letters, digits, '.', '_' and '-'",
                    )
                first = known.get(store.name)
                if first is not None:
                    raise TopologyError(
                        f"two stores are named {store.name!r}{_both(first.place, node.place)}",
                        hint="give one of them another name: stores and their topics are found again by it",
                    )
                known[store.name] = node
            for name in node.uses:
                if name not in known:
                    raise TopologyError(f"step {node.name!r} uses the store {name!r}, which is not before it")
        for table in self.global_tables:
            name = table.store.name
            if name in known or not _STORE_NAME.fullmatch(name):
                raise TopologyError(
                    f"{name!r} cannot name a global table: taken by a store, or no part of a topic's",
                    hint="give it a name=, of letters, digits, '.', '_' and '-'",
                )
            known[name] = None


def closest(name: str, known: Iterable[str]) -> str:
    """Advice for somebody who wrote a name that is none of those known."""
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
    """Whether a topic is the one wanted, or read by the pattern wanted."""
    return wanted == topic if isinstance(wanted, str) else wanted.fullmatch(topic)


def parse_format(text: str) -> DescriptionFormat:
    """A description format by its name. Raises ``ConfigurationError``."""
    for form in get_args(DescriptionFormat):
        if text == form:
            return cast("DescriptionFormat", form)
    raise ConfigurationError(f"unknown format {text!r}: {', '.join(get_args(DescriptionFormat))}")


def _topic_text(topic: SourceTopic) -> str:
    return topic if isinstance(topic, str) else f"/{topic.pattern}/"


def _sink_text(sink: Sink) -> str:
    return sink.topic if isinstance(sink.topic, str) else f"topic by {function_name(sink.topic)}"


def function_name(code: object) -> str:
    """What people call a function, class or callable object."""
    name = getattr(code, "__name__", None) or type(code).__name__
    return "lambda" if name == "<lambda>" else str(name)


def _detail(node: Node) -> str:
    if isinstance(node, Source):
        return f"{', '.join(map(_topic_text, node.topics))} (key {node.key.name}, value {node.value.name})"
    if isinstance(node, Sink):
        return f"{_sink_text(node)} (key {node.key.name}, value {node.value.name})"
    code = node.operator.code
    return node.operator.kind + (f" {function_name(code)}" if code is not None else "")


def _role(node: Node) -> str:
    return type(node).__name__.lower()


def _as_text(topology: Topology) -> str:
    lines: list[str] = []
    for subtopology in topology.subtopologies:
        lines.append(f"Subtopology {subtopology.number}")
        for node in subtopology.nodes:
            children = ", ".join(child.name for child in subtopology.children(node.name))
            lines.append(f"  {_role(node):<6} {node.name}: {_detail(node)}")
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
        "role": _role(node),
        "parents": list(node.parents),
        "on_error": {"action": node.policy.action, "retries": node.policy.retries},
    }
    if isinstance(node, Step):
        code = node.operator.code
        common |= {"operator": node.operator.kind, "code": None if code is None else function_name(code)}
        stores = [store.name for store in node.owns] + list(node.uses)
        return common | ({"stores": stores} if stores else {})
    common |= {"key": node.key.name, "value": node.value.name}
    if isinstance(node, Source):
        return common | {"topics": list(map(_topic_text, node.topics))}
    return common | {"topic": node.topic if isinstance(node.topic, str) else None}


def unique_name(wanted: str, taken: Iterable[str]) -> str:
    """``wanted``, or with the first free number from 2 behind it."""
    names = set(taken)
    candidates = (wanted if number == 1 else f"{wanted}-{number}" for number in range(1, len(names) + 2))
    return next(candidate for candidate in candidates if candidate not in names)
