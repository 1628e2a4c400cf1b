"""Bounded runs in a simulation: a replay that is killed at any point and repeated has the same results."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker, MemoryConsumer
from streams.broker.reading import read_to_end
from streams.errors import ConfigurationError, StreamsError
from streams.replay.bounded.run import BoundedRun, RunRequest
from streams.replay.positions import to_position
from streams.simulation.comparisons import IGNORED
from streams.simulation.run import START, Crash, Incident, SimulatedClock
from streams.simulation.simulator import MOST, Found, Simulator

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from streams.app import App
    from streams.broker import GroupSettings, Polled
    from streams.records import Fetched
    from streams.replay.positions import Position, PositionInCode
    from streams.simulation.points import Point
    from streams.simulation.run import Input
    from streams.simulation.schedule import Event, Fault, Schedule
    from streams.simulation.simulator import Difference, Seen, SimulatedRun
    from streams.topology.graph import Topology

NAME: Final = "simulated"

FAULTS: Final[tuple[Fault, ...]] = ("crash",)
"""What can happen to a run that is one process without a group."""

BYTES: Final = "every record of each partition, byte by byte"

MOST_ATTEMPTS: Final = 100
"""How often the command is repeated: more often than it is killed."""


class _Consumer(MemoryConsumer):
    """A consumer whose polls return as many records as the schedule says."""

    run: RangeRun

    def poll(self, max_records: int, timeout: float) -> Polled:
        polled = super().poll(min(max_records, self.run.poll_records or max_records), timeout)
        if polled.fetched:
            self.run.reach("poll.after")
            self.run.delivered(polled.fetched)
        return polled


class _Broker(MemoryBroker):
    def __init__(self, run: RangeRun) -> None:
        super().__init__(clock=run.clock, wait=run.clock.advance, wall_clock=None)
        self._run = run

    def consumer(self, settings: GroupSettings) -> MemoryConsumer:
        consumer = _Consumer(self._cluster, settings)
        consumer.run = self._run
        return consumer


class RangeRun:
    """A bounded run under one schedule: repeated until it has ended, however often it is killed."""

    def __init__(self, app: App, source: Input, schedule: Schedule, begin: Position, end: Position) -> None:
        self._app = app
        self._topology: Topology = app.topology
        self._request = RunRequest(name=NAME, begin=begin, end=end)
        self.poll_records = schedule.pace.poll_records
        self.clock = SimulatedClock()
        self.broker = _Broker(self)
        self.counts: Counter[Point] = Counter()
        """How often the run has reached each point."""
        self.story: list[Incident] = []
        self.again = 0
        """How many records were read again."""
        self._pending = {(event.point, event.number): event for event in schedule.events}
        self._furthest: dict[tuple[str, int], int] = {}
        self.results: dict[str, str] = {}
        """The topics with results, and for which topics of the app they are."""
        self._folder = Path()
        self._aside = Path()
        inputs = [topic for topic in self._topology.input_topics if isinstance(topic, str)]
        named = dict.fromkeys(
            [*inputs, *(table.topic for table in self._topology.global_tables), *source.topics]
        )
        admin = self.broker.admin()
        admin.create_topics(
            [
                NewTopic(name=name, partitions=source.partitions)
                for name in named
                if name not in self._topology.repartitions
            ]
        )
        producer = self.broker.producer()
        for output in source.outputs:
            producer.produce(output)
        producer.flush(1)
        producer.close()

    def execute(self) -> None:
        """Run to the end. Raises the error that ends a run."""
        with tempfile.TemporaryDirectory(prefix="streams-simulation-") as folder:
            self._folder, self._aside = Path(folder) / "run", Path(folder) / "aside"
            for _ in range(MOST_ATTEMPTS):
                self.broker.before = self.reach
                try:
                    self._attempt()
                except Crash:
                    self.broker.before = None
                    # Of a process that is killed, the files stay as they are.
                    shutil.rmtree(self._folder, ignore_errors=True)
                    if self._aside.exists():
                        self._aside.rename(self._folder)
                else:
                    break
            else:
                raise StreamsError(f"the replay has not ended after {MOST_ATTEMPTS} attempts")
            self.broker.before = None

    def _attempt(self) -> None:
        run = BoundedRun(
            self._app,
            self._request,
            broker=self.broker,
            folder=self._folder,
            settings=msgspec.structs.replace(
                self._app.settings, state_store="memory", schema_registry_url=None
            ),
        )
        report = run.process(run.plan(), lambda _: self.reach("process"))
        record = run.publish(report, lambda _: self.reach("process"))
        self.results = {name: result.topic for name, result in record.results.items()}

    def reach(self, point: Point) -> None:
        """Count a point, and inject the fault scheduled there, which may raise."""
        if self.broker.before is None:
            return
        self.counts[point] = number = self.counts[point] + 1
        event = self._pending.pop((point, number), None)
        if event is not None:
            self._happen(event)

    def delivered(self, fetched: Sequence[Fetched]) -> None:
        """Count records that are read again."""
        for part in fetched:
            place = part.topic, part.partition
            furthest = self._furthest.get(place, 0)
            self.again += sum(offset < furthest for offset in part.offsets())
            self._furthest[place] = max(furthest, part.next_offset)

    def read(self, topics: Sequence[str]) -> Iterator[Fetched]:
        """The results for these topics, under the names that their topics have."""
        return read_to_end(self.broker, [name for name, topic in self.results.items() if topic in topics])

    def _happen(self, event: Event) -> None:
        self.story.append(Incident(self.clock.now - START, 0, {}, event))
        if self._folder.exists():
            shutil.copytree(self._folder, self._aside)
        raise Crash(False)


class RangeSimulator(Simulator):
    """Runs schedules of a bounded run of one app over a range of one input: from ``begin`` to ``end``.

    The run is killed at any point and repeated, and its polls return any number of records. Its results must
    be those of a run without faults, byte by byte. The other arguments are those of ``Simulator``; the only
    kind of faults is ``crash``.
    """

    def __init__(
        self,
        app: App,
        inputs: Mapping[str, Sequence[tuple[Any, ...]]],
        *,
        begin: PositionInCode = "earliest",
        end: PositionInCode = "latest",
        partitions: int = 1,
        kinds: Collection[Fault] | None = None,
        most: int = MOST,
        ignore: Collection[str] = (),
    ) -> None:
        unknown = [kind for kind in kinds or () if kind not in FAULTS]
        if unknown:
            raise ConfigurationError(
                f"{unknown[0]!r} cannot happen to a bounded run, which belongs to no group",
                hint="the only kind of faults is crash",
            )
        self._begin = to_position(begin)
        self._end = to_position(end)
        super().__init__(app, inputs, partitions=partitions, kinds=kinds, most=most, ignore=ignore)

    def _require_simulated(self) -> None:
        """Rows for sink connectors are left out, and sources are not read, as in every replay."""

    def _usual_kinds(self) -> tuple[Fault, ...]:
        return FAULTS

    def _comparisons(self, ignore: Collection[str]) -> dict[str, str]:
        topology = self._topology
        written = [topic for topic in topology.output_topics if topic not in topology.repartitions]
        return {
            topic: IGNORED if topic in ignore else BYTES for topic in (*written, self._app.dead_letter_topic)
        }

    def _new_run(self, schedule: Schedule) -> RangeRun:
        return RangeRun(self._app, self._input, schedule, self._begin, self._end)

    def _seen(self, run: SimulatedRun) -> Seen:
        assert isinstance(run, RangeRun), "it is one of _new_run"
        found: dict[tuple[str, bytes | None], list[Found]] = defaultdict(list)
        # Those that a function chose are compared too.
        topics = [topic for topic in run.results.values() if self.topics.get(topic) != IGNORED]
        for fetched in run.read(topics):
            headers = fetched.headers() or [None] * len(fetched)
            columns = fetched.keys(), fetched.values(), fetched.timestamps(), headers
            place = run.results[fetched.topic], b"of partition %d" % fetched.partition
            for key, value, time, own in zip(*columns, strict=True):
                found[place].append(Found(value, time, tuple(own or ()), key))
        return {place: tuple(records) for place, records in found.items()}

    def _equal(self, how: str, expected: tuple[Found, ...], got: tuple[Found, ...]) -> bool:  # noqa: ARG002 - all alike
        return expected == got

    def _view(self, difference: Difference) -> tuple[str, str, str]:
        _, expected, got = super()._view(difference)
        return (difference.key or b"").decode(), expected, got
