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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, get_args

import msgspec

from streams.errors import ConfigurationError
from streams.operators.guard import preview
from streams.process.ownership import rare_garbage_collections
from streams.simulation.run import STALL_SECONDS, Input, InputRecord, Run, shortest_idle
from streams.simulation.schedule import Fault, Pace, Point, Schedule, make_schedule
from streams.state.changelog import METADATA, RESERVED, changelog_topic
from streams.topology.graph import SourceNode, Step as TopologyStep

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from streams.app import App
    from streams.records import Headers
    from streams.serde import Serde
    from streams.topology.graph import Node, Topology

MOST = 6
"""The default for the maximum number of faults in a schedule."""


class Found(NamedTuple):
    """The compared part of a committed record: the value alone, if only the last record is compared."""

    value: bytes | None
    timestamp: int | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


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
    ) -> None:
        self._app = app
        self._topology = app.topology
        connectors = [node.name for node in self._topology.sink_connectors]
        connectors += [node.name for node in self._topology.source_topics.values()]
        if connectors:
            raise ConfigurationError(
                f"app {app.name!r} has connectors, which a simulation cannot run: {', '.join(connectors)}",
                hint="simulate the part between topics as an app of its own, and test the connectors' steps "
                "with TopologyDriver (send_source, rows)",
            )
        self._input = Input(
            {topic: [InputRecord(*record) for record in records] for topic, records in inputs.items()},
            partitions,
        )
        self._most = most
        self._may_repeat = app.settings.guarantee == "at_least_once"
        self.kinds = tuple(kinds) if kinds is not None else usual_kinds(self._topology)
        self.topics = comparisons(self._topology, app, ignore)
        letters = _dead_letters(self._topology, at_least_once=self._may_repeat)
        self._unlike = {step.encode() for step, how in letters.items() if how not in (EVERY, ANY)}
        """Steps whose dead letters depend on commits: they are not compared."""
        self._compared = [topic for topic, how in self.topics.items() if how not in (NOT, TWICE, IGNORED)]
        if not self._compared:
            raise ConfigurationError(
                "no topic that the app writes can be compared",
                hint="; ".join(f"{topic}: {how}" for topic, how in self.topics.items()) or None,
            )
        self._counts: dict[Pace, Counter[Point]] = {}
        with _quiet_host():
            run = self._execute(Schedule())
            self.expected = self._seen(run)
        self._counts[Pace()] = run.counts

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

        schedule = make_schedule(seed, counts, self.kinds, self._most)
        return schedule, differences[0] if differences else None

    def _execute(self, schedule: Schedule) -> Run:
        run = Run(self._app, self._topology, self._input, schedule)
        run.execute()
        return run

    def _difference(self, seed: int, schedule: Schedule, report: Report | None = None) -> Difference | None:
        run = Run(self._app, self._topology, self._input, schedule)
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
        self, seed: int, schedule: Schedule, run: Run, report: Report | None = None
    ) -> Difference | None:
        seen = self._seen(run)
        if report is not None:
            report.records += sum(map(len, seen.values()))
        if seen == self.expected:
            return None
        for place in {**self.expected, **seen}:
            expected, got = self.expected.get(place, ()), seen.get(place, ())
            if not self._equal(self.topics[place[0]], expected, got):
                if self._may_repeat and self.topics[place[0]] == LAST:
                    expected, got = expected[-1:], got[-1:]
                found = Difference(seed, schedule, *place, expected, got, story=tuple(map(str, run.story)))
                return dataclasses.replace(found, view=self._view(found))
        return None

    def _equal(self, how: str, expected: tuple[Found, ...], got: tuple[Found, ...]) -> bool:
        if expected == got or not self._may_repeat:
            return expected == got
        if how == LAST:
            # A worker that was replaced may still write, so the last result need not be the last record.
            return bool(expected) and expected[-1] in got
        if Counter(expected) - Counter(got):
            return False
        if how == ANY:
            return set(expected) == set(got)
        return list(dict.fromkeys(expected)) == list(dict.fromkeys(got))

    def _seen(self, run: Run) -> Seen:
        """What readers of committed records see: for each topic and key, the records in order or the last."""
        records: dict[tuple[str, bytes | None], list[Found]] = defaultdict(list)
        for fetched in run.read(self._compared):
            topic = fetched.topic
            last = self.topics[topic] == LAST
            columns = fetched.keys(), fetched.values(), fetched.timestamps()
            headers: Sequence[Headers | None] = fetched.headers() or [None] * len(fetched)
            for key, value, timestamp, own in zip(*columns, headers, strict=True):
                if key is not None and key.startswith(RESERVED) and METADATA in (own or ()):
                    continue
                if topic == self._app.dead_letter_topic and dict(own or ()).get(STEP_HEADER) in self._unlike:
                    continue
                if last:
                    # The order of updates of several windows of one key depends on when commits happen.
                    window = _window_start(value)
                    records[topic, (key or b"") + window if window else key].append(Found(value))
                else:
                    records[topic, key].append(Found(value, timestamp, tuple(own or ())))
        seen: Seen = {}
        for place, found in records.items():
            how = self.topics[place[0]]
            if how == LAST and not self._may_repeat:
                del found[:-1]
            seen[place] = tuple(sorted(found, key=repr) if how == ANY else found)
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


