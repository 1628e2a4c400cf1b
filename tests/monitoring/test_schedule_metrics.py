"""Metrics of schedules: when the next instant is, and whether some were missed, on the in-memory broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams import App, Every, minutes
from streams.app import resources_of_worker
from streams.monitoring.metrics import WorkerMetrics
from tests.support.cluster import MemoryCluster
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

NOON = 1_800_000_000_000
MINUTE = 60_000


class Site:
    """An app with a schedule, and workers of it whose wall clock stands still until it is moved."""

    def __init__(self) -> None:
        self.app = App("reports", job_partitions=1)
        self.now = NOON + 1_000
        self.cluster = MemoryCluster({}, real_time=True)

        @self.app.job(name="report", schedule=Every(minutes(10)))
        def report() -> None:
            pass

        self.counts = self.cluster.prepare(self.app, create_outputs=True)
        self.started = 0

    def run(self) -> Generator[dict[str, float], None, None]:
        """Run a worker until it is closed; each turn gives the metrics of schedules."""
        worker = self.cluster.make_worker(
            self.app, f"slot-{self.started}", partitions=self.counts, wall_clock=lambda: self.now
        )
        self.started += 1
        metrics = WorkerMetrics(worker)
        resources = resources_of_worker(self.app)
        resources.open()
        try:
            with resources.active():
                worker.start()
                while True:
                    worker.run_once()
                    lines = metrics.exposition().decode().splitlines()
                    yield {
                        name.partition("{")[0]: float(value)
                        for name, _, value in (line.rpartition(" ") for line in lines)
                        if name.startswith("streams_schedule_") and 'schedule="report"' in name
                    }
        finally:
            worker.close()
            resources.close()


def until(run: Iterator[dict[str, float]], **expected: float) -> None:
    wanted = {f"streams_schedule_{name}_seconds": value for name, value in expected.items()}
    wait_until(lambda: next(run) == wanted, 20, what=f"metrics {wanted}")


@pytest.fixture
def site():
    return Site()


def test_the_next_instant_moves_on_when_one_is_decided(site):
    run = site.run()
    until(run, next=(NOON + 10 * MINUTE) / 1000)
    site.now = NOON + 10 * MINUTE + 1
    until(run, next=(NOON + 20 * MINUTE) / 1000)
    run.close()


def test_instants_that_passed_while_nobody_ran_are_missed(site):
    run = site.run()
    until(run, next=(NOON + 10 * MINUTE) / 1000)
    run.close()
    site.now = NOON + 35 * MINUTE
    again = site.run()
    until(again, next=(NOON + 40 * MINUTE) / 1000, missed=site.now / 1000)
    again.close()
