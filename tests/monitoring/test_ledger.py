"""Whether records are accounted for, and that a loss shows with its coordinates, on the in-memory broker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from prometheus_client.parser import text_string_to_metric_families

from streams import (
    App,
    Hopping,
    Json,
    Record,
    Session,
    Sliding,
    Text,
    Tumbling,
    dead_letter,
    seconds,
    skip,
)
from streams.alerts.figures import FigureReader
from streams.broker.memory.producer import MemoryProducer
from streams.errors import TransactionAborted
from streams.monitoring.ledger import Ledger
from streams.monitoring.metrics import WorkerMetrics
from streams.monitoring.observer import Observer
from streams.monitoring.watchdog import Watchdog
from streams.monitoring.worker_report import report
from streams.operators.stateless import Filter
from streams.records import Output, TopicPartition
from streams.runtime.assignment import Assignment
from streams.runtime.clocks import Clocks
from streams.runtime.outbox import Outbox
from streams.runtime.task import Task
from streams.runtime.worker import Worker
from tests.support.cluster import AppCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.broker.memory.log import Columns, Transaction
    from streams.monitoring.ledger import Difference, LedgerFigures
    from streams.operators import Binding, Children, Forward
    from streams.records import Batch, Fetched
    from streams.runtime.status import Progress
    from tests.support.unaccounted import Unaccounted

PLACE = TopicPartition("in", 0)


class Site(AppCluster):
    """An app's topics with records, and a worker with its ledger."""

    def __init__(self, app: App, topics: Mapping[str, int] | None = None) -> None:
        super().__init__(app, {"in": 1, "out": 1} if topics is None else topics)
        self.main = self.worker()
        self.ledger = Ledger(self.main)

    def send(self, *values: str, topic: str = "in", keys: Sequence[str] | None = None) -> None:
        count = len(values)
        encoded = [key.encode() for key in keys or ["k"] * count]
        self.write(Output(topic, encoded, [value.encode() for value in values], [1_000] * count))

    def work(self, rounds: int = 8) -> Sequence[Difference]:
        """Let the worker run until it has nothing to do, and check its ledger."""
        for _ in range(rounds):
            self.main.run_once()
            self.clock.advance(0.5)
        return self.ledger.check()

    def figures(self, topic: str = "in") -> LedgerFigures:
        """The figures of the only task that reads a topic."""
        (found,) = (item for item in self.ledger.figures or () if item.topic == topic)
        return found


def even_numbers() -> App:
    app = App("even", dead_letter_limit=1.0)
    numbers = app.stream("in", value=Text()).map(int, name="parse", on_error=dead_letter)
    numbers.filter(lambda number: number % 2 == 0, name="even").map(str, name="show").to("out", value=Text())
    return app


def adds_up(figures: LedgerFigures) -> bool:
    """Whether the figures of a topic close, all steps of the task together."""
    return figures.read + figures.made == (
        figures.written
        + figures.filtered
        + figures.late
        + figures.dead_letters
        + figures.skipped
        + figures.held
        + figures.replaced
        + figures.ended
    )


# --- figures


def test_each_record_is_written_or_filtered_or_a_dead_letter():
    site = Site(even_numbers())
    site.send("1", "2", "x", "4", "y")
    assert site.work() == ()
    figures = site.figures()
    assert (figures.read, figures.written, figures.filtered, figures.dead_letters) == (5, 2, 1, 2)
    assert (figures.task, figures.topic, figures.difference) == ("0_0", "in", 0)
    assert site.ledger.by_topic() == {("0_0", "in"): 0}
    site.main.close()


def test_nothing_is_said_before_the_first_check():
    site = Site(even_numbers())
    assert site.ledger.figures is None
    assert site.ledger.by_topic() == {}
    site.main.close()


def test_offsets_without_a_record_are_named_and_are_no_difference():
    """Transaction markers, and the records of an aborted transaction."""
    site = Site(even_numbers())
    producer = site.broker.producer(transactional_id="other")
    producer.init_transactions(1)
    for value, ends in ((b"2", producer.commit), (b"7", producer.abort), (b"4", producer.commit)):
        producer.begin()
        producer.produce(Output("in", [None], [value], [0]))
        ends(1)
    site.send("6")
    assert site.work() == ()
    figures = site.figures()
    assert (figures.read, figures.written) == (3, 3)
    assert figures.empty_offsets == 4
    site.main.close()


