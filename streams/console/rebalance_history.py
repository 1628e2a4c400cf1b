"""The rebalances of an app: the changes of all workers' partitions, put together, with who caused them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from streams.runtime.rebalances import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.console.recent_reports import MemberRebalance

TOGETHER_MILLISECONDS: Final = 10_000
"""Changes with less time between them are of one rebalance: workers give up first, others take over then."""

LONGEST_MILLISECONDS: Final = 60_000
"""One that takes longer is more than one: in a storm, there is always a change within the last seconds."""

WHY: Final = {
    Reason.POLL_DEADLINE.value: "{} did not poll for poll_deadline, as its code did not return",
    Reason.SESSION.value: "{} was not heard of for as long as a session lasts: frozen, or cut off",
    Reason.REMOVED.value: "{} was removed by the group",
    Reason.STOPPING.value: "{} stopped",
    Reason.JOINED.value: "{} joined",
}
"""What a reason of one worker says about the rebalance, the most telling ones first."""

OTHERS: Final = (
    "a member joined or left that these workers do not know the reason of (one that was killed, or does not "
    "answer here), or topics have more partitions"
)

MOST_NAMES: Final = 3


class RebalanceRow(NamedTuple):
    """One rebalance. Times are milliseconds since the epoch."""

    begun: int
    ended: int
    cause: str
    """Who caused it and why, in a sentence."""
    reasons: Sequence[str]
    workers: int
    assigned: int
    """Partitions that were given to workers."""
    revoked: int
    lost: int
    """Partitions that workers lost before they could commit."""
    seconds: float
    """The longest that a worker took for a part of it."""
    changes: Sequence[MemberRebalance]
    """The newest first."""

    @property
    def bad(self) -> bool:
        """Whether a worker was taken by surprise."""
        return bool(self.lost)


def rebalance_rows(changes: Sequence[MemberRebalance]) -> list[RebalanceRow]:
    """Rebalances, the newest first, from changes that are in that order."""
    groups: list[list[MemberRebalance]] = []
    for item in changes:
        time = item.change.time
        if (
            groups
            and groups[-1][-1].change.time - time <= TOGETHER_MILLISECONDS
            and groups[-1][0].change.time - time <= LONGEST_MILLISECONDS
        ):
            groups[-1].append(item)
        else:
            groups.append([item])
    return [_row(group) for group in groups]


def _row(changes: Sequence[MemberRebalance]) -> RebalanceRow:
    counts = {"assigned": 0, "revoked": 0, "lost": 0}
    for item in changes:
        counts[item.change.kind] = counts.get(item.change.kind, 0) + len(item.change.partitions)
    return RebalanceRow(
        min(item.change.time - round(item.change.seconds * 1000) for item in changes),
        max(item.change.time for item in changes),
        _cause(changes),
        sorted({item.change.reason for item in changes}),
        len({item.worker for item in changes}),
        counts["assigned"],
        counts["revoked"],
        counts["lost"],
        max(item.change.seconds for item in changes),
        changes,
    )


def _cause(changes: Sequence[MemberRebalance]) -> str:
    found = []
    for reason, sentence in WHY.items():
        workers = sorted({item.worker for item in changes if item.change.reason == reason})
        if workers:
            more = f" and {len(workers) - MOST_NAMES} more" if len(workers) > MOST_NAMES else ""
            found.append(sentence.format(", ".join(workers[:MOST_NAMES]) + more))
    return "; ".join(found) or OTHERS
