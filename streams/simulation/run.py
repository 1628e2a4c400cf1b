"""One run of an app on the in-memory broker: workers in one thread, on one clock, with scheduled faults."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.app import resources_of_worker
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker, MemoryConsumer
from streams.broker.reading import read_to_end
from streams.errors import (
    FatalBrokerError,
    NotCommitted,
    OutcomeUnknown,
    Retriable,
    StreamsError,
    TransactionAborted,
)
from streams.partitioning import partition_for
from streams.records import Output, TopicPartition
from streams.runtime.commit import AtLeastOnce, ExactlyOnce
from streams.runtime.status import State
from streams.runtime.topics import prepare_topics
from streams.runtime.worker import Worker
from streams.simulation.resets import commit_position, reset_group
from streams.state.memory import MemoryDatabase, MemoryDatabases
from streams.topology.graph import SourceNode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streams.app import App
    from streams.broker import GroupSettings, Polled
    from streams.operators import NodeOperator
    from streams.records import Fetched, Headers
    from streams.replay.positions import Position
    from streams.simulation.points import Point
    from streams.simulation.resets import ResetEvent
    from streams.simulation.schedule import Event, Schedule
    from streams.state.memory import _Content
    from streams.state.store import Changes
    from streams.topology.graph import Topology

WORKERS = 2

TRANSACTION_SECONDS = 1.0
"""The transaction time-out: short, so that no window closes as idle while it passes."""

COMMIT_SECONDS = 0.25
"""The longest time between commits while there is a backlog: well below the transaction time-out."""

STALL_SECONDS = 1.2 * TRANSACTION_SECONDS

SLOW_SECONDS = 1.5
"""The duration of slow user code: long enough that the worker serves the group in the middle of it."""

FREEZE_ROUNDS = 6
"""Turns of the other workers while one is frozen: enough to take over its partitions."""

START = 1_800_000_000.0
"""The start of every run, in seconds since the epoch."""

TICK = 0.0001
"""Seconds by which each reading of the clock advances it."""

ROUNDS = 3_000
"""The maximum number of turns of every worker before the run counts as stuck."""

QUEUE_SECONDS = 3600
"""For how long jobs may wait for a time, such as that of their next attempt, after the last record."""

QUIET_SECONDS = 60
"""Seconds without input at the end of a run, in addition to what idle windows need to close."""

_IDLE: frozenset[Point] = frozenset({"poll", "keep_alive", "process"})
"""Points that an idle worker reaches too: reaching only these means that there is nothing to do."""


class InputRecord(NamedTuple):
    """A record of an input topic; ``timestamp`` is in milliseconds since the epoch.

    Without a ``partition``, the key determines it; records without a key are distributed in turn.
    """

    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Headers | None = None
    partition: int | None = None


class Input:
    """The content of the input topics before the workers start; shared by many runs."""

    def __init__(self, records: Mapping[str, Sequence[InputRecord]], partitions: int) -> None:
        self.partitions = partitions
        self.topics = tuple(records)
        self.outputs: list[Output] = []
        for topic, own in records.items():
            by_partition: dict[int, list[InputRecord]] = {}
            for row, record in enumerate(own):
                number = record.partition
                if number is None:
                    key = record.key
                    number = row % partitions if key is None else partition_for(key, partitions)
                by_partition.setdefault(number, []).append(record)
            for number, chosen in sorted(by_partition.items()):
                keys, values, times, headers, _ = zip(*chosen, strict=True)
                any_headers = list(headers) if any(headers) else None
                self.outputs.append(Output(topic, keys, values, times, any_headers, partition=number))

    def record(self, number: int) -> Output:
        """The record at this number, modulo the number of all records."""
        number %= max(1, sum(map(len, self.outputs)))
        for output in self.outputs:
            if number < len(output):
                row = slice(number, number + 1)
                return Output(
                    output.topic,
                    output.keys[row],
                    output.values[row],
                    output.timestamps[row],
                    None if output.headers is None else output.headers[row],
                    partition=output.partition,
                )
            number -= len(output)
        raise StreamsError("the input has no records")


class Crash(BaseException):
    """Ends the current turn of a simulated process. The argument says whether its disk is lost."""


class SimulatedClock:
    """Seconds since the epoch: each reading takes a moment, and waiting takes none of the test's time."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        self.now += TICK
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def milliseconds(self) -> int:
        return int(self.now * 1000)