def test_records_of_a_rewound_transaction_count_once():
    site = Site(even_numbers())
    failures = 3

    def fail(step: str) -> None:
        nonlocal failures
        if step == "commit.before" and failures:
            failures -= 1
            raise TransactionAborted("the broker wants it")

    site.broker.before = fail
    site.send("1", "2", "x", "4")
    assert site.work(60) == ()
    assert failures == 0
    assert site.main.status.rewinds == 3
    figures = site.figures()
    assert (figures.read, figures.written, figures.filtered, figures.dead_letters) == (4, 2, 1, 1)
    assert sorted(site.payloads("out")) == [b"2", b"4"]
    site.main.close()


def test_partitions_that_move_leave_no_difference():
    site = Site(even_numbers(), {"in": 4, "out": 1})
    first = site.main
    for number in range(40):
        site.send(str(number), keys=[str(number)])
    site.work()
    second = site.worker()
    site.run(first, second, until=lambda: len(second.tasks) == 2 and len(first.tasks) == 2)
    for number in range(40):
        site.send(str(number), keys=[str(number)])
    for _ in range(20):
        first.run_once()
        second.run_once()
        site.clock.advance(0.5)
    other = Ledger(second)
    assert (site.ledger.check(), other.check()) == ((), ())
    assert len(site.payloads("out")) == 40
    # Of the partitions that have moved, there are no figures any more.
    assert len(site.ledger.figures or ()) == len(other.figures or ()) == 2
    second.close()
    first.close()
    assert (site.ledger.check(), other.check()) == ((), ())


def late_and_grouped() -> App:
    app = App("windows", dead_letter_limit=1.0)
    values = app.stream("in", value=Json(int), key=Text(), timestamp=lambda value: value * 1000)
    counted = values.group_by_key().window(Tumbling(seconds(10)), grace=seconds(0)).count("counts")
    counted.final().map(lambda window: window.value, name="number").to("out", value=Json(int))
    return app


def test_late_records_and_those_in_a_store_are_told_apart():
    site = Site(late_and_grouped())
    site.send("1", "2", "35", "3", "36")
    assert site.work() == ()
    figures = site.figures()
    assert (figures.read, figures.late, figures.held) == (5, 1, 4)
    # The first window has closed.
    assert (figures.made, figures.written) == (1, 1)
    assert adds_up(figures)
    site.main.close()


# --- random topologies, with failures on the way


def value_of(number: int) -> int:
    if number % 7 == 3:
        raise ValueError(number)
    return number + 1


Flow = Any


def _branched(flow: Flow, name: str) -> Flow:
    parts = flow.branch(
        {"small": lambda value: value < 10, "large": lambda value: value < 40},
        name=name,
        otherwise="other" if len(name) % 2 else None,
    )
    return parts["small"].merge(parts["large"].map(lambda value: value - 1, name=f"{name}-less"))


def _twice(flow: Flow, name: str) -> Flow:
    return flow.flat_map(lambda value: [value] * (value % 3), name=name)


def _grouped(flow: Flow) -> Any:
    """Through a repartition topic, which is another task."""
    return flow.group_by(lambda value: str(value % 3), key=Text(), value=Json(int))


def _by_windows(window: Any) -> Callable[[Flow, str], Flow]:
    def windowed(flow: Flow, name: str) -> Flow:
        counted = _grouped(flow).window(window, grace=seconds(1)).count(name)
        late = counted.late()
        results = counted.final().map(lambda window: window.value, name=f"{name}-value")
        return results.merge(late)

    return windowed