class _Window(msgspec.Struct):
    start: int | None = None


EVERY = "every record, in the order of each key"
ANY = "every record, in any order"
LAST = "the last record of each key: earlier ones depend on when commits happen"
NOT = "not compared: it depends on intermediate results, and so on when commits happen"
TWICE = "not compared: at least once, state downstream of a repartition topic may count a record twice"


IGNORED = "not compared: ignored on request"
_LOOSENESS = [EVERY, ANY, LAST, NOT, TWICE, IGNORED].index


def comparisons(topology: Topology, app: App, ignore: Collection[str] = ()) -> dict[str, str]:
    """How each topic that the app writes can be compared between runs that commit at different times."""
    at_least_once = app.settings.guarantee == "at_least_once"
    found: dict[str, str] = {}

    def compare(topic: str, how: str) -> None:
        found[topic] = max(found.get(topic, how), how, key=_LOOSENESS)

    for sink in topology.sinks:
        if isinstance(sink.topic, str) and sink.repartition is None:
            compare(sink.topic, _comparison(topology, sink, at_least_once=at_least_once))
    for node in topology.nodes:
        if isinstance(node, TopologyStep):
            how = _comparison(topology, node, at_least_once=at_least_once)
            for store in node.owns:
                if store.source_topic is None and store.retention is None:
                    compare(
                        changelog_topic(app.name, store),
                        LAST if how in (EVERY, ANY) else max(NOT, how, key=_LOOSENESS),
                    )
    letters = _dead_letters(topology, at_least_once=at_least_once)
    if letters:
        # Dead letters of one slice are in the order of the steps, and slices differ between runs.
        alike = ANY if {EVERY, ANY} & set(letters.values()) else max((NOT, *letters.values()), key=_LOOSENESS)
        compare(app.dead_letter_topic, alike)
    return found | {topic: IGNORED for topic in ignore if topic in found}


def _dead_letters(topology: Topology, *, at_least_once: bool) -> dict[str, str]:
    """How the dead letters of each step that may write some can be compared."""
    return {
        node.name: _comparison(topology, node, at_least_once=at_least_once)
        for node in topology.nodes
        if node.policy.action == "dead_letter"
    }


class _Place(NamedTuple):
    """A node on a path from a result upstream to the input."""

    node: Node
    below: str
    """The downstream node from which the path reached this one."""
    passed: int = 0
    """Steps in between that forward at commits."""
    keeps: bool = False
    """Whether a step downstream has a store."""


def _comparison(topology: Topology, node: Node, *, at_least_once: bool) -> str:
    """How ``node`` is compared: by the number of steps upstream that forward at commits (0, 1 or more)."""
    by_name = {item.name: item for item in topology.nodes}
    worst, twice, ordered = 0, False, True
    waiting = [_Place(node, "")]
    known = set()
    while waiting:
        place = waiting.pop()
        at, below, passed, keeps = place
        if (at.name, below, passed, keeps) in known:
            continue
        known.add((at.name, below, passed, keeps))
        if isinstance(at, TopologyStep):
            keeps = keeps or bool(at.owns or at.uses)
            if at is not node:
                # An aggregate forwards intermediate results at commits, from which later steps compute.
                ordered = ordered and not at.operator.order_depends_on_slices
                passed = min(2, passed + at.operator.forwards_at_commits_to(below))
        worst = max(worst, passed)
        waiting += [_Place(by_name[parent], at.name, passed, keeps) for parent in at.parents]
        if isinstance(at, SourceNode):
            feeding = [sink for sink in topology.sinks if sink.topic in at.topics]
            twice = twice or bool(keeps and feeding)
            waiting += [_Place(sink, at.name, passed, keeps) for sink in feeding]
    if at_least_once and twice:
        return TWICE
    stateful = isinstance(node, TopologyStep)
    return (EVERY if ordered else ANY, LAST, NOT)[min(worst + (worst > 0 and stateful), 2)]


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
