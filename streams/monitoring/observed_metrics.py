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
    for each in Condition:
        condition.add_metric([each.value], int(each is observation.judgement.condition))
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


def consumer_group(observation: Observation, application: str) -> Iterator[Metric]:
    """The same lag under the names of Kafka's lag exporters, for dashboards that exist.

    The worker's position stands for the committed offset, and the largest ones are those of this worker.
    """
    lag = GaugeMetricFamily(
        "kafka_consumergroup_group_lag",
        "Records between the position and the partition's end.",
        labels=["group", *_LABELS],
    )
    seconds = GaugeMetricFamily(
        "kafka_consumergroup_group_lag_seconds",
        "Seconds since the oldest unprocessed record was appended.",
        labels=["group", *_LABELS],
    )
    most = GaugeMetricFamily(
        "kafka_consumergroup_group_max_lag", "The largest lag of this worker's partitions.", labels=["group"]
    )
    longest = GaugeMetricFamily(
        "kafka_consumergroup_group_max_lag_seconds",
        "The longest lag in time of this worker's partitions.",
        labels=["group"],
    )
    lags, times = [], []
    for partition, item in observation.partitions.items():
        labels = [application, partition.topic, str(partition.partition)]
        if item.lag is not None:
            lag.add_metric(labels, item.lag)
            lags.append(item.lag)
        if item.waiting is not None:
            seconds.add_metric(labels, item.waiting)
            times.append(item.waiting)
    if lags:
        most.add_metric([application], max(lags))
    if times:
        longest.add_metric([application], max(times))
    yield from (lag, seconds, most, longest)
