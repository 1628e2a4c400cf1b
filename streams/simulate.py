"""Deterministic simulation: an app under crashes, aborts and rebalances, compared with an undisturbed run.

A schedule is made from a seed. It runs real workers on the memory broker, in one thread and on a clock of its
own, and disturbs them at chosen calls to the broker. What readers of committed records see afterwards must be
what they see after a run that nothing disturbed.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import msgspec
import structlog

from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker, Step
from streams.commit import AtLeastOnce, ExactlyOnce
from streams.errors import OutcomeUnknown, StreamsError, TransactionAborted
from streams.partitioning import partition_for
from streams.reading import read_to_end
from streams.records import Output, TopicPartition
from streams.state.changelog import RESERVED, changelog_topic
from streams.state.memory import MemoryDatabases
from streams.topics import prepare_topics
from streams.topology import Source, Step as TopologyStep
from streams.worker import State, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streams.app import App
    from streams.broker import GroupSettings, Producer
    from streams.broker.memory import MemoryAdmin, MemoryConsumer
    from streams.topology import Node, Topology

Disturbance: TypeAlias = Literal[
    "crash", "crash and lose the disk", "abort", "unknown", "evict", "leave", "join"
]
"""What may happen to a worker at one of its calls to the broker.

Its process ends and another is started, with or without what was on its disk; its transaction is aborted; the
outcome of a commit remains unknown; the group goes on without it, and it does not know; it leaves in peace
and comes back; one more worker joins.
"""

_ABORTABLE = {"produce", "send_offsets", "commit.before"}
_UNKNOWN = {"commit.before", "commit.after"}

WORKERS = 2
TRANSACTION_SECONDS = 10.0
START = 1_800_000_000.0
"""When every simulation begins, in seconds since the epoch."""

TICK = 0.0005
"""Seconds that pass whenever somebody looks at the clock."""

ROUNDS = 3_000
"""A schedule that has not processed its input after so many turns never will."""

QUIET_SECONDS = 60
"""Time that passes at the end without input, besides what windows need that close when they are idle."""

QUIET_STEP_SECONDS = 20
"""So much of it passes between two turns: well below the poll deadline, after which a worker is evicted."""


class Event(NamedTuple):
    """One disturbance, at the n-th call that any worker makes to the broker."""

    call: int
    disturbance: Disturbance

    def __str__(self) -> str:
        return f"{self.disturbance} at call {self.call}"


Seen: TypeAlias = "dict[tuple[str, bytes | None], tuple[bytes | None, ...]]"
"""What committed readers see, by topic and key: the values in order, or only the last of them."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A schedule whose committed results are not those of an undisturbed run."""

    seed: int
    schedule: tuple[Event, ...]
    """As few disturbances as still show it."""
    topic: str
    key: bytes | None
    expected: tuple[bytes | None, ...]
    got: tuple[bytes | None, ...]
    error: str | None = None

    @property
    def first(self) -> int:
        """The position of the first value that differs."""
        pairs = zip(self.expected, self.got, strict=False)
        same = min(len(self.expected), len(self.got))
        return next((at for at, (one, other) in enumerate(pairs) if one != other), same)


@dataclass(slots=True)
class Report:
    """What came of many schedules."""

    schedules: int = 0
    disturbances: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    records: int = 0
    """Committed records compared, over all schedules."""
    compared: dict[str, str] = field(default_factory=dict)
    """How each output topic is compared."""
    differences: list[Difference] = field(default_factory=list)


class _Crash(BaseException):
    """A process ends here."""


class _Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        self.now += TICK
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def milliseconds(self) -> int:
        return int(self.now * 1000)


