"""What holds an app back, in one sentence: what takes a worker's time, or what its input waits for.

``causes`` asks for these, second by second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from streams.runtime.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.broker.throttling import Role, Throttled
    from streams.monitoring.partition_figures import PartitionFigures
    from streams.records import TopicPartition
    from streams.runtime.worker import Worker

WINDOW_SECONDS = 20.0
"""Over which time shares are measured."""

BUSY = 0.7
"""The share of its time from which a worker is considered to be the limit: above it, records queue up."""

STILL_BUSY = 0.55
"""The same while it has been the limit: a share that varies around a bound must not come and go."""

LEADING = 0.3
"""The least share of the worker's time that is named."""

LATE_LEADING = 0.1
"""The same for quotas while records wait: they may hold back only some of the partitions."""

FEWEST_RECORDS = 50
"""Records of a topic that must have arrived until it is said that a partition gets most of them."""

SAID = 3
"""The most partitions with the same cause that are named."""

MOST_OF_TWO = 0.8
"""The share at which one of two partitions has far more than its part."""


class Cause(Enum):
    """The kinds of causes."""

    STEP = "step"
    DECODING = "decoding"
    BROKER = "broker"
    QUOTA = "quota"
    FETCHING = "fetching"
    PROCESSOR = "processor"
    GARBAGE = "garbage"
    SINK = "sink"
    STORES = "stores"
    TRANSACTION = "open transaction"
    OTHER_INPUT = "other input"
    PARTITION = "partition"
    KEY = "key"
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
    """Writing results and committing, without sinks and stores, and what follows if that fails."""
    poll: float = 0.0
    """Waiting for records."""
    commits: int = 0
    throttled: Mapping[tuple[Role, str], float] = field(default_factory=dict)
    """For how long quotas have held back the clients, by their kind and the broker."""
    records: Mapping[TopicPartition, int] = field(default_factory=dict)
    """The ends of the worker's partitions."""
    positions: Mapping[TopicPartition, int] = field(default_factory=dict)
    """The next offsets to process."""

    @staticmethod
    def of(
        worker: Worker,
        figures: Mapping[TopicPartition, PartitionFigures],
        throttled: Sequence[Throttled],
        time: float,
    ) -> TimeSpent:
        """What a worker has spent its time on, with what it is doing now; from any thread."""
        total = Counts.total(worker.counts)
        stages, sinks = worker.stages_now, worker.sink_seconds
        steps = dict(total.step_seconds)
        if current := worker.current_step:
            step, seconds = current
            steps[step] = steps.get(step, 0.0) + seconds
        return TimeSpent(
            time,
            steps=steps,
            sinks=sinks,
            decode=total.seconds["decode"],
            stores=stages.prepare - stages.steps_in_commit,
            broker=stages.produce + stages.commit - stages.prepare - sum(sinks.values()) + stages.lost,
            poll=stages.poll,
            commits=worker.status.commits,
            throttled={(item.role, item.broker): item.seconds for item in throttled},
            records={place: item.end for place, item in figures.items() if item.end is not None},
            positions={place: item.position for place, item in figures.items() if item.position is not None},
        )


class Bottlenecks:
    """Names causes over the last seconds: they appear while they last, and vanish soon after."""

    def __init__(self) -> None:
        self._spent: deque[TimeSpent] = deque()
        self._busy = False

    def observe(self, spent: TimeSpent) -> None:
        """Note what the time was spent on up to now."""
        self._spent.append(spent)
        while len(self._spent) > 2 and self._spent[1].time <= spent.time - WINDOW_SECONDS:
            self._spent.popleft()
        self._busy = sum(self._shares().values()) >= (STILL_BUSY if self._busy else BUSY)

    def _shares(self) -> dict[tuple[Cause, str], float]:
        if self.elapsed <= 0:
            return {}
        parts = _parts(self._spent[0], self._spent[-1])
        return {part: self._share(seconds) for part, seconds in parts.items()}

    @property
    def elapsed(self) -> float:
        """The seconds for which it has observed the worker, at most the window's."""
        return self._spent[-1].time - self._spent[0].time if self._spent else 0.0

    def of_time(self) -> list[Bottleneck]:
        """What takes most of the worker's time, if the worker is busy."""
        if not self._busy:
            return []
        before, after = self._spent[0], self._spent[-1]
        shares = self._shares()
        (cause, subject), share = max(shares.items(), key=lambda item: item[1])
        if share < LEADING:
            return []
        sentence = _sentence(cause, subject, share)
        commits = after.commits - before.commits
        if cause is Cause.BROKER and commits:
            seconds = (after.broker - before.broker) / commits
            sentence += f", {_seconds(seconds)} for each commit and what is written until then"
        return [Bottleneck(cause, subject, share, sentence)]

    def of_throttling(self, *, late: bool, restoring: bool) -> list[Bottleneck]:
        """The quotas that hold back the clients: those for reading only where the worker waits for records.

        ``late`` says whether records wait for longer than usual, ``restoring`` whether stores are restored.
        """
        if self.elapsed <= 0:
            return []
        before, after = self._spent[0], self._spent[-1]
        waits = restoring or self.polls >= LEADING
        least = LATE_LEADING if late else LEADING
        found = []
        for (role, broker), seconds in after.throttled.items():
            share = self._share(seconds - before.throttled.get((role, broker), 0.0))
            if share >= least and (role == "producer" or waits):
                found.append(_of_quota(role, broker, share))
        return sorted(found, key=lambda item: item.share or 0.0, reverse=True)

    @property
    def polls(self) -> float:
        """The share of its time for which the worker has waited for records."""
        if self.elapsed <= 0:
            return 0.0
        return self._share(self._spent[-1].poll - self._spent[0].poll)

    def of_partitions(self) -> list[Bottleneck]:
        """The partition in which most records arrive, if it has far more than its part.

        While hardly any arrive, that in which most have waited.
        """
        if self.elapsed <= 0:
            return []
        before, after = self._spent[0], self._spent[-1]
        found = []
        for topic in {partition.topic for partition in after.records}:
            places = [partition for partition in after.records if partition.topic == topic]
            arrived = {
                place: after.records[place] - before.records[place]
                for place in places
                if place in before.records
            }
            if sum(arrived.values()) < FEWEST_RECORDS:
                arrived = {
                    place: after.records[place] - before.positions[place]
                    for place in places
                    if place in before.positions
                }
            if sum(arrived.values()) >= FEWEST_RECORDS:
                found += hot_partition(arrived)
        return found

    def _share(self, seconds: float) -> float:
        # What began before the window may be counted in it, and what a task that moved away has spent late.
        return min(1.0, max(0.0, seconds / self.elapsed))


