"""What a simulation does to an app's workers, and when: schedules, made from seeds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from streams.broker.memory import Step
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Point: TypeAlias = Step | Literal["poll.after", "process", "store.before", "store.after"]
"""Where a worker can be disturbed: at its calls to the broker, and between them.

``poll.after`` is between records that were polled and their processing, ``process`` where a step's code is
entered or left, ``store`` around a write into a task's database.
"""

Disturbance: TypeAlias = Literal[
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
MEANING: dict[Disturbance, str] = {
    "crash": "the worker's process ends, another one starts in its place",
    "crash and lose the disk": "the same, and what it had on disk is gone",
    "freeze": "the worker stands still until the others have gone on without it, then goes on itself",
    "evict": "the group goes on without the worker, which does not know it",
    "leave": "the worker leaves in peace, another one starts in its place",
    "join": "one more worker joins",
    "abort": "the transaction is aborted",
    "unknown": "the producer is fenced, or nobody knows whether the commit happened",
    "unavailable": "the broker does not answer this call",
    "slow": "a step's code takes so long that the group is served in the middle of it",
    "stall": "so much time passes that the broker gives the open transaction up",
    "duplicate": "a producer sends a record of the input once more",
}

_CLIENT_CALLS: frozenset[Point] = frozenset(get_args(Step))
_ALL: frozenset[Point] = _CLIENT_CALLS | {"poll.after", "process", "store.before", "store.after"}
_WHERE: dict[Disturbance, frozenset[Point]] = {
    "abort": frozenset({"begin", "produce", "send_offsets", "commit.before", "commit_offsets.before"}),
    "unknown": frozenset(
        {"init_transactions", "begin", "produce", "send_offsets", "commit.before", "commit.after", "abort"}
    ),
    "unavailable": frozenset(
        {"committed", "init_transactions", "flush", "commit_offsets.before", "commit_offsets.after"}
    ),
    "slow": frozenset({"process"}),
}
"""What can only happen at some points; everything else can happen at all of them."""

_WORDS: dict[Point, str] = {
    "poll": "at a poll",
    "poll.after": "after a poll that brought records",
    "process": "entering or leaving a step's code",
    "keep_alive": "serving the group in the middle of work",
    "committed": "asking for the committed offsets",
    "commit_offsets.before": "before the offsets are committed",
    "commit_offsets.after": "after the offsets were committed",
    "produce": "writing results or changes of stores",
    "flush": "waiting until results are acknowledged",
    "init_transactions": "getting the producer ready",
    "begin": "beginning a transaction",
    "send_offsets": "sending the offsets to the transaction",
    "commit.before": "before the transaction commits",
    "commit.after": "after the transaction committed",
    "abort": "aborting the transaction",
    "store.before": "before changes go into the stores' database",
    "store.after": "after changes went into the stores' database",
}


class Event(NamedTuple):
    """One disturbance, where the workers together reach ``point`` for the ``number``-th time."""

    point: Point
    number: int
    disturbance: Disturbance

    def __str__(self) -> str:
        return f"{self.disturbance} {_WORDS[self.point]}, no. {self.number}"


class Pace(NamedTuple):
    """How much is done between two commits; ``None`` leaves it to the app's settings."""

    poll_records: int | None = None
    """At most so many records come with a poll."""
    commit_interval: float | None = None
    """The longest time between commits while there is a backlog, in seconds: with 0, each slice is one."""

    def __str__(self) -> str:
        polls = "as many records a poll as there are"
        if self.poll_records is not None:
            polls = f"at most {self.poll_records} records a poll"
        return polls if self.commit_interval is None else f"{polls}, a commit after each"


PACES = {Pace(): 75, Pace(16): 15, Pace(8, 0.0): 8, Pace(3, 0.0): 2}
"""The paces of schedules, and how many of a hundred have each."""


class Schedule(NamedTuple):
    """All that is done to one run."""

    pace: Pace = Pace()
    events: tuple[Event, ...] = ()

    def simpler(self) -> list[Schedule]:
        """The schedules with one thing less."""
        found = [
            self._replace(events=self.events[:number] + self.events[number + 1 :])
            for number in range(len(self.events))
        ]
        return found if self.pace == Pace() else [*found, self._replace(pace=Pace())]


def make_schedule(
    seed: int,
    counts: Callable[[Pace], Mapping[Point, int]],
    kinds: Collection[Disturbance],
    most: int = 6,
) -> Schedule:
    """One to ``most`` disturbances of these kinds.

    ``counts`` tells, for a pace, how often workers that nobody disturbs reach each point. Every kind is as
    likely as every other one, and so is every point where it can happen, however often it is reached.
    """
    choose = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    (pace,) = choose.choices(list(PACES), list(PACES.values()))
    reached = counts(pace)
    points = {
        kind: [point for point in sorted(reached) if point in _WHERE.get(kind, _ALL)]
        for kind in get_args(Disturbance)
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
        event = Event(point, choose.randint(1, reached[point]), kind)
        events[event.point, event.number] = event
    return Schedule(pace, tuple(events.values()))


def parse_kinds(names: Collection[str]) -> tuple[Disturbance, ...]:
    """The disturbances of these names. Raises ``ConfigurationError`` for an unknown one."""
    unknown = [name for name in names if name not in MEANING]
    if unknown:
        raise ConfigurationError(
            f"unknown disturbance {unknown[0]!r}", hint=f"there are {', '.join(MEANING)}"
        )
    return tuple(kind for kind in MEANING if kind in names)
