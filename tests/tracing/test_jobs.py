"""Spans of jobs: put into the queue in one, executed in another that links to it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.trace import SpanKind, StatusCode

from streams import App, Json, Retry, Text, current_job, current_jobs, seconds
from streams.testing import TopologyDriver
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
from tests.tracing import process_app

if TYPE_CHECKING:
    from collections.abc import Iterator

tracer = trace.get_tracer("program")


@pytest.fixture
def spans() -> Iterator[Spans]:
    yield from recorded()


def inner() -> int:
    """The current span, and a child of it."""
    with tracer.start_as_current_span("inner"):
        pass
    return trace.get_current_span().get_span_context().span_id


def test_a_job_s_span_links_to_that_of_the_code_that_has_enqueued_it(spans):
    app = App("shop", tracing=True)

    @app.job(name="charge")
    def charge(cents: int) -> int:
        assert current_job().name == "charge"
        return inner()

    with TopologyDriver(app), tracer.start_as_current_span("request") as request:
        handle = charge.enqueue(5)
        inside = handle.result(timeout=seconds(1))
        parent = request.get_span_context()
    send, run = spans.only("send shop-jobs"), spans.only("run charge")
    assert send.parent == parent
    assert send.kind is SpanKind.PRODUCER
    assert attributes(send) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "shop-jobs",
        "messaging.batch.message_count": 1,
    }
    assert run.parent is None
    assert run.kind is SpanKind.CONSUMER
    assert linked(run) == [traceparent_of(send)]
    assert attributes(run) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": "shop-jobs",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "messaging.consumer.group.name": "shop",
        "streams.job.name": "charge",
        "streams.job.id": handle.id,
        "streams.job.attempt": 1,
    }
    assert inside == context_of(run).span_id
    assert spans.only("inner").parent == run.get_span_context()
    # The slice that records its outcome, too.
    assert [traceparent_of(run)] in [linked(span) for span in spans.named("job outcomes")]


def test_each_attempt_has_a_span_with_its_failure(spans):
    app = App("shop", tracing=True)

    @app.job(name="flaky", retry=Retry(2, backoff=seconds(1), jitter=0))
    def flaky() -> None:
        raise OSError("not now")

    with TopologyDriver(app, check_dead_letters=False) as driver:
        flaky.enqueue()
        driver.advance(seconds(2))
        (letter,) = driver.dead_letters()
    send = spans.only("send shop-jobs")
    runs = spans.named("run flaky")
    assert [attributes(run)["streams.job.attempt"] for run in runs] == [1, 2]
    for run in runs:
        assert linked(run) == [traceparent_of(send)]
        assert run.status.status_code is StatusCode.ERROR
        assert [event.name for event in run.events] == ["exception"]
    assert header(letter.headers) == traceparent_of(send)
    outcome = header(letter.headers, "__streams.errors.traceparent")
    (recording,) = [span for span in spans.named("job outcomes") if traceparent_of(span) == outcome]
    assert linked(recording) == [traceparent_of(runs[1])]


def test_a_batch_of_jobs_has_one_span_that_links_to_all_of_them(spans):
    app = App("mails", tracing=True)

    @app.job(name="send", batch=3, within=seconds(1))
    def send(mails: list[str]) -> list[int | Exception]:
        assert len(current_jobs()) == 3
        span = inner()
        return [span, ValueError("refused"), span]

    with TopologyDriver(app, check_dead_letters=False) as driver:
        handles = []
        for number in range(3):
            with tracer.start_as_current_span(f"request {number}"):
                handles.append(send.enqueue(f"mail {number}"))
        driver.dead_letters()
    run = spans.only("run send")
    assert linked(run) == [traceparent_of(span) for span in spans.named("send mails-jobs")]
    assert len(linked(run)) == 3
    assert attributes(run)["messaging.batch.message_count"] == 3
    assert "streams.job.id" not in attributes(run)
    assert run.status.status_code is StatusCode.ERROR
    assert handles[0].result(timeout=seconds(1)) == context_of(run).span_id


def test_async_jobs_have_spans_with_the_baggage_of_the_caller(spans):
    app = App("calls", tracing=True)

    @app.job(name="call")
    async def call() -> list[Any]:
        await asyncio.sleep(0)
        return [inner(), baggage.get_baggage("tenant")]

    with TopologyDriver(app):
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        try:
            handle = call.enqueue()
        finally:
            context.detach(token)
        found = handle.result(timeout=seconds(1))
    assert found == [context_of(spans.only("run call")).span_id, "acme"]
    assert baggage.get_baggage("tenant") is None


def test_a_job_of_a_stream_links_to_the_slice_that_has_made_it(spans):
    app = App("streamed", tracing=True)

    @app.job(name="work")
    def work(value: str) -> None:
        inner()

    app.stream("in", value=Text()).enqueue(work, work.call)
    with TopologyDriver(app) as driver:
        driver.send("in", "a", headers=[("traceparent", traceparent(1))])
    batch, run = spans.only("process in"), spans.only("run work")
    assert linked(batch) == [traceparent(1)]
    assert linked(run) == [traceparent_of(batch)]


def test_jobs_that_are_enqueued_in_one_call_share_a_span(spans):
    app = App("many", tracing=True)

    @app.job(name="work")
    def work(number: int) -> None: ...

    with TopologyDriver(app):
        work.enqueue_many([work.call(number) for number in range(4)])
    send = spans.only("send many-jobs")
    assert attributes(send)["messaging.batch.message_count"] == 4
    assert [linked(run) for run in spans.named("run work")] == [[traceparent_of(send)]] * 4


def test_without_the_setting_jobs_have_no_headers(spans):
    app = App("plain")
    app.stream("plain-other", value=Json()).to("copied")

    @app.job(name="work")
    def work() -> None: ...

    driver = TopologyDriver(app, run_jobs=False)
    with driver, tracer.start_as_current_span("request"):
        work.enqueue()
        driver.run_due()
        (end,) = driver.read("plain-job-results")
    assert end.headers is None
    assert spans.names() == ["request"]


@pytest.fixture
def worker(spans: Spans) -> Iterator[Spans]:
    """A worker whose jobs run in threads, processes and the event loop."""
    stop = threading.Event()
    thread = threading.Thread(target=lambda: process_app.app.run(broker=process_app.BROKER, stop=stop))
    thread.start()
    yield spans
    stop.set()
    thread.join()


def test_executors_of_a_worker_run_jobs_in_their_spans(worker):
    time = seconds(60)
    with tracer.start_as_current_span("request"):
        handles = {
            job.name: job.enqueue() for job in (process_app.thread, process_app.process, process_app.loop)
        }
    found = {name: handle.result(timeout=time) for name, handle in handles.items()}
    sent = {traceparent_of(span) for span in worker.named("send traced-jobs")}
    assert len(sent) == 3
    for name, carried in found.items():
        run = worker.only(f"run {name}")
        assert carried == traceparent_of(run).decode()
        assert set(linked(run)) < sent
    assert {span.name for span in worker.named("run process")} == {"run process"}
