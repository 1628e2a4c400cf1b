"""This library: an app with the jobs of the benchmark of task queues, and a program that enqueues them.

The environment has the broker's address and the app's name. As a program it takes ``many``, ``single`` or
``steady`` with numbers, see ``task_queue_client``.
"""

from __future__ import annotations

import os
import sys

from benchmarks.peers.task_queue_client import main, took
from streams import App

servers, name = os.environ["TASK_QUEUE"].split()
app = App(name, bootstrap_servers=servers, state_dir="state", log_format="json")


@app.job(name="nothing")
def nothing(number: int) -> int:
    return number


@app.job(name="keyed", key=lambda number: str(number % 1_000))
def keyed(number: int) -> int:
    return number


@app.job(name="stamped")
def stamped(sent: int) -> int:
    return took(sent)


if __name__ == "__main__":
    job = keyed if "keyed" in sys.argv else nothing
    main(
        single=nothing.enqueue,
        many=lambda numbers: job.enqueue_many(job.call(number) for number in numbers),
        stamped=stamped.enqueue,
    )
