"""Quix Streams, in a separate virtual environment, as it pins its own version of the client library."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from quixstreams import Application

job, guarantee, servers, input_topic, output_topic, group, commit_seconds = sys.argv[1:]
app = Application(
    broker_address=servers,
    consumer_group=group,
    auto_offset_reset="earliest",
    processing_guarantee="exactly-once" if guarantee == "exactly_once" else "at-least-once",
    commit_interval=float(commit_seconds),
    # The default of 1000 stops fetching for a second whenever the queue was full.
    consumer_extra_config={"fetch.queue.backoff.ms": 5},
    state_dir="state",
    loglevel="WARNING",
)


def project(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "ip": value["ip"],
        "path": value["path"],
        "status": value["status"],
        "latency_ms": value["latency_ms"],
    }


read, written = {"json": ("json", "json"), "count-windows": ("bytes", "json")}.get(job, ("bytes", "bytes"))
requests = app.dataframe(app.topic(input_topic, value_deserializer=read))
if job == "json":
    requests = requests.filter(lambda value: value["status"] >= 400).apply(project)
elif job == "count-windows":
    requests = requests.tumbling_window(timedelta(seconds=10)).count().current()
requests.to_topic(app.topic(output_topic, value_serializer=written))
app.run()
