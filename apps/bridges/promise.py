"""What each bridge promises, and whether what arrived is that."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

CALM_SHARE: Final = 10
"""The first and the last of so many parts of the messages are sent while nothing fails."""


class Guarantee(StrEnum):
    """What is promised of messages while programs and servers are killed."""

    EXACTLY_ONCE = "exactly once"
    AT_LEAST_ONCE = "at least once"
    """None is lost."""
    AT_MOST_ONCE = "at most once"
    """None comes twice. Those that are sent while nothing fails arrive."""
    BEST_EFFORT = "best effort"
    """Some come twice and some are lost. Those that are sent while nothing fails arrive."""

    @property
    def keeps_all(self) -> bool:
        """Whether no message may be lost."""
        return self in {Guarantee.EXACTLY_ONCE, Guarantee.AT_LEAST_ONCE}

    @property
    def repeats_none(self) -> bool:
        """Whether no message may come twice."""
        return self in {Guarantee.EXACTLY_ONCE, Guarantee.AT_MOST_ONCE}


@dataclass(frozen=True, slots=True)
class Bridge:
    """One direction of one system."""

    name: str
    """Also that of its topic."""
    words: str
    guarantee: Guarantee

    @property
    def system(self) -> str:
        """The system on the other side, e.g. ``redis``."""
        return self.name.split("-")[1]

    @property
    def inward(self) -> bool:
        """Whether it ends in a topic."""
        return self.name.startswith("from-")


BRIDGES: Final = (
    # Exactly once as every message has an id.
    Bridge("from-rabbitmq", "RabbitMQ → Kafka", Guarantee.EXACTLY_ONCE),
    Bridge("from-redis-stream", "Redis stream → Kafka", Guarantee.EXACTLY_ONCE),
    Bridge("from-redis-group", "Redis group → Kafka", Guarantee.EXACTLY_ONCE),
    Bridge("from-redis-list", "Redis list → Kafka", Guarantee.EXACTLY_ONCE),
    Bridge("from-redis-channel", "Redis pub/sub → Kafka", Guarantee.AT_MOST_ONCE),
    Bridge("from-zeromq-push", "ZeroMQ PUSH → Kafka", Guarantee.AT_MOST_ONCE),
    Bridge("from-zeromq-pub", "ZeroMQ PUB → Kafka", Guarantee.AT_MOST_ONCE),
    Bridge("to-rabbitmq", "Kafka → RabbitMQ", Guarantee.AT_LEAST_ONCE),
    Bridge("to-redis-stream", "Kafka → Redis stream", Guarantee.EXACTLY_ONCE),
    Bridge("to-redis-list", "Kafka → Redis list", Guarantee.EXACTLY_ONCE),
    Bridge("to-redis-hashes", "Kafka → Redis hashes", Guarantee.EXACTLY_ONCE),
    Bridge("to-redis-strings", "Kafka → Redis strings", Guarantee.EXACTLY_ONCE),
    Bridge("to-zeromq-pull", "Kafka → ZeroMQ PULL", Guarantee.BEST_EFFORT),
    Bridge("to-zeromq-sub", "Kafka → ZeroMQ SUB", Guarantee.BEST_EFFORT),
)


@dataclass(slots=True)
class Account:
    """The messages of one bridge: the numbers from 0 to ``sent``, and those that arrived, in any order."""

    bridge: Bridge
    sent: int
    numbers: Iterable[int]
    _counts: Counter[int] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = Counter(self.numbers)

    @property
    def arrived(self) -> int:
        """How many different messages arrived."""
        return len(self._counts)

    @property
    def doubled(self) -> int:
        """How many times a message came that had arrived before."""
        return self._counts.total() - len(self._counts)

    @property
    def lost(self) -> int:
        """How many never arrived."""
        return len(self._missing())

    @property
    def problems(self) -> list[str]:
        """Where it breaks the promise; empty if it is kept."""
        promise = self.bridge.guarantee
        found: list[str] = []
        foreign = self._counts.keys() - set(range(self.sent))
        if foreign:
            found.append(f"{len(foreign):,} messages that were never sent, e.g. {min(foreign)}")
        if promise.keeps_all and self.lost:
            found.append(f"{self.lost:,} lost, e.g. {min(self._missing())}")
        if promise.repeats_none and self.doubled:
            twice = min(number for number, count in self._counts.items() if count > 1)
            found.append(f"{self.doubled:,} came twice, e.g. {twice}")
        calm = self.sent // CALM_SHARE
        quiet = {*range(calm), *range(self.sent - calm, self.sent)} & self._missing()
        if not promise.keeps_all and quiet:
            found.append(f"{len(quiet):,} lost while nothing failed, e.g. {min(quiet)}")
        return found

    def _missing(self) -> set[int]:
        return set(range(self.sent)) - self._counts.keys()
