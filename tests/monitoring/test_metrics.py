"""A worker's metrics when they are scraped, on the in-memory broker."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from streams import App, Text, dead_letter, skip
from streams.monitoring.metrics import WorkerMetrics
from streams.monitoring.watchdog import Watchdog
from streams.records import Output
from tests.support.clock import Clock
from tests.support.cluster import MemoryCluster

if TYPE_CHECKING:
    from streams.runtime.worker import Worker


def numbers() -> App:
    """An app that loses records in two ways, and counts both."""
    app = App("numbers", dead_letter_limit=1.0)
    parsed = app.stream("in", value=Text()).map(int, name="parse", on_error=dead_letter)
    parsed.map(lambda value: 100 // value, name="divide", on_error=skip).to("out")
    return app


class Site(MemoryCluster):
    """The topics of an app, two partitions each, and workers on them."""

    def __init__(self, app: App) -> None:
        self.app = app
        topics = dict.fromkeys(("in", "out", app.dead_letter_topic), 2)
        super().__init__(topics, Clock(100.0, tick=0.001))
        self._made = 0

    def worker(self) -> Worker:
        self._made += 1
        worker = self.make_worker(self.app, f"slot-{self._made}", transaction_timeout=100.0)
        worker.start()
        return worker

    def send(self, partition: int, *values: str) -> None:
        encoded = [value.encode() for value in values]
        count = len(encoded)
        self.write(Output("in", [None] * count, encoded, [1] * count, partition=partition))


def scrape(metrics: WorkerMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels, read as Prometheus does."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float:
    return scrape(metrics)[name, frozenset(labels.items())]


def test_a_scrape_shows_what_was_read_written_lost_and_committed():
    site = Site(numbers())
    worker = site.worker()
    metrics = WorkerMetrics(worker)
    site.send(0, "1", "x", "0", "25")
    for _ in range(5):
        worker.run_once()
    assert value(metrics, "streams_records_in_total") == 4
    assert value(metrics, "streams_bytes_in_total") == 5
    # Two results and a dead letter.
    assert value(metrics, "streams_records_out_total") == 3
    assert value(metrics, "streams_bytes_out_total") == len("100") + len("4") + len("x")
    assert value(metrics, "streams_dead_letters_total", step="parse") == 1
    assert value(metrics, "streams_skipped_total", step="divide") == 1
    assert value(metrics, "streams_lag", topic="in", partition="0") == 0
    assert value(metrics, "streams_stalled_partitions") == 0
    assert value(metrics, "streams_commit_seconds_count") >= 1
    for stage in ("poll", "decode", "process", "produce", "commit"):
        assert value(metrics, "streams_stage_seconds_total", stage=stage) > 0
    worker.close()


def test_a_scrape_before_anything_happened_is_all_zeros():
    site = Site(numbers())
    metrics = WorkerMetrics(site.worker())
    assert value(metrics, "streams_records_in_total") == 0
    assert value(metrics, "streams_commit_seconds_count") == 0
    assert value(metrics, "streams_stalled_partitions") == 0


def test_the_process_is_described_too():
    assert value(WorkerMetrics(Site(numbers()).worker()), "process_resident_memory_bytes") > 0


def test_the_content_type_is_the_one_of_the_text_format():
    assert WorkerMetrics.content_type.startswith("text/plain; version=0.0.4")


def test_two_workers_of_one_process_are_counted_apart():
    site = Site(numbers())
    one, other = WorkerMetrics(site.worker()), WorkerMetrics(worker := site.worker())
    site.send(0, "1")
    site.send(1, "1")
    for _ in range(5):
        worker.run_once()
    assert value(one, "streams_records_in_total") == 0
    assert value(other, "streams_records_in_total") == 2


def test_counters_do_not_decrease_when_partitions_are_released():
    site = Site(numbers())
    first = site.worker()
    metrics = WorkerMetrics(first)
    site.send(0, "1", "x")
    site.send(1, "2", "0", "y")
    for _ in range(5):
        first.run_once()
    names = ("streams_records_in_total", "streams_records_out_total", "streams_bytes_in_total")
    before = [value(metrics, name) for name in names]
    second = site.worker()
    for _ in range(10):
        second.run_once()
        first.run_once()
    assert len(first.progress) == 1
    assert [value(metrics, name) for name in names] == before
    assert value(metrics, "streams_dead_letters_total", step="parse") == 2
    assert [name for name, _ in scrape(metrics)].count("streams_lag") == 1
    first.close()
    assert [value(metrics, name) for name in names] == before
    assert "streams_lag" not in [name for name, _ in scrape(metrics)]


def test_lag_and_stall_show_a_partition_that_hangs():
    seen: list[tuple[float, float]] = []

    def hang(text: str) -> str:
        site.clock.advance(6)
        watchdog.check()
        lag = value(metrics, "streams_lag", topic="in", partition="1")
        seen.append((lag, value(metrics, "streams_stalled_partitions")))
        return text

    app = App("hanging", stall_timeout=5.0)
    app.stream("in", value=Text()).map(hang).to("out")
    site = Site(app)
    worker = site.worker()
    watchdog = Watchdog(worker, site.broker, app.settings, clock=site.clock)
    metrics = WorkerMetrics(worker, watchdog)
    for _ in range(3):
        worker.run_once()
    watchdog.check()
    site.send(1, "a", "b", "c")
    for _ in range(5):
        worker.run_once()
    watchdog.check()
    assert seen[0] == (3.0, 1.0)
    assert value(metrics, "streams_lag", topic="in", partition="1") == 0
    assert value(metrics, "streams_stalled_partitions") == 0
    worker.close()


def test_a_name_from_a_user_is_escaped():
    app = App("odd")
    app.stream("in", value=Text()).map(int, name='odd "name"\n\\', on_error=skip).to("out")
    site = Site(app)
    worker = site.worker()
    metrics = WorkerMetrics(worker)
    site.send(0, "x")
    for _ in range(5):
        worker.run_once()
    assert value(metrics, "streams_skipped_total", step='odd "name"\n\\') == 1
    worker.close()


def test_scrapes_from_another_thread_do_not_disturb_a_worker_at_work():
    site = Site(numbers())
    worker = site.worker()
    metrics = WorkerMetrics(worker)
    failures: list[Exception] = []

    def scrape_often() -> None:
        try:
            for _ in range(30):
                metrics.exposition()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is to show it
            failures.append(error)

    thread = threading.Thread(target=scrape_often)
    thread.start()
    rounds = 0
    while thread.is_alive() or rounds < 10:
        site.send(rounds % 2, *["1", "x", "0"] * 20)
        worker.run_once()
        rounds += 1
    thread.join()
    for _ in range(5):
        worker.run_once()
    worker.close()
    assert failures == []
    assert value(metrics, "streams_records_in_total") == rounds * 60