class _Consumer(MemoryConsumer):
    """A consumer with a point for faults between polling records and processing them."""

    run: Run

    def poll(self, max_records: int, timeout: float) -> Polled:
        polled = super().poll(max_records, timeout)
        if polled.fetched:
            self.run.reach("poll.after")
            self.run.delivered(self, polled.fetched)
        return polled


class _Broker(MemoryBroker):
    """A broker that registers the consumers of each process, so that a crash can end them."""

    def __init__(self, run: Run) -> None:
        # Tasks with the same partition number are also distributed over the workers.
        places = {
            topic: part.number
            for part in run.topology.subtopologies
            for topic in run.topics
            if part.reads(topic)
        }
        # The clock of the run is unrelated to the event times of the input.
        super().__init__(
            clock=run.clock,
            wait=run.clock.advance,
            first=lambda topic: places.get(topic, 0),
            wall_clock=None,
        )
        self._run = run

    def consumer(self, settings: GroupSettings) -> MemoryConsumer:
        consumer = _Consumer(self._cluster, settings)
        consumer.run = self._run
        if self._run.acting is not None:
            self._run.acting.consumers.append(consumer)
        return consumer


class _Database(MemoryDatabase):
    def __init__(self, run: Run, content: _Content, stores: Sequence[str], partition: int) -> None:
        super().__init__(content, stores, partition)
        self._run = run

    def write(self, changes: Mapping[str, Changes], metadata: Mapping[str, bytes]) -> None:
        self._run.reach("store.before")
        super().write(changes, metadata)
        self._run.reach("store.after")


class _Disk(MemoryDatabases):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def _opened(self, content: _Content, stores: Sequence[str], partition: int) -> MemoryDatabase:
        return _Database(self._run, content, stores, partition)


class _Process:
    """A simulated process: a worker, and its disk and slot, which outlive the worker."""

    def __init__(self, run: Run, slot: int) -> None:
        self._run = run
        self.slot = slot
        self.consumers: list[MemoryConsumer] = []
        self.leaving = False
        self.frozen = False
        self.away = False
        self._disk = _Disk(run)
        self._worker: Worker | None = None
        self._started = False

    @property
    def ready(self) -> bool:
        """Whether it only waits for records."""
        return self._worker is not None and self._started and self._worker.ready and not self.leaving

    @property
    def holds(self) -> dict[TopicPartition, int | None]:
        """The assigned partitions, with the next offset to process."""
        if self._worker is None:
            return {}
        return {partition: item.position for partition, item in self._worker.progress.items()}

    @property
    def at_end(self) -> dict[TopicPartition, int | None]:
        """The assigned partitions without further records to read."""
        if self._worker is None:
            return {}
        return {place: item.position for place, item in self._worker.progress.items() if item.at_end}

    @property
    def queue_wait(self) -> float | None:
        """How many seconds it can be until its queue of jobs has something to do; ``None`` without one.

        With uncommitted work it is no longer than until the next commit: a transaction would time out.
        """
        wait = None if self._worker is None else self._worker.background_wait
        if wait is None or self._worker is None or not self._worker.status.dirty:
            return wait
        return min(wait, COMMIT_SECONDS)

    def turn(self) -> None:
        if self.leaving:
            self.leaving = False
            self.close()
        elif self._worker is None:
            self._start()
        else:
            self._worker.run_once()

    def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None and self._started and worker.state is State.RUNNING:
            # After a fault it may be unable to commit; other workers then process those records again.
            with suppress(NotCommitted):
                worker.close()
        self.consumers.clear()

    def stop(self) -> None:
        """Stop gracefully, and certainly: after a fault it may be unable to leave the group."""
        consumers = list(self.consumers)
        self.close()
        self.consumers = consumers
        self.crash(lose_disk=False)

    def crash(self, *, lose_disk: bool) -> None:
        """End at once and leave the group; the next turn starts a new worker in the same slot."""
        self._worker = None
        self.leaving = False
        self._disk.close()
        if lose_disk:
            self._disk = _Disk(self._run)
        self.evict()
        self.consumers.clear()

    def evict(self) -> None:
        """Have the group evict the worker."""
        for consumer in self.consumers:
            try:
                self._run.broker.expire(consumer)
            except FatalBrokerError:
                # The consumer is closed: the worker has already left the group.
                continue

    def _start(self) -> None:
        run = self._run
        kind = ExactlyOnce if run.settings.guarantee == "exactly_once" else AtLeastOnce
        self._started = False
        self._worker = worker = Worker(
            run.topology,
            run.broker,
            kind(run.broker, f"slot-{self.slot}", timeout=TRANSACTION_SECONDS),
            run.settings,
            application=run.application,
            partitions=run.partitions,
            databases=self._disk,
            clock=run.clock,
            pause=run.clock.advance,
            wall_clock=run.clock.milliseconds,
        )
        worker.stopwatch = run.stopwatch
        # How often the worker checks asynchronous calls must not depend on how long they take.
        worker.look_seconds = None
        worker.inline = True
        worker.start()
        self._started = True


