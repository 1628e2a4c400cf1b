"""A program's own counters, gauges and log lines."""

from __future__ import annotations

import socket
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams import App, Batch, Bytes, ConfigurationError, Context, Json, Record, Text, skip
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.durations import milliseconds
from streams.monitoring.program_metrics import samples
from streams.records import Output
from streams.testing import TopologyDriver
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def orders(**settings: Any) -> App:
    """An app with counters, per batch and per record."""
    app = App("shop", **settings)
    seen = app.metrics.counter("shop_orders_total", "Orders seen.")
    sent = app.metrics.counter("shop_sent", 'Sent, by "country"\nand size.', labels=["country", "large"])
    highest = app.metrics.gauge("shop_highest", "The highest value seen.")

    def count(batch: Batch[bytes, int]) -> Batch[bytes, int]:
        seen.inc(len(batch))
        highest.set(max(batch.values))
        return batch

    def send(value: int) -> int:
        sent.inc(country='d"e', large=value > 10)
        return value

    app.stream("in", value=Json(int)).map_batch(count).map(send).to("out")
    return app


def test_functions_count_and_tests_read_what_they_counted():
    app = App("shop")
    seen = app.metrics.counter("seen", "Seen.", labels=["country"])
    level = app.metrics.gauge("level", "Level.")

    def work(value: str) -> str:
        seen.inc(country=value)
        level.inc(2.5)
        level.inc(-1)
        return value

    app.stream("in", value=Text()).map(work).to("out")
    driver = TopologyDriver(app)
    for value in ("de", "fr", "de"):
        driver.send("in", value)
    assert seen.value(country="de") == 2
    assert seen.value(country="it") == 0
    assert level.value() == 4.5


def scrape(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def run_until(app: App, broker: MemoryBroker, done: Callable[[], bool]) -> None:
    """Run a worker until the condition holds."""
    stop = threading.Event()
    thread = threading.Thread(target=app.run, kwargs={"broker": broker, "stop": stop})
    thread.start()
    try:
        while thread.is_alive() and not done():
            thread.join(0.02)
        assert done()
    finally:
        stop.set()
        thread.join(30)


def site(*values: bytes) -> MemoryBroker:
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name=name, partitions=1) for name in ("in", "out")])
    producer = broker.producer()
    producer.produce(Output("in", [b"k"] * len(values), values, [1] * len(values)))
    producer.flush(1)
    return broker


def test_a_scrape_shows_them_beside_the_librarys(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = orders(http_port=port, state_dir=str(tmp_path))
    app.metrics.counter("shop_never", "Nothing.")
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    broker = site(b"5", b"20", b"11")

    def done() -> bool:
        try:
            found.update(scrape(f"http://127.0.0.1:{port}/metrics"))
        except OSError:
            return False
        return bool(found.get(("streams_records_out_total", frozenset())))

    run_until(app, broker, done)
    assert found["shop_orders_total", frozenset()] == 3
    assert found["shop_never_total", frozenset()] == 0
    assert found["shop_highest", frozenset()] == 20
    assert found["shop_sent_total", frozenset({("country", 'd"e'), ("large", "True")})] == 2
    assert found["shop_sent_total", frozenset({("country", 'd"e'), ("large", "False")})] == 1
    assert found["streams_records_in_total", frozenset()] == 3


def test_a_gauge_that_is_removed_is_shown_no_more():
    gauge = App("shop").metrics.gauge("shop_level", "Level.", labels=["partition"])
    gauge.set(3, partition=0)
    gauge.set(4, partition=1)
    gauge.remove(partition=0)
    assert gauge.values() == {("1",): 4.0}


def test_threads_lose_no_count():
    counter = App("shop").metrics.counter("shop_counted", "Counted.", labels=["kind"])

    def count() -> None:
        for _ in range(10_000):
            counter.inc(kind="x")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value(kind="x") == 40_000


@pytest.mark.parametrize(
    ("kind", "name", "labels", "says"),
    [
        ("counter", "shop_orders", [], "another metric of the app has this name"),
        ("counter", "shop_orders_total", [], "another metric of the app has this name"),
        ("gauge", "shop_orders_total", [], "another metric of the app has this name"),
        ("gauge", "shop_orders_created", [], "another metric of the app has this name"),
        ("gauge", "streams_lag", [], "names that begin with streams_ or process_ are reserved"),
        ("gauge", "process_open_fds", [], "are reserved for the library"),
        ("counter", "orders-seen", [], "use letters, digits and '_'"),
        ("counter", "", [], "use letters, digits and '_'"),
        ("counter", "other", ["coun-try"], "'coun-try' is not allowed as a label's name"),
        ("counter", "other", ["__name__"], "is not allowed as a label's name"),
        ("counter", "other", ["a", "a"], "contain a duplicate"),
        ("counter", "other", "country", r"write labels=\['country'\]"),
    ],
)
def test_names_that_cannot_be_are_refused(kind, name, labels, says):
    app = App("shop")
    app.metrics.counter("shop_orders", "Orders.")
    with pytest.raises(ConfigurationError, match=says) as raised:
        getattr(app.metrics, kind)(name, "Text.", labels=labels)
    assert f"metric {name!r} of app 'shop'" in str(raised.value)
    assert len(samples(app.metrics)) == 1


def test_a_wrong_use_names_what_is_needed():
    counter = App("shop").metrics.counter("shop_orders", "Orders.", labels=["country"])
    for labels in ({}, {"land": "de"}, {"country": "de", "size": 1}):
        with pytest.raises(TypeError, match="'shop_orders' has the labels country, got"):
            counter.inc(**labels)
    with pytest.raises(ValueError, match="cannot be increased"):
        counter.inc(-1, country="de")


# --- log lines


class Talking:
    def open(self, context: Context) -> None:
        context.log.info("opened")
        context.schedule(
            milliseconds(1000), lambda now: context.log.warning("ticked", now=now), on="wall_clock"
        )

    def process(self, record: Record[bytes, str], context: Context) -> None:
        context.log.info("processed", value=record.value)


def talking() -> App:
    app = App("talks")

    def say(value: str) -> str:
        app.log.info("mapped", value=value)
        return value

    app.stream("in", key=Bytes(), value=Text()).map(say).process(Talking, name="talk", on_error=skip)
    return app


def test_lines_of_the_program_name_app_step_task_and_partition():
    with capture_logs() as logs, TopologyDriver(talking(), partitions=4) as driver:
        driver.send("in", "a", key=b"k", partition=3)
        driver.advance(milliseconds(1000))
    own = {"app": "talks", "task": "0_3"}
    assert logs == [
        own | {"event": "opened", "step": "talk", "log_level": "info"},
        own | {"event": "mapped", "value": "a", "partition": "in-3", "log_level": "info"},
        own | {"event": "processed", "value": "a", "partition": "in-3", "step": "talk", "log_level": "info"},
        own | {"event": "ticked", "now": 1000, "step": "talk", "log_level": "warning"},
    ]


def test_a_worker_adds_its_name(tmp_path):
    app = App("talks", state_dir=str(tmp_path), worker_id="machine")

    def say(value: str) -> str:
        app.log.info("mapped")
        return value

    app.stream("in", value=Text()).map(say).to("out")
    with capture_logs() as logs:
        run_until(app, site(b"a"), lambda: any(line["event"] == "mapped" for line in logs))
    (line,) = [line for line in logs if line["event"] == "mapped"]
    assert (line["worker"], line["task"], line["partition"]) == ("machine-0", "0_0", "in-0")
