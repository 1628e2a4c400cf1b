"""Metrics and labels that alerts, dashboard and autoscaler name are those of a worker with everything on."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams import App, Every, Json, Text, dead_letter, minutes
from streams.app import resources_of_worker
from streams.monitoring.metrics import WorkerMetrics
from streams.monitoring.observer import Observer
from streams.monitoring.watchdog import Watchdog
from streams.records import Output
from tests.support.cluster import MemoryCluster
from tests.support.connectors import Feed, MemorySource
from tests.support.deploy import KUBERNETES, dashboard, document, rules

if TYPE_CHECKING:
    from collections.abc import Iterator

OF_TARGETS = {"job", "instance"}
"""The labels that Prometheus adds."""

OF_BUCKETS = {"le"}

METRIC = re.compile(r"\b(?:streams|process|kafka)_[a-z_]+\b")
SELECTOR = re.compile(r"\b((?:streams|process|kafka)_[a-z_]+)\{([^}]*)\}")
GROUPING = re.compile(r"\b(?:by|on|group_left) \(([^)]*)\)")


def everything() -> tuple[App, Feed]:
    """An app with steps, stores, jobs, a schedule and a source connector whose system reports a problem."""
    app = App("everything", dead_letter_limit=1.0, job_partitions=1, max_poll_records=20)
    numbers = app.stream("in", key=Text(), value=Text()).map(int, name="parse", on_error=dead_letter)
    numbers.group_by(str, value=Json(int)).count("counts").to_stream().to("out")
    # As a slot of Postgres does.
    feed = Feed([1, 2], problem="the slot is lost", numbers={"lag_bytes": 1.0, "retained_bytes": 2.0})
    app.source(MemorySource(feed), store="feed").to("copied")

    @app.job(name="mail")
    def mail() -> None:
        pass

    @app.job(name="report", schedule=Every(minutes(1)))
    def report() -> None:
        pass

    return app, feed


@pytest.fixture(scope="module")
def exposition() -> str:
    """The metrics of a worker of that app."""
    app, _ = everything()
    cluster = MemoryCluster({"in": 2, "out": 2, "copied": 2}, real_time=True)
    worker = cluster.make_worker(app, "slot", partitions=cluster.prepare(app, create_outputs=True))
    observer = Observer(worker, None, cluster.broker, goal=30.0)
    metrics = WorkerMetrics(
        worker, Watchdog(worker, cluster.broker, app.settings), None, app.metrics, observer
    )
    cluster.write(
        Output("in", [b"a"] * 3, [b"1", b"x", b"2"], [time.time_ns() // 1_000_000] * 3, partition=0)
    )
    resources = resources_of_worker(app)
    resources.open()
    text = ""
    deadline = time.monotonic() + 20
    with resources.active():
        worker.start()
        while "streams_connector_unavailable{" not in text or "streams_dead_letters_total{" not in text:
            assert time.monotonic() < deadline
            worker.run_once()
            observer.observe()
            text = metrics.exposition().decode()
        worker.close()
    resources.close()
    return text


@pytest.fixture(scope="module")
def labels(exposition) -> dict[str, set[str]]:
    """The labels of each sample, by its name; empty for a metric that has none now."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition):
        found.setdefault(f"{family.name}_total" if family.type == "counter" else family.name, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    content = dashboard()
    for panel in content["panels"]:
        for number, target in enumerate(panel.get("targets", [])):
            yield f"{panel['title']} {number}", target["expr"]
    for item in content["annotations"]["list"]:
        if "expr" in item and "ALERTS" not in item["expr"]:
            yield item["name"], item["expr"]
    scaled: Any = document(KUBERNETES / "components" / "keda" / "scaled-object.yaml")
    yield "autoscaler", scaled["spec"]["triggers"][0]["metadata"]["query"]


EXPRESSIONS = list(expressions())

WITHOUT_SAMPLES = {
    "streams_deleted_in_seconds": {"topic", "partition"},
    "streams_late_total": {"step"},
    "streams_skipped_total": {"step"},
    "streams_out_of_range_skipped_total": {"topic", "partition"},
    "streams_dead_letters_retried_total": {"result"},
    "streams_restore_records_left": {"task"},
    "streams_standby_lag": {"task"},
    "streams_jobs_running": {"job"},
    "streams_jobs_waiting": {"job"},
    "streams_jobs_delayed": {"job"},
    "streams_jobs_retrying": {"job"},
    "streams_jobs_ended_total": {"job", "ending"},
    "streams_schedule_missed_seconds": {"schedule"},
    "streams_workers_wanted": {"app"},
    "streams_workers_useful": {"app"},
}
"""Metrics without samples at that moment, with their labels."""


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_its_metrics_and_labels_exist(labels, name, expression):
    used = set(METRIC.findall(expression))
    assert used
    assert used <= labels.keys()
    known = {metric: labels[metric] or WITHOUT_SAMPLES.get(metric, set()) for metric in used}
    for metric, matchers in SELECTOR.findall(expression):
        assert set(re.findall(r"(\w+)(?:=|!)", matchers)) <= known[metric] | OF_TARGETS
    everywhere = set().union(*known.values()) | OF_TARGETS | OF_BUCKETS
    for group in GROUPING.findall(expression):
        assert {label.strip() for label in group.split(",") if label.strip()} <= everywhere


def test_the_metrics_without_samples_are_in_the_exposition_too(labels):
    assert WITHOUT_SAMPLES.keys() <= labels.keys()


def test_a_misspelt_metric_would_be_found(labels):
    assert "streams_waiting_second" not in labels
    assert "streams_waiting_seconds" in labels


def test_metrics_for_the_dashboards_of_others_have_their_labels(labels):
    for name in ("kafka_consumergroup_group_lag", "kafka_consumergroup_group_lag_seconds"):
        assert labels[name] == {"group", "topic", "partition"}
    for name in ("kafka_consumergroup_group_max_lag", "kafka_consumergroup_group_max_lag_seconds"):
        assert labels[name] == {"group"}
    assert labels["streams_build_info"] == {"version", "python"}


def test_names_and_units_are_those_of_prometheus(exposition):
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    answer = subprocess.run(
        [program, "check", "metrics"],
        input=exposition,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")
    assert not re.search(r" nan$", exposition, re.MULTILINE | re.IGNORECASE)
