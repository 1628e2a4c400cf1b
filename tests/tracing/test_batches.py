"""Spans of slices and commits: what they say, to what they link, and what records carry."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags

from streams import App, Json, Record, Text, count, fail, seconds
from streams.broker.reading import read_to_end
from streams.errors import ProcessingError, TransactionAborted
from streams.records import Output
from streams.testing import TopologyDriver
from streams.tracing.spans import MOST_LINKS
from streams.tracing.worker_spans import commit_parent
from tests.support.cluster import AppCluster
from tests.support.connectors import Database, Feed, MemorySink, MemorySource
from tests.support.spans import (
    Spans,
    attributes,
    context_of,
    header,
    linked,
    recorded,
    traceparent,
    traceparent_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams import Headers


@pytest.fixture
def spans() -> Iterator[Spans]:
    yield from recorded()


def from_producers(*numbers: int) -> list[Record[Any, Any]]:
    """A record of each producer."""
    return [
        Record("k", str(at), at, [("traceparent", traceparent(number)), ("kind", b"test")])
        for at, number in enumerate(numbers)
    ]


def copying(name: str = "copy", **settings: Any) -> App:
    app = App(name, tracing=True, **settings)
    app.stream("in", key=Text(), value=Text()).map(str.upper).to("out", value=Text())
    return app


def written(cluster: AppCluster, topic: str) -> list[Headers | None]:
    """The headers of a topic's committed records."""
    found: list[Headers | None] = []
    for fetched in read_to_end(cluster.broker, [topic]):
        found += fetched.headers() or [None] * len(fetched)
    return found


def test_a_slice_has_one_span_that_links_to_each_producer_once(spans):
    with TopologyDriver(copying()) as driver:
        driver.send_all("in", from_producers(1, 2, 1, 3, 2))
    span = spans.only("process in")
    assert span.parent is None
    assert span.kind is SpanKind.CONSUMER
    assert span.status.status_code is StatusCode.UNSET
    assert linked(span) == [traceparent(1), traceparent(2), traceparent(3)]
    assert attributes(span) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "in",
        "messaging.destination.partition.id": "0",
        "messaging.consumer.group.name": "copy",
        "messaging.batch.message_count": 5,
        "messaging.kafka.offset": 0,
        "streams.task": "0_0",
    }


def test_records_without_a_context_are_no_producers(spans):
    rows: list[Record[Any, Any]] = [
        Record("k", "none", 0),
        Record("k", "other", 1, [("kind", b"test")]),
        Record("k", "null", 2, [("traceparent", None)]),
        Record("k", "text", 3, [("traceparent", b"\xff no context")]),
    ]
    with TopologyDriver(copying()) as driver:
        driver.send_all("in", rows)
    assert linked(spans.only("process in")) == []


def test_links_are_bounded_and_the_span_says_how_many_producers_there_were(spans):
    with TopologyDriver(copying()) as driver:
        driver.send_all("in", from_producers(*range(MOST_LINKS + 72)))
    span = spans.only("process in")
    assert linked(span) == [traceparent(number) for number in range(MOST_LINKS)]
    assert attributes(span)["streams.producers"] == MOST_LINKS + 72


def test_what_a_slice_writes_carries_its_span_and_not_that_of_the_input_s_producer(spans):
    producer = [("tracestate", b"vendor=1"), ("traceparent", traceparent(1)), ("kind", b"test")]
    with TopologyDriver(copying()) as driver:
        driver.send("in", "a", headers=list(producer))
        driver.send("in", "b")
        first, second = driver.read("out")
    spans_of = spans.named("process in")
    assert first.headers == [("kind", b"test"), ("traceparent", traceparent_of(spans_of[0]))]
    assert second.headers == [("traceparent", traceparent_of(spans_of[1]))]