SEGMENTS: dict[str, Callable[[Flow, str], Flow]] = {
    "map": lambda flow, name: flow.map(value_of, name=name, on_error=dead_letter),
    "skip": lambda flow, name: flow.map(value_of, name=name, on_error=skip),
    "filter": lambda flow, name: flow.filter(lambda value: value % 3 > 0, name=name),
    "records": lambda flow, name: flow.map_records(
        lambda record: record.with_(value=value_of(record.value)), name=name, on_error=dead_letter
    ),
    "flat": _twice,
    "flat_records": lambda flow, name: flow.flat_map_records(
        lambda record: [record] * (value_of(record.value) % 3), name=name, on_error=skip
    ),
    "batch": lambda flow, name: flow.map_batch(
        lambda batch: batch.select([row for row, value in enumerate(batch.values) if value_of(value) % 2]),
        name=name,
        on_error=dead_letter,
    ),
    "branch": _branched,
    "peek": lambda flow, name: flow.peek(value_of, name=name, on_error=skip),
    "tumbling": _by_windows(Tumbling(seconds(3))),
    "hopping": _by_windows(Hopping(size=seconds(4), advance=seconds(2))),
    "session": _by_windows(Session(seconds(2))),
    "sliding": _by_windows(Sliding(seconds(2))),
    "aggregate": lambda flow, name: _grouped(flow).count(name).to_stream(),
}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_topology_closes_its_balances_whatever_is_rewound(data: st.DataObject):
    """Random steps one after another, a second branch, random values, times and aborted transactions."""
    kinds = data.draw(st.lists(st.sampled_from(sorted(SEGMENTS)), min_size=1, max_size=4))
    app = App("random", dead_letter_limit=1.0)
    source = app.stream("in", key=Text(), value=Json(int))
    flow: Flow = source
    for at, kind in enumerate(kinds):
        flow = SEGMENTS[kind](flow, f"{kind}-{at}")
    flow.to("out", key=Text(), value=Json(int))
    source.peek(lambda value: value, name="beside")
    site = Site(app)
    commits = 0
    aborted = data.draw(st.sets(st.integers(0, 8), max_size=3))

    def fail(step: str) -> None:
        nonlocal commits
        if step == "commit.before":
            commits += 1
            if commits - 1 in aborted:
                raise TransactionAborted("the broker wants it")

    site.broker.before = fail
    rows = st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.integers(0, 20))
    for sent in data.draw(st.lists(st.lists(rows, min_size=1, max_size=8), min_size=1, max_size=3)):
        site.write(
            Output(
                "in",
                [key.encode() for key, _, _ in sent],
                [str(value).encode() for _, value, _ in sent],
                [time * 1000 for _, _, time in sent],
            )
        )
        assert site.work(20) == ()
    site.broker.before = None
    assert site.work(40) == ()
    assert all(map(adds_up, site.ledger.figures or ()))
    # What the topics have, repartition topics and dead letters included, is what the ledger says.
    topics = [name for name in site.admin.topics() if name != "in" and not name.endswith("-changelog")]
    found = site.ledger.figures or ()
    assert sum(len(site.rows(name)) for name in topics) == sum(
        item.written + item.dead_letters for item in found
    )
    assert sum(item.read for item in found) == sum(
        len(site.rows(name)) for name in ["in", *site.app.topology.repartitions]
    )
    site.main.close()
    assert site.ledger.check() == ()


def test_joins_and_tables_close_their_balances():
    app = App("joins", dead_letter_limit=1.0)
    left = app.stream("left", key=Text(), value=Json(int))
    right = app.stream("right", key=Text(), value=Json(int))
    pairs: dict[str, Any] = {
        "inner": left.join(right, lambda one, other: [one, other], within=seconds(5), store="inner"),
        "outer": left.outer_join(right, lambda one, other: [one, other], within=seconds(5), store="outer"),
    }
    for name, joined in pairs.items():
        joined.to(name, value=Json(list[Any]))
    prices = app.table("prices", key=Text(), value=Json(int))
    dear = prices.filter(lambda price: price > 5).map(lambda price: price * 2)
    dear.to_stream().to("dear", value=Json(int))
    left.join(dear, lambda value, price: value * price, name="priced").to("priced", value=Json(int))
    names = ("left", "right", "prices", "inner", "outer", "priced", "dear")
    site = Site(app, dict.fromkeys(names, 1))
    for topic, values in (("prices", "1234567"), ("left", "123345"), ("right", "2349"), ("prices", "89")):
        site.send(*values, topic=topic, keys=list(values))
        assert site.work() == ()
    for topic, time in (("right", 1_000_000), ("left", 1_000_000), ("left", 10)):
        site.write(Output(topic, [b"3"], [b"3"], [time]))
        assert site.work(20) == ()
    assert all(map(adds_up, site.ledger.figures or ()))
    assert sum(item.late for item in site.ledger.figures or ()) > 0
    site.main.close()


# --- faults: each loses records, or has them twice, at another place


def _found(site: Site, unaccounted: Unaccounted) -> Difference:
    found = site.ledger.differences
    unaccounted.clear()
    assert len(found) == 1, found
    return found[0]


