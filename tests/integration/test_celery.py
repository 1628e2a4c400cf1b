"""Tasks of a program with the real Celery, executed by workers on the real Kafka that are killed."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec
import pytest

pytest.importorskip("celery", reason="tasks of Celery are sent by Celery (requirements/sync.txt)")

from streams.broker.reading import read_to_end
from tests.integration.conftest import Copy
from tests.support.celery_client import celery_client
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka

COUNT = 300
WAIT = 90


class Tasks(Copy):
    """The app of ``celery_app``, and the server."""

    name = "celery"
    server: RedisServer


@pytest.fixture
def tasks(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Tasks]:
    made = Tasks(kafka_bootstrap, prefix, tmp_path)
    with RedisServer.create() as server:
        made.server = server
        made.environment = {
            "CELERY_NOTES": str(tmp_path / "notes"),
            "CELERY_BROKER": server.url,
            "CELERY_RESULTS": server.url.replace("/0", "/1"),
            "STREAMS_TRANSACTION_TIMEOUT": "3",
            "STREAMS_COMMIT_INTERVAL": "0.1",
        }
        yield made
        made.end()


def test_each_task_is_one_job_and_has_its_result_while_worker_and_server_are_killed(
    tasks: Tasks, tmp_path: Path
):
    results = tasks.server.url.replace("/0", "/1")
    client = celery_client(tasks.server.url, results)
    sent = {}

    def send(numbers: range) -> None:
        with client.connection_for_write() as connection:
            producer = client.amqp.Producer(connection)
            for number in numbers:
                sent[number] = client.send_task("square", [number], producer=producer)

    third = COUNT // 3
    send(range(third))
    notes = tmp_path / "notes"
    worker = tasks.start()
    tasks.wait_for(lambda: notes.exists() and notes.read_text().count("\n") > 20, WAIT, "the first tasks")
    worker.kill()
    send(range(third, 2 * third))
    second = tasks.start()
    tasks.wait_for(lambda: notes.read_text().count("\n") > third, WAIT, "more tasks")
    tasks.server.kill()
    tasks.server.start()
    send(range(2 * third, COUNT))
    with tasks.server.client(db=1) as redis:

        def there() -> int:
            return sum(1 for _ in redis.scan_iter("celery-task-meta-*", 1_000))

        tasks.wait_for(lambda: there() == COUNT, WAIT, "all results", there)
    assert {number: result.get(timeout=WAIT) for number, result in sent.items()} == {
        number: number * number for number in range(COUNT)
    }
    assert second.stop(30) == 0
    client.close()

    # Killed attempts are repeated, as the same job; no task is two jobs.
    jobs: defaultdict[str, set[str]] = defaultdict(set)
    for line in notes.read_text().splitlines():
        task, job = line.split()
        jobs[task].add(job)
    assert jobs.keys() == {result.id for result in sent.values()}
    assert all(len(each) == 1 for each in jobs.values())
    ends = [
        msgspec.json.decode(value or b"")["correlation_id"]
        for fetched in read_to_end(tasks.broker, [f"{tasks.group}-job-results"])
        for value in fetched.values()
    ]
    assert Counter(ends) == Counter(result.id for result in sent.values())
