"""Sinks that keep no positions: the group's offsets are theirs. Rows are repeated, and none is left out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Text
from streams.records import Output
from streams.replay.affected import find_affected
from tests.support.cluster import AppCluster
from tests.support.connectors import Database, MemoryQueue, MemorySink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.sink import SinkConnector

PARTITIONS = 3


class Site(AppCluster):
    """A topic, and workers of an app that reads it."""

    def __init__(self, app: App) -> None:
        super().__init__(app, {"in": PARTITIONS})

    def produce(self, values: Sequence[str]) -> None:
        encoded = [value.encode() for value in values]
        self.write(Output("in", encoded, encoded, [0] * len(encoded)))


def delivering(database: Database, **settings: Any) -> App:
    app = App("copy", **settings)
    app.stream("in", key=Text(), value=Text()).sink(MemoryQueue(database))
    return app


def texts(start: int, stop: int) -> list[str]:
    return [f"value {number}" for number in range(start, stop)]


def distinct(database: Database) -> set[str]:
    return {value for _, value in list(database.rows)}


def test_rows_are_delivered_once_while_nothing_fails_and_a_restart_continues_at_the_groups_offsets():
    database = Database()
    site = Site(delivering(database))
    site.produce(texts(0, 50))
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) == 50)
    worker.close()
    site.produce(texts(50, 80))
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) >= 80)
    worker.close()
    assert Counter(value for _, value in database.rows) == Counter(texts(0, 80))
    assert sum(site.admin.committed_offsets("copy").values()) >= 80


@pytest.mark.parametrize(
    ("call", "fault"), [("open", "unavailable"), ("write", "half"), ("write", "unavailable")]
)
def test_a_failing_call_loses_no_rows(call, fault):
    database = Database(faults={call: [fault] * 3})
    site = Site(delivering(database))
    worker = site.worker()
    for number in range(5):
        site.produce(texts(number * 20, number * 20 + 20))
        site.run(worker, until=lambda: len(distinct(database)) == number * 20 + 20)  # noqa: B023 - called at once
    worker.close()
    assert not database.faults[call]
    assert distinct(database) == set(texts(0, 100))


def test_a_worker_that_dies_before_its_commit_repeats_rows_and_loses_none():
    database = Database()
    site = Site(delivering(database))
    worker = site.worker()
    site.produce(texts(0, 30))
    site.run(worker, until=lambda: len(database.rows) == 30)
    before = site.admin.committed_offsets("copy")
    database.faults["write"] = ["crash"]
    site.produce(texts(30, 60))
    with pytest.raises(RuntimeError, match="between the sink's delivery"):
        site.run(worker, until=lambda: False)
    delivered = len(database.rows)
    assert delivered > 30
    assert site.admin.committed_offsets("copy") == before
    second = site.worker()
    site.run(second, until=lambda: len(database.rows) >= 60 + delivered - 30)
    second.close()
    counts = Counter(value for _, value in database.rows)
    assert set(counts) == set(texts(0, 60))
    assert sum(count - 1 for count in counts.values()) == delivered - 30


def test_refused_rows_are_dead_letters():
    database = Database(refuses=lambda value: value.endswith("7"))
    site = Site(delivering(database))
    site.produce(texts(0, 40))
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) == 36)
    worker.close()
    assert sorted(site.payloads(site.app.dead_letter_topic)) == [
        b"value 17",
        b"value 27",
        b"value 37",
        b"value 7",
    ]


def test_partitions_move_between_workers():
    database = Database()
    site = Site(delivering(database))
    first = site.worker()
    site.produce(texts(0, 50))
    site.run(first, until=lambda: len(database.rows) >= 20)
    second = site.worker()
    site.produce(texts(50, 200))
    site.run(first, second, until=lambda: len(distinct(database)) >= 150)
    first.close()
    site.run(second, until=lambda: len(distinct(database)) == 200)
    second.close()
    assert distinct(database) == set(texts(0, 200))


@pytest.mark.parametrize("order", [1, -1])
def test_an_outage_holds_the_other_sinks_of_its_stream_as_the_groups_offsets_must_not_pass_it(order):
    queue, table = Database(), Database()
    app = App("copy")
    stream = app.stream("in", key=Text(), value=Text())
    connectors: list[SinkConnector] = [MemoryQueue(queue), MemorySink(table)]
    for connector in connectors[::order]:
        stream.sink(connector)
    site = Site(app)
    worker = site.worker()
    site.produce(texts(0, 20))
    site.run(worker, until=lambda: len(queue.rows) == len(table.rows) == 20)
    queue.faults = {"write": ["half"], "open": ["unavailable"] * 3}
    site.produce(texts(20, 60))
    site.run(worker, until=lambda: worker.problems)
    assert set(worker.problems) == {"queue-messages"}
    site.freeze(worker)
    # Whatever the table has by now: the rows that the queue has not got are read again.
    second = site.worker()
    site.run(second, until=lambda: len(distinct(queue)) == 60 and len(table.rows) >= 60)
    second.close()
    assert Counter(value for _, value in table.rows) == Counter(texts(0, 60))


def test_an_outage_of_another_sink_of_the_stream_repeats_rows_at_most():
    queue, table = Database(), Database()
    app = App("copy")
    stream = app.stream("in", key=Text(), value=Text())
    stream.sink(MemoryQueue(queue))
    stream.sink(MemorySink(table))
    site = Site(app)
    worker = site.worker()
    site.produce(texts(0, 20))
    site.run(worker, until=lambda: len(queue.rows) == len(table.rows) == 20)
    table.down = True
    site.produce(texts(20, 60))
    site.run(worker, until=lambda: len(distinct(queue)) == 60)
    table.down = False
    site.produce(texts(60, 80))
    site.run(worker, until=lambda: len(distinct(queue)) == 80 and len(table.rows) == 80)
    worker.close()
    assert Counter(value for _, value in table.rows) == Counter(texts(0, 80))


def test_latest_begins_at_the_groups_start():
    database = Database()
    site = Site(delivering(database, offset_reset="latest"))
    site.produce(texts(0, 30))
    worker = site.worker()
    site.run(worker, until=lambda: len(worker.tasks) == PARTITIONS)
    site.run(worker, until=lambda: all(item.at_end for item in worker.progress.values()))
    site.produce(texts(30, 60))
    site.run(worker, until=lambda: len(database.rows) == 30)
    worker.close()
    assert distinct(database) == set(texts(30, 60))


def test_a_reset_of_its_input_takes_effect():
    app = delivering(Database())
    assert find_affected(app.topology, ["in"], "copy").selected == ("in",)
