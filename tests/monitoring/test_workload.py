"""How many workers an app needs, as its workers say it to an autoscaler, on the in-memory broker."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

import msgspec
import pytest

from streams import App, Text
from streams.app import resources_of_worker
from streams.errors import BrokerUnreachable
from streams.jobs.record import JobRecord
from streams.monitoring.job_load import JobLoads, JobSample
from streams.monitoring.metrics import WorkerMetrics
from streams.monitoring.observer import Observer
from streams.monitoring.workload import WorkersWanted
from streams.records import Output
from streams.runtime.task import TaskId
from tests.support.clock import Clock
from tests.support.cluster import MemoryCluster
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from streams.runtime.worker import Worker

QUEUE = frozenset({TaskId(0, 0), TaskId(0, 1)})


class Site(MemoryCluster):
    """An app whose records take a time of the cluster's clock, and observed workers of it."""

    def __init__(self, partitions: int = 1, cost: float = 0.01) -> None:
        super().__init__({"in": partitions, "out": partitions}, Clock(tick=0.0))
        # Polls take less than a second, as workers are observed between them.
        self.app = App("counting", max_poll_records=20)
        self.cost = cost
        self.app.stream("in", value=Text()).map(self._take_time).to("out")
        self.counts = self.prepare(self.app, create_outputs=False)
        self.observers: dict[Worker, Observer] = {}

    def _take_time(self, value: str) -> str:
        self.clock.advance(self.cost)
        return value

    def worker(self) -> Worker:
        worker = self.make_worker(
            self.app,
            f"slot-{len(self.observers)}",
            transaction_timeout=10_000.0,
            partitions=self.counts,
            wall_clock=self.clock.milliseconds,
        )
        self.observers[worker] = Observer(
            worker,
            None,
            self.broker,
            goal=30.0,
            clock=self.clock,
            wall_clock=self.clock.milliseconds,
        )
        worker.start()
        return worker

    def append(self, count: int, partition: int = 0) -> None:
        now = self.clock.milliseconds()
        self.write(Output("in", [None] * count, [b"v"] * count, [now] * count, partition=partition))

    def run(self, seconds: int, **each_second: int) -> list[float | None]:
        """Let time pass in which so many records arrive each second in ``p0``, ``p1``, … Returns the sums."""
        sums: list[float | None] = []
        begun = self.clock.now
        while len(sums) < seconds:
            while self.clock.now >= begun + len(sums):
                for name, count in each_second.items():
                    self.append(count, int(name[1:]))
                parts = [observer.observe().workers for observer in self.observers.values()]
                known = [part.wanted for part in parts if part is not None]
                sums.append(sum(known) if len(known) == len(parts) else None)
            before = self.clock.now
            for worker in self.observers:
                worker.run_once()
            if self.clock.now == before:
                self.clock.advance(0.1)
        return sums

    def workers(self, worker: Worker) -> WorkersWanted:
        found = self.observers[worker].latest.workers
        assert found is not None
        return found


@pytest.fixture
def clocked(monkeypatch):
    """Sites whose tasks measure their time on the site's clock, as the rest of the worker does."""

    def make(partitions: int = 1, cost: float = 0.01) -> Site:
        site = Site(partitions, cost)
        monkeypatch.setattr(time, "perf_counter", site.clock)
        return site

    return make


def test_workers_follow_from_what_arrives_and_what_it_takes(clocked):
    site = clocked()
    worker = site.worker()
    site.run(90, p0=30)
    # 30 records of 10 ms are 30 % of a worker's time, of which 70 % are to be used.
    assert site.workers(worker).wanted == pytest.approx(0.3 / 0.7, rel=0.1)
    assert site.workers(worker).useful == site.workers(worker).wanted


