"""How the records of a topic are read, as far as an app knows: by which serdes, and what else is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from streams.origin import without_origin
from streams.state.changelog import changelog_topic, entry_key
from streams.state.store import START
from streams.topology.graph import Step, matches

if TYPE_CHECKING:
    from streams.records import Headers
    from streams.serde import Serde
    from streams.state.definition import StoreDefinition
    from streams.topology.graph import Topology


class TopicFormat(NamedTuple):
    """The serdes of a topic's keys and values; ``None`` where nothing is known about them."""

    key: Serde[Any] | None = None
    value: Serde[Any] | None = None
    relayed: bool = False
    """Whether values have the coordinates of their input record in front (see ``streams.origin``)."""
    store: StoreDefinition | None = None
    """The store whose changelog it is."""

    def of(self, key: bytes | None, headers: Headers | None) -> TopicFormat:
        """The format of one record: nothing is known about a changelog's metadata."""
        if self.store is not None and key is not None and entry_key(key, headers) is None:
            return TopicFormat()
        return self

    def read_key(self, key: bytes, headers: Headers | None = None) -> Any:
        """A key as users know it. That of a windowed store's changelog has the window's ``start`` beside it.

        Not for a changelog's metadata, which belongs to no key. Raises what the serde raises.
        """
        if self.store is None:
            return _read(self.key, key)
        entry = entry_key(key, headers)
        assert entry is not None, "metadata has no key"
        if self.store.retention is None:
            return _read(self.key, entry)
        return {"start": START.unpack_from(entry)[0], "key": _read(self.key, entry[START.size :])}

    def read_value(self, value: bytes) -> Any:
        """A value as users know it; ``None`` for a tombstone. Raises what the serde raises."""
        payload = without_origin(value) if self.relayed else value
        if payload is None:
            return None
        read = _read(self.value, payload)
        return read if self.store is None or self.store.view is None else self.store.view(read)


def topic_format(topology: Topology, application: str, topic: str) -> TopicFormat:
    """How an app reads or writes a topic: one of its inputs, outputs, internal topics or changelogs."""
    for table in topology.global_tables:
        if table.topic == topic:
            return TopicFormat(table.key, table.value)
    for source in topology.sources:
        if any(matches(wanted, topic) for wanted in source.topics):
            return TopicFormat(source.key, source.value, relayed=source.internal)
    for sink in topology.sinks:
        if sink.topic == topic:
            return TopicFormat(sink.key, sink.value)
    for node in topology.nodes:
        for store in node.owns if isinstance(node, Step) else ():
            if store.source_topic is None and changelog_topic(application, store) == topic:
                return TopicFormat(store.key, store.value, store=store)
    return TopicFormat()


def _read(serde: Serde[Any] | None, payload: bytes) -> Any:
    return payload if serde is None else next(iter(serde.deserialize([payload])))