def test_a_step_that_drops_a_record_silently_is_named_with_the_offsets(
    monkeypatch: pytest.MonkeyPatch, unaccounted: Unaccounted
):
    site = Site(even_numbers())
    site.send("2", "4", "6")
    assert site.work() == ()
    bind = Filter.bind

    def forgetful(operator: Filter, step: Binding, children: Children) -> Forward:
        def forget(forward: Forward) -> Forward:
            def run(batch: Batch[Any, Any]) -> None:
                if 8 in batch.values:
                    batch = batch.select([row for row, value in enumerate(batch.values) if value != 8])
                if len(batch):
                    forward(batch)

            return run

        return bind(operator, step, {name: forget(child) for name, child in children.items()})

    monkeypatch.setattr(Filter, "bind", forgetful)
    site.main.close()
    site.main = site.worker()
    site.ledger = Ledger(site.main)
    site.send("2", "4")
    assert site.work() == ()
    site.send("8", "10", "8")
    site.work()
    found = _found(site, unaccounted)
    # Transactions of the app do not write to its input: offsets are those of the records alone.
    assert (found.task, found.topic, found.partition) == ("0_0", "in", 0)
    assert (found.first, found.next, found.records) == (5, 8, 2)
    assert found.sentence == "2 records of in-0, offsets 5 to 7, task 0_0: missing in step 'even'"
    assert site.figures().difference == 2
    assert site.ledger.by_topic() == {("0_0", "in"): 2}
    # It stays, where it was found, whatever is processed afterwards.
    site.send("10", "12")
    site.work()
    assert site.ledger.differences == (found,)
    site.main.close()
    unaccounted.clear()
    assert site.ledger.check() == (found,)


def test_records_that_are_lost_between_two_steps_are_missing_there(
    monkeypatch: pytest.MonkeyPatch, unaccounted: Unaccounted
):
    observed = Clocks.observed

    def losing(clocks: Clocks, name: str, forward: Forward) -> Forward:
        forward = observed(clocks, name, forward)
        if name != "even":
            return forward
        return lambda batch: forward(batch.select(range(len(batch) - 1))) if len(batch) > 1 else None

    monkeypatch.setattr(Clocks, "observed", losing)
    site = Site(even_numbers())
    site.send("2", "4", "6")
    site.work()
    found = _found(site, unaccounted)
    assert (found.place, found.records, found.first, found.next) == ("before step 'show'", 1, 0, 3)
    site.main.close()
    unaccounted.clear()


def test_a_step_that_forwards_a_record_twice_has_too_many(
    monkeypatch: pytest.MonkeyPatch, unaccounted: Unaccounted
):
    bind = Filter.bind

    def repeating(operator: Filter, step: Binding, children: Children) -> Forward:
        def repeat(forward: Forward) -> Forward:
            def run(batch: Batch[Any, Any]) -> None:
                forward(batch)
                forward(batch.select([0]))

            return run

        return bind(operator, step, {name: repeat(child) for name, child in children.items()})

    monkeypatch.setattr(Filter, "bind", repeating)
    site = Site(even_numbers())
    site.send("2", "4", "6")
    site.work()
    found = _found(site, unaccounted)
    assert found.sentence == "1 record of in-0, offsets 0 to 2, task 0_0: too many in step 'even'"
    site.main.close()
    unaccounted.clear()


def test_an_output_that_is_lost_before_it_is_written_is_missing(
    monkeypatch: pytest.MonkeyPatch, unaccounted: Unaccounted
):
    emit = Outbox.emit
    monkeypatch.setattr(
        Outbox, "emit", lambda outbox, output: None if output.values == [b"4"] else emit(outbox, output)
    )
    site = Site(even_numbers())
    site.send("2")
    site.work()
    site.send("4")
    site.work()
    found = _found(site, unaccounted)
    assert (found.task, found.records) == ("0_0", 1)
    assert found.place == "between the sinks and what was taken to be written"
    site.main.close()
    unaccounted.clear()


def test_a_slice_that_is_left_out_is_missing_from_what_was_polled(
    monkeypatch: pytest.MonkeyPatch, unaccounted: Unaccounted
):
    site = Site(even_numbers())
    attempt = vars(Worker)["_attempt"]
    monkeypatch.setattr(Worker, "_slice_size", lambda *_: 2)

    def leaves_out(worker: Worker, partition: TopicPartition, progress: Progress, fetched: Fetched) -> bool:
        return fetched.offsets([0]) == [2] or attempt(worker, partition, progress, fetched)

    monkeypatch.setattr(Worker, "_attempt", leaves_out)
    site.send(*"2468246")
    site.work()
    found = _found(site, unaccounted)
    assert found.sentence == "2 records of in-0, offsets 0 to 6, task 0_0: polled and not processed"
    site.main.close()
    unaccounted.clear()


