"""Deterministic simulation: compare the results of an app under faults with those of a run without faults.

A schedule is generated from a seed. Real workers run on the in-memory broker, in one thread and on a
simulated clock, and faults are injected at chosen points. What readers of committed records see afterwards
must equal what they see after a run without faults. The same seed, app and input always give the same run.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, get_args

import msgspec

from streams.errors import ConfigurationError
from streams.operators.guard import preview
from streams.process.ownership import rare_garbage_collections
from streams.simulation.comparisons import (
    ANY,
    EVERY,
    LAST,
    UNCOMPARED,
    comparisons,
    dead_letter_comparisons,
)
from streams.simulation.jobs import JOBS, JobComparison, QueueTopics
from streams.simulation.resets import follows, repeats, reset_positions
from streams.simulation.run import STALL_SECONDS, Input, InputRecord, Run, shortest_idle
from streams.simulation.schedule import Fault, Pace, Schedule, make_schedule
from streams.state.changelog import METADATA, RESERVED, changelog_topic
from streams.structs import decodable
from streams.topology.graph import Step as TopologyStep

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from streams.app import App
    from streams.records import Fetched, Headers
    from streams.serde import Serde
    from streams.simulation.points import Point
    from streams.simulation.run import Incident
    from streams.topology.graph import Topology

MOST = 6
"""The default for the maximum number of faults in a schedule."""


class Found(NamedTuple):
    """The compared part of a committed record: the value alone, if only the last record is compared."""

    value: bytes | None
    timestamp: int | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    key: bytes | None = None
    """Only where the records of a partition are compared, and not those of a key."""


class SimulatedRun(Protocol):
    """A run under one schedule."""

    @property
    def counts(self) -> Counter[Point]:
        """How often each point was reached."""

    @property
    def story(self) -> Sequence[Incident]:
        """The faults that were injected."""

    @property
    def again(self) -> int:
        """How many records were read again."""

    def execute(self) -> None:
        """Run to the end."""

    def read(self, topics: Sequence[str]) -> Iterator[Fetched]:
        """The committed results for these topics."""


Seen: TypeAlias = "dict[tuple[str, bytes | None], tuple[Found, ...]]"
"""What readers of committed records see, by topic and key, in order."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A schedule whose committed results differ from those of a run without faults."""

    seed: int
    schedule: Schedule
    """Reduced to the fewest faults that still cause the difference."""
    topic: str = ""
    key: bytes | None = None
    expected: tuple[Found, ...] = ()
    """What a run without faults writes to that topic with that key."""
    got: tuple[Found, ...] = ()
    error: str | None = None
    """The exception that ended a worker, if that is the difference."""
    story: tuple[str, ...] = ()
    """The faults as they happened."""
    view: tuple[str, str, str] = ("", "", "")
    """The key, and the first record that differs, as expected and as written; decoded where possible."""

    @property
    def first(self) -> int:
        """The position of the first record that differs."""
        pairs = zip(self.expected, self.got, strict=False)
        same = min(len(self.expected), len(self.got))
        return next((at for at, (one, other) in enumerate(pairs) if one != other), same)


@dataclass(slots=True)
class Report:
    """The results of many schedules."""

    schedules: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault happened."""
    points: Counter[str] = field(default_factory=Counter)
    """How many faults happened at each point."""
    passed: int = 0
    """How often workers reached a point where a fault could have been injected."""
    again: int = 0
    """Input records that workers read more than once."""
    records: int = 0
    """Committed records compared, over all schedules."""
    compared: dict[str, str] = field(default_factory=dict)
    """How each output topic is compared."""
    differences: list[Difference] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Add the results of other schedules."""
        self.schedules += other.schedules
        self.faults += other.faults
        self.points += other.points
        self.passed += other.passed
        self.again += other.again
        self.records += other.records
        self.compared |= other.compared
        self.differences += other.differences