class _Broker(MemoryBroker):
    """Knows the clients of each worker, so that they can be ended as a process is."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__(clock=clock, wait=clock.advance)
        self.consumers: list[MemoryConsumer] = []

    def consumer(self, settings: GroupSettings) -> MemoryConsumer:
        consumer = super().consumer(settings)
        self.consumers.append(consumer)
        return consumer


class _Process:
    """A worker with its disk and its place (slot), which outlive it."""

    def __init__(self, simulation: _Run, slot: int) -> None:
        self._run = simulation
        self.slot = slot
        self.databases = MemoryDatabases()
        self.worker: Worker | None = None
        self._clients: list[MemoryConsumer] = []

    def start(self) -> None:
        run = self._run
        kind = ExactlyOnce if run.app.settings.guarantee == "exactly_once" else AtLeastOnce
        known = len(run.broker.consumers)
        worker = Worker(
            run.topology,
            run.broker,
            kind(run.broker, f"slot-{self.slot}", timeout=TRANSACTION_SECONDS),
            run.app.settings,
            application=run.app.name,
            partitions=run.partitions,
            databases=self.databases,
            clock=run.clock,
            pause=run.clock.advance,
            wall_clock=run.clock.milliseconds,
        )
        worker.start()
        self._clients = run.broker.consumers[known:]
        self.worker = worker

    def turn(self) -> None:
        if self.worker is not None:
            self.worker.run_once()

    def crash(self, *, lose_disk: bool) -> None:
        """End at once. The group learns of it, and a successor starts in the same place."""
        self.worker = None
        self.databases.close()
        if lose_disk:
            self.databases = MemoryDatabases()
        self.evict()
        self.start()

    def evict(self) -> None:
        """Let the group go on without it."""
        for client in self._clients:
            self._run.broker.expire(client)

    def leave(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None and worker.state is State.RUNNING:
            worker.close()
        self.start()


class _Run:
    """One schedule, from the first record to the last commit."""

    def __init__(
        self,
        app: App,
        topology: Topology,
        inputs: Mapping[str, Sequence[tuple[bytes | None, bytes | None, int]]],
        partitions: int,
        schedule: Sequence[Event],
    ) -> None:
        self.app = app
        self.topology = topology
        self.clock = _Clock()
        self.broker = _Broker(self.clock)
        self.admin: MemoryAdmin = self.broker.admin()
        self._inputs = inputs
        self._pending = list(schedule)
        self._quiet = QUIET_SECONDS + _closing_seconds(topology)
        self._calls = 0
        self._acting: _Process | None = None
        self._processes: list[_Process] = []
        names = [topic for topic in topology.input_topics if isinstance(topic, str)]
        new = [name for name in [*names, *inputs] if name not in topology.repartitions]
        self.admin.create_topics([NewTopic(name=name, partitions=partitions) for name in dict.fromkeys(new)])
        self.partitions = prepare_topics(
            topology,
            self.admin,
            application=app.name,
            dead_letter_topic=app.dead_letter_topic,
            create_outputs=True,
        )

    @property
    def calls(self) -> int:
        """How many calls the workers have made to the broker."""
        return self._calls

    def run(self) -> None:
        self._send()
        for slot in range(WORKERS):
            self._add(slot)
        self.broker.before = self._before
        for number in range(ROUNDS):
            self._turns()
            if number % 4 == 3 and self._lag() == 0:
                break
        else:
            raise StreamsError(f"the input was not processed after {ROUNDS} turns of every worker")
        # What is left of the schedule had no call to happen at.
        self._pending.clear()
        for _ in range(self._quiet // QUIET_STEP_SECONDS):
            self.clock.advance(QUIET_STEP_SECONDS)
            # What closes in one turn is committed, read by the next subtopology and committed in the others.
            for _ in range(4):
                self._turns()
        for process in self._processes:
            if process.worker is not None:
                process.worker.close()

    def _add(self, slot: int) -> None:
        process = _Process(self, slot)
        self._processes.append(process)
        process.start()

    def _turns(self) -> None:
        for process in list(self._processes):
            self._acting = process
            try:
                process.turn()
            except _Crash as crash:
                self._acting = None
                process.crash(lose_disk=crash.args[0])
            finally:
                self._acting = None
            self._between(process)

    def _between(self, process: _Process) -> None:
        """Do what cannot be done in the middle of a worker's call."""
        while self._pending and self._pending[0].call <= self._calls:
            disturbance = self._pending[0].disturbance
            if disturbance == "leave":
                process.leave()
            elif disturbance == "join":
                self._add(len(self._processes))
            else:
                return
            self._pending.pop(0)

    def _before(self, step: Step) -> None:
        if self._acting is None:
            return
        self._calls += 1
        if not self._pending or self._pending[0].call > self._calls:
            return
        disturbance = self._pending[0].disturbance
        if disturbance == "abort" and step in _ABORTABLE:
            self._pending.pop(0)
            raise TransactionAborted("simulated")
        if disturbance == "unknown" and step in _UNKNOWN:
            self._pending.pop(0)
            raise OutcomeUnknown("simulated")
        if disturbance == "evict":
            self._pending.pop(0)
            self._acting.evict()
        elif disturbance.startswith("crash"):
            self._pending.pop(0)
            raise _Crash(disturbance != "crash")

    def _send(self) -> None:
        producer: Producer = self.broker.producer()
        for topic, records in self._inputs.items():
            count = self.partitions.get(topic, 1)
            for number in range(count):
                chosen = [
                    record
                    for row, record in enumerate(records)
                    if (row % count if record[0] is None else partition_for(record[0], count)) == number
                ]
                if chosen:
                    keys, values, times = zip(*chosen, strict=True)
                    producer.produce(Output(topic, keys, values, times, partition=number))
        producer.flush(1)
        producer.close()

    def _lag(self) -> int:
        places = [
            TopicPartition(topic, number)
            for topic, count in self.partitions.items()
            for number in range(count)
        ]
        committed = self.admin.committed_offsets(self.app.name)
        ends = self.admin.end_offsets(places, "read_uncommitted")
        begins = self.admin.beginning_offsets(places)
        return sum(
            # A transaction's marker may be all that is left.
            max(0, ends[place] - max(begins[place], committed.get(place, 0)) - 1)
            + (place not in committed and ends[place] > begins[place])
            for place in places
        )

    def seen(self, topics: Mapping[str, str]) -> Seen:
        """What committed readers see: for each topic and key the values in order, or the last one."""
        values: dict[tuple[str, bytes | None], list[bytes | None]] = defaultdict(list)
        for topic in topics:
            for fetched in read_to_end(self.broker, [topic]):
                for key, value in zip(fetched.keys(), fetched.values(), strict=True):
                    if key is not None and key.startswith(RESERVED):
                        continue
                    # Updates of several windows of one key follow each other as commits happen to fall.
                    window = _window_start(value) if topics[topic] == LAST else b""
                    values[topic, (key or b"") + window if window else key].append(value)
        return {
            place: tuple(found) if topics[place[0]] == EVERY else (found[-1],)
            for place, found in values.items()
        }


