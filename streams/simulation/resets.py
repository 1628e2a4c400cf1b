"""A reset of the group in a simulation: when it happens, where it goes, and which results it must give."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

from streams.broker import GroupSettings
from streams.replay.affected import derived_stores
from streams.replay.positions import AtTime, Earliest, Latest, resolve
from streams.replay.reset import Reset
from streams.replay.reset_plan import plan_reset

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from random import Random

    from streams.broker import Broker
    from streams.records import TopicPartition
    from streams.replay.positions import Position
    from streams.simulation.points import Point
    from streams.topology.graph import Topology

T = TypeVar("T")

SHARES: Final = (1, 2, 3)
"""Quarters of the input at which a reset may go to."""

MOST_STEPS: Final = 4
"""The command is interrupted after one of its first steps, or not at all."""

FAR_FUTURE: Final = 1 << 53
"""The time of the command, in milliseconds: after all event times of the input."""


class ResetEvent(NamedTuple):
    """A reset of the group, when the workers together reach ``point`` for the ``number``-th time."""

    point: Point
    number: int
    position: int
    """Which of the possible positions it goes to."""
    killed: bool = False
    """Whether the workers are killed before it, or stop by themselves."""
    interrupted: int = 0
    """After how many of its steps the command is interrupted, and then repeated; 0: not at all."""
    away: bool = False
    """Whether one of the workers comes back, with its disk, when the others have processed everything."""

    @property
    def fault(self) -> Literal["reset"]:
        """What happens, as for the other events."""
        return "reset"

    def __str__(self) -> str:
        workers = "killed" if self.killed else "stopped"
        more = f", interrupted after {self.interrupted} of its steps" if self.interrupted else ""
        away = "; one worker comes back later" if self.away else ""
        return f"reset of the group, its workers {workers}{more}{away}"

    def simpler(self) -> list[ResetEvent]:
        """The same reset with one complication less."""
        plain = ResetEvent(self.point, self.number, self.position)
        found = [
            self._replace(killed=False),
            self._replace(interrupted=0),
            self._replace(away=False),
        ]
        return [] if self == plain else [item for item in found if item != self]


def make_reset(choose: Random, reached: Mapping[Point, int], positions: int) -> ResetEvent:
    """Choose a reset at any point that a run without faults reaches."""
    point = choose.choice(sorted(reached))
    return ResetEvent(
        point,
        choose.randint(1, reached[point]),
        choose.randrange(positions),
        killed=choose.random() < 1 / 2,
        interrupted=choose.randrange(MOST_STEPS) if choose.random() < 1 / 2 else 0,
        away=choose.random() < 1 / 4,
    )


def reset_positions(topology: Topology, times: Iterable[int], topics: Collection[str]) -> list[Position]:
    """Where the group can be reset to, for input with these event times."""
    read = [topic for topic in topics if any(part.reads(topic) for part in topology.subtopologies)]
    ordered = sorted(times)
    if not ordered or any(derived_stores(topology, topic) for topic in read):
        # State that is made of all changes of a table begins with the first one.
        return [Earliest()]
    chosen = dict.fromkeys(ordered[len(ordered) * share // 4] for share in SHARES)
    return [Earliest(), *map(AtTime, chosen), Latest()]


class _Interrupted(BaseException):
    """Ends the command."""


def reset_group(
    topology: Topology,
    broker: Broker,
    application: str,
    position: Position,
    interrupted: int,
    wait: Callable[[float], None],
) -> None:
    """Reset a group without members as ``streams replay reset`` does; repeat it where it is interrupted."""
    steps = 0

    def done(_: str) -> None:
        nonlocal steps
        steps += 1
        if steps == interrupted:
            raise _Interrupted

    def execute() -> None:
        plan = plan_reset(
            topology,
            broker,
            application=application,
            position=position,
            now=FAR_FUTURE,
            waiting=lambda _: wait(1.0),
        )
        Reset(broker, plan, done=done, waiting=lambda _: wait(1.0)).run()

    try:
        execute()
    except _Interrupted:
        execute()


def commit_position(
    broker: Broker, application: str, position: Position, places: Collection[TopicPartition]
) -> None:
    """Commit a position for a group that has never read, so that its workers begin there."""
    admin = broker.admin()
    offsets = resolve(position, admin, places, now=FAR_FUTURE).offsets
    admin.close()
    consumer = broker.consumer(GroupSettings(group=application, protocol="classic"))
    consumer.commit(offsets, {})
    consumer.close()


def follows(before: Sequence[T], after: Sequence[T], got: Sequence[T], *, ordered: bool) -> bool:
    """Whether ``got`` has the first of the results ``before``, as many as it likes, and all of ``after``."""
    if ordered:
        cut = len(got) - len(after)
        return cut >= 0 and list(got[cut:]) == list(after) and list(got[:cut]) == list(before[:cut])
    left = Counter(got)
    left.subtract(Counter(after))
    known = Counter(before)
    return all(0 <= count <= known[item] for item, count in left.items())


def repeats(before: Sequence[T], after: Sequence[T], got: Sequence[T]) -> bool:
    """The same where results may be repeated: all of ``after`` are there, and nothing unknown."""
    return not Counter(after) - Counter(got) and set(got) <= {*before, *after}