class Simulator:
    """Runs schedules of one app on one input.

    ``inputs`` are the records of each input topic: ``InputRecord``, or tuples of its first fields. With more
    than one of ``partitions``, the order in which records of several partitions arrive downstream of a
    ``group_by`` depends on the schedule: only results that are independent of it compare equal. ``kinds`` are
    the kinds of faults; the default is all but ``duplicate``, which changes the input and is for apps that
    deduplicate it. ``ignore`` names topics that are not compared.

    With ``reset``, the group is reset once in each run, as ``streams replay reset`` does, at any moment and
    to the beginning, the end, or in between. Then the results must be the first ones of a run without faults,
    any number of them, followed by those of a run that begins at that position with empty state.

    Raises what ends a worker in a run without faults, and ``ConfigurationError`` if nothing can be compared.
    """

    def __init__(
        self,
        app: App,
        inputs: Mapping[str, Sequence[tuple[Any, ...]]],
        *,
        partitions: int = 1,
        kinds: Collection[Fault] | None = None,
        most: int = MOST,
        ignore: Collection[str] = (),
        reset: bool = False,
    ) -> None:
        self._app = app
        self._topology = app.topology
        self._require_simulated()
        self._input = Input(
            {topic: [InputRecord(*record) for record in records] for topic, records in inputs.items()},
            partitions,
        )
        self._most = most
        self._may_repeat = app.settings.guarantee == "at_least_once"
        self.kinds = tuple(kinds) if kinds is not None else self._usual_kinds()
        self.topics = self._comparisons(ignore)
        letters = dead_letter_comparisons(self._topology, at_least_once=self._may_repeat)
        self._unlike = {step.encode() for step, how in letters.items() if how not in (EVERY, ANY)}
        """Steps whose dead letters depend on commits: they are not compared."""
        self._compared = [topic for topic, how in self.topics.items() if how not in UNCOMPARED]
        if not self._compared:
            raise ConfigurationError(
                "no topic that the app writes can be compared",
                hint="; ".join(f"{topic}: {how}" for topic, how in self.topics.items()) or None,
            )
        self._queue = QueueTopics.of(self._topology, app.name)
        self._counts: dict[Pace, Counter[Point]] = {}
        times = [time for output in self._input.outputs for time in output.timestamps]
        self._positions = reset_positions(self._topology, times, self._input.topics) if reset else []
        self._after: dict[int, Seen] = {}
        """The results of runs that begin at these positions."""
        self._emptied = {
            changelog_topic(app.name, store)
            for node in self._topology.nodes
            if isinstance(node, TopologyStep)
            for store in node.owns
        }
        with _quiet_host():
            run = self._execute(Schedule())
            self.expected = self._seen(run)
        self._counts[Pace()] = run.counts

    def _require_simulated(self) -> None:
        connectors = [node.name for node in self._topology.sink_connectors]
        connectors += [node.name for node in self._topology.source_topics.values()]
        if connectors:
            raise ConfigurationError(
                f"app {self._app.name!r} has connectors, which a simulation cannot run: "
                f"{', '.join(connectors)}",
                hint="simulate the part between topics as an app of its own, and test the connectors' steps "
                "with TopologyDriver (send_source, rows)",
            )

    def _usual_kinds(self) -> tuple[Fault, ...]:
        return usual_kinds(self._topology)

    def _comparisons(self, ignore: Collection[str]) -> dict[str, str]:
        return comparisons(self._topology, self._app, ignore)

    def run(self, seeds: Sequence[int], *, stop_after: int = 1) -> Iterator[Report]:
        """Yield the report so far after each schedule, until there are ``stop_after`` differences."""
        report = Report(compared=dict(self.topics))
        for seed in seeds:
            with _quiet_host():
                schedule, difference = self._schedule(seed)
                if difference is None:
                    difference = self._difference(seed, schedule, report)
                if difference is not None:
                    difference = self._shrunk(difference)
            report.schedules += 1
            if difference is not None:
                report.differences.append(difference)
            yield report
            if len(report.differences) >= stop_after:
                return

    def _schedule(self, seed: int) -> tuple[Schedule, Difference | None]:
        """The schedule of a seed, and a difference if its pace causes one without any fault."""
        differences: list[Difference] = []

        def counts(pace: Pace) -> Counter[Point]:
            if pace not in self._counts:
                schedule = Schedule(pace)
                try:
                    run = self._execute(schedule)
                except Exception as error:  # noqa: BLE001 - as in _difference
                    differences.append(Difference(seed, schedule, error=_text(error)))
                    return Counter()
                found = self._compare(seed, schedule, run)
                if found is not None:
                    differences.append(found)
                self._counts[pace] = run.counts
            return self._counts[pace]

        schedule = make_schedule(seed, counts, self.kinds, self._most, len(self._positions))
        return schedule, differences[0] if differences else None

    def _execute(self, schedule: Schedule) -> SimulatedRun:
        run = self._new_run(schedule)
        run.execute()
        return run

    def _new_run(self, schedule: Schedule) -> SimulatedRun:
        return Run(self._app, self._topology, self._input, schedule, self._positions)

    def _results_after(self, position: int) -> Seen:
        """The results of a run without faults that begins at a position."""
        if position not in self._after:
            begin = self._positions[position]
            run = Run(self._app, self._topology, self._input, Schedule(), begin=begin)
            run.execute()
            self._after[position] = self._seen(run)
        return self._after[position]

    def _difference(self, seed: int, schedule: Schedule, report: Report | None = None) -> Difference | None:
        run = self._new_run(schedule)
        difference: Difference | None
        try:
            run.execute()
        except Exception as error:  # noqa: BLE001 - any exception that ends a worker is a difference
            story = tuple(map(str, run.story))
            difference = Difference(seed, schedule, error=_text(error), story=story)
        else:
            difference = self._compare(seed, schedule, run, report)
        if report is not None:
            report.faults.update(item.event.fault for item in run.story)
            report.points.update(item.event.point for item in run.story)
            report.passed += run.counts.total()
            report.again += run.again
        return difference

    def _compare(
        self, seed: int, schedule: Schedule, run: SimulatedRun, report: Report | None = None
    ) -> Difference | None:
        seen = self._seen(run)
        if report is not None:
            report.records += sum(map(len, seen.values()))
        after = None if schedule.reset is None else self._results_after(schedule.reset.position)
        if after is None and seen == self.expected:
            return None
        for place in {**self.expected, **(after or {}), **seen}:
            before, got = self.expected.get(place, ()), seen.get(place, ())
            if after is None:
                expected, equal = before, self._equal(self.topics[place[0]], before, got)
            else:
                rest = after.get(place, ())
                expected = (*before[: max(0, len(got) - len(rest))], *rest)
                equal = self._equal_after_reset(place[0], before, rest, got)
            if not equal:
                if self._may_repeat and self.topics[place[0]] == LAST:
                    expected, got = expected[-1:], got[-1:]
                found = Difference(seed, schedule, *place, expected, got, story=tuple(map(str, run.story)))
                return dataclasses.replace(found, view=self._view(found))
        return None

    def _equal_after_reset(
        self, topic: str, before: tuple[Found, ...], after: tuple[Found, ...], got: tuple[Found, ...]
    ) -> bool:
        how = self.topics[topic]
        if topic in self._emptied:
            return self._equal(how, after, got)
        if how == LAST:
            # Without results after the reset, the last one is any of those before it.
            return not after or self._equal(how, after, got)
        if self._may_repeat:
            return repeats(before, after, got)
        return follows(before, after, got, ordered=how == EVERY)

    def _equal(self, how: str, expected: tuple[Found, ...], got: tuple[Found, ...]) -> bool:
        if expected == got or not self._may_repeat:
            return expected == got
        if how == LAST:
            # A worker that was replaced may still write, so the last result need not be the last record.
            return bool(expected) and expected[-1] in got
        if Counter(expected) - Counter(got):
            return False
        if how in (ANY, JOBS):
            return set(expected) == set(got)
        return list(dict.fromkeys(expected)) == list(dict.fromkeys(got))

    def _seen(self, run: SimulatedRun) -> Seen:
        """What readers of committed records see: for each topic and key, the records in order or the last."""
        records: dict[tuple[str, bytes | None], list[Found]] = defaultdict(list)
        jobs: JobComparison | None = None
        if self._queue is not None and isinstance(run, Run):
            jobs = JobComparison(self._queue, run.enqueued(), may_repeat=self._may_repeat)
        for fetched in run.read(self._compared):
            topic = fetched.topic
            of_jobs = None if jobs is None else jobs.take(fetched)
            if of_jobs is not None:
                for job, said in of_jobs:
                    records[topic, job].append(Found(said))
                continue
            last = self.topics[topic] == LAST
            columns = fetched.keys(), fetched.values(), fetched.timestamps()
            headers: Sequence[Headers | None] = fetched.headers() or [None] * len(fetched)
            for key, value, timestamp, own in zip(*columns, headers, strict=True):
                if key is not None and key.startswith(RESERVED) and METADATA in (own or ()):
                    continue
                if topic == self._app.dead_letter_topic and dict(own or ()).get(STEP_HEADER) in self._unlike:
                    continue
                if jobs is not None and jobs.is_letter_of_queue(dict(own or ())):
                    letter = jobs.letter(value, own or [])
                    if letter is not None:
                        records[topic, None].append(Found(letter[0], None, tuple(letter[1])))
                    continue
                if last:
                    # The order of updates of several windows of one key depends on when commits happen.
                    window = _window_start(value)
                    records[topic, (key or b"") + window if window else key].append(Found(value))
                else:
                    records[topic, key].append(Found(value, timestamp, tuple(own or ())))
        if jobs is not None and self._queue is not None:
            for job, said in jobs.left():
                records[self._queue.changelog, job].append(Found(said))
        seen: Seen = {}
        for place, found in records.items():
            how = self.topics[place[0]]
            if how == LAST and not self._may_repeat:
                del found[:-1]
            seen[place] = tuple(sorted(found, key=repr) if how in (ANY, JOBS) else found)
        return seen

    def _shrunk(self, difference: Difference) -> Difference:
        """Shrink the schedule of a difference: leave out single faults as long as a difference remains."""
        again = True
        while again:
            again = False
            for simpler in difference.schedule.simpler():
                found = self._difference(difference.seed, simpler)
                if found is not None:
                    difference, again = found, True
                    break
        return difference

    def _view(self, difference: Difference) -> tuple[str, str, str]:
        sink = next((sink for sink in self._topology.sinks if sink.topic == difference.topic), None)
        first = difference.first
        key, value = (None, None) if sink is None else (sink.key, sink.value)
        records = [
            f"{_decoded(value, found[first].value)}{_when(found[first])}" if first < len(found) else "nothing"
            for found in (difference.expected, difference.got)
        ]
        return _decoded(key, difference.key), records[0], records[1]