def test_a_context_that_the_program_sets_stays(spans):
    own: Headers = [("traceparent", traceparent(77)), ("tracestate", b"mine=1")]
    app = App("own", tracing=True)
    stream = app.stream("in", value=Text())
    stream.to("fixed", headers=own)
    stream.map_records(lambda record: record.with_(headers=[*(record.headers or ()), ("more", b"1")])).to(
        "more"
    )
    with TopologyDriver(app) as driver:
        driver.send("in", "a", headers=[("traceparent", traceparent(1))])
        (fixed,), (more,) = driver.read("fixed"), driver.read("more")
    assert fixed.headers == own
    # A copy of the input's headers says nothing of who has written the result.
    assert header(more.headers) == traceparent_of(spans.only("process in"))
    assert header(more.headers, "more") == b"1"


def test_a_repartition_topic_links_both_sides(spans):
    app = App("parts", tracing=True)
    counted = app.stream("in", value=Text()).key_by(lambda value: value).group_by_key()
    counted.aggregate("counts", count()).to("out")
    with TopologyDriver(app) as driver:
        driver.send("in", "a", headers=[("traceparent", traceparent(1))])
        (result,) = driver.read("out")
    first = spans.only("process in")
    (internal,) = [name for name in spans.names() if name.startswith("process parts-")]
    second = spans.only(internal)
    assert linked(first) == [traceparent(1)]
    assert linked(second) == [traceparent_of(first)]
    # What is forwarded at a commit carries the commit's span, which is a child of the slice's.
    commits = {traceparent_of(span): span for span in spans.named("commit")}
    parent = commits[header(result.headers) or b""].parent
    assert parent is not None
    assert parent.span_id == context_of(second).span_id


def test_the_span_is_the_current_one_for_functions_and_async_functions(spans):
    tracer = trace.get_tracer("program")

    def plain(value: str) -> str:
        with tracer.start_as_current_span("plain"):
            return value

    async def asynchronous(value: str) -> str:
        with tracer.start_as_current_span("async"):
            await asyncio.sleep(0)
            return value

    app = App("calls", tracing=True)
    app.stream("in", value=Text()).map(plain).map_async(asynchronous, concurrency=2).to("out")
    with TopologyDriver(app) as driver:
        driver.send_all("in", [Record(None, str(number), number) for number in range(7)])
    batch = context_of(spans.only("process in")).span_id
    for name in ("plain", "async"):
        children = spans.named(name)
        assert len(children) == 7
        assert {child.parent and child.parent.span_id for child in children} == {batch}
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_program_s_own_span_is_no_parent_of_slices(spans):
    with trace.get_tracer("program").start_as_current_span("outer"), TopologyDriver(copying()) as driver:
        driver.send("in", "a")
    assert spans.only("process in").parent is None


def test_a_failure_is_on_the_span_and_nothing_is_written(spans):
    def refuse(value: str) -> str:
        raise ValueError(f"cannot use {value}")

    app = App("failing", tracing=True, on_error=fail)
    app.stream("in", value=Text()).map(refuse).to("out")
    driver = TopologyDriver(app)
    with pytest.raises(ProcessingError):
        driver.send("in", "a")
    span = spans.only("process in")
    assert span.status.status_code is StatusCode.ERROR
    assert "cannot use a" in str(span.status.description)
    assert attributes(span)["error.type"] == "ProcessingError"
    (event,) = span.events
    assert event.name == "exception"
    assert "ValueError: cannot use a" in str((event.attributes or {})["exception.stacktrace"])
    assert spans.named("commit") == []


def test_dead_letters_are_events_and_lead_back_to_their_span(spans):
    def refuse(value: str) -> str:
        if value != "good":
            raise ValueError(f"cannot use {value}")
        return value

    app = App("letters", tracing=True)
    app.stream("in", value=Text()).map(refuse, name="use").to("out")
    with TopologyDriver(app) as driver:
        driver.send_all(
            "in",
            [
                Record(None, value, at, [("traceparent", traceparent(at))])
                for at, value in enumerate(("good", "bad", "worse"))
            ],
        )
        letters = driver.dead_letters()
        span = spans.only("process in")
        with pytest.raises(ProcessingError, match="failed again"):
            driver.retry(letters[0])
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["streams.dead_letters"] == 2
    assert [dict(event.attributes or {}) for event in span.events] == [
        {
            "streams.step": "use",
            "streams.record": f"in-0 offset {at}",
            "exception.type": "ValueError",
            "exception.message": f"cannot use {value}",
        }
        for at, value in ((1, "bad"), (2, "worse"))
    ]
    # The record's own context stays, for a retry.
    assert [header(letter.headers) for letter in letters] == [traceparent(1), traceparent(2)]
    found = {header(letter.headers, "__streams.errors.traceparent") for letter in letters}
    assert found == {traceparent_of(span)}
    again = spans.named("process in")[1]
    assert attributes(again)["streams.retried"] is True
    assert linked(again) == [traceparent(1)]


