"""This runtime: a worker as a user would run it."""

from __future__ import annotations

import sys

import msgspec

from streams import App, Bytes, Json


class Request(msgspec.Struct):
    """The fields that are kept of an access-log record; the others are skipped while it is parsed."""

    ip: str
    path: str
    status: int
    latency_ms: float


job, guarantee, servers, input_topic, output_topic, group, commit_seconds = sys.argv[1:]
app = App(
    group,
    bootstrap_servers=servers,
    guarantee=guarantee,
    commit_interval=float(commit_seconds),
    shortest_commit_interval=min(float(commit_seconds), 0.02),
    state_dir="state",
)
if job == "json":
    app.stream(input_topic, value=Json(Request)).filter(lambda request: request.status >= 400).to(
        output_topic
    )
else:
    app.stream(input_topic, value=Bytes()).to(output_topic)
app.run()
