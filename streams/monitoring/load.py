"""Measure what arrives for an app and what it takes: from the topics, and from its workers' metrics."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from streams.monitoring.lag import measure_lag
from streams.monitoring.sizing import JobDemand, TaskDemand, Work
from streams.records import TopicPartition
from streams.runtime.topics import input_partitions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from streams.broker import Admin
    from streams.monitoring.scrape import Scrape
    from streams.topology.graph import Topology

PARTS = 10
"""The time that is looked at is divided into so many parts, of which the busiest counts."""

FEWEST_RECORDS = 100
"""With fewer records in the measured time, the figures since the workers' start are used."""

STAGES = ("decode", "process", "produce", "commit")
"""The stages that are work; the rest of a worker's time it waits for records."""

RUNNING = "streams_jobs_running"
WAITING = "streams_jobs_waiting"


class Observed(NamedTuple):
    """What one worker's metrics said at the beginning and at the end of the measured time."""

    address: str
    before: Scrape
    after: Scrape


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured."""

    tasks: Sequence[TaskDemand]
    jobs: Sequence[JobDemand] = ()
    places: int = 0
    """How many jobs all workers together execute at once."""
    workers: int = 0
    """The workers that answered."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds of work for each record, by stage."""
    since_start: bool = False
    """Whether the costs are those since the workers' start, as too little was processed meanwhile."""
    rate: float = 0.0
    """Records a second that arrived in the app's input, in the busiest part of the time."""
    mean: float = 0.0
    """The same on average."""
    processor: Mapping[str, float] = field(default_factory=dict)
    """Processors that each worker's process used, by its address."""


class Arrivals(NamedTuple):
    """Records a second in the partitions of the input."""

    busiest: Mapping[TopicPartition, float]
    """In the part of the time in which most arrived in all partitions together."""
    mean: Mapping[TopicPartition, float]


def measure_arrivals(
    admin: Admin, partitions: Collection[TopicPartition], now: int, over: float, parts: int = PARTS
) -> Arrivals:
    """How many records arrived in these partitions in the last ``over`` seconds before ``now``.

    By the records' timestamps, as the topics have them; ``now`` is in milliseconds since the epoch. Records
    that are deleted already are missing, and the markers of transactions count as records.
    """
    edges = [now - round(over * 1000 * (parts - number) / parts) for number in range(parts)]
    reached = [admin.offsets_for_times(dict.fromkeys(partitions, edge)) for edge in edges]
    reached.append(admin.end_offsets(partitions))
    counts = [
        {partition: max(0, after[partition] - before[partition]) for partition in partitions}
        for before, after in pairwise(reached)
    ]
    busiest = max(counts, key=lambda count: sum(count.values()))
    total = {partition: sum(count[partition] for count in counts) for partition in partitions}
    return Arrivals(
        {partition: count * parts / over for partition, count in busiest.items()},
        {partition: count / over for partition, count in total.items()},
    )


def measure_load(
    topology: Topology,
    admin: Admin,
    group: str,
    observe: Callable[[], Sequence[Observed]],
    now: Callable[[], int],
    *,
    over: float,
) -> Load:
    """Measure an app's load: what its tasks and its jobs take, and how much arrives for them.

    ``observe`` reads the workers' metrics twice, some seconds apart; arrivals are those of the last ``over``
    seconds (see ``measure_arrivals``). What arrives in repartition topics follows from what was processed of
    them for each record of the input. Raises ``BrokerError``.
    """
    inputs = input_partitions(topology, admin.topics())
    lags = {item.partition: item for item in measure_lag(admin, group, list(inputs))}
    begun = {partition: item.end for partition, item in lags.items()}
    observed = observe()
    external = [partition for partition in lags if partition.topic not in topology.repartitions]
    arrivals = measure_arrivals(admin, external, now(), over)
    meanwhile = admin.end_offsets(external)
    seconds = max((item.after.time - item.before.time for item in observed), default=0.0)
    current = {
        partition: (meanwhile[partition] - begun[partition]) / seconds if seconds else 0.0
        for partition in external
    }
    # The measured seconds may be busier than any part of the time before.
    busiest = max(arrivals.busiest, current, key=lambda rates: sum(rates.values()))

    names = _tasks_of(topology, inputs)
    since_start = sum(_work(item, False)[0].count for item in observed) < FEWEST_RECORDS
    done: dict[str, Work] = {}
    shared = Work()
    for item in observed:
        common, tasks = _work(item, since_start)
        shared += common
        for task, work in tasks.items():
            done[task] = done.get(task, Work()) + work
    records = sum(work.count for work in done.values())
    extra = shared.seconds / records if records else 0.0
    everywhere = (sum(work.seconds for work in done.values()) / records if records else 0.0) + extra
    sources = {
        task for task, places in names.items() if not any(p.topic in topology.repartitions for p in places)
    }
    read = sum(work.count for task, work in done.items() if task in sources)
    arriving = sum(busiest.values())
    demands = []
    for task, places in names.items():
        work = done.get(task, Work())
        if task in sources:
            rate = sum(busiest[place] for place in places)
        else:
            # Its own input is deleted once it is processed.
            rate = arriving * work.count / read if read else 0.0
        each = everywhere if work.each is None else work.each + extra
        demands.append(TaskDemand(task, rate, each, sum(lags[place].lag for place in places)))

    return Load(
        demands,
        jobs=_jobs(observed),
        places=round(sum(item.after.total("streams_jobs_places") for item in observed)),
        workers=len(observed),
        stages=_stages(observed, since_start),
        since_start=since_start,
        rate=arriving,
        mean=sum(arrivals.mean.values()),
        processor={
            item.address: _increase(item, "process_cpu_seconds_total") / elapsed
            for item in observed
            if (elapsed := item.after.time - item.before.time) > 0
        },
    )


