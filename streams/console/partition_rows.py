"""The partitions of an app as rows of a table: those that no worker reports, too, and what is restored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.console.app_snapshot import AppSnapshot
    from streams.monitoring.worker_report import TaskStatus

BEHIND_SECONDS: Final = 30.0
"""The waiting time from which a partition is late for the filter: the default of ``waiting_goal``."""


class Restore(NamedTuple):
    """The restore of a task's stores."""

    task: str
    worker: str
    done: int
    total: int
    rate: float | None
    """Changelog records for each second; ``None`` if it is not known yet."""

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def left(self) -> float | None:
        """Seconds that it will take; ``None`` if that is unknown, or it does not move."""
        missing = max(0, self.total - self.done)
        if not missing:
            return 0.0
        return missing / self.rate if self.rate else None


class PartitionRow(NamedTuple):
    """A partition. ``None`` is unknown."""

    topic: str
    partition: int
    worker: str | None
    """``None`` if no worker reports it."""
    task: str | None
    position: int | None = None
    end: int | None = None
    lag: int | None = None
    waiting: float | None = None
    arrival: float | None = None
    processing: float | None = None
    caught_up: float | None = None
    deleted: float | None = None
    stream_time: int | None = None
    problem: str = ""
    restore: Restore | None = None
    measured: int | None = None
    """When its end was read, in milliseconds since the epoch."""

    @property
    def missing(self) -> bool:
        return self.worker is None


class PartitionRows(NamedTuple):
    """All of them."""

    partitions: Sequence[PartitionRow]
    restores: Sequence[Restore]
    """The longest first."""


def rows_of(app: AppSnapshot) -> PartitionRows:
    """The partitions that workers report, and those that none does."""
    tasks: dict[tuple[str, str], TaskStatus] = {}
    restores: dict[tuple[str, str], Restore] = {}
    for worker in app.report.workers:
        rates = app.rates.get(worker.worker)
        for task in worker.tasks:
            place = worker.worker, task.task
            tasks[place] = task
            if task.restored is not None and task.to_restore is not None:
                restores[place] = Restore(
                    task.task,
                    worker.worker,
                    task.restored,
                    task.to_restore,
                    None if rates is None else rates.restoring.get(task.task),
                )
    found = []
    for worker, item in app.partitions:
        place = worker.worker, item.task or ""
        owner = tasks.get(place)
        found.append(
            PartitionRow(
                item.topic,
                item.partition,
                worker.worker,
                item.task,
                item.position,
                item.end,
                item.lag,
                item.waiting_seconds,
                item.arrival_rate,
                item.processing_rate,
                item.caught_up_in_seconds,
                item.deleted_in_seconds,
                None if owner is None else owner.stream_time,
                item.problem,
                restores.get(place),
                # By the console's clock: those of workers may differ.
                None
                if item.age_seconds is None
                else round(app.time - item.age_seconds * 1000 - max(0, worker.time - worker.measured)),
            )
        )
    found += [PartitionRow(item.topic, item.partition, None, None) for item in app.report.missing]
    return PartitionRows(found, sorted(restores.values(), key=_longest))


def _longest(restore: Restore) -> tuple[float, tuple[int, int]]:
    left = restore.left
    return -math.inf if left is None else -left, _task_order(restore.task)


def _worst(row: PartitionRow) -> tuple[object, ...]:
    """Problems first, then what is unknown, then the longest waiting time."""
    return (
        not row.problem,
        not row.missing,
        row.waiting is not None,
        -(row.waiting or 0.0),
        -(row.lag or 0),
        row.topic,
        row.partition,
    )


def _largest(value: Callable[[PartitionRow], float | None]) -> Callable[[PartitionRow], tuple[object, ...]]:
    """The largest first, what is unknown last."""

    def key(row: PartitionRow) -> tuple[object, ...]:
        found = value(row)
        return (found is None, -(found or 0), row.topic, row.partition)

    return key


def _smallest(value: Callable[[PartitionRow], float | None]) -> Callable[[PartitionRow], tuple[object, ...]]:
    def key(row: PartitionRow) -> tuple[object, ...]:
        found = value(row)
        return (found is None, found or 0, row.topic, row.partition)

    return key


SORTS: Final[dict[str, Callable[[PartitionRow], tuple[object, ...]]]] = {
    "worst": _worst,
    "partition": lambda row: (row.topic, row.partition),
    "waiting": _largest(lambda row: row.waiting),
    "lag": _largest(lambda row: row.lag),
    "arriving": _largest(lambda row: row.arrival),
    "processed": _largest(lambda row: row.processing),
    "caught-up": _largest(lambda row: row.caught_up),
    "deleted": _smallest(lambda row: row.deleted),
    "position": _largest(lambda row: row.position),
    "end": _largest(lambda row: row.end),
    "stream-time": _smallest(lambda row: row.stream_time),
    "task": lambda row: (row.task is None, *_task_order(row.task), row.topic, row.partition),
    "worker": lambda row: (row.worker is None, row.worker or "", row.topic, row.partition),
    "age": _smallest(lambda row: row.measured),
}
"""Orders by name; those of figures begin with what is worst."""

SHOWN: Final[dict[str, tuple[str, Callable[[PartitionRow], bool]]]] = {
    "all": ("all", lambda _: True),
    "problem": ("with a problem", lambda row: bool(row.problem) or row.missing),
    "lag": ("with lag", lambda row: row.lag is None or row.lag > 0),
    "late": (f"waiting for > {BEHIND_SECONDS:.0f} s", lambda row: (row.waiting or 0.0) > BEHIND_SECONDS),
    "deleted": ("deleted unprocessed", lambda row: row.deleted is not None),
    "restoring": ("being restored", lambda row: row.restore is not None),
    "missing": ("without a worker", lambda row: row.missing),
}
"""Which rows are shown, by name, and what that is called."""


def _task_order(task: str | None) -> tuple[int, int]:
    numbers = (task or "").split("_")
    if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        return int(numbers[0]), int(numbers[1])
    return 0, 0
