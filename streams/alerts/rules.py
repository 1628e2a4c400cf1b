"""The alerts that there are, and when each is raised. The same as the rules for Prometheus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from streams.durations import to_milliseconds
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import timedelta

Severity: TypeAlias = Literal["warning", "critical"]


class AlertName(StrEnum):
    """The alerts. Each has a value that is compared with its threshold, in the unit given here."""

    BEHIND = "StreamsBehind"
    """A record has waited for longer than so many seconds; by topic. Default: ``waiting_goal``."""
    NOT_CATCHING_UP = "StreamsNotCatchingUp"
    """Records wait, and at the present rates it takes longer than so many seconds to catch up."""
    STALLED = "StreamsStalled"
    """More partitions than this make no progress."""
    RETENTION_SOON = "StreamsRetentionSoon"
    """Unprocessed records are deleted in less than so many seconds; by topic."""
    DEAD_LETTER_SHARE = "StreamsDeadLetterShare"
    """A larger share of the records of the last ten minutes became dead letters."""
    REBALANCE_STORM = "StreamsRebalanceStorm"
    """A worker's partitions changed more often within ten minutes, its own start and stop apart."""
    RESTORE_LONG = "StreamsRestoreLong"
    """More changelog records than this are still to be restored."""
    JOBS_OVERDUE = "StreamsJobsOverdue"
    """A job has been due for longer than so many seconds and has not begun."""
    CRON_MISSED = "StreamsCronMissed"
    """An instant is not decided so many seconds after it, or was missed a short time ago; by schedule."""
    SLOT_UNHEALTHY = "StreamsSlotUnhealthy"
    """A replication slot makes its database keep more bytes of its log; by source."""
    CONNECTOR_UNAVAILABLE = "StreamsConnectorUnavailable"
    """More workers than this cannot use a connector; by connector."""
    LEDGER_DIFFERENCE = "StreamsLedgerDifference"
    """More records than this are not accounted for; by topic."""
    CONDITION_UNKNOWN = "StreamsConditionUnknown"
    """More workers than this do not know what waits, as their broker does not answer."""
    NO_WORKERS = "StreamsNoWorkers"
    """No worker runs. Only ``streams alerts watch`` can raise it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """When an alert is raised, where that differs from the default.

    It is raised once its value has been beyond ``threshold`` (in the alert's unit, see ``AlertName``) for
    ``lasting``, and cleared once that has not been so for ``clearing``. Raises ``ConfigurationError``.
    """

    threshold: float | None = None
    lasting: timedelta | None = None
    clearing: timedelta | None = None

    def __post_init__(self) -> None:
        number: object = self.threshold
        valid = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if number is not None and not valid:
            raise ConfigurationError(f"AlertRule: threshold is a finite number, got {number!r:.80}")
        for name, duration in (("lasting", self.lasting), ("clearing", self.clearing)):
            if duration is not None:
                to_milliseconds(duration, f"AlertRule: {name}")


class Rule(NamedTuple):
    """When an alert is raised. Durations are milliseconds."""

    threshold: float
    lasting: int
    clearing: int
    severity: Severity


CLEARING = 60_000
"""How long a condition must have been gone, by default: an alert whose value is at its threshold must not
be raised and cleared each minute."""


STALL_CLEARING = 180_000
"""A worker that takes over a stalled partition needs ``stall_timeout`` to find that it stalls there, too."""


def _rule(threshold: float, minutes: float, severity: Severity, clearing: int = CLEARING) -> Rule:
    return Rule(threshold, round(minutes * 60_000), clearing, severity)


DEFAULTS: dict[AlertName, Rule] = {
    # Its threshold is the app's waiting_goal.
    AlertName.BEHIND: _rule(30, 5, "warning"),
    AlertName.NOT_CATCHING_UP: _rule(3600, 15, "critical"),
    AlertName.STALLED: _rule(0, 1, "critical", STALL_CLEARING),
    AlertName.RETENTION_SOON: _rule(4 * 3600, 5, "critical"),
    AlertName.DEAD_LETTER_SHARE: _rule(0.01, 10, "warning"),
    AlertName.REBALANCE_STORM: _rule(6, 2, "warning"),
    AlertName.RESTORE_LONG: _rule(0, 15, "warning"),
    AlertName.JOBS_OVERDUE: _rule(300, 5, "warning"),
    AlertName.CRON_MISSED: _rule(120, 1, "warning"),
    AlertName.SLOT_UNHEALTHY: _rule(10e9, 10, "warning"),
    AlertName.CONNECTOR_UNAVAILABLE: _rule(0, 5, "warning"),
    AlertName.LEDGER_DIFFERENCE: _rule(0, 1, "critical"),
    AlertName.CONDITION_UNKNOWN: _rule(0, 10, "warning"),
    AlertName.NO_WORKERS: _rule(0, 5, "critical"),
}


def alert_name(text: object, what: str) -> AlertName:
    """The alert of a name. Raises ``ConfigurationError`` naming ``what`` has another one."""
    try:
        return AlertName(str(text))
    except ValueError:
        raise ConfigurationError(
            f"{what}: there is no alert {text!r:.80}", hint=f"alerts are: {', '.join(AlertName)}"
        ) from None
