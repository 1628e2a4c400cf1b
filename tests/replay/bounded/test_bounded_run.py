"""Bounded runs: the range alone decides on the results, and nothing else changes."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from streams import App, Json, Text, TopicPartition, Tumbling, current_replay, fail
from streams.broker import NewTopic
from streams.connectors.files import JsonLinesSource
from streams.connectors.sqlite import SqliteSink
from streams.durations import milliseconds
from streams.errors import BrokerError, ConfigurationError, ProcessingError, TopicError
from streams.operators import guard
from streams.partitioning import partition_for
from streams.records import Output
from streams.replay.bounded import publish as publishing, range_reader, run as running, unit
from streams.replay.bounded.log import RunLog
from streams.replay.bounded.run import BoundedRun, RunReport, RunRequest
from streams.replay.positions import AtOffsets, AtTime, Earliest, Latest
from streams.testing import TopologyDriver
from tests.replay.inputs import Row, memory_broker, readings, send, written

if TYPE_CHECKING:
    from pathlib import Path

    from streams.broker.memory import MemoryBroker
    from streams.replay.positions import Position


def program(**settings: Any) -> App:
    app = App("shop", state_store="memory", create_topics=True, **settings)
    sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))
    prices = app.table("prices", key=Text(), value=Json(dict[str, Any]))
    sales.filter(lambda sale: sale["size"] % 3 > 0).map(lambda sale: {**sale, "seen": True}).to(
        "seen", value=Json()
    )
    sales.left_join(prices, lambda sale, price: [sale["n"], price]).to("priced", value=Json())
    by_size = sales.group_by(lambda sale: str(sale["size"] % 7))
    windows = by_size.window(Tumbling(milliseconds=500), grace=milliseconds(300)).count("sizes")
    windows.final().to("final", value=Json())
    windows.updates().to("updates", value=Json())
    sales.map(lambda sale: 100 // (sale["size"] % 50), name="divide").to("divided", value=Json())
    return app


def filled(seed: int, count: int = 600) -> MemoryBroker:
    broker = memory_broker({"sales": 3, "prices": 3})
    send(broker, "prices", readings(seed + 1, count // 4))
    send(broker, "sales", readings(seed, count))
    return broker


def run(
    broker: MemoryBroker,
    folder: Path,
    *,
    begin: Position | None = None,
    end: Position | None = None,
    name: str = "again",
    app: App | None = None,
    warmup: int | None = None,
    effects: bool = False,
) -> RunReport:
    request = RunRequest(
        name=name, begin=begin or Earliest(), end=end or Latest(), warmup=warmup, effects=effects
    )
    work = BoundedRun(app or program(), request, broker=broker, folder=folder)
    report = work.process(work.plan())
    work.publish(report)
    return report


TOPICS = ("seen", "priced", "final", "updates", "divided", "shop-dead-letters")


def sized(patch: pytest.MonkeyPatch, records: int) -> None:
    """Let slices have so many records, and commits come after two or, with many changes, after one."""
    for name, value in {
        "SLICE_RECORDS": records,
        "TAKEN_RECORDS": records,
        "COMMIT_RECORDS": 2 * records,
        "COMMIT_ENTRIES": 40,
    }.items():
        patch.setattr(unit, name, value)


@given(seed=st.integers(0, 999), polled=st.integers(1, 50), size=st.integers(10, 300))
@hypothesis_settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_same_range_gives_the_same_bytes_however_it_is_polled(
    tmp_path: Path, seed: int, polled: int, size: int
):
    broker = filled(seed)
    with pytest.MonkeyPatch.context() as patch:
        sized(patch, size)
        run(broker, tmp_path, name="one")
        patch.setattr(range_reader, "POLL_RECORDS", polled)
        run(broker, tmp_path, name="two")
    for topic in TOPICS:
        one, two = written(broker, f"{topic}-one"), written(broker, f"{topic}-two")
        assert one == two
        assert any(one.values()), topic


def every(found: dict[int, list[Row]]) -> list[Any]:
    return sorted(
        (row.key or b"", row.value or b"", row.timestamp) for rows in found.values() for row in rows
    )


@given(seed=st.integers(0, 999), cut=st.integers(1_000, 4_000))
@hypothesis_settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_two_ranges_that_follow_each_other_have_the_results_of_both(tmp_path: Path, seed: int, cut: int):
    """So windows that began before a range, and tables, are as they were: the warm-up has been read."""
    broker = filled(seed)
    run(broker, tmp_path, name="all")
    run(broker, tmp_path, name="first", end=AtTime(cut))
    run(broker, tmp_path, name="second", begin=AtTime(cut))
    # A window's updates depend on where tasks commit, and are cut at the end of a range.
    for topic in ("seen", "priced", "divided", "shop-dead-letters", "final"):
        parts = every(written(broker, f"{topic}-first")) + every(written(broker, f"{topic}-second"))
        assert sorted(parts) == every(written(broker, f"{topic}-all")), topic


def test_results_are_those_of_a_worker(tmp_path: Path):
    broker = memory_broker({"sales": 1, "prices": 1})
    sales = sorted(readings(5, 400), key=lambda row: row[2])
    prices = [(key, value, 0) for key, value, _ in readings(6, 60)]
    send(broker, "prices", prices)
    send(broker, "sales", sales)
    run(broker, tmp_path)
    with TopologyDriver(program(), check_dead_letters=False) as driver:
        for key, value, time in prices:
            driver.send("prices", value, key=key.decode(), timestamp=time)
        for key, value, time in sales:
            driver.send("sales", value, key=key.decode(), timestamp=time)
        for topic in ("seen", "priced", "final", "divided"):
            live = [(record.key, record.value, record.timestamp) for record in driver.read(topic)]
            replayed = TopologyDriver(reader(topic))
            for row in written(broker, f"{topic}-again")[0]:
                replayed.send_bytes(topic, row.value, key=row.key, timestamp=row.timestamp)
            found = [(record.key, record.value, record.timestamp) for record in replayed.read("copy")]
            assert live
            assert sorted(map(repr, found)) == sorted(map(repr, with_plain_values(live)))


def reader(topic: str) -> App:
    app = App("reader")
    app.stream(topic, key=Text(), value=Json()).to("copy", value=Json())
    return app


def with_plain_values(records: list[tuple[Any, Any, int]]) -> list[tuple[Any, Any, int]]:
    import msgspec  # noqa: PLC0415 - only here

    return [(key, msgspec.to_builtins(value), time) for key, value, time in records]


@pytest.mark.parametrize(("entries", "committed"), [(1_000, 90), (1, 30)])
def test_aggregates_forward_their_updates_after_so_many_records_or_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: int, committed: int
):
    monkeypatch.setattr(unit, "SLICE_RECORDS", 30)
    monkeypatch.setattr(unit, "TAKEN_RECORDS", 30)
    monkeypatch.setattr(unit, "COMMIT_RECORDS", 90)
    monkeypatch.setattr(unit, "COMMIT_ENTRIES", entries)
    app = App("counting", state_store="memory")
    app.stream("sales", key=Text()).group_by_key().count("counts").to("counts", value=Json())
    broker = memory_broker({"sales": 1})
    rows = readings(3, 200, keys=20)
    send(broker, "sales", rows)
    run(broker, tmp_path, app=app)
    expected: list[dict[bytes, int]] = []
    counts: dict[bytes, int] = {}
    for first in range(0, len(rows), committed):
        keys = [key for key, *_ in rows[first : first + committed]]
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
        expected.append({key: counts[key] for key in keys})
    found = [(row.key, json.loads(row.value or b"")) for row in written(broker, "counts-again")[0]]
    for updates in expected:
        assert dict(found[: len(updates)]) == updates
        del found[: len(updates)]
    assert not found


def test_a_run_is_stopped_while_a_slow_step_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Every piece of a column counts as slow.
    monkeypatch.setattr(guard, "PIECE_SECONDS", -1)
    seen: list[Any] = []

    def note(sale: dict[str, Any]) -> dict[str, Any]:
        seen.append(sale)
        return sale

    app = App("slow", state_store="memory")
    app.stream("sales", value=Json(dict[str, Any])).map(note).to("copy", value=Json())
    broker = memory_broker({"sales": 1})
    send(broker, "sales", readings(1, 200))

    def stop(_: int) -> None:
        if seen:
            raise KeyboardInterrupt

    work = BoundedRun(
        app, RunRequest(name="again", begin=Earliest(), end=Latest()), broker=broker, folder=tmp_path
    )
    with pytest.raises(KeyboardInterrupt):
        work.process(work.plan(), stop)
    assert 0 < len(seen) < 200


def test_results_have_the_order_of_event_times_in_each_partition(tmp_path: Path):
    """Those that keep their key are not merged, as they are for different partitions; the others are."""
    app = App("moving", state_store="memory")
    sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))
    sales.to("kept", value=Json())
    sales.key_by(lambda sale: str(sale["size"] % 9)).to("moved", value=Json())
    broker = memory_broker({"sales": 3})
    rows = readings(8, 500, late=1)
    send(broker, "sales", rows)
    run(broker, tmp_path, app=app)
    for topic, key_of in {
        "kept": lambda key, _: key,
        "moved": lambda _, value: b"%d" % (value["size"] % 9),
    }.items():
        found = written(broker, f"{topic}-again")
        expected: dict[int, list[tuple[bytes, Any]]] = {}
        # At equal times by task, whose number is that of the input's partition.
        for key, value, _ in sorted(rows, key=lambda row: (row[2], partition_for(row[0], 3))):
            own = key_of(key, value)
            expected.setdefault(partition_for(own, 3), []).append((own, value))
        assert {
            number: [(row.key, json.loads(row.value or b"")) for row in own] for number, own in found.items()
        } == expected


def test_the_group_and_the_topics_of_the_app_stay_as_they_are(tmp_path: Path):
    broker = filled(1)
    with closing(broker.admin()) as admin:
        before = set(admin.topics())
        run(broker, tmp_path)
        after = set(admin.topics())
        assert after - before == {*(f"{topic}-again" for topic in TOPICS), "shop-replays"}
        assert admin.committed_offsets("shop") == {}


def test_a_range_may_end_with_markers_and_aborted_records(tmp_path: Path):
    broker = memory_broker({"sales": 1, "prices": 1})
    producer = broker.producer(transactional_id="writer")
    producer.init_transactions(5)
    for ends in (producer.commit, producer.abort):
        producer.begin()
        producer.produce(Output("sales", [b"a"], [b'{"n": 1, "size": 1}'], [1_000]))
        ends(5)
    report = run(broker, tmp_path)
    assert report.plan.bounds.partitions[TopicPartition("sales", 0)].end == 4
    assert len(written(broker, "seen-again")[0]) == 1


def test_a_transaction_that_stays_open_below_the_end_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(range_reader, "SILENCE_SECONDS", 0.5)
    broker = memory_broker({"sales": 1, "prices": 1})
    send(broker, "sales", [(b"a", {"n": 1, "size": 1}, 1_000)])
    producer = broker.producer(transactional_id="writer", transaction_timeout=60)
    producer.init_transactions(5)
    producer.begin()
    producer.produce(Output("sales", [b"a"], [b"{}"], [1_000]))
    with pytest.raises(BrokerError, match=r"sales-0 was read to offset 1.* the range ends at 2"):
        run(broker, tmp_path)
    producer.commit(5)
    run(broker, tmp_path)


def test_a_range_that_the_log_no_longer_has_is_refused(tmp_path: Path):
    broker = filled(2)
    broker.truncate(TopicPartition("sales", 1), 10)
    begin = AtOffsets({TopicPartition("sales", 1): 5})
    with pytest.raises(TopicError, match=r"sales-1 at 5 \(nearest: 10\)"):
        run(broker, tmp_path, begin=begin)


def test_a_range_that_ends_before_it_begins_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="the range ends before it begins"):
        run(filled(2), tmp_path, begin=AtTime(3_000), end=AtTime(2_000))


def test_results_replace_those_of_the_same_name_and_nothing_else(tmp_path: Path):
    broker = filled(3)
    run(broker, tmp_path)
    first = every(written(broker, "seen-again"))
    run(broker, tmp_path)
    assert every(written(broker, "seen-again")) == first
    with closing(broker.admin()) as admin:
        admin.create_topics([NewTopic(name="seen-mine", partitions=1)])
    with pytest.raises(TopicError, match="no replay of the name 'mine' made them: seen-mine"):
        run(broker, tmp_path, name="mine")


def test_results_of_old_records_are_kept(tmp_path: Path):
    broker = filled(3)
    with closing(broker.admin()) as admin:
        admin.create_topics(
            [
                NewTopic(
                    name="seen", partitions=5, settings={"retention.ms": "1000", "cleanup.policy": "compact"}
                )
            ]
        )
        run(broker, tmp_path)
        settings = admin.settings(["seen-again"])["seen-again"]
        assert settings["retention.ms"] == "-1"
        assert settings["cleanup.policy"] == "compact"
        assert admin.topics()["seen-again"].partitions == 5


def test_a_run_is_listed_with_its_results(tmp_path: Path):
    broker = filled(4)
    run(broker, tmp_path, begin=AtTime(2_000))
    record = RunLog(broker, "shop").read()["again"]
    assert record.state == "complete"
    assert record.begin == "1970-01-01T00:00:02Z"
    assert record.results["seen-again"].records == len(every(written(broker, "seen-again")))


@pytest.mark.parametrize("effects", [False, True])
def test_peek_is_only_called_where_effects_are_wanted(tmp_path: Path, effects: bool):
    called: list[Any] = []
    kinds: list[Any] = []
    app = App("effects", state_store="memory")
    sales = app.stream("sales", value=Json(dict[str, Any]))
    sales.peek(called.append)

    def note(sale: dict[str, Any]) -> dict[str, Any]:
        kinds.append(current_replay())
        return sale

    sales.map(note).to("copy", value=Json())
    broker = memory_broker({"sales": 1})
    send(broker, "sales", readings(1, 20))
    report = run(broker, tmp_path, app=app, effects=effects)
    assert len(called) == (20 if effects else 0)
    assert bool(report.left_out) is not effects
    assert {(replay.name, replay.kind, replay.effects) for replay in kinds} == {("again", "bounded", effects)}
    assert current_replay() is None


def test_records_without_a_key_go_to_the_same_partitions_in_each_run(tmp_path: Path):
    app = App("keyless", state_store="memory")
    app.stream("sales", value=Json()).to("copy", value=Json())
    broker = memory_broker({"sales": 3})
    with closing(broker.admin()) as admin:
        admin.create_topics([NewTopic(name="copy", partitions=2)])
    send(broker, "sales", [(None, value, time) for _, value, time in readings(7, 300)])
    run(broker, tmp_path, app=app, name="one")
    run(broker, tmp_path, app=app, name="two")
    assert written(broker, "copy-one") == written(broker, "copy-two")
    assert sum(map(len, written(broker, "copy-one").values())) == 300


def test_a_name_that_cannot_be_part_of_a_topics_name_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="'a b' cannot name a replay"):
        run(filled(1), tmp_path, name="a b")


def test_rows_reach_a_sink_once_where_effects_are_wanted_although_the_run_is_repeated(tmp_path: Path):
    app = App("effects", state_store="memory")
    sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))
    target = tmp_path / "target.db"
    sales.group_by_key().window(Tumbling(milliseconds=500)).count("counts").final().map_records(
        lambda record: record.with_(value={"place": record.key, "start": record.value.start})
    ).sink(SqliteSink(target, "windows", mode="append"), value=Json(dict[str, Any]))
    broker = memory_broker({"sales": 2})
    send(broker, "sales", readings(1, 300))
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("create table windows (place text, start integer)")
        muted = run(broker, tmp_path, app=app)
        assert connection.execute("select count(*) from windows").fetchone() == (0,)
        assert muted.counts.muted["windows"] > 10
        for _ in range(2):
            run(broker, tmp_path, app=app, effects=True)
            rows = connection.execute("select count(*) from windows").fetchone()
            assert rows == (muted.counts.muted["windows"],)


def test_results_that_were_interrupted_while_topics_were_created_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broker = filled(3)
    run(broker, tmp_path)
    first = every(written(broker, "seen-again"))
    create = publishing.create_results

    def interrupted(*arguments: Any) -> Any:
        create(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "create_results", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(broker, tmp_path)
    monkeypatch.undo()
    run(broker, tmp_path)
    assert every(written(broker, "seen-again")) == first


def test_a_run_that_fails_leaves_no_files(tmp_path: Path):
    app = App("failing", state_store="memory")
    sales = app.stream("sales", value=Json(dict[str, Any]))
    sales.map(lambda sale: 1 // sale["n"], on_error=fail).to("copy", value=Json())
    broker = memory_broker({"sales": 1})
    send(broker, "sales", readings(1, 20))
    with pytest.raises(ProcessingError):
        run(broker, tmp_path, app=app)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_results_that_the_app_would_read_are_refused(tmp_path: Path):
    app = App("patterns", state_store="memory")
    app.stream(re.compile("copy-.*|sales")).to("copy")
    broker = memory_broker({"sales": 1})
    with pytest.raises(ConfigurationError, match=r"would read the results of the replay.* copy-again"):
        run(broker, tmp_path, app=app)


def test_steps_behind_a_source_connector_whose_records_are_gone_are_refused(tmp_path: Path):
    app = App("sourced", state_store="memory")
    lines = app.source(JsonLinesSource(str(tmp_path / "*.jsonl"), dict[str, Any]), store="lines")
    lines.group_by(lambda line: line["who"]).count("counts").to("counts", value=Json())
    broker = memory_broker({"sales": 1})
    with pytest.raises(ConfigurationError, match="source 'lines' cannot be replayed"):
        run(broker, tmp_path, app=app)