class Incident(NamedTuple):
    """A fault that was injected."""

    seconds: float
    """Seconds since the start of the run, on its clock."""
    worker: int
    held: dict[TopicPartition, int | None]
    """The partitions assigned to the worker, with the next offset to process."""
    event: Event | ResetEvent

    def __str__(self) -> str:
        places = [
            f"{partition} at {'its beginning' if offset is None else offset}"
            for partition, offset in sorted(self.held.items())
        ]
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        held = f"assigned {', '.join(places[:4])}{more}" if places else "no partitions assigned"
        return f"{self.seconds:9.3f} s  worker {self.worker}: {self.event} ({held})"


class Run:
    """One run under one schedule, from the first record to the last commit.

    ``positions`` are those that the schedule's reset chooses from. With ``begin``, the group reads from there
    and not from the beginning.
    """

    def __init__(
        self,
        app: App,
        topology: Topology,
        source: Input,
        schedule: Schedule,
        positions: Sequence[Position] = (),
        begin: Position | None = None,
    ) -> None:
        pace = schedule.pace
        self._reset = schedule.reset
        self._positions = positions
        self._begin = begin
        self._reset_due = False
        self.application = app.name
        self._resources = resources_of_worker(app)
        self.topology = _kept(topology)
        self.settings = msgspec.structs.replace(
            app.settings,
            group_instance_id=None,
            # The input is written before the workers start.
            offset_reset="earliest",
            # A span's context in the headers differs in each run.
            tracing=False,
            # Only the schedule evicts members.
            poll_deadline=1e9,
            transaction_timeout=TRANSACTION_SECONDS,
            max_poll_records=pace.poll_records or app.settings.max_poll_records,
            commit_interval=min(app.settings.commit_interval, COMMIT_SECONDS)
            if pace.commit_interval is None
            else pace.commit_interval,
        )
        self.clock = SimulatedClock()
        named = [topic for topic in topology.input_topics if isinstance(topic, str)]
        self.topics = tuple(
            dict.fromkeys([*named, *(table.topic for table in topology.global_tables), *source.topics])
        )
        """The topics that the workers read."""
        self.broker = _Broker(self)
        self.acting: _Process | None = None
        """The process whose turn it is."""
        self.counts: Counter[Point] = Counter()
        """How often workers have reached each point."""
        self.story: list[Incident] = []
        self.again = 0
        """How many records workers have read again."""
        self._input = source
        self._pending = {(event.point, event.number): event for event in schedule.events}
        self._in_code = {event.number for event in schedule.events if event.point == "process"}
        self._processes: list[_Process] = []
        self._later: list[tuple[_Process, Event]] = []
        self._failure: Exception | None = None
        self._busy = 0
        self._furthest: dict[tuple[str, int], int] = {}
        self._admin = self.broker.admin()
        own_tables = {table.topic for table in topology.global_tables if table.own is not None}
        self._admin.create_topics(
            [
                NewTopic(name=name, partitions=source.partitions)
                for name in self.topics
                if name not in topology.repartitions and name not in own_tables
            ]
        )
        self.partitions = prepare_topics(
            topology,
            self._admin,
            application=app.name,
            dead_letter_topic=app.dead_letter_topic,
            create_outputs=True,
        )
        self._places = [
            TopicPartition(topic, number)
            for topic, count in self.partitions.items()
            for number in range(count)
        ]

    def execute(self) -> None:
        """Run to the end; the workers share the app's resources. Raises the error that ended a worker."""
        with self._resources:
            self._run()

    def _run(self) -> None:
        self._send(self._input.outputs)
        if self._begin is not None:
            commit_position(self.broker, self.application, self._begin, self._external)
        self._processes += [_Process(self, slot) for slot in range(WORKERS)]
        self.broker.before = self.reach
        self._finish()
        if self._reset is not None:
            # Its point was not reached, as faults have changed the run.
            self._reset_due = True
            self._finish()
        self.broker.before = None
        for process in self._processes:
            process.close()

    @property
    def _external(self) -> list[TopicPartition]:
        """The partitions of the input topics."""
        return [place for place in self._places if place.topic in self.topics]

    def _finish(self) -> None:
        """Let the workers process everything, and all idle windows close."""
        quiet, times = _quiet(self.topology)
        # A fault that has not happened yet may delay the closing of windows to one more round, and after a
        # reset they close again.
        rounds = times + len(self._pending) + (0 if self._reset is None else times + 1)
        self._settle()
        self._let_queues_work()
        for _ in range(rounds):
            busy = self._busy
            away = [process for process in self._processes if process.away]
            for process in away:
                process.away = False
            if not away:
                self.clock.advance(quiet)
            self._settle()
            self._let_queues_work()
            if self._busy == busy and not away:
                break

    def reach(self, point: Point) -> None:
        """Count a point that a worker reaches, and inject the fault scheduled there, which may raise."""
        if self.acting is None:
            return
        self.counts[point] = number = self.counts[point] + 1
        if point not in _IDLE:
            self._busy += 1
        if self._pending:
            event = self._pending.pop((point, number), None)
            if event is not None:
                self._happen(event, self.acting)
        self._approach(point, number)

    def _approach(self, point: Point, number: int) -> None:
        reset = self._reset
        if reset is not None and (point, number) == (reset.point, reset.number):
            self._reset_due = True

    def stopwatch(self) -> float:
        """The clock with which workers measure user code: it stands still unless a fault moves it."""
        # The same as ``reach``, inlined because this is the most frequent call.
        if self.acting is not None:
            self.counts["process"] = number = self.counts["process"] + 1
            if number in self._in_code:
                self._happen(self._pending.pop(("process", number)), self.acting)
            if self._reset is not None:
                self._approach("process", number)
        return self.clock.now

    def delivered(self, consumer: MemoryConsumer, fetched: Sequence[Fetched]) -> None:
        """Count records that are read again, e.g. after an aborted transaction."""
        if self.acting is None or not self.acting.consumers or consumer is not self.acting.consumers[0]:
            return
        for part in fetched:
            place = part.topic, part.partition
            furthest = self._furthest.get(place, 0)
            if part.offsets([0])[0] < furthest:
                self.again += sum(offset < furthest for offset in part.offsets())
            self._furthest[place] = max(furthest, part.next_offset)

    def read(self, topics: Sequence[str]) -> Iterator[Fetched]:
        """Read the committed records of these topics."""
        return read_to_end(self.broker, topics)

    def enqueued(self) -> dict[str, bytes]:
        """The values of all records of the queue's topic, by the jobs' ids."""
        queue = [
            topic
            for source in self.topology.sources
            if source.own is not None
            for topic in source.topics
            if isinstance(topic, str)
        ]
        return {
            f"{fetched.partition}-{offset}": value or b""
            for fetched in self.read(queue)
            for offset, value in zip(fetched.offsets(), fetched.values(), strict=True)
        }

    def _happen(self, event: Event, process: _Process) -> None:
        self._busy += 1
        self.story.append(Incident(self.clock.now - START, process.slot, process.holds, event))
        match event.fault:
            case "crash":
                raise Crash(False)
            case "crash and lose the disk":
                raise Crash(True)
            case "abort":
                raise TransactionAborted("simulated")
            case "unknown":
                raise OutcomeUnknown("simulated")
            case "unavailable":
                raise Retriable("simulated")
            case "evict":
                process.evict()
            case "freeze":
                process.evict()
                process.frozen = True
                for _ in range(FREEZE_ROUNDS):
                    self._round()
                process.frozen = False
            case "slow":
                self.clock.advance(SLOW_SECONDS)
            case "stall":
                self.clock.advance(STALL_SECONDS)
            case "duplicate":
                self._send([self._input.record(event.number)])
            case "leave" | "join":
                # These cannot be done in the middle of a call.
                self._later.append((process, event))

    def _round(self) -> None:
        """Give every worker that is not frozen a turn."""
        for process in list(self._processes):
            if process.frozen or process.away or process is self.acting:
                continue
            before, self.acting = self.acting, process
            try:
                process.turn()
            except Crash as crash:
                process.crash(lose_disk=crash.args[0])
            except Exception as error:  # noqa: BLE001 - raised at the end, after turns that contain this one
                self._failure = self._failure or error
                process.crash(lose_disk=False)
            finally:
                self.acting = before
        later, self._later = self._later, []
        for process, event in later:
            if event.fault == "leave":
                process.leaving = True
            else:
                self._processes.append(_Process(self, len(self._processes)))

    def _settle(self) -> None:
        """Run the workers until none has anything left to do."""
        for _ in range(ROUNDS):
            busy = self._busy
            self._round()
            if self._failure is not None:
                raise self._failure
            if self._reset_due and self._admin.committed_offsets(self.application):
                self._reset_group()
                continue
            active = [process for process in self._processes if not process.away]
            if busy == self._busy and all(process.ready for process in active) and self._done():
                return
        raise StreamsError(f"the input was not processed after {ROUNDS} turns of every worker")

    def _let_queues_work(self) -> None:
        """Let time pass for jobs that wait for one, such as that of their next attempt."""
        until = self.clock.now + QUEUE_SECONDS
        while (wait := self._queue_wait()) is not None and self.clock.now + wait <= until:
            self.clock.advance(wait)
            self._settle()

    def _queue_wait(self) -> float | None:
        waits = [process.queue_wait for process in self._processes]
        return min((wait for wait in waits if wait is not None), default=None)

    def _reset_group(self) -> None:
        """Stop all workers, and reset the group; they start again in their next turns, with their disks."""
        reset, self._reset = self._reset, None
        assert reset is not None, "it is due once"
        self._reset_due = False
        first = self._processes[0]
        self.story.append(Incident(self.clock.now - START, first.slot, first.holds, reset))
        for process in self._processes:
            if reset.killed:
                process.crash(lose_disk=False)
            else:
                process.stop()
        self._processes[-1].away = reset.away and len(self._processes) > 1
        # What the workers have left open ends.
        self.clock.advance(2 * TRANSACTION_SECONDS)
        reset_group(
            self.topology,
            self.broker,
            self.application,
            self._positions[reset.position],
            reset.interrupted,
            self.clock.advance,
        )
        self._furthest.clear()
        self._busy += 1

    def _done(self) -> bool:
        """Whether every partition is assigned to a worker that has read it to its end."""
        reached = {
            place: position
            for process in self._processes
            for place, position in process.at_end.items()
            if position is not None
        }
        ends = self._admin.end_offsets(self._places, "read_uncommitted")
        return all(place in reached and reached[place] >= ends[place] for place in self._places)

    def _send(self, outputs: Sequence[Output]) -> None:
        before, self.acting = self.acting, None
        producer = self.broker.producer()
        for output in outputs:
            producer.produce(output)
        producer.flush(1)
        producer.close()
        self.acting = before


def _kept(topology: Topology) -> Topology:
    """The topology with a queue whose records stay: when they are deleted depends on time alone."""
    nodes = tuple(
        replace(node, own=replace(node.own, purged=False))
        if isinstance(node, SourceNode) and node.own is not None
        else node
        for node in topology.nodes
    )
    return replace(topology, nodes=nodes)


def _quiet(topology: Topology) -> tuple[float, int]:
    """Seconds after which every idle window has closed, and how many times to let them pass.

    The result of a window that closes may be the input of another window, which closes later.
    """
    longest, times = 0, 1
    for operator, idle in _closing(topology):
        longest = max(longest, idle + operator.idle_reach)
        times += 1
    return QUIET_SECONDS + longest / 1000, times


def shortest_idle(topology: Topology) -> float | None:
    """The shortest time without input after which a window closes, in seconds; ``None`` if none does."""
    return min((idle / 1000 for _, idle in _closing(topology)), default=None)


def _closing(topology: Topology) -> Iterator[tuple[NodeOperator, int]]:
    """The operators whose windows close when idle, and after how many milliseconds."""
    for node in topology.nodes:
        operator = node.operator
        if operator.close_idle_after is not None:
            yield operator, operator.close_idle_after
