"""``map_async`` in workers on the memory broker: group membership, stops, stalls, simulation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Text, fail, retry, skip
from streams.durations import seconds
from streams.errors import ProcessingError
from streams.monitoring.watchdog import Watchdog
from streams.records import Output, TopicPartition
from streams.simulation.run import InputRecord
from streams.simulation.simulator import Simulator
from streams.testing import TopologyDriver
from tests.support.cluster import MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from streams.runtime.worker import Worker

PATIENCE = 20.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.005)


class Site(MemoryCluster):
    """Topics of two partitions, and workers of one app on separate threads."""

    def __init__(self, function: Callable[[str], Awaitable[str]], **options: Any) -> None:
        self.app = App("calling", shutdown_timeout=1.0, commit_interval=0.05)
        stream = self.app.stream("in", key=Text(), value=Text())
        stream.map_async(function, **{"name": "call", "timeout": None, **options}).to("out", value=Text())
        super().__init__(dict.fromkeys(("in", "out", self.app.dead_letter_topic), 2), real_time=True)
        self.threads: list[threading.Thread] = []
        self.workers: list[Worker] = []
        self.ended: list[BaseException | None] = []

    def work(self) -> Worker:
        worker = self.make_worker(self.app, f"slot-{len(self.workers)}")
        thread = threading.Thread(target=self._run, args=(worker,), daemon=True)
        self.workers.append(worker)
        self.threads.append(thread)
        thread.start()
        return worker

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.ended.append(error)
        else:
            self.ended.append(None)

    def stop(self) -> None:
        for worker in self.workers:
            worker.request_stop()
        for thread in self.threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self.threads)

    def send(self, *values: str, partition: int = 0) -> None:
        encoded: list[bytes | None] = [value.encode() for value in values]
        self.write(Output("in", encoded, encoded, [0] * len(values), partition=partition))

    def results(self) -> Counter[str]:
        return Counter(payload.decode() for payload in self.payloads("out"))


class Gate:
    """Blocks and counts calls until it is opened."""

    def __init__(self) -> None:
        self.open = False
        self.begun: list[str] = []
        self.cancelled: list[str] = []

    async def call(self, value: str) -> str:
        self.begun.append(value)
        try:
            while not self.open:  # noqa: ASYNC110 - opened by another thread, which has no loop
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            self.cancelled.append(value)
            raise
        return value.upper()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open = True


def test_a_stop_cancels_what_is_in_flight_and_waits_for_it_and_the_records_come_again(gate):
    site = Site(gate.call)
    site.send("a", "b", "c")
    site.work()
    until(lambda: len(gate.begun) == 3)
    site.stop()
    assert site.ended == [None]
    assert sorted(gate.cancelled) == ["a", "b", "c"]
    assert site.results() == {}

    gate.open = True
    site.work()
    until(lambda: site.results().total() == 3)
    site.stop()
    assert site.results() == Counter(["A", "B", "C"])


def test_the_group_is_served_while_calls_are_awaited_and_nothing_is_lost_or_repeated(gate):
    site = Site(gate.call)
    site.send("a", "b", partition=0)
    site.send("c", "d", partition=1)
    first = site.work()
    until(lambda: len(gate.begun) == 2)
    second = site.work()
    # The first worker releases a partition although its calls have not ended.
    until(lambda: len(first.held) == len(second.held) == 1)
    gate.open = True
    until(lambda: site.results().total() == 4)
    site.send("e", partition=0)
    site.send("f", partition=1)
    until(lambda: site.results().total() == 6)
    site.stop()
    assert site.results() == Counter("ABCDEF")


def test_calls_are_cancelled_when_the_group_continues_without_the_worker(gate):
    site = Site(gate.call)
    site.send("a", "b")
    site.work()
    until(lambda: len(gate.begun) == 2)
    site.expire(site.workers[0])
    until(lambda: sorted(gate.cancelled) == ["a", "b"])
    gate.open = True
    until(lambda: site.results().total() == 2)
    site.stop()
    assert site.results() == Counter("AB")
    assert len(gate.begun) == 4


def test_a_failing_call_stops_the_worker_with_what_was_before_it_committed():
    async def call(value: str) -> str:
        if value == "bad":
            raise ValueError("made to fail")
        return value

    site = Site(call, on_error=fail)
    site.send("a", "b")
    site.work()
    until(lambda: site.results().total() == 2)
    site.send("c", "bad", "d")
    until(lambda: bool(site.ended))
    (error,) = site.ended
    assert isinstance(error, ProcessingError)
    assert "step 'call'" in str(error)
    assert "in-0 offset 3" in str(error)
    assert site.results() == Counter("ab")


def test_a_retry_waits_as_a_member_of_the_group_and_a_stop_ends_it():
    async def call(value: str) -> str:
        raise ConnectionError("not yet")

    site = Site(call, on_error=retry(1_000, backoff=seconds(60.0), longest_backoff=seconds(60.0), then=skip))
    site.send("a", "b")
    worker = site.work()
    until(lambda: worker.status.retrying is not None)
    assert worker.status.retrying == ("call", "ConnectionError: not yet")
    begun = time.monotonic()
    site.stop()
    assert time.monotonic() - begun < 5
    assert site.ended == [None]


def test_slow_calls_are_made_side_by_side_however_slow_they_are():
    async def call(value: str) -> str:
        await asyncio.sleep(0.2)
        return value

    site = Site(call, concurrency=50)
    site.send(*(str(number) for number in range(400)))
    begun = time.monotonic()
    site.work()
    until(lambda: site.results().total() == 400)
    # 1.6 s of calls; one after another, or in slices that shrink with the time of a call, it would be 80 s.
    assert time.monotonic() - begun < 12
    site.stop()


def test_a_function_that_blocks_the_loop_does_not_keep_the_worker_from_stopping():
    release = threading.Event()
    blocked = threading.Event()

    async def call(value: str) -> str:
        if value == "blocks":
            blocked.set()
            release.wait(PATIENCE)
        return value

    try:
        site = Site(call)
        site.send("blocks")
        site.work()
        assert blocked.wait(PATIENCE)
        begun = time.monotonic()
        site.stop()
        assert time.monotonic() - begun < 8

        # Other calls of the same process get another loop.
        app = App("another")
        app.stream("in", value=Text()).map_async(call).to("out")
        driver = TopologyDriver(app)
        driver.send("in", "fine")
        assert driver.values("out") == ["fine"]
    finally:
        release.set()


@pytest.mark.parametrize("blocks", [False, True])
def test_the_watchdog_names_the_function_and_where_it_waits(blocks):
    release = threading.Event()
    begun = threading.Event()

    async def inner() -> None:
        begun.set()
        while not release.is_set():
            if blocks:
                release.wait(PATIENCE)
            await asyncio.sleep(0.01)

    async def slow_lookup(value: str) -> str:
        await inner()
        return value

    now = [0.0]
    site = Site(slow_lookup)
    watchdog = Watchdog(
        site.workers[0] if site.workers else site.work(), site.broker, site.app.settings, clock=lambda: now[0]
    )
    try:
        site.send("a")
        worker = site.workers[0]
        until(lambda: worker.status.busy is not None)
        assert begun.wait(PATIENCE)
        # After the first check, a minute and a half of the watchdog's clock without progress.
        watchdog.check()
        now[0] = time.monotonic() + 10 * site.app.settings.stall_timeout
        (stall,) = [stall for stall in watchdog.check() if stall.partition == TopicPartition("in", 0)]
        assert "slow_lookup (" in stall.reason or "inner (" in stall.reason
        assert "test_map_async_worker.py" in stall.reason
        assert ("blocks the event loop" in stall.reason) is blocks
        assert stall.fixed_by_restart
    finally:
        release.set()
        site.stop()


def lines(*, count: int = 40) -> list[InputRecord]:
    return [InputRecord(f"k{n % 5}".encode(), f"k{n % 5} {n}".encode(), 1_000 * n) for n in range(count)]


def test_workers_under_faults_give_the_same_results():
    async def call(line: str) -> str:
        # Ends in another order than it began.
        await asyncio.sleep(0.0005 * (int(line.split()[1]) % 3))
        if line.endswith("7"):
            raise ValueError("made to fail")
        return line.upper()

    app = App("calling", dead_letter_limit=1.0)
    called = app.stream("lines", value=Text()).map_async(call, on_error=skip)
    called.to("called", value=Text())
    called.group_by(lambda line: line.split()[0], value=Text()).count("counts").to("counts")
    *_, report = Simulator(app, {"lines": lines()}).run(range(25))
    assert report.differences == []
    assert report.schedules == 25
