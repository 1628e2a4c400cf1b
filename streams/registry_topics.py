"""The topics of an app whose records have schemas in a schema registry."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from streams.errors import RegistryUnavailable, SchemaRefused
from streams.events import Event, get_logger
from streams.operators.table import StampedSerde, TableEntries
from streams.schema_registry import ConfluentRegistry
from streams.serde import Avro, load_schema
from streams.serde.compatibility import incompatibilities
from streams.serde.schemas.avro_references import full_name
from streams.serde.subjects import Subjects
from streams.serde.topics import connected
from streams.topology.graph import GlobalSource, SinkConnectorNode, SinkNode, SourceNode, Step, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.config import Settings
    from streams.serde import Serde
    from streams.serde.registry import Part
    from streams.state.definition import StoreDefinition
    from streams.topology.graph import Node

RETRY_SECONDS = 1.0
"""How long a start waits before it asks a registry again that did not answer."""


class TopicSchema(NamedTuple):
    """The schema of one part of a topic's records, as the app reads or writes them."""

    topic: str
    part: Part
    use: Literal["reads", "writes"]
    serde: Avro[Any]

    @property
    def subject(self) -> str:
        """Its subject in the registry to which the topology is connected."""
        return self.serde.subject(self.topic)


class RegistryConnection:
    """An app's topology whose Avro serdes use a schema registry for the app's topics.

    Internal topics and stores keep the ids of the schema folder: nothing else reads them, and they can be
    read while the registry does not answer.
    """

    def __init__(self, topology: Topology, subjects: Subjects) -> None:
        self.subjects = subjects
        self.topology = replace(
            topology,
            nodes=tuple(self._node(node) for node in topology.nodes),
            global_tables=tuple(map(self._global_table, topology.global_tables)),
        )

    def close(self) -> None:
        """Close the connections to the registry."""
        self.subjects.registry.close()

    def schemas(self) -> list[TopicSchema]:
        """The schemas of topics with a fixed name, each once."""
        return topic_schemas(self.topology)

    def check(self, schema: TopicSchema) -> list[str]:
        """Why a schema cannot be used for its topic, each with its field; writes nothing."""
        written = schema.serde.written
        if schema.use == "reads":
            return self.subjects.differences(schema.subject, written, "BACKWARD")
        return self.subjects.refusal(schema.subject, written)

    def prepare(self) -> None:
        """Register the schemas of output topics, and check that input can be read.

        Raises ``SchemaRefused`` with the fields, and ``RegistryUnavailable``.
        """
        for schema in self.schemas():
            if schema.use == "writes":
                self.subjects.identifier(schema.subject, schema.serde.written)
            else:
                self._require_readable(schema)

    def register(self, wait: Callable[[float], object]) -> bool:
        """Do the same, for as long as the registry does not answer; ``False`` once ``wait`` returns true."""
        while True:
            try:
                self.prepare()
            except RegistryUnavailable as error:
                get_logger().warning(Event.REGISTRY_TROUBLE, error=str(error))
            else:
                return True
            if wait(RETRY_SECONDS):
                return False

    def _require_readable(self, schema: TopicSchema) -> None:
        differences = self.check(schema)
        if differences:
            lines = "".join(f"\n  {line}" for line in differences)
            raise SchemaRefused(
                f"topic {schema.topic!r}: records with the latest schema of {schema.subject!r} cannot "
                f"be read with {schema.serde.name}:{lines}",
                hint="change the app's schema so that it can read them: give new fields a default, "
                "and use their types",
            )

    def _node(self, node: Node) -> Node:
        if isinstance(node, Step):
            return replace(node, owns=tuple(map(self._store, node.owns)))
        if isinstance(node, SinkConnectorNode):
            return node
        internal = (
            node.internal or node.connector is not None
            if isinstance(node, SourceNode)
            else node.repartition is not None
        )
        if internal:
            return node
        key, value = self._connected(node.key, "key"), self._connected(node.value, "value")
        if isinstance(node, SourceNode):
            return replace(node, key=key, value=value)
        return replace(node, key=key, value=value)

    def _global_table(self, table: GlobalSource) -> GlobalSource:
        return replace(
            table,
            key=self._connected(table.key, "key"),
            value=self._connected(table.value, "value"),
            store=self._store(table.store),
        )

    def _store(self, store: StoreDefinition) -> StoreDefinition:
        if store.source_topic is None:
            return store
        assert isinstance(store.value, StampedSerde), "a table's store has its values' event times"
        assert isinstance(store.read_source, TableEntries), "a table is filled from its topic"
        return replace(
            store,
            key=connected(store.key, self.subjects, "key", stored=True),
            value=store.value.connected(self.subjects),
            read_source=store.read_source.connected(self.subjects),
        )

    def _connected(self, serde: Serde[Any], part: Part) -> Serde[Any]:
        return connected(serde, self.subjects, part)


def topic_schemas(topology: Topology) -> list[TopicSchema]:
    """The Avro schemas of an app's inputs and outputs with a fixed name, each once."""
    return list(dict.fromkeys(_topic_schemas(topology)))


def _topic_schemas(topology: Topology) -> Iterator[TopicSchema]:
    for node in topology.nodes:
        if isinstance(node, SourceNode) and not node.internal and node.connector is None:
            for topic in node.topics:
                if isinstance(topic, str):
                    yield from _of_topic(topic, node.key, node.value, "reads")
        elif isinstance(node, SinkNode) and node.repartition is None and isinstance(node.topic, str):
            yield from _of_topic(node.topic, node.key, node.value, "writes")
    for table in topology.global_tables:
        yield from _of_topic(table.topic, table.key, table.value, "reads")


def folder_differences(serde: Avro[Any]) -> list[str]:
    """Why records of other versions in its schema folder cannot be read, each with its field and file."""
    own = load_schema(serde.path).written
    record = full_name(own.source)
    others = [
        (path.name, load_schema(path).written)
        for path in sorted(serde.path.parent.glob("*.avsc"))
        if path.name != serde.path.name
    ]
    return [
        f"{difference} ({name})"
        for name, other in others
        if record is not None and full_name(other.source) == record
        for difference in incompatibilities(other.complete, own.complete, "BACKWARD")
    ]


def _of_topic(
    topic: str, key: Serde[Any], value: Serde[Any], use: Literal["reads", "writes"]
) -> Iterator[TopicSchema]:
    if isinstance(key, Avro):
        yield TopicSchema(topic, "key", use, key)
    if isinstance(value, Avro):
        yield TopicSchema(topic, "value", use, value)


def connect_registry(topology: Topology, settings: Settings) -> RegistryConnection:
    """Connect a topology to the registry of the settings. Raises ``ConfigurationError``."""
    return RegistryConnection(topology, open_subjects(settings))


def open_subjects(settings: Settings) -> Subjects:
    """The subjects of the settings' registry. No request is made yet. Raises ``ConfigurationError``."""
    assert settings.schema_registry_url is not None, "the caller checks it"
    level = settings.schema_compatibility
    return Subjects(
        ConfluentRegistry(settings.schema_registry_url, settings.schema_registry),
        strategy=settings.schema_subjects,
        register=settings.register_schemas,
        level=None if level == "registry" else level,
    )
