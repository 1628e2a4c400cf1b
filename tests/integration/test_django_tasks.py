"""Django's tasks on the real broker: enqueued and looked up here, executed by another process."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("django", reason="Django's tasks need Django 6, and that Python 3.12 or later")

import django
from django.tasks import TaskResultStatus, default_task_backend
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils import timezone

from streams.app import queue_of
from tests.jobs.django_shop import add, app, count, process, send
from tests.support.pages import ROOT
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from django.tasks import TaskResult

pytestmark = pytest.mark.kafka

django.setup()


@pytest.fixture
def worker(
    kafka_bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_bootstrap)
    with tmp_path.joinpath("worker.log").open("wb") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "streams", "run", "tests.jobs.django_shop:app"],
            cwd=ROOT,
            env={**os.environ, "STREAMS_STATE_DIR": str(tmp_path)},
            stdout=log,
            stderr=log,
        )
    yield started
    started.terminate()
    started.wait(30)
    queue_of(app).client.close()


def ended(result: TaskResult) -> TaskResult:
    """The result, looked up until the task has ended."""

    def look() -> bool:
        result.refresh()
        return bool(result.is_finished)

    wait_until(look, 120, what=f"the end of task {result.id}")
    return result


def test_tasks_are_executed_by_a_worker_and_looked_up_from_another_process(worker: Any) -> None:
    tomorrow = timezone.now() + timedelta(days=1)
    delayed = add.using(run_after=tomorrow).enqueue(0, 0)
    results = [ended(result) for result in (add.enqueue(1, 2), count.enqueue("four"), process.enqueue())]
    assert [result.status for result in results] == [TaskResultStatus.SUCCESSFUL] * 3
    assert [result.return_value for result in results[:2]] == [{"sum": 3, "of": [1, 2]}, 4]
    added, _, in_process = results
    assert added.enqueued_at <= added.started_at + timedelta(seconds=1)
    assert added.started_at <= added.finished_at
    assert added.worker_ids[0].endswith(f"-{worker.pid}")
    assert in_process.worker_ids[0].endswith(f"-{in_process.return_value}")
    assert in_process.return_value not in (worker.pid, os.getpid())

    # The worker keeps it in the store, and its record is committed.
    stored = default_task_backend.get_result(delayed.id)
    assert (stored.status, stored.task.run_after, stored.args) == (TaskResultStatus.READY, tomorrow, [0, 0])

    failed = ended(send.enqueue(to="nobody"))
    assert failed.status == TaskResultStatus.FAILED
    assert [error.exception_class for error in failed.errors] == [LookupError]
    assert "in send\n" in failed.errors[0].traceback
    assert failed.started_at <= failed.finished_at
    assert send.get_result(failed.id).kwargs == {"to": "nobody"}

    partition, offset = delayed.id.split("-")
    for nowhere in (f"{partition}-{int(offset) + 1_000}", f"99-{offset}"):
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(nowhere)