def _closing_seconds(topology: Topology) -> int:
    """After how long without input the last window has closed, where windows close when they are idle."""
    total = 0
    for node in topology.nodes:
        if not isinstance(node, TopologyStep):
            continue
        idle = getattr(node.operator, "close_idle_after", None)
        if idle is not None:
            lasts = max((store.changelog_retention or 0 for store in node.owns), default=0)
            total += (idle + lasts) // 1000 + QUIET_STEP_SECONDS
    return total


def _window_start(value: bytes | None) -> bytes:
    """The start of the window that a result is of; empty where it is of none."""
    try:
        start = msgspec.json.decode(value or b"", type=_Window).start
    except msgspec.DecodeError:
        return b""
    return b"" if start is None else b" window %d" % start


class _Window(msgspec.Struct):
    start: int | None = None


EVERY = "every record, in the order of each key"
LAST = "the last record of each key: it changes at commits"
NOT = "not compared: made from what other results happened to be at a commit"


def comparisons(topology: Topology, application: str) -> dict[str, str]:
    """How each output and changelog topic can be compared between runs that commit at other moments."""
    found: dict[str, str] = {}
    for sink in topology.sinks:
        if isinstance(sink.topic, str) and sink.repartition is None:
            found[sink.topic] = max(found.get(sink.topic, EVERY), _comparison(topology, sink), key=_LOOSENESS)
    for subtopology in topology.subtopologies:
        for node in subtopology.nodes:
            if isinstance(node, TopologyStep):
                verdict = NOT if _comparison(topology, node) in (LAST, NOT) else LAST
                for store in node.owns:
                    if store.source_topic is None and store.retention is None:
                        found[changelog_topic(application, store)] = verdict
    return found


_LOOSENESS = [EVERY, LAST, NOT].index


def _comparison(topology: Topology, node: Node) -> str:
    """By what lies between the input and ``node``: nothing, one step that forwards at commits, or more."""
    by_name = {item.name: item for item in topology.nodes}
    worst = 0
    waiting: list[tuple[Node, int]] = [(node, 0)]
    while waiting:
        at, passed = waiting.pop()
        if at is not node and isinstance(at, TopologyStep):
            # An aggregate forwards at commits what others then build on.
            heads = getattr(at.operator, "heads", None)
            if heads is None:
                passed += getattr(at.operator, "forwards_at_commits", False)
            elif node_through(topology, node, heads.updates):
                passed += 1
        worst = max(worst, passed)
        waiting += [(by_name[parent], passed) for parent in at.parents]
        if isinstance(at, Source):
            feeding = [sink for sink in topology.sinks if sink.repartition and sink.topic in at.topics]
            waiting += [(sink, passed) for sink in feeding]
    stateful = isinstance(node, TopologyStep)
    return (EVERY, LAST, NOT)[min(worst + (worst > 0 and stateful), 2)]


