"""The rebalances that a worker has seen, and why: the worker knows what no one outside can tell."""

from __future__ import annotations

from collections import Counter, deque
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from streams.records import TopicPartition

KEPT = 200
"""How many rebalances are remembered."""


class Reason(Enum):
    """Why the worker's partitions changed."""

    JOINED = "joined"
    """The worker has joined the group."""
    MEMBERS = "members changed"
    """Another worker joined or left the group, or topics have more partitions."""
    STOPPING = "stopping"
    """The worker leaves, as a stop was requested."""
    POLL_DEADLINE = "poll deadline"
    """The worker did not poll for ``poll_deadline``, as its code did not return."""
    SESSION = "session timed out"
    """The worker was not heard of for as long as a session may last: it was frozen, or cut off."""
    REMOVED = "removed"
    """The group removed the worker for another reason, e.g. by its coordinator or an operator."""


class Rebalance(NamedTuple):
    """One call of the group: partitions that were added to the worker or taken from it."""

    time: int
    """When it ended, in milliseconds since the epoch."""
    kind: str
    """``assigned``, ``revoked`` (after a commit) or ``lost`` (without)."""
    reason: Reason
    partitions: tuple[TopicPartition, ...]
    seconds: float
    """How long the worker took for it: to commit and to release, or to begin tasks."""


class Rebalances:
    """Written by the worker's thread, readable from any thread."""

    def __init__(self) -> None:
        self._history: deque[Rebalance] = deque(maxlen=KEPT)
        self.counts: Counter[Reason] = Counter(dict.fromkeys(Reason, 0))
        """Changes since the start, by reason. Adding and taking away in one rebalance count as two."""
        self.seconds = 0.0

    @property
    def history(self) -> list[Rebalance]:
        """The last ones, oldest first."""
        return list(self._history)

    def note(self, rebalance: Rebalance) -> None:
        """Remember it. Calls that change nothing (an empty assignment) are none."""
        if not rebalance.partitions and rebalance.reason is not Reason.JOINED:
            return
        self._history.append(rebalance)
        self.counts[rebalance.reason] += 1
        self.seconds += rebalance.seconds


def reason_of(
    kind: str, *, first: bool, stopping: bool, silent: float, poll_deadline: float, session: float
) -> Reason:
    """Why the group has called. ``silent`` are the seconds since the worker polled it before."""
    if stopping:
        return Reason.STOPPING
    if kind == "lost":
        if silent >= poll_deadline:
            return Reason.POLL_DEADLINE
        return Reason.SESSION if silent >= session else Reason.REMOVED
    return Reason.JOINED if kind == "assigned" and first else Reason.MEMBERS
