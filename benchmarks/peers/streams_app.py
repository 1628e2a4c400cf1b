"""This library: a worker as a user would run it."""

from __future__ import annotations

import sys

import msgspec

from streams import App, Bytes, Json, Tumbling


class Request(msgspec.Struct):
    """The fields that are kept of an access-log record; the others are skipped while it is parsed."""

    ip: str
    path: str
    status: int
    latency_ms: float


class Team(msgspec.Struct):
    team: str


class TeamRequest(msgspec.Struct):
    ip: str
    path: str
    status: int
    latency_ms: float
    team: str


def with_team(request: Request, team: Team) -> TeamRequest:
    return TeamRequest(request.ip, request.path, request.status, request.latency_ms, team.team)


job, guarantee, servers, input_topic, output_topic, group, commit_seconds, *tables = sys.argv[1:]
app = App(
    group,
    bootstrap_servers=servers,
    guarantee="at_least_once" if guarantee == "at_least_once" else "exactly_once",
    commit_interval=float(commit_seconds),
    shortest_commit_interval=min(float(commit_seconds), 0.02),
    state_dir="state",
    log_format="json",
)
if job == "json":
    app.stream(input_topic, value=Json(Request)).filter(lambda request: request.status >= 400).to(
        output_topic
    )
elif job == "count-windows":
    counts = app.stream(input_topic, key=Bytes(), value=Bytes()).group_by_key().window(Tumbling(seconds=10))
    counts.count("counts").updates().to(output_topic, value=Json())
elif job == "count-keys":
    app.stream(input_topic, key=Bytes(), value=Bytes()).group_by_key().count("counts").to(
        output_topic, value=Json()
    )
elif job == "join":
    teams = app.table(*tables, key=Bytes(), value=Json(Team), store="teams")
    app.stream(input_topic, key=Bytes(), value=Json(Request)).join(teams, with_team).to(output_topic)
else:
    app.stream(input_topic, value=Bytes()).to(output_topic)
app.run(own_process=True)
