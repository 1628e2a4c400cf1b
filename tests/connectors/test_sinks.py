"""Sink connectors on the memory broker: each row once, whatever fails at whichever step of a commit."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json, Text, fail, skip
from streams.broker import NewTopic
from streams.errors import ConfigurationError, ConnectorError, ProcessingError, SinkMismatch, TopologyError
from streams.records import Output, TopicPartition
from streams.runtime.cleanup import KEPT_SECONDS, PURGE_SECONDS
from streams.simulation.simulator import Simulator
from streams.testing import TopologyDriver
from tests.support.cluster import AppCluster
from tests.support.connectors import Database, MemorySink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


PARTITIONS = 3


class Site(AppCluster):
    """A topic, and workers of an app that reads it."""

    def __init__(self, app: App, *, topics: Sequence[str] = ("in",)) -> None:
        super().__init__(app, dict.fromkeys(topics, PARTITIONS))

    def produce(self, values: Sequence[Any], topic: str = "in") -> None:
        encoded = [str(value).encode() for value in values]
        self.write(Output(topic, encoded, encoded, [0] * len(encoded)))

    def dead_letters(self) -> list[bytes]:
        return self.payloads(self.app.dead_letter_topic)


def delivering(database: Database, **settings: Any) -> App:
    app = App("copy", **settings)
    app.stream("in", key=Text(), value=Text()).sink(MemorySink(database))
    return app


def texts(start: int, stop: int) -> list[str]:
    return [f"value {number}" for number in range(start, stop)]


def values(database: Database) -> list[Any]:
    return sorted(value for _, value in list(database.rows))


def test_rows_and_positions_are_committed_together():
    database = Database()
    site = Site(delivering(database))
    site.produce(texts(0, 100))
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) == 100)
    worker.close()
    assert Counter(database.rows) == Counter((text, text) for text in texts(0, 100))
    positions = {partition: offset for (_, partition), (_, offset) in database.positions.items()}
    # Committed offsets follow, for tools that show lag.
    assert site.admin.committed_offsets("copy") == positions
    assert sum(positions.values()) >= 100


def test_a_restart_continues_from_the_sinks_position_whatever_the_groups_is():
    database = Database()
    site = Site(delivering(database))
    site.produce(texts(0, 50))
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) == 50)
    # The sink's commit fails after Kafka's: the group's offsets are ahead of the sink's positions.
    database.faults["commit"] = ["unavailable"]
    before = dict(database.positions)
    site.produce(texts(50, 60))
    site.run(worker, until=lambda: not database.faults["commit"])
    ahead = site.admin.committed_offsets("copy")
    assert any(ahead[partition] > before["rows", partition][1] for partition in ahead)
    site.freeze(worker)
    second = site.worker()
    site.run(second, until=lambda: len(database.rows) >= 60)
    second.close()
    assert values(database) == sorted(texts(0, 60))


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("open", "unavailable"),
        ("claim", "unavailable"),
        ("write", "unavailable"),
        ("commit", "unavailable"),
        ("commit", "lost answer"),
    ],
)
def test_a_failing_call_neither_loses_nor_repeats_rows(call, fault):
    database = Database(faults={call: [fault] * 3})
    site = Site(delivering(database))
    worker = site.worker()
    for number in range(5):
        site.produce(texts(number * 20, number * 20 + 20))
        site.run(worker, until=lambda: len(database.rows) >= number * 20 + 20)  # noqa: B023 - called at once
    worker.close()
    assert not database.faults[call]
    assert values(database) == sorted(texts(0, 100))


def test_an_outage_pauses_the_sinks_partitions_and_nothing_else():
    database = Database()
    app = App("copy")
    app.stream("in", key=Text(), value=Text()).sink(MemorySink(database))
    app.stream("other", value=Text()).map(str.upper).to("out", value=Text())
    site = Site(app, topics=("in", "other", "out"))
    worker = site.worker()
    site.produce(texts(0, 10))
    site.run(worker, until=lambda: len(database.rows) == 10)
    database.down = True
    site.produce(texts(10, 20))
    site.run(worker, until=lambda: worker.problems)
    assert (list(worker.problems), worker.ready) == (["memory-rows"], False)
    site.produce(texts(0, 30), "other")
    site.run(worker, until=lambda: len(site.payloads("out")) == 30)
    assert len(database.rows) == 10
    database.down = False
    site.run(worker, until=lambda: len(database.rows) == 20 and worker.ready)
    worker.close()
    assert values(database) == sorted(texts(0, 20))


def test_a_refused_row_is_a_dead_letter_and_the_others_are_written():
    database = Database(refuses=lambda value: value.endswith("7"))
    site = Site(delivering(database))
    site.produce(texts(0, 40))
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) == 36)
    worker.close()
    assert sorted(site.dead_letters()) == [b"value 17", b"value 27", b"value 37", b"value 7"]


def test_policies_apply_to_refused_rows():
    database = Database(refuses=lambda value: value.endswith("7"))
    app = App("copy", on_error=skip)
    app.stream("in", key=Text(), value=Text()).sink(MemorySink(database))
    site = Site(app)
    site.produce(texts(0, 10))
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) == 9)
    worker.close()

    database = Database(refuses=lambda value: value.endswith("7"))
    app = App("copy", on_error=fail)
    app.stream("in", key=Text(), value=Text()).sink(MemorySink(database))
    site = Site(app)
    site.produce(texts(0, 10))
    worker = site.worker()
    with pytest.raises(ProcessingError, match="refused: value 7"):
        site.run(worker, until=lambda: len(database.rows) == 10)
    assert database.rows == []


def test_undecodable_records_are_dead_letters_once_beside_the_rows():
    database = Database(faults={"write": ["unavailable"] * 2})
    app = App("copy")
    app.stream("in", value=Json(int)).sink(MemorySink(database))
    site = Site(app)
    site.produce([1, "bad", 3])
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) == 2)
    worker.close()
    assert site.dead_letters() == [b"bad"]


def test_a_zombie_writes_nothing():
    database = Database()
    site = Site(delivering(database))
    site.produce(texts(0, 30))
    zombie = site.worker()
    site.run(zombie, until=lambda: len(database.rows) == 30)
    site.produce(texts(30, 60))
    # The session of the first ends without its noticing: another worker takes over and commits.
    site.expire(zombie)
    other = site.worker()
    site.run(other, until=lambda: len(database.rows) == 60)
    site.produce(texts(60, 90))
    site.run(zombie, other, until=lambda: len(database.rows) >= 90)
    zombie.close()
    other.close()
    assert values(database) == sorted(texts(0, 90))


def test_partitions_move_between_workers_with_their_positions():
    database = Database()
    site = Site(delivering(database))
    first = site.worker()
    site.produce(texts(0, 50))
    site.run(first, until=lambda: len(database.rows) >= 20)
    second = site.worker()
    site.produce(texts(50, 200))
    site.run(first, second, until=lambda: len(database.rows) >= 150)
    first.close()
    site.run(second, until=lambda: len(database.rows) >= 200)
    second.close()
    assert values(database) == sorted(texts(0, 200))


def test_a_topic_created_again_is_refused_with_both_ids():
    database = Database()
    site = Site(delivering(database))
    site.produce(texts(0, 30))
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) == 30)
    worker.close()
    site.admin.delete_topics(["in"])
    site.admin.create_topics([NewTopic(name="in", partitions=PARTITIONS)])
    worker = site.worker()
    with pytest.raises(SinkMismatch, match="was topic topic-1 and is topic-"):
        site.run(worker, until=lambda: False, seconds=5)


def test_new_partitions_begin_at_their_beginning():
    database = Database()
    site = Site(delivering(database))
    worker = site.worker()
    site.produce(texts(0, 30))
    site.run(worker, until=lambda: len(database.rows) == 30)
    worker.close()
    site.broker.add_partitions("in", PARTITIONS + 2)
    for number in range(PARTITIONS, PARTITIONS + 2):
        site.write(Output("in", [b"new"], [b"new"], [0], partition=number))
    site.counts = site.prepare(site.app, create_outputs=False)
    worker = site.worker()
    site.run(worker, until=lambda: len(database.rows) == 32)
    worker.close()


def test_latest_begins_at_the_groups_start_and_then_at_the_sinks_position():
    database = Database()
    site = Site(delivering(database, offset_reset="latest"))
    site.produce(texts(0, 30))
    worker = site.worker()
    site.run(worker, until=lambda: len(worker.tasks) == PARTITIONS)
    site.run(worker, until=lambda: all(item.at_end for item in worker.progress.values()))
    site.produce(texts(30, 60))
    site.run(worker, until=lambda: len(database.rows) == 30)
    worker.close()
    assert values(database) == sorted(texts(30, 60))


@pytest.mark.parametrize("last", [True, False])
def test_dead_letters_of_a_sink_survive_an_outage_of_another_one_in_the_same_task(last):
    refusing, failing = Database(refuses=lambda value: value.startswith("bad")), Database()
    app = App("copy")
    lines = app.stream("in", key=Text(), value=Text())
    for database, target in [(refusing, "refusing"), (failing, "failing")][:: 1 if last else -1]:
        lines.sink(MemorySink(database, target=target))
    site = Site(app)
    worker = site.worker()
    site.produce(texts(0, 10))
    site.run(worker, until=lambda: len(refusing.rows) == len(failing.rows) == 10)
    failing.faults["write"] = ["unavailable"]
    site.produce([f"bad {number}" for number in range(20)])
    site.run(worker, until=lambda: len(failing.rows) == 30)
    worker.close()
    assert Counter(site.dead_letters()) == Counter(f"bad {number}".encode() for number in range(20))
    assert len(refusing.rows) == 10


def test_two_sinks_of_one_stream_have_positions_of_their_own():
    one, other = Database(), Database()
    app = App("copy")
    stream = app.stream("in", key=Text(), value=Text())
    stream.sink(MemorySink(one, "one"))
    stream.filter(lambda value: not value.endswith("3")).sink(MemorySink(other, "other"))
    assert len(app.topology.subtopologies) == 1
    site = Site(app)
    worker = site.worker()
    site.produce(texts(0, 40))
    site.run(worker, until=lambda: len(one.rows) == 40 and len(other.rows) == 36)
    # One of them commits, the other does not: what the first has is not written to it again.
    other.faults["commit"] = ["unavailable"]
    site.produce(texts(40, 60))
    site.run(worker, until=lambda: len(one.rows) >= 60 and len(other.rows) >= 54)
    worker.close()
    assert values(one) == sorted(texts(0, 60))
    assert values(other) == sorted(text for text in texts(0, 60) if not text.endswith("3"))


def two_sinks(one: Database, other: Database) -> App:
    app = App("copy")
    stream = app.stream("in", key=Text(), value=Text())
    stream.sink(MemorySink(one, "one"))
    stream.filter(lambda value: not value.endswith("3")).sink(MemorySink(other, "other"))
    return app


def test_an_outage_of_one_sink_does_not_hold_the_others_of_the_stream():
    one, other = Database(), Database()
    site = Site(two_sinks(one, other))
    worker = site.worker()
    site.produce(texts(0, 40))
    site.run(worker, until=lambda: len(one.rows) + len(other.rows) == 40 + 36)
    other.down = True
    for start in range(40, 100, 20):
        site.produce(texts(start, start + 20))
        site.run(worker, until=lambda: len(one.rows) == start + 20)  # noqa: B023 - called at once
    assert not worker.ready
    assert set(worker.problems) == {"memory-other"}
    assert len(other.rows) == 36
    other.down = False
    site.produce(texts(100, 110))
    site.run(worker, until=lambda: len(one.rows) == 110 and len(other.rows) == 99 and worker.ready)
    worker.close()
    assert values(one) == sorted(texts(0, 110))
    assert values(other) == sorted(text for text in texts(0, 110) if not text.endswith("3"))


def test_a_restart_in_the_outage_of_one_sink_continues_for_the_others():
    one, other = Database(), Database()
    app = two_sinks(one, other)
    site = Site(app)
    worker = site.worker()
    site.produce(texts(0, 40))
    site.run(worker, until=lambda: len(one.rows) + len(other.rows) == 40 + 36)
    other.down = True
    site.freeze(worker)
    second = site.worker()
    site.produce(texts(40, 60))
    site.run(second, until=lambda: len(one.rows) == 60)
    other.down = False
    site.run(second, until=lambda: len(other.rows) == 54)
    second.close()
    assert values(one) == sorted(texts(0, 60))


def test_a_sink_whose_writes_fail_for_long_is_read_for_again_and_again():
    """Its positions can be read, so it is read for from them each time: the other sink must not starve."""
    one, other = Database(), Database()
    site = Site(two_sinks(one, other))
    worker = site.worker()
    other.faults["write"] = ["unavailable"] * 12
    for start in range(0, 400, 20):
        site.produce(texts(start, start + 20))
        site.run(worker, until=lambda: len(one.rows) == start + 20)  # noqa: B023 - called at once
    site.run(worker, until=lambda: len(other.rows) == 360)
    worker.close()
    assert not other.faults["write"]
    assert values(one) == sorted(texts(0, 400))


def test_dead_letters_of_steps_are_written_once_although_records_are_read_again():
    one, other = Database(), Database(refuses=lambda value: value.endswith("5"))
    app = App("copy")
    stream = app.stream("in", key=Text(), value=Text()).filter(lambda value: 1 / int(value[-1]) > 0)
    stream.sink(MemorySink(one, "one"))
    stream.sink(MemorySink(other, "other"))
    site = Site(app)
    worker = site.worker()
    other.down = True
    site.produce(texts(0, 40))
    site.run(worker, until=lambda: len(one.rows) == 36)
    assert len(site.dead_letters()) == 4
    other.down = False
    site.run(worker, until=lambda: len(other.rows) == 32)
    worker.close()
    # Those of the sink that was away are added to the ones that the step refused.
    assert sorted(site.dead_letters()) == sorted(
        text.encode() for text in texts(0, 40) if text[-1] in {"0", "5"}
    )


def test_results_of_state_reach_a_sink_through_an_internal_topic():
    database = Database()
    app = App("counting")
    app.stream("in", key=Text(), value=Text()).group_by_key().count("counts").to_stream().sink(
        MemorySink(database)
    )
    assert "counting-rows-sink" in app.topology.repartitions
    site = Site(app)
    worker = site.worker()
    site.produce(["a", "b", "a"])
    latest: Callable[[], dict[Any, Any]] = lambda: dict(database.rows)  # noqa: E731 - read when called
    site.run(worker, until=lambda: latest() == {"a": 2, "b": 1})
    worker.close()


def test_the_internal_topic_of_a_tables_sink_is_compacted():
    database = Database()
    app = App("counting")
    app.stream("in", key=Text(), value=Text()).group_by_key().count("counts").sink(MemorySink(database))
    site = Site(app)
    assert site.broker.topic_settings("counting-rows-sink")["cleanup.policy"] == "compact"
    worker = site.worker()
    site.produce(["a", "b", "a"])
    site.run(worker, until=lambda: dict(database.rows) == {"a": 2, "b": 1})
    worker.close()


def test_a_stream_that_is_written_to_a_topic_too_reaches_its_sink_through_an_internal_topic():
    database = Database()
    app = App("copy")
    stream = app.stream("in", key=Text(), value=Text())
    stream.to("out")
    stream.sink(MemorySink(database))
    assert "copy-rows-sink" in app.topology.repartitions
    site = Site(app, topics=("in", "out"))
    worker = site.worker()
    site.produce(texts(0, 20))
    site.run(worker, until=lambda: len(database.rows) == 20 and len(site.payloads("out")) == 20)
    worker.close()


def test_records_of_the_internal_topic_are_kept_for_a_week():
    database = Database()
    app = App("copy")
    stream = app.stream("in", key=Text(), value=Text())
    stream.to("out")
    stream.sink(MemorySink(database))
    site = Site(app, topics=("in", "out"))
    worker = site.worker()
    site.produce(texts(0, 20))
    site.run(worker, until=lambda: len(database.rows) == 20)
    site.clock.advance(KEPT_SECONDS / 2)
    site.produce(texts(20, 40))
    site.run(worker, until=lambda: len(database.rows) == 40)
    kept = len(site.payloads("copy-rows-sink"))
    site.clock.advance(KEPT_SECONDS / 2 + PURGE_SECONDS)
    site.produce(texts(40, 60))
    site.run(worker, until=lambda: len(database.rows) == 60)
    worker.close()
    assert (kept, len(site.payloads("copy-rows-sink"))) == (40, 40)


def test_values_of_unknown_type_before_an_internal_topic_are_refused():
    app = App("copy")
    stream = app.stream("in", key=Text(), value=Text()).map(object.__repr__)
    stream.map(lambda _: object()).sink(MemorySink(Database()))
    stream.to("out")
    with pytest.raises(TopologyError, match="internal topic copy-rows-sink"):
        _ = app.topology


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("seed", range(6))
def test_every_row_once_under_random_faults(seed, guarantee):
    choose = random.Random(seed)
    database = Database(refuses=lambda value: value.endswith("9"))
    site = Site(delivering(database, guarantee=guarantee))
    workers = [site.worker(), site.worker()]
    produced = 0
    for _ in range(12):
        step = choose.randrange(6)
        site.produce(texts(produced, produced + 25))
        produced += 25
        if step < 4:
            call = ("open", "claim", "write", "commit")[step]
            fault = choose.choice(["unavailable", "lost answer"]) if call == "commit" else "unavailable"
            database.faults[call] = [fault] * choose.randrange(1, 3)
        elif step == 4:
            victim = workers.pop(choose.randrange(2))
            site.freeze(victim)
            with database.lock:
                database.owner = None
            workers.append(site.worker())
        else:
            site.expire(choose.choice(workers))
        for _ in range(choose.randrange(200)):
            for worker in workers:
                worker.run_once()
    database.faults.clear()
    expected = sorted(text for text in texts(0, produced) if not text.endswith("9"))
    site.run(*workers, until=lambda: len(database.rows) >= len(expected))
    for worker in workers:
        worker.close()
    assert values(database) == expected
    bad = {text.encode() for text in texts(0, produced) if text.endswith("9")}
    # A crash between the two commits repeats dead letters, and never loses one.
    assert set(site.dead_letters()) == bad


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("seed", range(8))
def test_every_row_of_two_sinks_once_under_random_faults(seed, guarantee):
    choose = random.Random(seed)
    databases = Database(refuses=lambda value: value.endswith("9")), Database()
    app = App("copy", guarantee=guarantee)
    stream = app.stream("in", key=Text(), value=Text())
    for number, database in enumerate(databases):
        stream.sink(MemorySink(database, f"rows{number}"))
    site = Site(app)
    workers = [site.worker(), site.worker()]
    produced = 0
    for _ in range(16):
        step = choose.randrange(8)
        site.produce(texts(produced, produced + 25))
        produced += 25
        database = choose.choice(databases)
        if step < 4:
            call = ("open", "claim", "write", "commit")[step]
            fault = choose.choice(["unavailable", "lost answer"]) if call == "commit" else "unavailable"
            database.faults[call] = [fault] * choose.randrange(1, 3)
        elif step < 6:
            database.down = not database.down
        elif step == 6:
            victim = workers.pop(choose.randrange(2))
            site.freeze(victim)
            for item in databases:
                with item.lock:
                    item.owner = None
            workers.append(site.worker())
        else:
            site.expire(choose.choice(workers))
        for _ in range(choose.randrange(200)):
            for worker in workers:
                worker.run_once()
    for database in databases:
        database.faults.clear()
        database.down = False
    expected = [
        sorted(text for text in texts(0, produced) if not database.refuses(text)) for database in databases
    ]
    site.run(
        *workers,
        until=lambda: all(
            len(item.rows) >= len(rows) for item, rows in zip(databases, expected, strict=True)
        ),
    )
    for worker in workers:
        worker.close()
    assert [values(database) for database in databases] == expected
    assert set(site.dead_letters()) == {text.encode() for text in texts(0, produced) if text.endswith("9")}


def test_the_group_is_served_while_a_sink_does_not_answer():
    database = Database()
    site = Site(delivering(database))
    worker = site.worker()
    site.produce(texts(0, 10))
    site.run(worker, until=lambda: len(worker.tasks) == PARTITIONS)
    served = worker.status.served
    with database.lock:
        site.run(worker, until=lambda: worker.status.served > served)
    site.run(worker, until=lambda: len(database.rows) == 10)
    worker.close()
    assert TopicPartition("in", 0) in site.admin.committed_offsets("copy")


def test_the_driver_returns_the_rows_for_a_sink():
    database = Database()
    driver = TopologyDriver(delivering(database))
    driver.send("in", "hello", key="a")
    assert [(row.key, row.value) for row in driver.rows("rows")] == [("a", "hello")]
    assert driver.rows("rows") == []
    with pytest.raises(TopologyError, match="no sink connector with store 'other'"):
        driver.rows("other")
    assert not database.rows


def test_a_simulation_refuses_connectors():
    with pytest.raises(ConfigurationError, match="a simulation cannot run: memory-rows"):
        Simulator(delivering(Database()), {})


def test_a_sink_that_does_not_answer_at_the_start_holds_its_own_partitions():
    database = Database(down=True)
    site = Site(delivering(database))
    site.produce(texts(0, 10))
    worker = site.worker()
    site.run(worker, until=lambda: len(worker.tasks) == PARTITIONS)
    assert not worker.ready
    assert worker.problems == {"memory-rows": "rows is down"}
    database.down = False
    site.run(worker, until=lambda: len(database.rows) == 10 and worker.ready)
    worker.close()


def test_a_sink_is_checked_when_it_answers_later():
    database = Database(down=True)
    site = Site(delivering(database))
    worker = site.worker()
    site.run(worker, until=lambda: len(worker.tasks) == PARTITIONS)
    database.unfit, database.down = True, False
    with pytest.raises(ConnectorError, match="rows does not fit"):
        site.run(worker, until=lambda: False)
    worker.close()
