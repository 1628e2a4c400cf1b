"""Rows for sinks, as the engine hands them on, and the target that results from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.connectors.sink import SinkContext, SinkRows
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Sequence

ORDERS = TopicPartition("orders", 0)
TOPIC_ID = "Ab-0"


def context(name: str = "out", *, application: str = "shop", lock_timeout: float = 0.1) -> SinkContext:
    return SinkContext(application=application, name=name, worker="w1", lock_timeout=lock_timeout)


def sink_rows(
    values: Sequence[Any],
    *,
    keys: Sequence[Any] | None = None,
    start: int = 0,
    next_offset: int | None = None,
    partition: TopicPartition = ORDERS,
) -> SinkRows:
    """One row for each offset from ``start`` on."""
    return SinkRows(
        partition=partition,
        start=start,
        next_offset=start + len(values) if next_offset is None else next_offset,
        keys=[None] * len(values) if keys is None else keys,
        values=values,
        timestamps=[1_700_000_000_000 + row for row in range(len(values))],
        headers=[None] * len(values),
        offsets=range(start, start + len(values)),
    )
