"""Which conditions hold, from the figures of all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.alerts.alert import AlertKey, Symptom
from streams.alerts.rules import AlertName
from streams.monitoring.partition_figures import known_total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from streams.alerts.figures import WorkerFigures
    from streams.alerts.rules import Rule

MISSED_SECONDS = 900.0
"""For how long a missed instant of a schedule is worth an alert: what was missed stays missed."""


class Conditions:
    """Finds out which conditions hold for an app.

    ``goal`` is its ``waiting_goal`` in seconds.
    """

    def __init__(self, app: str, rules: Mapping[AlertName, Rule], *, goal: float) -> None:
        self._app = app
        self._rules = rules
        self._goal = goal

    def holding(self, figures: Sequence[WorkerFigures], now: int) -> dict[AlertKey, Symptom]:
        """The conditions that hold at ``now`` (milliseconds since the epoch), by the figures of all workers.

        Without any figures, the app has no workers.
        """
        if not figures:
            return self._no_workers()
        return {
            symptom.key: symptom
            for name, find in FINDERS.items()
            if name in self._rules
            for symptom in find(self, figures, now)
        }

    def _no_workers(self) -> dict[AlertKey, Symptom]:
        if AlertName.NO_WORKERS not in self._rules:
            return {}
        symptom = _symptom(AlertName.NO_WORKERS, "", 0, f"App {self._app} has no workers.")
        return {symptom.key: symptom}

    def _threshold(self, name: AlertName) -> float:
        return self._rules[name].threshold

    def behind(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        for topic, seconds in _worst([item.waiting for item in figures], max).items():
            if seconds > self._threshold(AlertName.BEHIND):
                yield _symptom(
                    AlertName.BEHIND,
                    topic,
                    seconds,
                    f"App {self._app} is behind: a record of {topic} has waited for {duration(seconds)}.",
                )

    def not_catching_up(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        late = any(seconds > self._goal for item in figures for seconds in item.waiting.values())
        arrival = known_total([item.arrival_rate for item in figures], 0.0)
        processing = known_total([item.processing_rate for item in figures], 0.0)
        lag = sum(item.lag for item in figures)
        longest = self._threshold(AlertName.NOT_CATCHING_UP)
        if late and arrival is not None and processing is not None and lag > longest * (processing - arrival):
            yield _symptom(
                AlertName.NOT_CATCHING_UP,
                "",
                lag,
                f"App {self._app} does not catch up within {duration(longest)} at the present rates, "
                f"with {lag:,} records to process.",
            )

    def stalled(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        count = sum(item.stalled for item in figures)
        if count > self._threshold(AlertName.STALLED):
            yield _symptom(
                AlertName.STALLED,
                "",
                count,
                f"{count} partitions of app {self._app} have records and make no progress.",
            )

    def retention_soon(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        for topic, seconds in _worst([item.deleted_in for item in figures], min).items():
            if seconds < self._threshold(AlertName.RETENTION_SOON):
                yield _symptom(
                    AlertName.RETENTION_SOON,
                    topic,
                    seconds,
                    f"Topic {topic} deletes records in {duration(seconds)} that app {self._app} "
                    "has not processed.",
                )

    def dead_letter_share(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        records = sum(item.records for item in figures)
        share = sum(item.dead_letters for item in figures) / records if records else 0.0
        if share > self._threshold(AlertName.DEAD_LETTER_SHARE):
            yield _symptom(
                AlertName.DEAD_LETTER_SHARE,
                "",
                share,
                f"{share:.2%} of the records of app {self._app} become dead letters.",
            )

    def rebalance_storm(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        count = max(item.rebalances for item in figures)
        if count > self._threshold(AlertName.REBALANCE_STORM):
            yield _symptom(
                AlertName.REBALANCE_STORM,
                "",
                count,
                f"The partitions of a worker of app {self._app} have changed {count} times "
                "within ten minutes.",
            )

    def restore_long(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        left = sum(item.to_restore for item in figures)
        if left > self._threshold(AlertName.RESTORE_LONG):
            yield _symptom(
                AlertName.RESTORE_LONG,
                "",
                left,
                f"App {self._app} has been restoring stores for long, with {left:,} records left.",
            )

    def jobs_overdue(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        seconds = max(item.oldest_due for item in figures)
        if seconds > self._threshold(AlertName.JOBS_OVERDUE):
            yield _symptom(
                AlertName.JOBS_OVERDUE,
                "",
                seconds,
                f"A job of app {self._app} has been due for {duration(seconds)} and has not begun.",
            )

    def cron_missed(self, figures: Sequence[WorkerFigures], now: int) -> Iterator[Symptom]:
        late = {
            name: seconds
            for name, at in _worst([item.next_instants for item in figures], max).items()
            if (seconds := (now - at) / 1000) > self._threshold(AlertName.CRON_MISSED)
        }
        missed = {
            name: seconds
            for name, at in _worst([item.missed_instants for item in figures], max).items()
            if (seconds := (now - at) / 1000) < MISSED_SECONDS
        }
        for name, seconds in {**missed, **late}.items():
            yield _symptom(
                AlertName.CRON_MISSED,
                name,
                seconds,
                f"Schedule {name} of app {self._app} is late or has missed instants, "
                f"since {duration(seconds)}.",
            )

    def slot_unhealthy(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        for source, size in _worst([item.retained_bytes for item in figures], max).items():
            if size > self._threshold(AlertName.SLOT_UNHEALTHY):
                yield _symptom(
                    AlertName.SLOT_UNHEALTHY,
                    source,
                    size,
                    f"The replication slot of source {source} of app {self._app} makes its database keep "
                    f"{size / 1e9:,.1f} GB of its log.",
                )

    def connector_unavailable(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        for name in sorted({name for item in figures for name in item.unavailable}):
            count = sum(name in item.unavailable for item in figures)
            if count > self._threshold(AlertName.CONNECTOR_UNAVAILABLE):
                yield _symptom(
                    AlertName.CONNECTOR_UNAVAILABLE,
                    name,
                    count,
                    f"Connector {name} of app {self._app} cannot be used: its system does not answer, "
                    "or refuses.",
                )

    def ledger_difference(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        for topic in sorted({topic for item in figures for topic in item.differences}):
            count = sum(item.differences.get(topic, 0) for item in figures)
            if count > self._threshold(AlertName.LEDGER_DIFFERENCE):
                first = next(item.difference_of[topic] for item in figures if topic in item.difference_of)
                yield _symptom(
                    AlertName.LEDGER_DIFFERENCE,
                    topic,
                    count,
                    f"{count:,} records of {topic or 'work without input'} are not accounted for in app "
                    f"{self._app}: {first}.",
                )

    def condition_unknown(self, figures: Sequence[WorkerFigures], _: int) -> Iterator[Symptom]:
        count = sum(item.unknown for item in figures)
        if count > self._threshold(AlertName.CONDITION_UNKNOWN):
            yield unknown(self._app, count)


FINDERS = {
    AlertName.BEHIND: Conditions.behind,
    AlertName.NOT_CATCHING_UP: Conditions.not_catching_up,
    AlertName.STALLED: Conditions.stalled,
    AlertName.RETENTION_SOON: Conditions.retention_soon,
    AlertName.DEAD_LETTER_SHARE: Conditions.dead_letter_share,
    AlertName.REBALANCE_STORM: Conditions.rebalance_storm,
    AlertName.RESTORE_LONG: Conditions.restore_long,
    AlertName.JOBS_OVERDUE: Conditions.jobs_overdue,
    AlertName.CRON_MISSED: Conditions.cron_missed,
    AlertName.SLOT_UNHEALTHY: Conditions.slot_unhealthy,
    AlertName.CONNECTOR_UNAVAILABLE: Conditions.connector_unavailable,
    AlertName.LEDGER_DIFFERENCE: Conditions.ledger_difference,
    AlertName.CONDITION_UNKNOWN: Conditions.condition_unknown,
}
"""How each condition is found; that no worker runs is known by there being no figures."""


def unknown(app: str, workers: int) -> Symptom:
    """That so many workers do not know what waits."""
    sentence = f"What waits for app {app} has not been known for long: its broker does not answer."
    return _symptom(AlertName.CONDITION_UNKNOWN, "", workers, sentence)


def duration(seconds: float) -> str:
    """A duration for people, in its two largest units."""
    rest = round(seconds)
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def _symptom(name: AlertName, subject: str, value: float, sentence: str) -> Symptom:
    return Symptom(AlertKey(name, subject), float(value), sentence)


def _worst(
    figures: Sequence[Mapping[str, float]], worse: Callable[[float, float], float]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for item in figures:
        for name, value in item.items():
            found[name] = worse(found[name], value) if name in found else value
    return found