def hot_partition(arrived: Mapping[TopicPartition, float]) -> list[Bottleneck]:
    """The partition in which half of a topic's records arrive or more; of two partitions, most of them."""
    total = sum(arrived.values())
    if len(arrived) < 2 or total <= 0:
        return []
    partition, most = max(arrived.items(), key=lambda item: item[1])
    share = most / total
    if share < (MOST_OF_TWO if len(arrived) == 2 else max(0.5, 2 / len(arrived))):
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


def of_processor(for_processor: float | None, by_limit: float | None) -> list[Bottleneck]:
    """What is said of the shares of the time for which the worker's thread was ready to run and did not."""
    if by_limit is not None and by_limit >= LEADING:
        return [
            Bottleneck(
                Cause.PROCESSOR,
                "the container's limit",
                by_limit,
                f"the container's CPU limit stops the worker for {by_limit:.0%} of the time",
            )
        ]
    if for_processor is not None and for_processor >= LEADING:
        return [
            Bottleneck(
                Cause.PROCESSOR,
                "the machine",
                for_processor,
                f"the machine's CPU is busy with other work: the worker is ready to run, and waits for a "
                f"processor for {for_processor:.0%} of its time",
            )
        ]
    return []


def of_garbage(share: float | None) -> list[Bottleneck]:
    """What is said of the share of the time that collecting garbage takes."""
    if share is None or share < LEADING:
        return []
    return [
        Bottleneck(
            Cause.GARBAGE,
            "Python",
            share,
            f"collecting garbage takes {share:.0%} of the worker's time: its steps keep many objects",
        )
    ]


def of_silence(seconds: float, error: str) -> Bottleneck:
    """A broker that has not answered for so long."""
    return Bottleneck(
        Cause.BROKER, "no answer", None, f"the broker has not answered for {seconds:.0f} s: {error}"
    )


def of_fetching(late: Mapping[TopicPartition, int | None], share: float) -> Bottleneck:
    """Records that are there and do not come, with how many there are; what else explains it is excluded."""
    partition, lag = max(late.items(), key=lambda item: item[1] or 0)
    others = f" and of {len(late) - 1} more partitions" if len(late) > 1 else ""
    count = "some" if lag is None else f"{lag:,}"
    return Bottleneck(
        Cause.FETCHING,
        str(partition),
        share,
        f"the records of {partition}{others} arrive slowly, although {count} are there: the worker waits for "
        f"them for {share:.0%} of its time, so the network or the broker is slow",
    )


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
            f"the records after it cannot be read before it ends{_more(open_transactions, number)}",
        )
        for number, (partition, offset) in enumerate(sorted(open_transactions.items())[:SAID])
    ]
    found += [
        Bottleneck(
            Cause.OTHER_INPUT,
            str(partition),
            None,
            f"the records of {partition} wait for records of {', '.join(map(str, others))}, by event time"
            f"{_more(held_back, number)}",
        )
        for number, (partition, others) in enumerate(sorted(held_back.items())[:SAID])
    ]
    return found


def _more(partitions: Mapping[TopicPartition, object], number: int) -> str:
    """How many partitions are not named, behind the last one that is."""
    left = len(partitions) - SAID
    return f" (and so in {left} more partitions)" if left > 0 and number == SAID - 1 else ""


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
    return parts


def _of_quota(role: Role, broker: str, share: float) -> Bottleneck:
    late = "the broker acknowledges late" if role == "producer" else "records arrive late"
    return Bottleneck(
        Cause.QUOTA,
        f"{role} at broker {broker}",
        share,
        f"{late} because of a quota: broker {broker} holds back the {role} for {share:.0%} of the time",
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


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
