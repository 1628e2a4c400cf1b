"""Schedules of a simulation: which faults are injected at which points, generated from seeds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from streams.broker.memory import Step
from streams.errors import ConfigurationError
from streams.simulation.resets import ResetEvent, make_reset

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from streams.simulation.points import Point

Fault: TypeAlias = Literal[
    "crash",
    "crash and lose the disk",
    "freeze",
    "evict",
    "leave",
    "join",
    "abort",
    "unknown",
    "unavailable",
    "slow",
    "stall",
    "duplicate",
]
MEANING: dict[Fault, str] = {
    "crash": "the worker's process ends, and a new one starts in its place",
    "crash and lose the disk": "the same, and the state on its disk is lost",
    "freeze": "the worker pauses until the others have taken over its partitions, then continues",
    "evict": "the group evicts the worker, which does not notice at once",
    "leave": "the worker stops gracefully, and a new one starts in its place",
    "join": "another worker joins the group",
    "abort": "the transaction is aborted",
    "unknown": "the producer is fenced, or the outcome of the commit is unknown",
    "unavailable": "the broker does not answer this call",
    "slow": "a step's code takes so long that the worker polls for rebalances in the middle of it",
    "stall": "so much time passes that the broker aborts the open transaction",
    "duplicate": "a producer sends a record of the input twice",
}

_CLIENT_CALLS: frozenset[Point] = frozenset(get_args(Step))
_ALL: frozenset[Point] = _CLIENT_CALLS | {"poll.after", "process", "store.before", "store.after"}
_WHERE: dict[Fault, frozenset[Point]] = {
    "abort": frozenset({"begin", "produce", "send_offsets", "commit.before", "commit_offsets.before"}),
    "unknown": frozenset(
        {"init_transactions", "begin", "produce", "send_offsets", "commit.before", "commit.after", "abort"}
    ),
    "unavailable": frozenset(
        {"committed", "init_transactions", "flush", "commit_offsets.before", "commit_offsets.after"}
    ),
    "slow": frozenset({"process"}),
}
"""Faults that can only happen at some points; all others can happen at every point."""

_WORDS: dict[Point, str] = {
    "poll": "at a poll",
    "poll.after": "after a poll that returned records",
    "process": "entering or leaving a step's code",
    "keep_alive": "serving the group during processing",
    "committed": "reading the committed offsets",
    "commit_offsets.before": "before the offsets are committed",
    "commit_offsets.after": "after the offsets were committed",
    "produce": "writing results or store changes",
    "flush": "waiting until results are acknowledged",
    "init_transactions": "initializing the transactional producer",
    "begin": "beginning a transaction",
    "send_offsets": "sending the offsets to the transaction",
    "commit.before": "before the transaction commits",
    "commit.after": "after the transaction committed",
    "abort": "aborting the transaction",
    "store.before": "before a write to the stores' database",
    "store.after": "after a write to the stores' database",
}


class Event(NamedTuple):
    """A fault, injected when the workers together reach ``point`` for the ``number``-th time."""

    point: Point
    number: int
    fault: Fault

    def __str__(self) -> str:
        return f"{self.fault} {_WORDS[self.point]}, no. {self.number}"


class Pace(NamedTuple):
    """How much is processed between two commits; ``None`` uses the app's settings."""

    poll_records: int | None = None
    """The maximum number of records of a poll."""
    commit_interval: float | None = None
    """The longest time between commits while there is a backlog, in seconds; 0 commits after each slice."""

    def __str__(self) -> str:
        polls = "all available records per poll"
        if self.poll_records is not None:
            polls = f"at most {self.poll_records} records per poll"
        return polls if self.commit_interval is None else f"{polls}, a commit after each"


PACES = {Pace(): 75, Pace(16): 15, Pace(8, 0.0): 8, Pace(3, 0.0): 2}
"""The paces of schedules, each with its share in percent."""


class Schedule(NamedTuple):
    """The pace and the faults of one run, and the reset in it."""

    pace: Pace = Pace()
    events: tuple[Event, ...] = ()
    reset: ResetEvent | None = None

    def simpler(self) -> list[Schedule]:
        """The schedules with one fault less, with a simpler reset, and this one with the default pace."""
        found = [
            self._replace(events=self.events[:number] + self.events[number + 1 :])
            for number in range(len(self.events))
        ]
        if self.reset is not None:
            found += [self._replace(reset=reset) for reset in self.reset.simpler()]
        return found if self.pace == Pace() else [*found, self._replace(pace=Pace())]


def make_schedule(
    seed: int,
    counts: Callable[[Pace], Mapping[Point, int]],
    kinds: Collection[Fault],
    most: int = 6,
    positions: int = 0,
) -> Schedule:
    """Generate a schedule of one to ``most`` faults of these kinds, with a reset to one of ``positions``.

    ``counts`` returns, for a pace, how often a run without faults reaches each point. All kinds are equally
    likely, and so are all points where a kind can happen, regardless of how often they are reached.
    """
    choose = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    (pace,) = choose.choices(list(PACES), list(PACES.values()))
    reached = counts(pace)
    points = {
        kind: [point for point in sorted(reached) if point in _WHERE.get(kind, _ALL)]
        for kind in get_args(Fault)
        if kind in kinds
    }
    possible = [kind for kind, where in points.items() if where]
    events: dict[tuple[Point, int], Event] = {}
    joins = 0
    for _ in range(choose.randint(1, most) if possible else 0):
        kind = choose.choice(possible)
        joins += kind == "join"
        if kind == "join" and joins > 2:
            continue
        point = choose.choice(points[kind])
        # A reset makes the workers do their work twice.
        event = Event(point, choose.randint(1, reached[point] * (2 if positions else 1)), kind)
        events[event.point, event.number] = event
    reset = make_reset(choose, reached, positions) if positions and reached else None
    return Schedule(pace, tuple(events.values()), reset)


def parse_kinds(names: Collection[str]) -> tuple[Fault, ...]:
    """The kinds of faults with these names. Raises ``ConfigurationError`` for an unknown name."""
    unknown = [name for name in names if name not in MEANING]
    if unknown:
        raise ConfigurationError(
            f"unknown fault {unknown[0]!r}", hint=f"the kinds of faults are: {', '.join(MEANING)}"
        )
    return tuple(kind for kind in MEANING if kind in names)
