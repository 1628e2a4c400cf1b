"""What workers of all kinds of apps say of themselves for the alerts of their app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Every, Json, Text, count, minutes
from streams.alerts.figures import FigureReader, covers, measured_inputs
from streams.app import resources_of_worker
from streams.monitoring.observer import Observer
from streams.monitoring.watchdog import Watchdog
from streams.records import Output
from tests.support.cluster import MemoryCluster
from tests.support.connectors import Feed, MemorySource
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from streams.alerts.figures import WorkerFigures


class Site:
    """A worker of an app, and what it says."""

    def __init__(self, app: App, topics: dict[str, int], *, real_time: bool = False) -> None:
        self.cluster = MemoryCluster(topics, real_time=real_time)
        self.app, self.now = app, 1_800_000_000_000
        options: dict[str, Any] = {} if real_time else {"clock": self.cluster.clock}
        self.worker = self.cluster.make_worker(
            app,
            "slot",
            transaction_timeout=10_000.0,
            partitions=self.cluster.prepare(app, create_outputs=True),
            wall_clock=self.wall_clock if real_time else self.cluster.clock.milliseconds,
        )
        self.observer = Observer(
            self.worker,
            None,
            self.cluster.broker,
            goal=30.0,
            wall_clock=self.worker.wall_clock,
            **options,
        )
        watchdog = Watchdog(self.worker, self.cluster.broker, app.settings)
        self.reader = FigureReader(self.worker, self.observer, watchdog, **options)

    def wall_clock(self) -> int:
        return self.now

    def turn(self) -> WorkerFigures:
        self.worker.run_once()
        if not self.cluster.real_time:
            self.cluster.clock.advance(1.0)
        self.observer.observe()
        return self.reader.read()

    @property
    def covered(self) -> bool:
        return covers([self.reader.read()], measured_inputs(self.app.topology, self.worker))


def test_a_worker_counts_what_it_has_done_and_knows_what_waits():
    def strict(value: str) -> str:
        if value == "bad":
            raise ValueError(value)
        return value

    app = App("shop", dead_letter_limit=1)
    app.stream("in", value=Text()).map(strict).to("out")
    site = Site(app, {"in": 2, "out": 2})
    clock, cluster = site.cluster.clock, site.cluster
    # A worker that knows nothing yet says nothing.
    assert (site.reader.read().partitions, site.reader.read().unknown) == ({}, True)
    site.worker.start()
    now = clock.milliseconds()
    rows: list[bytes | None] = [*[b"good"] * 8, *[b"bad"] * 2]
    cluster.write(Output("in", [None] * 10, rows, [now] * 10, partition=0))
    cluster.write(Output("in", [None], [b"good"], [now], partition=1))
    for _ in range(10):
        figures = site.turn()
    assert {topic: sorted(numbers) for topic, numbers in figures.partitions.items()} == {"in": [0, 1]}
    assert figures.waiting == {"in": 0.0}
    assert (figures.records, figures.dead_letters, figures.unknown) == (11, 2, False)
    # What waits is known of a worker that does nothing.
    cluster.write(Output("in", [None], [b"good"], [clock.milliseconds()], partition=1))
    for _ in range(40):
        clock.advance(1.0)
        site.observer.observe()
    assert site.reader.read().waiting["in"] == pytest.approx(40, abs=2)
    assert site.reader.read().lag == 1
    # Counts are those of the last ten minutes.
    for _ in range(11):
        clock.advance(60.0)
        figures = site.reader.read()
    assert (figures.records, figures.dead_letters) == (0, 0)
    site.worker.close()


def copying() -> App:
    app = App("copying")
    app.stream("in", value=Text()).to("out")
    return app


def counting() -> App:
    app = App("counting")
    counts = (
        app.stream("in", value=Text()).key_by(lambda value: value).group_by_key().aggregate("n", n=count())
    )
    counts.to_stream().to("out")
    return app


def joining() -> App:
    app = App("joining")
    app.stream("in", value=Json(), key=Text()).join(app.table("other", key=Text()), lambda a, b: a).to("out")
    return app


def sourcing() -> App:
    app = App("sourcing")
    app.source(MemorySource(Feed()), store="feed").to("out")
    return app


@pytest.mark.parametrize("make", [copying, counting, joining, sourcing])
def test_a_worker_that_has_everything_knows_what_waits_everywhere(make: Any):
    """Else no alert of the app would ever be cleared."""
    site = Site(make(), {"in": 2, "other": 2, "out": 2})
    assert make is sourcing or not site.covered
    site.worker.start()
    for _ in range(20):
        site.turn()
    assert site.covered
    assert not site.reader.read().unknown
    site.worker.close()


def test_a_worker_says_when_the_instants_of_its_schedules_are():
    app = App("reports", job_partitions=2)

    @app.job(name="report", schedule=Every(minutes(10)))
    def report() -> None:
        pass

    site = Site(app, {}, real_time=True)
    first = site.now + 600_000
    resources = resources_of_worker(app)
    resources.open()
    try:
        with resources.active():
            site.worker.start()
            wait_until(lambda: site.turn().next_instants == {"report": first}, 20, what="it is known")
            wait_until(lambda: site.turn() and site.covered, 20, what="what waits is known")
            site.now = first + 1
            wait_until(lambda: site.turn().next_instants == {"report": first + 600_000}, 20, what="the next")
            assert site.turn().missed_instants == {}
    finally:
        site.worker.close()
        resources.close()