def test_a_worker_that_catches_up_does_not_want_more_and_more_workers(clocked):
    site = clocked()
    worker = site.worker()
    site.run(70, p0=30)
    site.append(12_000)
    burst = site.run(75, p0=30)
    sums = site.run(5, p0=30)
    # It is busy all the time, for some 6,000 records of 10 ms: a tenth of a worker if it takes ten minutes.
    assert site.observers[worker].latest.waiting != 0
    assert sums == [pytest.approx((0.3 + 0.1) / 0.7, rel=0.15)] * 5
    # For a minute it may be the beginning of more: two workers' work of a minute has arrived in it.
    assert max(part for part in burst if part is not None) == pytest.approx((2.3 + 0.2) / 0.7, rel=0.1)


def test_more_that_arrives_for_good_is_wanted_within_a_minute(clocked):
    site = clocked(partitions=4)
    site.worker()
    site.run(70, p0=10, p1=10, p2=10, p3=10)
    sums = site.run(70, p0=100, p1=100, p2=100, p3=100)
    # Ten times as much is four workers' time.
    assert sums[60] is not None
    assert sums[60] > 0.9 * 4 / 0.7


def test_when_all_is_drained_the_number_falls_to_nothing_and_stays(clocked):
    site = clocked()
    site.worker()
    site.run(70, p0=100)
    sums = [part for part in site.run(200) if part is not None]
    assert len(sums) == 200
    assert ceil(sums[0]) == 2
    assert all(after <= before + 1e-9 for before, after in pairwise(sums))
    assert sums[70:] == [0.0] * 130


def test_the_markers_of_transactions_want_no_worker(clocked):
    site = clocked(cost=0.1)
    site.worker()
    site.run(20)
    producer = site.broker.producer(transactional_id="other", transaction_timeout=60.0)
    producer.init_transactions(1)
    producer.begin()
    producer.produce(Output("in", [None], [b"v"], [site.clock.milliseconds()], partition=0))
    producer.commit(1)
    assert site.run(100)[-1] == 0.0


def test_a_task_that_needs_more_than_a_worker_is_of_use_to_one(clocked):
    site = clocked(partitions=3, cost=0.02)
    worker = site.worker()
    site.run(100, p0=100, p1=5, p2=5)
    found = site.workers(worker)
    # 100 records of 20 ms are two workers' time, and what has gathered in this minute is to be processed too.
    assert found.wanted > 2 / 0.7
    assert found.useful == pytest.approx(1 + 2 * 0.1 / 0.7, rel=0.5)
    assert found.useful < 2


def test_moved_tasks_are_counted_by_their_new_worker_as_soon_as_something_is_known_of_them(clocked):
    site = clocked(partitions=4)
    arriving = {"p0": 20, "p1": 20, "p2": 20, "p3": 20}
    first = site.worker()
    before = site.run(70, **arriving)[-1]
    assert before == pytest.approx(0.8 / 0.7, rel=0.15)
    second = site.worker()
    sums = site.run(90, **arriving)
    assert len(first.held) == len(second.held) == 2
    # While the new worker does not know its part, there is no sum, and afterwards it is the same.
    assert None in sums[:15]
    known = [part for part in sums[15:] if part is not None]
    assert len(known) >= 70
    assert min(known) > 0.8 * before
    assert max(known) < 1.35 * before


def test_nothing_is_known_before_anything_was_processed(clocked):
    site = clocked()
    site.append(1_000)
    observer = site.observers[site.worker()]
    for _ in range(30):
        # It has joined, and its code hangs.
        site.clock.advance(1.0)
        observer.observe()
    assert observer.latest.workers is None or not observer.latest.partitions


def test_an_idle_worker_wants_none_and_one_without_tasks_neither(clocked):
    site = clocked(partitions=1)
    busy = site.worker()
    spare = site.worker()
    site.run(30)
    assert sorted([len(busy.held), len(spare.held)]) == [0, 1]
    assert site.workers(busy) == site.workers(spare) == WorkersWanted(0.0, 0.0)


def test_while_the_broker_does_not_answer_nothing_is_known(clocked):
    site = clocked()
    worker = site.worker()
    site.run(70, p0=30)
    observer = site.observers[worker]

    def admin():
        raise BrokerUnreachable("no broker answers at nowhere:9092")

    site.broker.admin = admin
    observer._forget_admin()  # noqa: SLF001 - as when a request has failed
    for _ in range(30):
        site.clock.advance(1.0)
        observer.observe()
    assert observer.latest.workers is None


