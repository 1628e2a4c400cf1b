"""What a reset of an app's input topics affects: subtopologies, state, internal topics, results.

It is found by the app's topology, never by a prefix of names: topics of other apps are not affected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.connectors.sink import keeps_positions
from streams.errors import ConfigurationError, TopicError
from streams.operators.change import ToStream
from streams.state.changelog import changelog_topic
from streams.topology.graph import SinkNode, Step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from streams.state.definition import StoreDefinition
    from streams.topology.graph import SinkConnectorNode, Subtopology, Topology


@dataclass(frozen=True, slots=True)
class Affected:
    """The part of an app that processes again what is read again. Topics are in the order of the program."""

    selected: tuple[str, ...]
    """The input topics whose offsets are replaced by the requested ones."""
    intermediate: tuple[str, ...]
    """Input topics that the affected part writes itself: continued at their ends."""
    repartitions: tuple[str, ...]
    """Repartition topics between affected subtopologies: emptied."""
    subtopologies: tuple[int, ...]
    stores: tuple[str, ...]
    """The stores whose state begins again, those of tables included."""
    changelogs: tuple[str, ...]
    """The changelog topics of these stores, except input topics: emptied."""
    outputs: tuple[str, ...]
    """Topics to which results are written again, as far as they are known."""
    choosing: tuple[str, ...]
    """Steps that write to topics that a function chooses."""
    sinks: tuple[str, ...]
    """Stores of sinks to which results are written again, through topics before them."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Input topics that are not reset, and the stores of the sinks that have the positions in them."""

    @property
    def replaced(self) -> tuple[str, ...]:
        """The topics whose committed offsets are replaced."""
        return self.selected + self.intermediate + self.repartitions


def find_affected(
    topology: Topology, inputs: Collection[str], application: str, topics: Collection[str] = ()
) -> Affected:
    """What a reset of these input topics affects; without ``topics``, of all whose offsets decide.

    ``inputs`` are the names of all existing input topics, internal ones included. Raises
    ``ConfigurationError`` for topics that cannot be reset, and where state would belong to one part of its
    inputs only; ``TopicError`` for a topic that does not exist.
    """
    return _Search(topology, inputs, application).of(tuple(dict.fromkeys(topics)))


def derived_stores(topology: Topology, topic: str) -> list[str]:
    """The stores that are made of the changes of a table which reads that topic, besides its own.

    What they need is in all changes since the beginning; a stream of changes (``to_stream``) is an input like
    any other.
    """
    _, source = topology.source_of(topic)
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [source.name] if source.table else []
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in topology.nodes:
            if name not in node.parents or isinstance(node.operator, ToStream):
                continue
            if isinstance(node, Step):
                found |= {store.name: None for store in node.owns if store.source_topic is None}
            if isinstance(node, SinkNode) and node.repartition is not None:
                waiting += [item.name for item in topology.sources if item.topics == (node.topic,)]
            waiting.append(node.name)
    return list(found)


def _keeping_positions(part: Subtopology) -> list[SinkConnectorNode]:
    """The sinks whose input begins again at their own positions, whatever the group's offsets are."""
    return [node for node in part.sink_connectors if keeps_positions(node.connector)]


