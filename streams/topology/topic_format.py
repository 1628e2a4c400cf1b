"""The format of a topic's records, as far as an app knows it: the serdes, and additions of this library."""

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
    """Whether values begin with the coordinates of their input record (see ``streams.origin``)."""
    store: StoreDefinition | None = None
    """The store, if the topic is its changelog."""

    def of(self, key: bytes | None, headers: Headers | None) -> TopicFormat:
        """The format of one record: unknown for a changelog's metadata."""
        if self.store is not None and key is not None and entry_key(key, headers) is None:
            return TopicFormat()
        return self

    def read_key(self, key: bytes, headers: Headers | None = None) -> Any:
        """The decoded key; for a windowed store's changelog, with the window's ``start``.

        Not for a changelog's metadata, which has no key. Raises the serde's errors.
        """
        if self.store is None:
            return _read(self.key, key)
        entry = entry_key(key, headers)
        assert entry is not None, "metadata has no key"
        if self.store.retention is None:
            return _read(self.key, entry)
        return {"start": START.unpack_from(entry)[0], "key": _read(self.key, entry[START.size :])}

    def read_value(self, value: bytes) -> Any:
        """The decoded value; ``None`` for a tombstone. Raises the serde's errors."""
        payload = without_origin(value) if self.relayed else value
        if payload is None:
            return None
        read = _read(self.value, payload)
        return read if self.store is None or self.store.view is None else self.store.view(read)


def topic_format(topology: Topology, application: str, topic: str) -> TopicFormat:
    """The format of one of an app's topics: an input, an output, an internal topic or a changelog."""
    for table in topology.global_tables:
        if table.topic == topic:
            return TopicFormat(table.key, table.value)
    for source in topology.sources:
        if any(matches(wanted, topic) for wanted in source.topics):
            return TopicFormat(source.key, source.value, relayed=source.internal)
    for sink in topology.sinks:
        if topic in sink.topics:
            return TopicFormat(sink.key, sink.value)
    for node in topology.nodes:
        for store in node.owns if isinstance(node, Step) else ():
            if store.source_topic is None and changelog_topic(application, store) == topic:
                return TopicFormat(store.key, store.value, store=store)
    return TopicFormat()


def _read(serde: Serde[Any] | None, payload: bytes) -> Any:
    return payload if serde is None else next(iter(serde.deserialize([payload])))
