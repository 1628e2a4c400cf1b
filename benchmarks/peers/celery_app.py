"""Celery on Redis, with results: a worker, and as a program the one that enqueues."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.peers.task_queue_client import main, took

url = os.environ["TASK_QUEUE"]
app = Celery("bench", broker=url, backend=url)
# As exactly as it can: acknowledged after the execution.
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="nothing")
def nothing(number: int) -> int:
    return number


@app.task(name="stamped")
def stamped(sent: int) -> int:
    return took(sent)


if __name__ == "__main__":
    main(single=nothing.delay, stamped=stamped.delay)
