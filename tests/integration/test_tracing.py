"""Tracing on the real broker: a chain of two apps, linked by the headers of records."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from streams import App, Text
from streams.broker.reading import read_to_end
from streams.records import Output
from tests.support.spans import Spans, attributes, header, linked, recorded, traceparent, traceparent_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams import Headers
    from streams.broker.kafka import KafkaBroker

pytestmark = pytest.mark.kafka


@pytest.fixture
def spans() -> Iterator[Spans]:
    yield from recorded()


@contextmanager
def running(app: App, broker: KafkaBroker) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=lambda: app.run(broker=broker, stop=stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def headers_in(broker: KafkaBroker, topic: str) -> list[Headers | None]:
    found: list[Headers | None] = []
    for fetched in read_to_end(broker, [topic]):
        found += fetched.headers() or [None] * len(fetched)
    return found


def test_a_trace_is_followed_through_two_apps(
    kafka: KafkaBroker, prefix: str, topic: Callable[..., str], spans: Spans, tmp_path
) -> None:
    source, middle, target = (topic(name, partitions=1) for name in ("in", "middle", "out"))
    apps = [
        App(f"{prefix}-{name}", tracing=True, state_dir=str(tmp_path / name)) for name in ("first", "second")
    ]
    apps[0].stream(source, value=Text()).map(str.upper).to(middle, value=Text())
    apps[1].stream(middle, value=Text()).to(target, value=Text())
    producer = kafka.producer()
    column: list[Headers | None] = [
        [("traceparent", traceparent(number % 3)), ("n", b"1")] for number in range(30)
    ]
    producer.produce(Output(source, [None] * 30, [b"a"] * 30, [0] * 30, column))
    producer.flush(30)
    producer.close()
    with running(apps[0], kafka), running(apps[1], kafka):
        written = wait_until(lambda: found if len(found := headers_in(kafka, target)) == 30 else None)
    first = {traceparent_of(span): span for span in spans.named(f"process {source}")}
    second = {traceparent_of(span): span for span in spans.named(f"process {middle}")}
    assert {header(own, "n") for own in written} == {b"1"}
    assert {header(own) for own in written} == set(second)
    assert {link for span in second.values() for link in linked(span)} == set(first)
    assert {link for span in first.values() for link in linked(span)} == {traceparent(n) for n in range(3)}
    assert sum(attributes(span)["messaging.batch.message_count"] for span in first.values()) == 30
    commits = spans.named("commit")
    assert {attributes(span)["streams.transaction"] for span in commits} == {"committed"}
    assert {span.parent and span.parent.span_id for span in commits} <= {
        context.span_id
        for span in (*first.values(), *second.values())
        if (context := span.get_span_context()) is not None
    }
