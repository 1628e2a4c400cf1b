"""The app of the fault suite, with every kind of result whose history shows errors.

Readings are numbered in the order in which each key's were written, so that a result identifies its readings.
Environment variables inject faults into the process itself:

* ``FAULT_STEP`` (call, number, ``before`` or ``after``) ends it at that call of the producer, as SIGKILL
  would; ``FAULT_HOLD`` (the same) stops it there, as SIGSTOP would.
* ``FAULT_MOOD``: user code is occasionally ``slow``, ``failing`` or ``retrying``.
* ``FAULT_QUEUE``: counts how often the client's queue was full, and logs the first time.
* ``FAULT_CHUNK``: how many records of changelogs are restored at once.
* ``FAULT_EXTRA``: the program is a newer version, with more steps before and between the others.
* SIGUSR1 and SIGUSR2 set its wall clock two days forward and back.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

import streams.runtime.restore
from streams import (
    App,
    Json,
    Text,
    Tumbling,
    count,
    dead_letter,
    fail,
    key_value_store,
    maximum,
    milliseconds,
    minimum,
    retry,
    total,
)
from streams.broker.kafka import KafkaProducer, producer
from streams.durations import seconds
from streams.events import get_logger
from tests.faults.traffic import GRACE, GROUPS, WINDOW, Article, Brand, Order, Reading

if TYPE_CHECKING:
    from streams import Context, KeyValueStore, Record

PREFIX = os.environ["FAULT_PREFIX"]
MOOD = os.environ.get("FAULT_MOOD", "")
NEWER = bool(os.environ.get("FAULT_EXTRA"))


class Poisoned(Exception):
    """A reading that always fails."""


def check(reading: Reading) -> Reading:
    if reading.amount < 0:
        raise Poisoned(reading.number)
    return reading


def fail_at_times(reading: Reading) -> Reading:
    if MOOD == "failing" and random.random() < 0.001:
        raise RuntimeError("user code fails")
    return reading


def need_retries(reading: Reading) -> Reading:
    if MOOD == "retrying" and random.random() < 0.002:
        raise RuntimeError("user code fails once")
    if MOOD == "slow" and random.random() < 0.002:
        time.sleep(random.choice([0.02, 0.1, 1.5]))
    return reading


class Running(msgspec.Struct):
    """The total of the first ``count`` readings of a group, the last of which was ``number`` of ``key``."""

    key: str
    number: int
    amount: int
    count: int
    sum: int
    low: int
    high: int


class RunningTotals:
    """One result for each reading."""

    store = ""

    def open(self, context: Context) -> None:
        self.totals: KeyValueStore = context.store(self.store)

    def process(self, record: Record[str, Any], context: Context) -> None:
        reading = record.value
        before = self.totals.get(record.key) or [0, 0, reading.amount, reading.amount]
        now = [
            before[0] + 1,
            before[1] + reading.amount,
            min(before[2], reading.amount),
            max(before[3], reading.amount),
        ]
        self.totals.put(record.key, now)
        result = Running(reading.key, reading.number, reading.amount, *now)
        context.forward(replace(record, value=result))


class RunningByKey(RunningTotals):
    store = "running"


class RunningByGroup(RunningTotals):
    store = "running-groups"


app = App(f"{PREFIX}-app", create_topics=True)
if NEWER:
    app.stream(f"{PREFIX}-news", key=Text()).filter(bool, name="any-news").to(f"{PREFIX}-news-copies")

readings = (
    app.stream(f"{PREFIX}-readings", key=Text(), value=Json(Reading))
    .map(check, on_error=dead_letter, name="check")
    .map(
        need_retries,
        on_error=retry(20, backoff=seconds(0.02), longest_backoff=seconds(0.1)),
        name="need-retries",
    )
    .map(fail_at_times, on_error=fail, name="fail-at-times")
)
if NEWER:
    readings.filter(lambda reading: reading.amount % 2 == 0).to(f"{PREFIX}-even")

readings.to(f"{PREFIX}-copies")
readings.process(RunningByKey, stores=[key_value_store("running", value=Json())], name="by-key").to(
    f"{PREFIX}-running"
)
readings.key_by(lambda reading: f"group {reading.amount % GROUPS}", name="group").process(
    RunningByGroup, stores=[key_value_store("running-groups", value=Json())], store="by-group"
).to(f"{PREFIX}-running-groups")

by_key = readings.group_by_key()
totals = by_key.aggregate(
    "totals", number=count(), sum=total("amount"), low=minimum("amount"), high=maximum("amount")
)
totals.to(f"{PREFIX}-totals")
by_key.count("counts").group_by(lambda number: f"count {number}", value=Json(int), store="by-count").count(
    "keys-by-count"
).to(f"{PREFIX}-keys-by-count")
windows = by_key.window(Tumbling(size=milliseconds(WINDOW)), grace=milliseconds(GRACE)).count("windows")
windows.final().to(f"{PREFIX}-windows")
windows.late().to(f"{PREFIX}-late", value=Json(Reading))

articles = app.table(f"{PREFIX}-articles", key=Text(), value=Json(Article), store="articles")
brands = app.table(f"{PREFIX}-brands", key=Text(), value=Json(Brand), store="brands")


class Branded(msgspec.Struct):
    """A version of an article with a version of its brand."""

    article: int
    brand: str
    version: int


def with_brand(article: Article, brand: Brand) -> Branded:
    return Branded(article.version, article.brand, brand.version)


articles.join_foreign_key(
    brands, lambda article: article.brand, with_brand, store="branded", result=Json(Branded)
).to(f"{PREFIX}-branded")
app.stream(f"{PREFIX}-orders", key=Text(), value=Json(Order)).join(
    articles, lambda order, article: {"number": order.number, "version": article.version}, name="enrich"
).to(f"{PREFIX}-enriched")


def at_call(text: str, number: signal.Signals) -> None:
    """Send this process a signal at the n-th call of a producer's method, before or after the call."""
    call, which, moment = text.split()
    method = getattr(KafkaProducer, call)
    calls = 0

    def wrapped(self: KafkaProducer, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        here = calls == int(which)
        if here and moment == "before":
            os.kill(os.getpid(), number)
        method(self, *arguments)
        if here and moment == "after":
            os.kill(os.getpid(), number)

    setattr(KafkaProducer, call, wrapped)


def count_full_queues() -> None:
    client: Any = vars(producer)["Producer"]

    class Counting(client):  # type: ignore[misc]  # a class of the C library
        full = 0

        def produce(self, *arguments: Any) -> None:
            try:
                super().produce(*arguments)
            except BufferError:
                self.full += 1
                if self.full == 1:
                    get_logger().warning("producer queue full")
                raise

    vars(producer)["Producer"] = Counting


def let_clock_jump() -> None:
    """Only Python's wall clock jumps, which is the one that the library uses."""
    days = 2 * 24 * 3600 * 1_000_000_000
    real, ahead = time.time_ns, 0

    def jump(number: int, _frame: object) -> None:
        nonlocal ahead
        ahead += days if number == signal.SIGUSR1 else -days

    time.time_ns = lambda: real() + ahead
    time.time = lambda: time.time_ns() / 1e9
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, jump)


let_clock_jump()
if "FAULT_STEP" in os.environ:
    at_call(os.environ["FAULT_STEP"], signal.SIGKILL)
if "FAULT_HOLD" in os.environ:
    at_call(os.environ["FAULT_HOLD"], signal.SIGSTOP)
if "FAULT_QUEUE" in os.environ:
    count_full_queues()
if "FAULT_CHUNK" in os.environ:
    streams.runtime.restore.CHUNK_RECORDS = int(os.environ["FAULT_CHUNK"])