def test_a_slice_that_is_processed_twice_is_too_many(
    monkeypatch: pytest.MonkeyPatch, unaccounted: Unaccounted
):
    site = Site(even_numbers())
    process = Task.process

    def twice(task: Task, fetched: Fetched) -> None:
        process(task, fetched)
        process(task, fetched)

    monkeypatch.setattr(Task, "process", twice)
    site.send("2", "4")
    site.work()
    found = _found(site, unaccounted)
    assert (found.records, found.place) == (-2, "among offsets that were processed before")
    site.main.close()
    unaccounted.clear()


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_a_record_that_the_broker_does_not_get_is_missing_at_the_commit(
    guarantee: str, monkeypatch: pytest.MonkeyPatch, unaccounted: Unaccounted
):
    app = App("even", guarantee=guarantee)  # type: ignore[arg-type]  # one of both, by the parameters
    app.stream("in", value=Text()).to("out")
    site = Site(app)
    append = vars(MemoryProducer)["_append"]

    def losing(
        producer: MemoryProducer, place: TopicPartition, columns: Columns, transaction: Transaction | None
    ) -> int:
        if b"lost" in columns.values:
            columns = replace(
                columns,
                keys=columns.keys[:-1],
                values=columns.values[:-1],
                timestamps=columns.timestamps[:-1],
            )
        taken: int = append(producer, place, columns, transaction)
        return taken

    site.send("kept", "lost")
    monkeypatch.setattr(MemoryProducer, "_append", losing)
    site.work()
    found = _found(site, unaccounted)
    assert found.sentence == "1 record of out: committed and not acknowledged"
    assert site.payloads("out") == [b"kept"]
    monkeypatch.undo()
    site.main.close()


def test_a_commit_beyond_what_was_processed_is_named_with_the_offsets(
    monkeypatch: pytest.MonkeyPatch, unaccounted: Unaccounted
):
    site = Site(even_numbers())
    offsets = Assignment.offsets
    monkeypatch.setattr(
        Assignment,
        "offsets",
        lambda assignment, **options: {
            place: offset + 3 for place, offset in offsets(assignment, **options).items()
        },
    )
    site.send("2", "4")
    for _ in range(3):
        site.main.run_once()
        site.clock.advance(0.1)
    monkeypatch.undo()
    (found,) = site.ledger.check()
    assert found.sentence == "3 records of in-0, offsets 2 to 4, task 0_0: committed and not processed"
    unaccounted.clear()


# --- where it is shown


def test_a_difference_is_in_the_report_the_metrics_and_the_figures_for_alerts(
    monkeypatch: pytest.MonkeyPatch, unaccounted: Unaccounted
):
    site = Site(even_numbers())
    observer = Observer(site.main, None, site.broker, goal=30.0, clock=site.clock)
    watchdog = Watchdog(site.main, site.broker, site.app.settings, clock=site.clock)
    metrics, reader = WorkerMetrics(site.main, observer=observer), FigureReader(site.main, observer, watchdog)

    def shown() -> dict[str, float]:
        return {
            f"{sample.labels['task']} {sample.labels['topic']}": sample.value
            for family in text_string_to_metric_families(metrics.exposition().decode())
            for sample in family.samples
            if sample.name == "streams_ledger_difference"
        }

    assert shown() == {}
    site.send("2")
    site.work()
    observer.observe()
    assert shown() == {"0_0 in": 0.0}
    assert reader.read().differences == {}
    emitted, emit = 0, Outbox.emit

    def losing(outbox: Outbox, output: Output) -> None:
        nonlocal emitted
        emitted += 1

    monkeypatch.setattr(Outbox, "emit", losing)
    site.send("4")
    site.work()
    monkeypatch.setattr(Outbox, "emit", emit)
    observer.observe()
    assert emitted == 1
    assert shown() == {"0_0 in": 0.0, "0_0 ": 1.0}
    figures = reader.read()
    assert figures.differences == {"": 1}
    assert figures.difference_of == {
        "": "1 record, task 0_0: missing between the sinks and what was taken to be written"
    }
    found = report(site.main, observer, watchdog)
    assert [item.sentence for item in found.differences] == list(figures.difference_of.values())
    assert [(item.task, item.topic, item.read, item.written) for item in found.ledger] == [
        ("0_0", "in", 2, 2)
    ]
    unaccounted.clear()
    site.main.close()
    unaccounted.clear()


def test_what_a_processor_keeps_and_forwards_later_is_replaced_and_made():
    class Keeps:
        def open(self, context: Any) -> None:
            self.kept: list[Record[Any, Any]] = []

        def process(self, record: Record[Any, Any], context: Any) -> None:
            self.kept.append(record)
            if len(self.kept) == 3:
                for kept in self.kept:
                    context.forward(record.with_(value=kept.value))
                self.kept = []

    app = App("keeps")
    app.stream("in", value=Text()).process(Keeps, name="keep").to("out", value=Text())
    site = Site(app)
    site.send("a", "b", "c", "d")
    assert site.work() == ()
    figures = site.figures()
    assert (figures.read, figures.replaced, figures.made, figures.written) == (4, 4, 3, 3)
    site.main.close()
