"""One job of a queue, found by its id: in the topics, whatever was deleted of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from streams import App, Retry, days, hours, seconds
from streams.app import queue_of
from streams.broker.memory import MemoryBroker
from streams.errors import ConfigurationError
from streams.jobs.record import Ending, JobEnd, JobRecord
from streams.records import Output, TopicPartition
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streams.broker import Broker

QUEUE, ENDS = TopicPartition("shop-jobs", 0), TopicPartition("shop-job-results", 0)


class MemoryApp(App):
    memory = MemoryBroker()

    def broker(self, *, client_id: str | None = None) -> Broker:
        return self.memory


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    MemoryApp.memory = MemoryBroker()
    app = MemoryApp(
        "shop", job_partitions=1, state_store="memory", state_dir=str(tmp_path), commit_interval=0.02
    )
    yield app
    queue_of(app).client.close()


def test_a_job_is_found_wherever_it_is(app: App) -> None:
    @app.job(name="work", retry=Retry(2, backoff=hours(1), jitter=0))
    def work(text: str) -> str:
        if text == "fails":
            raise OSError(text)
        return text

    find = queue_of(app).find
    admin = app.broker().admin()
    done, failed = work.enqueue("done"), work.enqueue("fails")
    later, waits = work.using(delay=days(1)).enqueue("later"), work.using(delay=days(2)).enqueue("waits")
    assert isinstance(find(done.id), JobRecord), "no worker has run yet"

    stop = threading.Event()
    thread = threading.Thread(target=lambda: app.run(stop=stop))
    thread.start()
    try:
        assert done.result(timeout=seconds(60)) == "done"
        wait_until(lambda: admin.committed_offsets("shop", [QUEUE]).get(QUEUE, 0) == 4)
    finally:
        stop.set()
        thread.join()

    end = find(done.id)
    assert isinstance(end, JobEnd)
    assert (end.ending, end.tries) == (Ending.SUCCEEDED, 1)
    assert 0 < end.enqueued <= end.began <= end.ended
    for deleted in (False, True):
        if deleted:
            admin.delete_records({QUEUE: 4})
        for handle, text in ((failed, b"fails"), (later, b"later"), (waits, b"waits")):
            record = find(handle.id)
            assert isinstance(record, JobRecord)
            assert text in bytes(record.arguments)
        assert find(done.id) == end
    admin.delete_records({ENDS: admin.end_offsets([ENDS])[ENDS]})
    assert find(done.id) is None, "neither its record nor its result exists any more"


def test_what_is_no_job_is_not_found(app: App) -> None:
    @app.job(name="work")
    def work() -> None: ...

    queue = queue_of(app)
    handle = work.enqueue()
    assert queue.find("0-1") is None
    assert queue.find("7-0") is None
    with pytest.raises(ConfigurationError, match="is no job"):
        queue.find("nothing")

    appender = app.broker().appender("another-program")
    (place,) = appender.append(Output(QUEUE.topic, [None], [b"no job"], [0], None), 10.0)
    appender.close()
    assert queue.find(f"0-{place.offset}") is None
    assert isinstance(queue.find(handle.id), JobRecord)
