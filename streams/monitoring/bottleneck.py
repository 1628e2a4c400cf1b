"""What holds an app back, in one sentence: what takes a worker's time, or what its input waits for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from streams.runtime.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.records import TopicPartition
    from streams.runtime.worker import Worker

WINDOW_SECONDS = 20.0
"""Over which time shares are measured."""

BUSY = 0.7
"""The share of its time from which a worker is considered to be the limit: above it, records queue up."""

LEADING = 0.3
"""The least share of the worker's time that is named."""


class Cause(Enum):
    """The kinds of causes."""

    STEP = "step"
    DECODING = "decoding"
    BROKER = "broker"
    SINK = "sink"
    STORES = "stores"
    TRANSACTION = "open transaction"
    OTHER_INPUT = "other input"
    PARTITION = "partition"
    CONNECTOR = "connector"


class Bottleneck(NamedTuple):
    """A cause, what it is about, its share of the time or of the records, and the sentence."""

    cause: Cause
    subject: str
    share: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class TimeSpent:
    """What a worker has spent its time on up to ``time``, in seconds since its start."""

    time: float
    steps: Mapping[str, float]
    sinks: Mapping[str, float]
    decode: float
    stores: float
    """Preparing commits, without the time of steps in it."""
    broker: float
    """Writing results and committing, without sinks and stores."""
    records: Mapping[TopicPartition, int] = field(default_factory=dict)
    """The ends of the worker's partitions."""

    @staticmethod
    def of(worker: Worker, ends: Mapping[TopicPartition, int], time: float) -> TimeSpent:
        """What a worker has spent its time on; from any thread."""
        total = Counts.total(worker.counts)
        stages, sinks = worker.stages, worker.sink_seconds
        return TimeSpent(
            time,
            steps=total.step_seconds,
            sinks=sinks,
            decode=total.seconds["decode"],
            stores=stages.prepare - stages.steps_in_commit,
            broker=stages.produce + stages.commit - stages.prepare - sum(sinks.values()),
            records=ends,
        )


class Bottlenecks:
    """Names causes over the last seconds: they appear while they last, and vanish soon after."""

    def __init__(self) -> None:
        self._spent: deque[TimeSpent] = deque()

    def observe(self, spent: TimeSpent) -> None:
        """Note what the time was spent on up to now."""
        self._spent.append(spent)
        while len(self._spent) > 2 and self._spent[1].time <= spent.time - WINDOW_SECONDS:
            self._spent.popleft()

    def of_time(self) -> list[Bottleneck]:
        """What takes most of the worker's time, if the worker is busy."""
        if len(self._spent) < 2:
            return []
        before, after = self._spent[0], self._spent[-1]
        elapsed = after.time - before.time
        if elapsed <= 0:
            return []
        shares = {
            (cause, subject): seconds / elapsed for (cause, subject), seconds in _parts(before, after).items()
        }
        if sum(shares.values()) < BUSY:
            return []
        (cause, subject), share = max(shares.items(), key=lambda item: item[1])
        return (
            [Bottleneck(cause, subject, share, _sentence(cause, subject, share))] if share >= LEADING else []
        )

    def of_partitions(self) -> list[Bottleneck]:
        """The partition in which most records arrive, if it has far more than its part."""
        if len(self._spent) < 2:
            return []
        before, after = self._spent[0], self._spent[-1]
        found = []
        for topic in {partition.topic for partition in after.records}:
            arrived = {
                partition: end - before.records[partition]
                for partition, end in after.records.items()
                if partition.topic == topic and partition in before.records
            }
            found += hot_partition(arrived)
        return found


def hot_partition(arrived: Mapping[TopicPartition, float]) -> list[Bottleneck]:
    """The partition of a topic in which half of the records arrive or more, of three partitions or more."""
    total = sum(arrived.values())
    if len(arrived) < 3 or total <= 0:
        return []
    partition, most = max(arrived.items(), key=lambda item: item[1])
    share = most / total
    if share < max(0.5, 2 / len(arrived)):
        return []
    return [
        Bottleneck(
            Cause.PARTITION,
            str(partition),
            share,
            f"partition {partition} gets {share:.0%} of the records of {partition.topic}, which has "
            f"{len(arrived)}: one task does most of the work, so more workers would not help",
        )
    ]


def of_waiting(
    *,
    open_transactions: Mapping[TopicPartition, int],
    held_back: Mapping[TopicPartition, Sequence[TopicPartition]],
    problems: Mapping[str, str],
    retrying: tuple[str, str] | None,
) -> list[Bottleneck]:
    """What the input of a worker that is not busy waits for.

    ``open_transactions`` have the offset at which the oldest one began, ``held_back`` the inputs whose event
    times are waited for.
    """
    found = [
        Bottleneck(Cause.CONNECTOR, name, None, f"{name} cannot be used: {problem}")
        for name, problem in problems.items()
    ]
    if retrying is not None:
        step, error = retrying
        found.append(Bottleneck(Cause.STEP, step, None, f"step {step!r} retries a record: {error}"))
    found += [
        Bottleneck(
            Cause.TRANSACTION,
            str(partition),
            None,
            f"a transaction of another program that began at offset {offset} of {partition} is still open: "
            "the records after it cannot be read before it ends",
        )
        for partition, offset in open_transactions.items()
    ]
    found += [
        Bottleneck(
            Cause.OTHER_INPUT,
            str(partition),
            None,
            f"the records of {partition} wait for records of {', '.join(map(str, others))}, by event time",
        )
        for partition, others in held_back.items()
    ]
    return found


def _parts(before: TimeSpent, after: TimeSpent) -> dict[tuple[Cause, str], float]:
    parts = {
        (Cause.STEP, step): seconds - before.steps.get(step, 0.0) for step, seconds in after.steps.items()
    }
    parts |= {
        (Cause.SINK, sink): seconds - before.sinks.get(sink, 0.0) for sink, seconds in after.sinks.items()
    }
    parts[Cause.DECODING, "decode"] = after.decode - before.decode
    parts[Cause.STORES, "stores"] = after.stores - before.stores
    parts[Cause.BROKER, "broker"] = after.broker - before.broker
    # What a task that moved away had spent is not lost, but may be counted late.
    return {part: max(0.0, seconds) for part, seconds in parts.items()}


def _sentence(cause: Cause, subject: str, share: float) -> str:
    match cause:
        case Cause.STEP:
            return f"step {subject!r} takes {share:.0%} of the worker's time"
        case Cause.SINK:
            return f"sink {subject!r} takes {share:.0%} of the worker's time: its system answers slowly"
        case Cause.STORES:
            return f"preparing the changes of stores takes {share:.0%} of the worker's time"
        case Cause.DECODING:
            return f"reading the input's keys and values takes {share:.0%} of the worker's time"
        case _:
            return f"the broker acknowledges slowly: {share:.0%} of the worker's time is spent on that"