class _Search:
    def __init__(self, topology: Topology, inputs: Collection[str], application: str) -> None:
        self._topology = topology
        self._application = application
        # A queue goes on where it is: jobs that are done must not be executed again.
        self._readers = {
            topic: topology.source_of(topic)[0] for topic in inputs if topic not in topology.own_topics
        }
        self._internal = {
            topic: kind for topic, kind in topology.repartitions.items() if topic in self._readers
        }
        self._external = [
            topic
            for topic in self._readers
            if topic not in self._internal and topic not in topology.source_topics
        ]
        self._writers: dict[str, set[int]] = {}
        for part in topology.subtopologies:
            for topic in _written(part):
                self._writers.setdefault(topic, set()).add(part.number)

    def of(self, topics: tuple[str, ...]) -> Affected:
        left_out = {
            topic: kept[0].store
            for topic in self._external
            if (kept := _keeping_positions(self._readers[topic]))
        }
        for topic in topics:
            self._check_topic(topic, left_out)
        if topics:
            selected = topics
            parts, intermediate = self._reached(selected)
            doubled = [topic for topic in selected if topic in intermediate]
            if doubled:
                raise ConfigurationError(
                    f"topic {doubled[0]} is written by the app itself, from other topics that are reset too: "
                    "its records would be processed twice, as they are and as they are written again",
                    hint=f"leave out --topic {doubled[0]}, then it continues at its end",
                )
        else:
            selected, parts, intermediate = self._all_inputs(left_out)
        if not selected:
            raise ConfigurationError(
                "the app has no input topic whose committed offsets decide where it continues"
                + "".join(f"; {topic}: its sink {store!r} does" for topic, store in left_out.items()),
                hint=_rebuild_hint(next(iter(left_out.values()))) if left_out else None,
            )
        self._require_all_inputs(selected, parts, intermediate)
        return self._found(selected, parts, intermediate, {} if topics else left_out)

    def _check_topic(self, topic: str, left_out: Mapping[str, str]) -> None:
        topology = self._topology
        if topic in topology.source_topics:
            raise ConfigurationError(
                f"{topic} only distributes the tasks of source connector "
                f"{topology.source_topics[topic].name!r}, whose position in its system is in a store",
                hint="to read the system from its beginning again, give the source another store=",
            )
        if topic in topology.own_topics:
            raise ConfigurationError(
                f"{topic} is the app's queue of jobs, which is not reset: jobs that are done would be "
                "executed again",
                hint="to execute jobs again: streams jobs retry",
            )
        if topic in topology.repartitions:
            raise ConfigurationError(
                f"{topic} is internal: it is emptied and written again when what feeds it is reset",
                hint=f"select input topics: {', '.join(self._external)}",
            )
        if topic in left_out:
            raise ConfigurationError(
                f"a reset of {topic} would have no effect: sink {left_out[topic]!r} keeps its position in it "
                "in its own system, and continues there",
                hint=_rebuild_hint(left_out[topic]),
            )
        if topic in self._readers:
            return
        if any(table.topic == topic for table in topology.global_tables):
            raise ConfigurationError(
                f"{topic} is a global table: every worker reads it completely at each start",
                hint="leave it out",
            )
        topology.source_of(topic)
        raise TopicError(f"topic {topic} does not exist")

    def _all_inputs(
        self, left_out: Collection[str]
    ) -> tuple[tuple[str, ...], dict[int, Subtopology], list[str]]:
        """All topics that the app does not write itself, or not from what is selected."""
        own = [topic for topic in self._external if topic not in left_out]
        selected = [topic for topic in own if topic not in self._writers]
        while True:
            parts, intermediate = self._reached(selected)
            more = [topic for topic in own if topic not in selected and topic not in intermediate]
            if not more:
                # What remains was selected because only its own results lead to it.
                return tuple(selected), parts, [topic for topic in intermediate if topic not in selected]
            selected.append(more[0])

    def _reached(self, selected: Collection[str]) -> tuple[dict[int, Subtopology], list[str]]:
        """The subtopologies that process again, and the input topics that they write."""
        parts: dict[int, Subtopology] = {}
        intermediate: dict[str, None] = {}
        waiting = [self._readers[topic] for topic in selected]
        while waiting:
            part = waiting.pop()
            if part.number in parts:
                continue
            parts[part.number] = part
            for topic in _written(part):
                reader = self._readers.get(topic)
                # A sink continues from its own position, or the group's, in what is written again.
                if reader is None or reader.sink_connectors:
                    continue
                waiting.append(reader)
                if topic not in self._internal:
                    intermediate[topic] = None
        return parts, list(intermediate)

    def _require_all_inputs(
        self, selected: Collection[str], parts: Mapping[int, Subtopology], intermediate: Collection[str]
    ) -> None:
        """Raise ``ConfigurationError`` where the state of a subtopology would miss a part of its input."""
        for part in parts.values():
            stores = [store.name for store in _stores_besides_positions(part)]
            if not stores:
                continue
            named = f"store{'s' * (len(stores) > 1)} {', '.join(stores)}"
            connectors, topics = self._missing_inputs(part, selected, intermediate)
            if connectors:
                raise ConfigurationError(
                    f"{named}: made of source connector {connectors[0]!r} too, whose position is not reset: "
                    "without its records the state would be incomplete",
                    hint="give the steps' stores and the source other names (store=): they begin again then",
                )
            if topics:
                raise ConfigurationError(
                    f"{named}: made of topic {', '.join(topics)} too, which is not selected: it is emptied, "
                    "and would be incomplete without that topic's records",
                    hint=f"select it too: --topic {' --topic '.join([*selected, *topics])}",
                )

    def _missing_inputs(
        self, part: Subtopology, selected: Collection[str], intermediate: Collection[str]
    ) -> tuple[list[str], list[str]]:
        """The source connectors and the topics that are not read again, of all that leads to a part."""
        connectors: list[str] = []
        topics: list[str] = []
        seen = {part.number}
        waiting = [part]
        while waiting:
            part = waiting.pop()
            if part.source_connector is not None:
                connectors.append(part.source_connector.name)
            for topic, reader in self._readers.items():
                if reader.number != part.number or topic in self._topology.source_topics:
                    continue
                if topic in selected:
                    continue
                if topic not in self._internal and topic not in intermediate:
                    topics.append(topic)
                    continue
                for number in self._writers.get(topic, set()) - seen:
                    seen.add(number)
                    waiting.append(self._topology.subtopologies[number])
        return connectors, topics

    def _found(
        self,
        selected: tuple[str, ...],
        parts: Mapping[int, Subtopology],
        intermediate: Collection[str],
        left_out: Mapping[str, str],
    ) -> Affected:
        ordered = [part for number, part in sorted(parts.items())]
        written = dict.fromkeys(topic for part in ordered for topic in _written(part))
        stores: dict[str, StoreDefinition] = {
            store.name: store for part in ordered for store in _stores_besides_positions(part)
        }
        sinks: dict[str, None] = {}
        for topic in written:
            reader = self._readers.get(topic)
            if reader is not None:
                sinks |= {sink.store: None for sink in reader.sink_connectors}
        return Affected(
            selected=selected,
            intermediate=tuple(intermediate),
            repartitions=tuple(
                topic
                for topic, kind in self._internal.items()
                if topic in written and not kind.kept and not kind.compacted
            ),
            subtopologies=tuple(part.number for part in ordered),
            stores=tuple(stores),
            changelogs=tuple(
                changelog_topic(self._application, store)
                for store in stores.values()
                if store.source_topic is None
            ),
            outputs=tuple(topic for topic in written if topic not in self._topology.repartitions),
            choosing=tuple(
                node.name
                for part in ordered
                for node in part.nodes
                if isinstance(node, SinkNode) and not node.topics
            ),
            sinks=tuple(sinks),
            left_out=left_out,
        )


def _stores_besides_positions(part: Subtopology) -> list[StoreDefinition]:
    """The stores of a part, without that of a source connector's position."""
    source = part.source_connector
    return [store for store in part.stores if source is None or store.name != source.positions]


def _written(part: Subtopology) -> Iterator[str]:
    for node in part.nodes:
        if isinstance(node, SinkNode):
            yield from node.topics


def _rebuild_hint(store: str) -> str:
    return f"to fill its target again: streams sync rebuild MODULE:APP {store}"
