"""Threads and a queue in one process: with ``queue.Queue``, and with jobs.

``python -m apps.queues.threads queue 200`` and ``… jobs 200`` ship so many parcels with four threads. The
printer of labels jams for every tenth one at first. Without an argument, both are run.

|  | ``queue.Queue`` | jobs |
|---|---|---|
| a parcel whose label jams | has left the queue: the thread must know what to do | is tried again, later |
| what a killed process had | is gone, in the queue and in its threads | is executed by the next process |
| another process, on another machine | needs another queue | takes its share |
| too many parcels | wait in memory, or block the producer | wait on disk |

Jobs survive a kill with a Kafka (``STREAMS_BOOTSTRAP_SERVERS``); without one they are in a cluster in memory,
for which nothing has to be started, and which ends with the process.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from streams import App, Retry, milliseconds, seconds
from streams.broker.memory import MemoryBroker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.broker import Broker

THREADS: Final = 4
LABEL_SECONDS: Final = float(os.environ.get("LABEL_SECONDS", "0.001"))
IN_MEMORY: Final = MemoryBroker()


class Jam(Exception):
    """The printer has to be opened."""


jammed: set[int] = set()


def label(parcel: int) -> str:
    """Print a label, which jams for every tenth parcel the first time."""
    if parcel % 10 == 0 and parcel not in jammed:
        jammed.add(parcel)
        raise Jam(f"parcel {parcel}")
    time.sleep(LABEL_SECONDS)
    return f"label {parcel}"


# --- with queue.Queue


def ship_by_queue(parcels: Sequence[int]) -> list[str]:
    """Ship parcels with threads and a queue; returns the labels."""
    waiting: queue.Queue[int | None] = queue.Queue(maxsize=100)
    labels: list[str] = []

    def work() -> None:
        while (parcel := waiting.get()) is not None:
            try:
                labels.append(label(parcel))
            except Jam as error:
                print(f"lost: {error}")

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for parcel in parcels:
        waiting.put(parcel)
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    return labels


# --- with jobs


class ParcelApp(App):
    """An app that needs no Kafka, and uses one if it is named."""

    def broker(self, *, client_id: str | None = None) -> Broker:
        """The named cluster, or one in memory."""
        return IN_MEMORY if self.settings.bootstrap_servers is None else super().broker(client_id=client_id)


app = ParcelApp(
    f"{os.environ.get('QUEUES_PREFIX', '')}parcels", job_concurrency=THREADS, state_store="memory"
)


@app.job(name="ship", retry=Retry(3, backoff=milliseconds(50), on=(Jam,)))
def ship(parcel: int) -> str:
    """Ship a parcel; the result is its label."""
    return label(parcel)


def ship_by_jobs(parcels: Sequence[int]) -> list[str]:
    """Ship parcels as jobs; returns the labels."""
    handles = ship.enqueue_many([ship.call(parcel) for parcel in parcels])
    stop = threading.Event()
    worker = threading.Thread(target=app.run, kwargs={"broker": app.broker(), "stop": stop})
    worker.start()
    try:
        return [handle.result(timeout=seconds(60)) for handle in handles]
    finally:
        stop.set()
        worker.join()


def main(kind: str = "both", count: str = "200") -> None:
    """Ship as many parcels in one way, or in both."""
    for name, shipping in (("queue", ship_by_queue), ("jobs", ship_by_jobs)):
        if kind in {name, "both"}:
            jammed.clear()
            print(f"{name}: {len(shipping(range(int(count))))} of {count} parcels shipped")


if __name__ == "__main__":
    main(*sys.argv[1:])