def test_the_events_of_dead_letters_are_bounded(spans):
    app = App("letters", tracing=True, dead_letter_limit=1.0)
    app.stream("in", value=Json(int)).to("out")
    with TopologyDriver(app, check_dead_letters=False) as driver:
        driver.send_all("in", [Record(None, "text", 0)] * 300)
        assert len(driver.dead_letters()) == 300
    span = spans.only("process in")
    assert len(span.events) == MOST_LINKS
    assert span.dropped_events == 0
    assert attributes(span)["streams.dead_letters"] == 300


def test_a_row_that_the_topic_refuses_leads_back_to_its_span(spans):
    app = App("places", tracing=True)
    app.stream("in", value=Text()).to("out", partition=5)
    with TopologyDriver(app) as driver:
        driver.send("in", "a", headers=[("traceparent", traceparent(1))])
        (letter,) = driver.dead_letters()
    assert header(letter.headers) == traceparent(1)
    assert header(letter.headers, "__streams.errors.traceparent") == traceparent_of(spans.only("process in"))


def test_timers_have_a_span_without_links(spans):
    class Beat:
        def open(self, context: Any) -> None:
            context.schedule(
                seconds(1), lambda time: context.forward(Record(b"k", "beat", time)), on="wall_clock"
            )

        def process(self, record: Any, context: Any) -> None:
            pass

    app = App("beats", tracing=True)
    app.stream("in", value=Text()).process(Beat).to("out", value=Text())
    with TopologyDriver(app) as driver:
        driver.send("in", "a")
        driver.advance(seconds(1))
        (beat,) = driver.read("out")
    span = spans.only("timers")
    assert (span.kind, span.parent, list(span.links)) == (SpanKind.INTERNAL, None, [])
    assert header(beat.headers) == traceparent_of(span)


def test_rows_for_a_sink_connector_carry_the_span(spans):
    app = App("rows", tracing=True)
    app.stream("in", value=Text()).sink(MemorySink(Database()), store="rows")
    with TopologyDriver(app) as driver:
        driver.send("in", "a", headers=[("traceparent", traceparent(1)), ("kind", b"test")])
        (row,) = driver.rows("rows")
    assert row.headers == [("kind", b"test"), ("traceparent", traceparent_of(spans.only("process in")))]


# --- workers


def test_two_apps_in_a_chain_link_by_the_headers_of_their_records(spans):
    first, second = App("first", tracing=True), App("second", tracing=True)
    first.stream("in", value=Text()).to("middle", value=Text())
    second.stream("middle", value=Text()).to("out", value=Text())
    cluster = AppCluster(first, {"in": 1, "middle": 1, "out": 1})
    counts = cluster.prepare(second, create_outputs=False)
    workers = [cluster.worker(), cluster.make_worker(second, "second-1", partitions=counts)]
    workers[1].start()
    cluster.write(Output("in", [None], [b"a"], [0], [[("traceparent", traceparent(1))]], partition=0))
    cluster.run(*workers, until=lambda: cluster.payloads("out"))
    for worker in workers:
        worker.close()
    one, two = spans.only("process in"), spans.only("process middle")
    assert linked(one) == [traceparent(1)]
    assert linked(two) == [traceparent_of(one)]
    assert [header(own) for own in written(cluster, "out")] == [traceparent_of(two)]
    assert attributes(two)["messaging.consumer.group.name"] == "second"