def node_through(topology: Topology, node: Node, name: str) -> bool:
    """Whether the records of ``node`` come through the step of that name."""
    subtopology = next(part for part in topology.subtopologies if node in part.nodes)
    return any(item.name == name for item in (node, *subtopology.ancestors(node.name)))


def make_schedule(seed: int, calls: int, most: int = 6) -> tuple[Event, ...]:
    """Some disturbances for a run that makes about ``calls`` calls to the broker."""
    choose = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    moments = sorted(choose.randrange(calls) for _ in range(choose.randint(1, most)))
    kinds: tuple[Disturbance, ...] = get_args(Disturbance)
    joins = 0
    schedule = []
    for moment in moments:
        kind = choose.choice(kinds)
        joins += kind == "join"
        schedule.append(Event(moment, kind if joins <= 2 else "crash"))
    return tuple(schedule)


class Simulator:
    """Runs schedules of one app on one input.

    ``inputs`` are the records of each input topic: key, value, and timestamp in milliseconds since the epoch.
    With more than one partition the order in which records of several partitions meet behind a
    ``group_by`` depends on the schedule: only results that do not depend on it compare equal.
    """

    def __init__(
        self,
        app: App,
        inputs: Mapping[str, Sequence[tuple[bytes | None, bytes | None, int]]],
        *,
        partitions: int = 1,
    ) -> None:
        self._app = app
        self._topology = app.topology
        self._inputs = inputs
        self._partitions = partitions
        self._may_repeat = app.settings.guarantee == "at_least_once"
        self.topics = comparisons(self._topology, app.name)
        with _silence():
            undisturbed = self._execute(())
            self.expected = undisturbed.seen(self._compared)
        self.calls = undisturbed.calls

    @property
    def _compared(self) -> dict[str, str]:
        return {topic: how for topic, how in self.topics.items() if how != NOT}

    def run(self, seeds: Sequence[int], *, stop_after: int = 1) -> Iterator[Report]:
        """The report so far, after each schedule, until there are ``stop_after`` differences."""
        report = Report(compared=dict(self.topics))
        for seed in seeds:
            schedule = make_schedule(seed, self.calls)
            with _silence():
                difference, records = self._difference(seed, schedule)
                if difference is not None:
                    difference = self._shrunk(difference)
            report.schedules += 1
            report.records += records
            for event in schedule:
                report.disturbances[event.disturbance] += 1
            if difference is not None:
                report.differences.append(difference)
            yield report
            if len(report.differences) >= stop_after:
                return

    def _execute(self, schedule: Sequence[Event]) -> _Run:
        run = _Run(self._app, self._topology, self._inputs, self._partitions, schedule)
        run.run()
        return run

    def _difference(self, seed: int, schedule: tuple[Event, ...]) -> tuple[Difference | None, int]:
        try:
            seen = self._execute(schedule).seen(self._compared)
        except Exception as error:  # noqa: BLE001 - whatever ends a worker is a finding
            text = f"{type(error).__name__}: {error}"
            return Difference(seed, schedule, "", None, (), (), text), 0
        records = sum(map(len, seen.values()))
        for place in {**self.expected, **seen}:
            expected, got = self.expected.get(place, ()), seen.get(place, ())
            if expected != got and not (self._may_repeat and set(expected) <= set(got)):
                return Difference(seed, schedule, place[0], place[1], expected, got), records
        return None, records

    def _shrunk(self, difference: Difference) -> Difference:
        """The same with as few disturbances as still make one, by leaving out one after the other."""
        again = True
        while again:
            again = False
            for number in range(len(difference.schedule)):
                fewer = difference.schedule[:number] + difference.schedule[number + 1 :]
                found, _ = self._difference(difference.seed, fewer)
                if found is not None:
                    difference, again = found, True
                    break
        return difference


class _silence:  # noqa: N801 - used as a statement
    """Thousands of simulated failures are not worth a log line each."""

    def __enter__(self) -> None:
        self._before = structlog.get_config()
        self._level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

    def __exit__(self, *_: object) -> None:
        logging.disable(self._level)
        structlog.configure(**self._before)
