"""The app under test of the campaign of jobs. Each attempt notes when it begins and how it ends.

The notes are lines of JSON in a file of each process, which is not among what a worker loses with its disk.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

import streams.runtime.cleanup
from streams import App, Json, Limit, Retry, current_job, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams import Call, Job

NOTES = os.environ.get("JOBS_NOTES", "")
PARTITIONS = 4
RATE = 60
"""How many limited jobs may begin in a second."""
RUNNING = 3
"""How many narrow jobs may run at once."""
TRIES = 4

if NOTES:  # In a worker of the campaign: the verdicts read the queue's topic from its beginning.
    streams.runtime.cleanup.PURGE_SECONDS = 1e9


class Order(msgspec.Struct):
    """A record of the input."""

    key: str
    number: int


class Note(msgspec.Struct, omit_defaults=True):
    """What an attempt notes at its beginning (``ending`` is empty) and at its end."""

    idempotency: str
    name: str
    attempt: int
    pid: int
    at: int
    """Milliseconds since the epoch."""
    ending: str = ""
    due: int = 0


@cache
def _descriptor() -> int:
    path = Path(NOTES) / f"{os.getpid()}.jsonl"
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(ending: str = "") -> None:
    """Append a line for the attempt that runs here. The kernel keeps it if the process is killed."""
    if not NOTES:
        return
    job = current_job()
    line = Note(
        job.idempotency_key,
        job.name,
        job.attempt,
        os.getpid(),
        time.time_ns() // 1_000_000,
        ending,
        job.scheduled,
    )
    os.write(_descriptor(), msgspec.json.encode(line) + b"\n")


@contextmanager
def noted() -> Iterator[None]:
    """Note the beginning and the end of an attempt."""
    note()
    try:
        yield
    except BaseException as error:
        note(type(error).__name__)
        raise
    note("succeeded")


class NeverSucceeds(Exception):
    """A failure that no further attempt would change."""


def fails_for_good(number: int) -> bool:
    """Whether the charge of this number never succeeds."""
    return number % 13 == 5


def failing_attempts(number: int) -> int:
    """How often the charge of this number fails before it succeeds."""
    return 2 if number % 7 == 3 else 0


class Jobs(NamedTuple):
    """An app with jobs of all kinds."""

    app: App
    charge: Job[[str, int], int]
    later: Job[[int], int]
    limited: Job[[int], int]
    narrow: Job[[int], int]
    once: Job[[str], str]
    fleeting: Job[[int], int]
    ping: Job[[int], int]


def make(name: str, servers: str | None = None) -> Jobs:
    """The app, for workers and for programs that enqueue."""
    app = App(
        name,
        bootstrap_servers=servers or os.environ["STREAMS_BOOTSTRAP_SERVERS"],
        job_partitions=PARTITIONS,
        job_concurrency=8,
        create_topics=True,
    )

    @app.job(
        name="charge",
        key=lambda key, number: key,
        retry=Retry(TRIES, backoff=seconds(0.3), factor=1.5, on=(OSError,)),
    )
    def charge(key: str, number: int) -> int:
        with noted():
            time.sleep(1.0 if number % 97 == 1 else random.uniform(0, 0.01))
            if current_job().attempt <= failing_attempts(number):
                raise OSError(number)
            if fails_for_good(number):
                raise NeverSucceeds(number)
            return number

    @app.job(name="later")
    def later(number: int) -> int:
        with noted():
            return number

    @app.job(name="limited", limit=Limit(rate=RATE, per=seconds(1)))
    def limited(number: int) -> int:
        with noted():
            return number

    @app.job(name="narrow", limit=Limit(running=RUNNING))
    def narrow(number: int) -> int:
        with noted():
            time.sleep(0.03)
            return number

    @app.job(name="once")
    def once(what: str) -> str:
        with noted():
            time.sleep(0.1)
            return what

    @app.job(name="fleeting", expires=seconds(1))
    def fleeting(number: int) -> int:
        with noted():
            return number

    @app.job(name="ping")
    def ping(number: int) -> int:
        with noted():
            return number

    orders = app.stream(f"{name}-orders", value=Json(Order))
    orders.enqueue(charge, lambda order: charge.call(order.key, order.number))
    orders.enqueue(later, lambda order: later.using(delay=seconds(delay(order.number))).call(order.number))
    orders.enqueue(limited, lambda order: limited.call(order.number))
    orders.enqueue(narrow, every(2, lambda order: narrow.call(order.number)))
    return Jobs(app, charge, later, limited, narrow, once, fleeting, ping)


def every(count: int, make: Callable[[Order], Call[int]]) -> Callable[[Order], Call[int] | None]:
    """Enqueue for each ``count``th order."""
    return lambda order: make(order) if order.number % count == 0 else None


def delay(number: int) -> float:
    """The seconds that a delayed job waits."""
    return 0.2 + number % 6


if "JOBS_APP" in os.environ:
    app = make(os.environ["JOBS_APP"]).app