def test_the_commit_is_a_child_of_the_slice(spans):
    cluster = AppCluster(copying(), {"in": 1, "out": 1})
    worker = cluster.worker()
    cluster.write(Output("in", [b"k"] * 3, [b"a"] * 3, [0] * 3, partition=0))
    cluster.run(worker, until=lambda: len(cluster.payloads("out")) == 3)
    worker.close()
    batch, commit = spans.only("process in"), spans.only("commit")
    assert commit.parent == batch.get_span_context()
    assert commit.kind is SpanKind.CLIENT
    assert list(commit.links) == []
    assert attributes(commit) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "commit",
        "messaging.operation.type": "settle",
        "messaging.consumer.group.name": "copy",
        "streams.records_written": 3,
        "streams.transaction": "committed",
    }


def test_the_commit_of_several_slices_is_a_child_of_the_last_and_links_to_the_others(spans):
    cluster = AppCluster(copying(max_poll_records=2), {"in": 1, "out": 1})
    worker = cluster.worker()
    cluster.write(Output("in", [b"k"] * 6, [b"a"] * 6, [0] * 6, partition=0))
    cluster.run(worker, until=lambda: len(cluster.payloads("out")) == 6)
    worker.close()
    batches, commits = spans.named("process in"), spans.named("commit")
    assert len(batches) == 3
    assert [commit.parent for commit in commits] == [batches[-1].get_span_context()]
    assert linked(commits[0]) == [traceparent_of(batch) for batch in batches[:-1]]


def test_the_parent_of_a_commit_is_recorded_if_any_of_its_slices_is():
    first, second, third = (
        SpanContext(1, number, is_remote=False, trace_flags=TraceFlags(sampled))
        for number, sampled in ((1, 1), (2, 1), (3, 0))
    )
    assert commit_parent([first, second, third]) is second
    assert commit_parent([third]) is third
    assert commit_parent([]) is None


def test_a_commit_that_is_aborted_says_why_and_the_input_gets_other_spans(spans):
    cluster = AppCluster(copying(), {"in": 1, "out": 1})
    worker = cluster.worker()
    failures = [TransactionAborted("made to fail")]

    def failing(reached: str) -> None:
        if reached == "commit.before" and failures:
            raise failures.pop()

    cluster.broker.before = failing
    cluster.write(Output("in", [b"k"], [b"a"], [0], partition=0))
    cluster.run(worker, until=lambda: cluster.payloads("out"))
    worker.close()
    aborted, committed = spans.named("commit")
    batches = spans.named("process in")
    assert aborted.status.status_code is StatusCode.ERROR
    assert "made to fail" in str(aborted.status.description)
    assert attributes(aborted)["streams.transaction"] == "aborted"
    assert attributes(committed)["streams.transaction"] == "committed"
    assert [span.parent for span in (aborted, committed)] == [span.get_span_context() for span in batches]
    assert list(committed.links) == []
    assert [header(own) for own in written(cluster, "out")] == [traceparent_of(batches[1])]


def test_a_source_connector_s_batches_have_spans(spans):
    app = App("feeding", tracing=True)
    app.source(MemorySource(Feed(["a", "b"], batch=1)), store="feed", name="feed").to("out")
    cluster = AppCluster(app, {"out": 1})
    worker = cluster.worker()
    cluster.run(worker, until=lambda: len(cluster.payloads("out")) == 2)
    worker.close()
    batches = spans.named("process feed")
    assert [attributes(span) for span in batches] == 2 * [
        {
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.batch.message_count": 1,
            "streams.source": "feed",
            "streams.task": "0_0",
        }
    ]
    assert [header(own) for own in written(cluster, "out")] == [traceparent_of(span) for span in batches]


def test_without_the_setting_headers_stay_as_they_are_and_there_are_no_spans(spans):
    app = App("plain")
    app.stream("in", value=Text()).to("out", value=Text())
    with TopologyDriver(app) as driver:
        driver.send("in", "a", headers=[("traceparent", traceparent(1))])
        driver.send("in", "b")
        first, second = driver.read("out")
    assert first.headers == [("traceparent", traceparent(1))]
    assert second.headers is None
    assert Counter(spans.names()) == {}