def _tasks_of(topology: Topology, inputs: Mapping[str, int]) -> dict[str, list[TopicPartition]]:
    """The tasks and the partitions that each reads."""
    found: dict[str, list[TopicPartition]] = {}
    for subtopology in topology.subtopologies:
        for topic, count in inputs.items():
            if subtopology.reads(topic):
                for number in range(count):
                    found.setdefault(f"{subtopology.number}_{number}", []).append(
                        TopicPartition(topic, number)
                    )
    return found


def _increase(item: Observed, name: str) -> float:
    return item.after.total(name) - item.before.total(name)


def _work(item: Observed, since_start: bool) -> tuple[Work, dict[str, Work]]:
    """What a worker did: records of all tasks with the time that they share, and the work of each task."""
    records, seconds = (
        item.after.by_label("streams_task_records_total"),
        item.after.by_label("streams_task_seconds_total"),
    )
    stages = item.after.by_label("streams_stage_seconds_total")
    if not since_start:
        # A task that has left and come back begins again at 0.
        before = item.before.by_label("streams_task_records_total")
        spent = item.before.by_label("streams_task_seconds_total")
        kept = [task for task in records if task in before and records[task] >= before[task]]
        records = {task: records[task] - before[task] for task in kept}
        seconds = {task: seconds[task] - spent.get(task, 0.0) for task in kept}
        earlier = item.before.by_label("streams_stage_seconds_total")
        stages = {stage: value - earlier.get(stage, 0.0) for stage, value in stages.items()}
    shared = stages.get("produce", 0.0) + stages.get("commit", 0.0)
    tasks = {task: Work(count, seconds.get(task, 0.0)) for task, count in records.items()}
    return Work(sum(records.values()), shared), tasks


def _stages(observed: Sequence[Observed], since_start: bool) -> dict[str, float]:
    """Seconds of work for each record, by stage."""
    spent: defaultdict[str, float] = defaultdict(float)
    records = 0.0
    for item in observed:
        before = {} if since_start else item.before.by_label("streams_stage_seconds_total")
        for stage, seconds in item.after.by_label("streams_stage_seconds_total").items():
            spent[stage] += seconds - before.get(stage, 0.0)
        records += item.after.total("streams_records_in_total")
        records -= 0 if since_start else item.before.total("streams_records_in_total")
    return {stage: spent[stage] / records for stage in STAGES} if records else {}


def _jobs(observed: Sequence[Observed]) -> list[JobDemand]:
    """What arrives of each function's jobs, and what they take."""
    afters, befores = [item.after for item in observed], [item.before for item in observed]
    seconds = max((item.after.time - item.before.time for item in observed), default=0.0)
    ended, running, waiting = _ended(afters), _sum(afters, RUNNING), _sum(afters, WAITING)
    taken = _sum(afters, "streams_jobs_seconds_total")
    earlier_ended, earlier_running, earlier_waiting = (
        _ended(befores),
        _sum(befores, RUNNING),
        _sum(befores, WAITING),
    )
    demands = []
    for job in sorted({*ended, *running, *waiting}):
        # What has arrived has ended or is there. Delayed jobs arrive when they are due.
        arrived = ended[job] - earlier_ended[job]
        arrived += running[job] + waiting[job] - earlier_running[job] - earlier_waiting[job]
        demands.append(
            JobDemand(
                job,
                max(0.0, arrived) / seconds if seconds else 0.0,
                taken[job] / ended[job] if ended[job] else None,
                (running[job] + earlier_running[job]) / 2,
                round(waiting[job]),
            )
        )
    return demands


def _ended(scrapes: Iterable[Scrape]) -> dict[str, float]:
    """The jobs that have ended after they ran, by function."""
    found: defaultdict[str, float] = defaultdict(float)
    for scrape in scrapes:
        # The labels are in the order of their names: ending, job.
        for (ending, job), count in scrape.samples.get("streams_jobs_ended_total", {}).items():
            if ending in {"succeeded", "failed"}:
                found[job] += count
    return found


def _sum(scrapes: Iterable[Scrape], name: str) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for scrape in scrapes:
        for label, value in scrape.by_label(name).items():
            found[label] += value
    return found
