"""Data sync: what sources report of their systems, what sinks have written, and why one cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams import App, Json
from streams.broker.memory import MemoryBroker
from streams.connectors.files import JsonLinesSource
from streams.connectors.sqlite import SqliteSink
from streams.monitoring.worker_report import StepStatus
from tests.console.pages import browsing, partition, report, reporting

if TYPE_CHECKING:
    from pathlib import Path


def shop(folder: Path) -> App:
    app = App("shop")
    app.source(JsonLinesSource(f"{folder}/*.jsonl"), store="inbox").to("returns")
    orders = app.stream("orders", value=Json(dict[str, Any]))
    orders.sink(SqliteSink(str(folder / "orders.db"), "orders", key="id"))
    return app


def refused(count: int) -> StepStatus:
    return StepStatus(step="sqlite-orders", records=9, seconds=1.0, dead_letters=count, skipped=0, late=0)


def test_slots_snapshots_and_sinks_are_shown_with_their_problems(tmp_path):
    figures = {
        "source_lag_bytes": 2500.0,
        "source_retained_bytes": 2.0e10,
        "source_snapshot_tables": 2.0,
        "source_snapshot_rows": 1200.0,
        "source_files": 3.0,
    }
    metrics = "".join(f'streams_{name}{{source="inbox-0"}} {value}\n' for name, value in figures.items())
    metrics += 'streams_lag{topic="orders",partition="0"} 7.0\n'
    made = report(
        "shop",
        "w1",
        problems={"sqlite-orders": "OperationalError: database is locked"},
        partitions=[
            partition("shop-inbox-source", 0),
            partition("orders", 0, position=3, end=10, lag=7, waiting_seconds=40.0),
            partition("orders", 1),
        ],
        steps=[refused(2)],
    )
    with (
        reporting(made, metrics=metrics) as address,
        browsing(shop(tmp_path), MemoryBroker(), urls=[address]) as browser,
    ):
        page = browser.wait("/apps/shop/sync", "2.5 kB")
        assert "inbox-0 jsonl read w1 2.5 kB 20.0 GB 2 tables left 1,200 rows of them read" in page
        assert "The disk of its database fills up" in page
        assert "files 3" in page
        assert "sqlite-orders sqlite unavailable orders 7 40 s 2 w1: OperationalError" in page
        assert "orders-0 w1 3 10 7 40 s orders-1 w1 10 10 0 0 s" in page


def test_what_no_worker_reports_is_unknown(tmp_path):
    with browsing(shop(tmp_path), MemoryBroker()) as browser:
        page = browser.wait("/apps/shop/sync", "unknown how the connectors do")
    assert "inbox-0 jsonl unknown none that answers unknown" in page
    assert "sqlite-orders sqlite unknown orders unknown unknown unknown" in page


def test_a_partition_without_figures_costs_a_sink_its_sums(tmp_path):
    made = report(
        "shop",
        "w1",
        partitions=[partition("orders", 0), partition("orders", 1, lag=None, waiting_seconds=None)],
    )
    with (
        reporting(made) as address,
        browsing(shop(tmp_path), MemoryBroker(), urls=[address]) as browser,
    ):
        page = browser.wait("/apps/shop/sync", "sqlite-orders sqlite written orders unknown unknown 0")
    assert "orders-1 w1 10 10 unknown unknown orders-0 w1 10 10 0 0 s" in page


def test_long_lists_are_cut_and_say_so(tmp_path):
    made = report("shop", "w1", partitions=[partition("orders", number) for number in range(1_000)])
    with (
        reporting(made) as address,
        browsing(shop(tmp_path), MemoryBroker(), urls=[address]) as browser,
    ):
        page = browser.wait("/apps/shop/sync", "1000 partitions")
    assert "And 950 more" in page


def test_an_app_without_connectors_says_so():
    app = App("shop")
    app.stream("orders").to("out")
    with browsing(app, MemoryBroker()) as browser:
        assert "This app has no connectors" in browser.text("/apps/shop/sync")
