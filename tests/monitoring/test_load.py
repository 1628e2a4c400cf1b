"""What arrives and what it takes, measured on workers of the in-memory broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams import App, Text
from streams.monitoring.load import Load, Observed, measure_arrivals, measure_load
from streams.monitoring.metrics import WorkerMetrics
from streams.monitoring.scrape import Scrape
from streams.records import Output, TopicPartition
from tests.support.clock import Clock
from tests.support.cluster import MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = 3_600_000


class Site(MemoryCluster):
    """An app with two tasks on one worker, whose clock advances by a millisecond each time it is read."""

    def __init__(self, app: App, topics: dict[str, int]) -> None:
        super().__init__(topics, Clock(100.0, tick=0.001))
        self.app = app
        self.worker = self.make_worker(app, "slot", transaction_timeout=100.0, partitions=topics)
        self.worker.start()
        self._metrics = WorkerMetrics(self.worker)

    def send(self, topic: str, partition: int, *times: int) -> None:
        values: list[bytes | None] = [b"v"] * len(times)
        self.write(Output(topic, [b"k"] * len(times), values, list(times), partition=partition))

    def run(self) -> None:
        for _ in range(20):
            self.worker.run_once()

    def measured(self, meanwhile: Callable[[], object], *, now: int = HOUR, seconds: float = 10.0) -> Load:
        def observe() -> list[Observed]:
            before = Scrape.parse(self._metrics.exposition().decode(), 0.0)
            meanwhile()
            return [Observed("here:1", before, Scrape.parse(self._metrics.exposition().decode(), seconds))]

        return measure_load(
            self.app.topology, self.broker.admin(), self.app.name, observe, lambda: now, over=3600
        )


def copying() -> App:
    app = App("copying")
    app.stream("in", value=Text()).to("out")
    return app


def test_each_task_has_what_arrives_in_its_partition_and_what_that_takes():
    site = Site(copying(), {"in": 2, "out": 2})
    site.run()
    # In ten minutes of the hour 600 records in one partition, and 60 in the other; then nothing.
    site.send("in", 0, *range(0, 600_000, 1_000))
    site.send("in", 1, *range(0, 600_000, 10_000))
    load = site.measured(site.run, now=HOUR)
    tasks = {item.task: item for item in load.tasks}
    assert tasks.keys() == {"0_0", "0_1"}
    # In the busiest six minutes a record each second, and one each ten seconds.
    assert tasks["0_0"].rate == pytest.approx(1.0)
    assert tasks["0_1"].rate == pytest.approx(0.1)
    assert load.mean == pytest.approx(660 / 3600)
    assert not load.since_start
    assert load.workers == 1
    assert all(item.each > 0 for item in load.tasks)
    # Nothing is lost: the tasks' seconds are the stages' seconds.
    total = tasks["0_0"].each * 600 + tasks["0_1"].each * 60
    assert total == pytest.approx(sum(load.stages.values()) * 660)


def test_with_little_input_the_costs_since_the_start_count():
    site = Site(copying(), {"in": 2, "out": 2})
    site.send("in", 0, *range(500))
    site.run()
    load = site.measured(lambda: None)
    assert load.since_start
    assert next(item for item in load.tasks if item.task == "0_0").each > 0
    # The other one has processed nothing: it costs what records cost elsewhere.
    other = next(item for item in load.tasks if item.task == "0_1")
    assert other.each == pytest.approx(load.tasks[0].each)


def test_what_arrives_meanwhile_counts_if_it_is_more():
    site = Site(copying(), {"in": 2, "out": 2})

    def busy() -> None:
        site.send("in", 1, *([0] * 5_000))
        site.run()

    load = site.measured(busy, now=10 * HOUR, seconds=10.0)
    assert load.rate == pytest.approx(500.0)


def test_tasks_behind_a_repartition_have_what_was_processed_of_it_for_each_record():
    app = App("counting")
    stream = app.stream("in", value=Text())
    # Two records downstream for each of the input.
    doubled = stream.flat_map(lambda value: [value, value]).key_by(lambda value: value, key=Text())
    doubled.repartition("again", value=Text()).to("out")
    topics = {"in": 2, "out": 2, "counting-again-repartition": 2}
    site = Site(app, topics)
    site.run()
    site.send("in", 0, *range(0, 360_000, 1_000))

    def run() -> None:
        for _ in range(5):
            site.run()

    load = site.measured(run, now=360_000)
    source = sum(item.rate for item in load.tasks if item.task.startswith("0_"))
    behind = sum(item.rate for item in load.tasks if item.task.startswith("1_"))
    assert behind == pytest.approx(2 * source)


def test_the_lag_is_what_waits():
    site = Site(copying(), {"in": 2, "out": 2})
    site.run()
    site.send("in", 0, *range(7))
    load = site.measured(lambda: None)
    assert {item.task: item.lag for item in load.tasks} == {"0_0": 7, "0_1": 0}


def test_arrivals_are_those_of_the_busiest_part():
    cluster = MemoryCluster({"in": 1}, Clock(100.0))
    times = [*range(0, 100_000, 10_000), *range(100_000, 110_000, 100)]
    cluster.write(Output("in", [None] * len(times), [b"v"] * len(times), times, partition=0))
    place = TopicPartition("in", 0)
    found = measure_arrivals(cluster.broker.admin(), [place], 200_000, 200.0, parts=20)
    assert found.busiest[place] == pytest.approx(10.0)
    assert found.mean[place] == pytest.approx(110 / 200)


def test_a_scrape_reads_labels_in_the_order_of_their_names():
    text = '# TYPE a_total counter\na_total{z="1",b="2"} 3\n# TYPE g gauge\ng{x="y"} 4\ng{x="w"} 5\n'
    scrape = Scrape.parse(text, 1.0)
    assert scrape.samples["a_total"] == {("2", "1"): 3.0}
    assert scrape.by_label("g") == {"y": 4.0, "w": 5.0}
    assert scrape.total("g") == 9.0
    assert scrape.by_label("missing") == {}
