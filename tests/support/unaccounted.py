"""What the ledgers of a test find, in all tasks and workers of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from streams.monitoring.ledger import between_commits, imbalances
from streams.runtime.ledger import Outside
from streams.runtime.task import Task
from streams.runtime.worker_ledger import WorkerLedger

if TYPE_CHECKING:
    import pytest

    from streams.records import TopicPartition
    from streams.runtime.ledger import Page, TaskLedger
    from streams.runtime.worker_ledger import Fault


class Found(NamedTuple):
    """A balance of a task that does not close."""

    task: str
    partition: TopicPartition | None
    place: str
    records: int


class Unaccounted:
    """Checks the ledger of each task at each commit and at its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of_tasks: list[Found] = []
        self._ledgers: list[WorkerLedger] = []
        self._seen: dict[tuple[Task, TopicPartition | None], Page] = {}
        """The pages that were checked: they are replaced, and never changed."""
        committed, close, create = Task.committed, Task.close, WorkerLedger.__init__

        def checked_commit(task: Task) -> None:
            committed(task)
            self._check(task, task.ledger.pages)
            written = task.ledger.outside[Outside.ACCEPTED] + task.ledger.outside[Outside.MUTED]
            self.of_tasks += [
                Found(str(task.id), None, *item)
                for item in between_commits(task.ledger, by_worker=written > 0)
            ]

        def checked_close(task: Task) -> None:
            self._check(task, task.ledger.pages)
            close(task)

        def noted(ledger: WorkerLedger) -> None:
            create(ledger)
            self._ledgers.append(ledger)

        monkeypatch.setattr(Task, "committed", checked_commit)
        monkeypatch.setattr(Task, "close", checked_close)
        monkeypatch.setattr(WorkerLedger, "__init__", noted)

    @property
    def of_workers(self) -> list[Fault]:
        """What workers have found while counting."""
        return [fault for ledger in self._ledgers for fault in ledger.faults]

    def clear(self) -> None:
        """Forget what was found: the test has expected it."""
        self.of_tasks.clear()
        for ledger in self._ledgers:
            ledger.faults.clear()

    def _check(self, task: Task, pages: dict[TopicPartition | None, Page]) -> None:
        ledger: TaskLedger = task.ledger
        for partition, page in pages.items():
            if self._seen.get((task, partition)) is page:
                continue
            self._seen[task, partition] = page
            self.of_tasks += [
                Found(str(task.id), partition, *item) for item in imbalances(ledger.nodes, page)
            ]
