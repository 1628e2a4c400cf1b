"""Workers as processes that stall: their reports, and how they end."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from streams.records import Output

if TYPE_CHECKING:
    from tests.integration.conftest import Copy, WorkerProcess

pytestmark = pytest.mark.kafka


def answer(worker: WorkerProcess, path: str) -> tuple[int, str]:
    url = worker.events("http listening")[0]["url"]
    try:
        with urllib.request.urlopen(url + path, timeout=5) as response:
            return int(response.status), response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def wait_until_ready(copy: Copy, worker: WorkerProcess) -> None:
    copy.wait_for(lambda: worker.events("http listening"), 60, "listening")
    copy.wait_for(lambda: answer(worker, "/readyz")[0] == 200, 60, "ready")
    copy.wait_for(lambda: worker.events("partitions assigned"), 60, "assigned")


def test_a_function_that_hangs_is_named_and_the_worker_is_not_ready(copy: Copy):
    worker = copy.start(http_port=0, stall_timeout=2)
    wait_until_ready(copy, worker)
    copy.produce(["fine", "hang", "after"], keyed=False)
    copy.wait_for(lambda: "has not returned" in answer(worker, "/readyz")[1], 30, "it is seen to hang")
    status, text = answer(worker, "/readyz")
    assert status == 503
    assert "from work (" in text
    assert "copy_app.py" in text
    assert answer(worker, "/healthz")[0] == 503
    assert "streams_stalled_partitions 0.0" not in answer(worker, "/metrics")[1]
    copy.wait_for(lambda: worker.events("partition stalled"), 10, "it is logged")
    event = worker.events("partition stalled")[0]
    assert event["seconds"] > 2
    assert "in work\n    threading.Event().wait()" in event["stack"]
    assert "thread MainThread:" in event["stack"]
    assert worker.process.poll() is None


def test_a_worker_that_hangs_ends_with_its_exit_code_when_that_is_requested(copy: Copy):
    worker = copy.start(stall_timeout=2, stall_exit=True, shutdown_timeout=1)
    copy.wait_for(lambda: worker.events("partitions assigned"), 60, "assigned")
    copy.produce(["hang"])
    assert worker.wait(60) == 12
    # Other partitions may stall together with the current one: each is reported once, the stacks with the
    # first.
    events = worker.events("partition stalled")
    assert "in work\n" in events[0]["stack"]
    assert len({event["partition"] for event in events}) == len(events)
    assert all("from work" in event["reason"] for event in events)


def test_a_supervisor_restarts_a_worker_that_hung(copy: Copy):
    supervisor = copy.start("--workers", "1", stall_timeout=2, stall_exit=True, shutdown_timeout=1)
    copy.wait_for(lambda: supervisor.events("partitions assigned"), 60, "assigned")
    copy.produce(["hang"])
    copy.wait_for(lambda: len(supervisor.events("worker process started")) > 1, 60, "restarted")
    (exited, *_) = supervisor.events("worker process exited")
    assert exited["code"] == 12
    supervisor.stop(30)


def test_a_transaction_that_hangs_is_reported_and_an_idle_input_is_no_stall(copy: Copy):
    worker = copy.start(http_port=0, stall_timeout=2)
    wait_until_ready(copy, worker)
    producer = copy.broker.producer(transactional_id=f"{copy.prefix}-writes", transaction_timeout=600)
    producer.init_transactions(30)

    def write(*values: bytes) -> None:
        producer.begin()
        producer.produce(Output(copy.input, [None] * len(values), list(values), [-1] * len(values)))
        producer.flush(30)

    # A commit leaves a marker after the last record, which is never delivered.
    write(b"one", b"two")
    producer.commit(30)
    write(b"given up")
    producer.abort(30)
    begun = time.monotonic()
    while time.monotonic() - begun < 8:
        assert answer(worker, "/readyz") == (200, "ok\n")
        time.sleep(0.1)
    write(b"three")
    copy.wait_for(lambda: answer(worker, "/readyz")[0] == 503, 30, "the open transaction is noticed")
    assert "a transaction that began at offset" in answer(worker, "/readyz")[1]
    # A restart would not help, so /healthz, which triggers restarts, stays 200.
    assert answer(worker, "/healthz")[0] == 200
    producer.commit(30)
    copy.wait_for(lambda: answer(worker, "/readyz")[0] == 200, 30, "it continues")
    copy.wait_for(lambda: worker.events("partition recovered"), 30, "which is logged")
    producer.close()
    assert worker.stop() == 0