def test_the_metrics_are_left_out_where_they_are_unknown(clocked):
    site = clocked()
    worker = site.worker()
    metrics = WorkerMetrics(worker, observer=site.observers[worker])
    assert b"\nstreams_workers_wanted{" not in metrics.exposition()
    site.run(70, p0=30)
    shown = metrics.exposition().decode()
    assert '\nstreams_workers_wanted{app="counting"} 0.4' in shown
    assert '\nstreams_workers_useful{app="counting"} 0.4' in shown
    assert '\nstreams_tasks{app="counting"} 1.0' in shown
    assert "\nstreams_waiting_goal_seconds 30.0" in shown
    assert "nan" not in shown.lower()


def test_jobs_need_places_by_what_arrives_and_how_long_it_runs():
    loads = JobLoads(window=60.0, shortest=10.0, drain=600.0)
    for second in range(0, 61, 5):
        # Four mails a second that run for half a second: two at once, of sixteen places.
        sample = JobSample(
            float(second),
            QUEUE,
            16,
            running=Counter(mail=2),
            waiting=Counter(),
            ended=Counter(mail=4 * second),
            seconds={"mail": 2.0 * second},
        )
        load = loads.observe(sample)
        assert (load.each_task is None) == (second < 10)
    assert load.each_task == pytest.approx(2 / 16 / 2)
    late = JobSample(
        65.0, QUEUE, 16, Counter(mail=2), Counter(mail=2_400), Counter(mail=260), {"mail": 130.0}
    )
    # 2,400 more arrived in the last minute, and as many wait.
    assert loads.observe(late).each_task == pytest.approx((2_640 / 60 * 0.5 + 2_400 * 0.5 / 600) / 16 / 2)


def test_the_jobs_of_a_worker_are_counted_by_what_became_of_them():
    app = App("shop", job_partitions=2, job_concurrency=4)
    gate = threading.Event()

    @app.job(name="mail")
    def mail() -> None:
        gate.wait(20)

    cluster = MemoryCluster({}, real_time=True)
    worker = cluster.make_worker(app, "slot", partitions=cluster.prepare(app, create_outputs=True))
    assert JobSample.of(worker, 0.0) is None
    record = msgspec.json.encode(JobRecord("mail", msgspec.Raw(b"{}")))
    cluster.write(Output("shop-jobs", [None] * 6, [record] * 6, [1] * 6, partition=0))
    resources = resources_of_worker(app)
    resources.open()
    with resources.active():
        worker.start()

        def sampled(**expected: int) -> bool:
            worker.run_once()
            sample = JobSample.of(worker, 0.0)
            if sample is None:
                return False
            found = {name: getattr(sample, name).get("mail", 0) for name in ("running", "waiting", "ended")}
            return found == expected and (len(sample.tasks), sample.places) == (2, 4)

        wait_until(lambda: sampled(running=4, waiting=2, ended=0), 20)
        gate.set()
        wait_until(lambda: sampled(running=0, waiting=0, ended=6), 20)
        worker.close()
    resources.close()


def test_jobs_that_came_with_a_partition_have_not_arrived():
    loads = JobLoads(window=60.0, shortest=10.0, drain=600.0)
    ended = Counter(mail=100)
    empty = Counter[str]()
    for second in (0.0, 20.0):
        loads.observe(JobSample(second, QUEUE, 16, empty, empty, ended, {"mail": 50.0}))
    more = QUEUE | {TaskId(0, 2)}
    waiting = Counter(mail=600)
    assert loads.observe(JobSample(25.0, more, 16, empty, waiting, ended, {"mail": 50.0})).each_task is None
    load = loads.observe(JobSample(40.0, more, 16, empty, waiting, ended, {"mail": 50.0}))
    assert load.each_task == pytest.approx(600 * 0.5 / 600 / 16 / 3)
