"""Source connectors on the memory broker: records and positions are committed together."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json, Text
from streams.errors import OutcomeUnknown, TopicError, TopologyError, TransactionAborted
from streams.monitoring.metrics import WorkerMetrics
from streams.testing import TopologyDriver
from tests.support.clock import Clock
from tests.support.cluster import AppCluster
from tests.support.connectors import Feed, MemorySource
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from streams.operators.processor import Context
    from streams.records import Record


class Site(AppCluster):
    """A feed, and workers of an app that reads it."""

    def out(self) -> list[int]:
        return [int(value) for value in self.payloads("out")]


def copying(feed: Feed, **settings: Any) -> App:
    app = App("capture", **settings)
    app.source(MemorySource(feed), store="feed").to("out")
    return app


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_records_are_written_and_confirmed_after_their_commit(guarantee):
    feed = Feed(list(range(100)))
    site = Site(copying(feed, guarantee=guarantee))
    worker = site.worker()
    site.run(worker, until=lambda: len(site.out()) == 100)
    site.run(worker, until=lambda: feed.confirmed and feed.confirmed[-1] == 100)
    worker.close()
    assert site.out() == list(range(100))
    assert feed.confirmed == sorted(feed.confirmed)


def test_a_restart_continues_at_the_committed_position():
    feed = Feed(list(range(100)))
    site = Site(copying(feed))
    worker = site.worker()
    site.run(worker, until=lambda: feed.confirmed and feed.confirmed[-1] >= 50)
    site.freeze(worker)
    done = len(site.out())
    feed.values += range(100, 130)
    second = site.worker()
    site.run(second, until=lambda: len(site.out()) == 130)
    second.close()
    assert site.out() == list(range(130))
    assert feed.opened_at[0] == 0
    assert feed.opened_at[1] == done


def test_nothing_is_confirmed_while_the_broker_aborts():
    feed = Feed()
    site = Site(copying(feed))

    def before(step: str) -> None:
        if step == "commit.before":
            raise TransactionAborted("the broker aborts")

    worker = site.worker()
    site.run(worker, until=lambda: feed.opened_at)
    site.broker.before = before
    feed.values += range(30)
    site.run(worker, until=lambda: worker.status.rewinds >= 3)
    assert not feed.confirmed
    site.broker.before = None
    site.run(worker, until=lambda: len(site.out()) == 30)
    worker.close()
    assert site.out() == list(range(30))


def test_a_source_that_is_not_available_is_opened_again_where_it_was():
    feed = Feed(list(range(50)))
    site = Site(copying(feed))
    worker = site.worker()
    site.run(worker, until=lambda: len(site.out()) == 50)
    feed.faults = ["cut", "cut"]
    site.run(worker, until=lambda: worker.problems == {"feed-0": "cut"})
    feed.values += range(50, 60)
    site.run(worker, until=lambda: len(site.out()) == 60 and not worker.problems)
    worker.close()
    assert site.out() == list(range(60))


def test_a_source_that_has_nothing_for_a_moment_is_not_committed_each_time():
    feed = Feed()
    site = Site(copying(feed), clock=Clock(tick=0.0))
    worker = site.worker()
    site.run(worker, until=lambda: feed.opened_at and not worker.status.dirty)
    commits = worker.status.commits
    for number in range(10):
        # Longer than the shortest time between two commits, and the batch is there at once afterwards.
        site.clock.advance(0.03)
        feed.values.append(number)
        wait_until(lambda: worker._sources.backlog, 20, what="the batch is read")  # noqa: SLF001 - nothing else shows it
        worker.run_once()
        assert worker.status.dirty
        assert worker.status.commits == commits
    site.clock.advance(0.006)
    worker.run_once()
    assert worker.status.commits == commits + 1
    assert site.out() == list(range(10))
    worker.close()


def test_another_worker_takes_over():
    feed = Feed(list(range(40)))
    site = Site(copying(feed))
    workers = [site.worker(), site.worker()]
    site.run(*workers, until=lambda: len(site.out()) == 40)
    owner = next(worker for worker in workers if worker.tasks)
    workers.remove(owner)
    site.freeze(owner)
    feed.values += range(40, 80)
    site.run(*workers, until=lambda: len(site.out()) == 80)
    workers[0].close()
    assert site.out() == list(range(80))


class Numbering:
    """Counts what it has seen, in a store of the source."""

    def process(self, record: Record[Any, Any], context: Context) -> None:
        store = context.store("seen")
        seen = (store.get("seen") or 0) + 1
        store.put("seen", seen)
        context.forward(record.with_(value=[seen, record.value]))


def test_a_connectors_processor_has_state_that_matches_the_position():
    feed = Feed(list(range(100)))
    app = App("capture")
    app.source(MemorySource(feed, process=Numbering, stores={"seen": (Text(), Json(int))}), store="feed").to(
        "out"
    )
    site = Site(app)
    worker = site.worker()
    site.run(worker, until=lambda: len(site.payloads("out")) >= 40)
    site.freeze(worker)
    second = site.worker()
    site.run(second, until=lambda: len(site.payloads("out")) == 100)
    second.close()
    assert site.payloads("out") == [b"[%d,%d]" % (number + 1, number) for number in range(100)]


def test_undecodable_records_of_a_source_are_dead_letters():
    feed = Feed([1, "text", 3])
    app = App("capture")
    app.source(MemorySource(feed, value=Json(int)), store="feed").to("out")
    site = Site(app)
    worker = site.worker()
    site.run(worker, until=lambda: len(site.out()) == 2)
    worker.close()
    assert site.payloads(app.dead_letter_topic) == [b'"text"']


def test_another_number_of_tasks_is_refused():
    feed = Feed()
    site = Site(copying(feed))
    site.worker().close()
    app = App("capture")
    app.source(MemorySource(feed, tasks=2), store="feed").to("out")
    with pytest.raises(TopicError, match="has 1 partitions, but the connector has 2 tasks"):
        site.prepare(app, create_outputs=False)


def test_counting_a_source_goes_through_an_internal_topic():
    feed = Feed([number % 3 for number in range(90)])
    app = App("capture")
    app.source(MemorySource(feed, value=Json(int)), store="feed").group_by(str).count(
        "counts"
    ).to_stream().to("out")
    site = Site(app)
    worker = site.worker()
    site.run(worker, until=lambda: {value for _, value in site.rows("out")[-3:]} == {b"30"})
    worker.close()


def test_the_driver_sends_what_a_source_reads():
    driver = TopologyDriver(copying(Feed()))
    driver.send_source("feed", {"a": 1}, key=7)
    assert [(record.key, record.value) for record in driver.read("out")] == [(7, {"a": 1})]
    with pytest.raises(TopologyError, match="no source connector with store 'fed'"):
        driver.send_source("fed", 1)


def test_health_of_a_source_is_in_metrics_and_readiness():
    feed = Feed([1])
    site = Site(copying(feed))
    worker = site.worker()
    site.run(worker, until=lambda: len(site.out()) == 1)
    feed.problem = "the slot is lost"
    site.run(worker, until=lambda: worker.problems == {"feed-0": "the slot is lost"})
    shown = WorkerMetrics(worker).exposition().decode()
    assert 'streams_source_next{source="feed-0"} 1.0' in shown
    assert 'streams_connector_unavailable{connector="feed-0"} 1.0' in shown
    worker.close()


@pytest.mark.parametrize("seed", range(6))
def test_every_record_once_whatever_is_known_of_commits(seed):
    choose = random.Random(seed)
    feed = Feed(batch=choose.randrange(1, 12))
    app = App("capture")
    app.source(MemorySource(feed, process=Numbering, stores={"seen": (Text(), Json(int))}), store="feed").to(
        "out"
    )
    site = Site(app)
    worker = site.worker()

    def before(step: str) -> None:
        if step in {"send_offsets", "commit.before", "commit.after"} and choose.random() < 0.3:
            raise choose.choice([OutcomeUnknown, TransactionAborted])("the broker is gone")

    for _ in range(12):
        feed.values += range(len(feed.values), len(feed.values) + 25)
        site.broker.before = before
        for _ in range(choose.randrange(100)):
            worker.run_once()
        site.broker.before = None
        for _ in range(choose.randrange(10)):
            worker.run_once()
    site.run(worker, until=lambda: len(site.payloads("out")) >= len(feed.values))
    worker.close()
    assert site.payloads("out") == [b"[%d,%d]" % (number + 1, number) for number in range(len(feed.values))]


@pytest.mark.parametrize("seed", range(6))
def test_every_record_once_under_random_faults(seed):
    choose = random.Random(seed)
    feed = Feed(batch=choose.randrange(1, 12))
    site = Site(copying(feed))
    workers = [site.worker(), site.worker()]
    for _ in range(12):
        feed.values += range(len(feed.values), len(feed.values) + 25)
        step = choose.randrange(3)
        if step == 0:
            feed.faults += ["cut"] * choose.randrange(1, 3)
        elif step == 1:
            victim = workers.pop(choose.randrange(2))
            site.freeze(victim)
            workers.append(site.worker())
        else:
            site.expire(choose.choice(workers))
        for _ in range(choose.randrange(200)):
            for worker in workers:
                worker.run_once()
    feed.faults.clear()
    site.run(*workers, until=lambda: len(site.out()) >= len(feed.values))
    for worker in workers:
        worker.close()
    assert site.out() == list(range(len(feed.values)))
