"""Adds source and sink connectors to the topology."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.connectors.change import change_topic, with_tombstones
from streams.connectors.change_json import ChangeJson
from streams.connectors.source import TableSource
from streams.dsl.flow import Flow, plain_json
from streams.errors import TopologyError
from streams.operators.process import Process
from streams.operators.source_position import SourcePosition
from streams.operators.stateless import FlatMap
from streams.serde import Bytes
from streams.state.definition import StoreDefinition
from streams.topology.graph import SinkConnectorNode, SinkNode, SourceNode, Step, TableTopics

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.connectors.sink import SinkConnector
    from streams.connectors.source import SourceConnector
    from streams.dsl.builder import TopologyBuilder
    from streams.policy import ErrorPolicy
    from streams.serde import Serde


def read_connector(
    builder: TopologyBuilder,
    connector: SourceConnector[Any, Any],
    *,
    store: str | None,
    timestamp: Callable[[Any], int] | None,
    on_error: ErrorPolicy | None,
    name: str | None,
) -> Flow:
    """Add a source connector; see ``App.source``."""
    kept_as = connector.kind if store is None else store
    positions = f"{kept_as}-positions"
    source = SourceNode(
        name=builder.name(name, kept_as),
        topics=(f"{builder.application}-{kept_as}-source",),
        key=connector.key,
        value=connector.value,
        timestamp=timestamp,
        policy=builder.policy(on_error),
        tombstones=True,
        connector=connector,
        store=kept_as,
    )
    builder.add(source)
    position = Step(
        name=builder.name(None, positions),
        parents=(source.name,),
        operator=SourcePosition(positions),
        policy=builder.policy(None),
        owns=(StoreDefinition(name=positions, key=Bytes(), value=Bytes(), purpose="position", view=None),),
    )
    builder.add(position)
    flow = Flow(builder, (position.name,), connector.key, connector.value, rekeyed=True, as_read=True)
    if connector.process is None:
        return flow
    stores = tuple(
        StoreDefinition(name=f"{kept_as}-{each}", key=key, value=value, purpose="source", view=None)
        for each, (key, value) in connector.stores.items()
    )
    step = Step(
        name=builder.name(None, f"{kept_as}-process"),
        parents=flow.parents,
        operator=Process(connector.process, tuple(connector.stores), prefix=f"{kept_as}-"),
        policy=builder.policy(on_error),
        owns=stores,
    )
    builder.add(step)
    return Flow(builder, (step.name,), connector.key, connector.value, rekeyed=True)


def write_changes(
    flow: Flow,
    prefix: str,
    *,
    partitions: int,
    key: Serde[Any] | None,
    value: Serde[Any] | None,
    on_error: ErrorPolicy | None,
    name: str | None,
) -> None:
    """Write each table's changes to its topic; see ``Stream.to_change_topics``."""
    from streams.connectors.change_avro import ChangeAvro, ChangeKeyAvro  # noqa: PLC0415 - few apps need it

    builder = flow.builder
    connectors: list[object] = [
        node.connector for node in builder.upstream(flow.parents) if isinstance(node, SourceNode)
    ]
    for serde in (key, value):
        if isinstance(serde, ChangeAvro | ChangeKeyAvro) and not any(connectors):
            raise TopologyError(
                f"to_change_topics({prefix!r}): {serde.name} needs the tables' columns, which only "
                "changes of a source connector have with them",
                hint="write directly downstream of app.source(…), or use another serde, e.g. ChangeJson()",
            )
    both = flow.then(FlatMap(with_tombstones), on_error, None)
    names = tuple(
        topic
        for connector in connectors
        if isinstance(connector, TableSource)
        for topic in connector.change_topics(prefix)
    )
    builder.add(
        SinkNode(
            name=builder.name(name, f"to-{prefix}"),
            parents=both.parents,
            topic=change_topic(prefix),
            key=key or flow.key,
            value=value or ChangeJson(),
            policy=builder.policy(on_error),
            tables=TableTopics(names, partitions),
        )
    )


def write_connector(
    flow: Flow,
    connector: SinkConnector,
    *,
    key: Serde[Any] | None,
    value: Serde[Any] | None,
    store: str | None,
    on_error: ErrorPolicy | None,
    name: str | None,
    table: bool = False,
) -> None:
    """Add a sink connector; see ``Stream.sink``. With ``table``, for the changes of a table."""
    builder = flow.builder
    node = SinkConnectorNode(
        name=builder.name(name, f"{connector.kind}-{connector.target}"),
        parents=flow.parents,
        connector=connector,
        store=connector.target if store is None else store,
        key=key or flow.key,
        value=value or flow.value or plain_json(flow.value_type),
        as_read=flow.as_read and value is None,
        table=table,
        policy=builder.policy(on_error),
    )
    builder.add(node)
