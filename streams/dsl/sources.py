"""Adds the sources of a program: streams, tables, and global tables, which every worker reads completely."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from streams.dsl.flow import Flow, TableFlow, value_of
from streams.errors import TopologyError
from streams.operators.change import View
from streams.operators.table import KeepTable, StampedSerde, TableEntries
from streams.state.definition import StoreDefinition
from streams.topology.graph import GlobalSource, SourceNode, Step
from streams.topology.topic_pattern import OwnTopics, TopicPattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streams.dsl.builder import TopologyBuilder
    from streams.policy import ErrorPolicy
    from streams.serde import Serde
    from streams.serde.round_trip import RoundTrip
    from streams.topology.graph import Topic


def read_stream(
    builder: TopologyBuilder,
    topics: Topic | Iterable[Topic],
    *,
    key: Serde[Any],
    value: Serde[Any],
    timestamp: Callable[[Any], int] | None,
    tombstones: bool,
    on_error: ErrorPolicy | None,
    name: str | None,
) -> Flow:
    """Add a source; see ``App.stream``."""
    several = (topics,) if isinstance(topics, (str, re.Pattern)) else tuple(topics)
    if not several:
        raise TopologyError("a stream needs at least one topic")
    if any(isinstance(topic, re.Pattern) and isinstance(topic.pattern, bytes) for topic in several):
        raise TopologyError(
            f"stream {name or several!r}: a pattern of bytes matches no topic",
            hint='topic names are text: re.compile("…"), not re.compile(b"…")',
        )
    first = several[0] if isinstance(several[0], str) else several[0].pattern
    # The app's other topics are known once the program is complete: see TopologyBuilder.build.
    own = OwnTopics(builder.application, frozenset())
    source = SourceNode(
        name=builder.name(name, first),
        topics=tuple(topic if isinstance(topic, str) else TopicPattern(topic, own) for topic in several),
        key=key,
        value=value,
        timestamp=timestamp,
        policy=builder.policy(on_error),
        tombstones=tombstones,
    )
    builder.add(source)
    return Flow(builder, (source.name,), key, value, as_read=True)


def read_table(
    builder: TopologyBuilder,
    topic: str,
    *,
    key: Serde[Any],
    value: Serde[Any],
    store: str | None,
    timestamp: Callable[[Any], int] | None,
    on_error: ErrorPolicy | None,
) -> TableFlow:
    """Add a source and the table that it feeds; see ``App.table``."""
    source = SourceNode(
        name=builder.name(None, topic),
        topics=(topic,),
        key=key,
        value=value,
        timestamp=timestamp,
        policy=builder.policy(on_error),
        table=True,
        tombstones=True,
    )
    builder.add(source)
    return keep_table(
        StoreDefinition(
            name=store or topic,
            key=key,
            value=StampedSerde(value),
            purpose="table",
            source_topic=topic,
            read_source=TableEntries(key, value, timestamp),
            view=value_of,
        ),
        Flow(builder, (source.name,), key, value, as_read=True),
        on_error,
    )


def keep_table(
    store: StoreDefinition,
    flow: Flow,
    on_error: ErrorPolicy | None,
    check: RoundTrip | None = None,
    name: str | None = None,
) -> TableFlow:
    """Add the step that keeps the latest values of records in a store."""
    step = Step(
        name=flow.builder.name(name, f"{store.name}-table"),
        parents=flow.parents,
        operator=KeepTable(store.name, check),
        policy=flow.builder.policy(on_error),
        owns=(store,),
    )
    flow.builder.add(step)
    return TableFlow(flow.builder, step.name, flow.key, flow.value, View(store.name), as_read=True)


def read_global_table(
    builder: TopologyBuilder, topic: str, *, key: Serde[Any], value: Serde[Any], store: str | None
) -> str:
    """Add a table that every worker reads completely; return its store. See ``App.global_table``."""
    definition = StoreDefinition(
        name=store or topic,
        key=key,
        value=StampedSerde(value),
        purpose="global table",
        source_topic=topic,
        read_source=TableEntries(key, value),
        view=value_of,
    )
    builder.add_global_table(GlobalSource(topic=topic, key=key, value=value, store=definition))
    return definition.name