def usual_kinds(topology: Topology) -> tuple[Fault, ...]:
    """The faults that must not change what an app writes."""
    left_out = {"duplicate"}
    idle = shortest_idle(topology)
    if idle is not None and idle < 2 * MOST * STALL_SECONDS:
        # Windows would close as idle although more input follows.
        left_out |= {"stall", "slow"}
    return tuple(kind for kind in get_args(Fault) if kind not in left_out)


def _decoded(serde: Serde[Any] | None, payload: bytes | None) -> str:
    if payload is None:
        return "null"
    if serde is not None:
        try:
            return repr(next(iter(serde.deserialize([payload]))))
        except Exception:  # noqa: BLE001 - the bytes are shown instead
            return preview(payload, 200)
    return preview(payload, 200)


def _when(found: Found) -> str:
    """Describe the timestamp and headers of a record, if they are compared."""
    text = "" if found.timestamp is None else f" of time {found.timestamp}"
    return f"{text} with headers {list(found.headers)}" if found.headers else text


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _window_start(value: bytes | None) -> bytes:
    """The start of a result's window; empty if the result has no window."""
    try:
        start = msgspec.json.decode(value or b"", type=_Window).start
    except msgspec.DecodeError:
        return b""
    return b"" if start is None else b" window %d" % start


STEP_HEADER = "__streams.errors.step"
"""Which step a dead letter is of."""


@decodable
class _Window(msgspec.Struct):
    start: int | None = None


@contextmanager
def _quiet_host() -> Iterator[None]:
    """Turn off logs, which would report thousands of simulated faults, and collect garbage less often."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with rare_garbage_collections():
            yield
    finally:
        logging.disable(level)
