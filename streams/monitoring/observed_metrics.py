"""The figures of an observation as metrics. What is unknown has no series, never 0 and never NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily

from streams.monitoring.condition import Condition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from streams.monitoring.observer import Observation

_LABELS = ["topic", "partition"]


def observed(observation: Observation, now: int) -> Iterator[Metric]:
    """The metrics of an observation, at ``now`` in milliseconds since the epoch."""
    waiting = GaugeMetricFamily(
        "streams_waiting_seconds",
        "Seconds since the oldest unprocessed record was appended; 0 if there is none.",
        labels=_LABELS,
    )
    ends = GaugeMetricFamily("streams_end_offset", "The partition's end, in the broker.", labels=_LABELS)
    positions = GaugeMetricFamily("streams_position", "The next offset to process.", labels=_LABELS)
    deleted = GaugeMetricFamily(
        "streams_deleted_in_seconds",
        "Seconds until the topic deletes unprocessed records, at the present rates.",
        labels=_LABELS,
    )
    for partition, item in observation.partitions.items():
        labels = [partition.topic, str(partition.partition)]
        for family, value in (
            (waiting, item.waiting),
            (ends, item.end),
            (positions, item.position),
            (deleted, item.deleted_in),
        ):
            if value is not None:
                family.add_metric(labels, value)
    yield from (waiting, ends, positions, deleted)
    condition = GaugeMetricFamily(
        "streams_condition",
        "1 for the condition of the worker's input, 0 for the others.",
        labels=["condition"],
    )
    for item in Condition:
        condition.add_metric([item.value], int(item is observation.judgement.condition))
    yield condition
    yield GaugeMetricFamily(
        "streams_condition_since_seconds",
        "Since when the condition holds, in seconds since the epoch.",
        value=observation.since / 1000,
    )
    yield GaugeMetricFamily(
        "streams_observation_age_seconds",
        "Seconds since the worker's input was last measured.",
        value=max(0.0, (now - observation.time) / 1000),
    )
