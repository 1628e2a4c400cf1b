"""The app's topology, from the lines of an access log to its results.

Every line becomes a hit, or as a dead letter with the reason. Hits are counted by path and minute; those
counts give the top paths, the traffic of each team and the alerts. Hits of a client without a long pause form
a visit.

``LOG_ANALYSIS_PREFIX`` is a prefix of the names of all topics and of the group, for several apps on one
cluster. ``LOG_ANALYSIS_GRACE`` is the grace in seconds (60): it must be longer to read old logs again, as
partitions are then read at different speeds.

Lines may be in any of the formats that servers write by default. ``LOG_ANALYSIS_FORMAT`` names one of them,
or is nginx's ``log_format`` or Apache's ``LogFormat``, and ``LOG_ANALYSIS_ALSO`` names additional ones;
``LOG_ANALYSIS_CLIENT=forwarded`` uses the first address in ``X-Forwarded-For`` as the client;
``LOG_ANALYSIS_TIME_ZONE`` is that of times without an offset (UTC).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from apps.log_analysis.alert import Alert
from apps.log_analysis.hit import Hit, configured_parser
from apps.log_analysis.top import PathHits, TopPaths, ranked
from apps.log_analysis.traffic import Owner, TeamTraffic, Traffic, section, server_errors
from apps.log_analysis.visit import Visit
from apps.log_analysis.watcher import WATCHES, Watcher
from streams import (
    App,
    Avro,
    Json,
    Session,
    Text,
    Tumbling,
    count,
    custom,
    dead_letter,
    quantile,
    seconds,
    total,
)

T = TypeVar("T")

PREFIX = os.environ.get("LOG_ANALYSIS_PREFIX", "")
GRACE = seconds(float(os.environ.get("LOG_ANALYSIS_GRACE", "60")))
QUIET = seconds(30)
"""After this long without lines, windows close by the wall clock."""
SCHEMAS = Path(__file__).parents[2] / "schemas"

LINES = f"{PREFIX}access-lines"
PATH_OWNERS = f"{PREFIX}path-owners"
HITS = f"{PREFIX}hits"
ERRORS = f"{PREFIX}errors"
TRAFFIC = f"{PREFIX}traffic-by-path"
LATE_HITS = f"{PREFIX}late-hits"
TOP_PATHS = f"{PREFIX}top-paths"
TEAM_TRAFFIC = f"{PREFIX}traffic-by-team"
ALERTS = f"{PREFIX}alerts"
VISITS = f"{PREFIX}visitor-sessions"


def avro(kind: type[T]) -> Avro[T]:
    """The Avro serde of a type of records."""
    return Avro(SCHEMAS / f"log_analysis.{kind.__name__}.avsc", kind)


parse = configured_parser(os.environ)
app = App(f"{PREFIX}log-analysis")

hits = (
    app.stream(LINES, value=Text())
    .map(parse, timestamp=lambda hit: hit.time, name="map-parse", on_error=dead_letter)
    .key_by(lambda hit: hit.client, name="by-client")
)
hits.to(HITS, value=avro(Hit))
hits.filter(server_errors, name="server-errors").to(ERRORS, value=avro(Hit))

# The traffic of each path in each minute, when the minute has ended.
minutes_of_paths = (
    hits.group_by(lambda hit: hit.path, store="by-path")
    .window(Tumbling(minutes=1), grace=GRACE, close_idle_after=QUIET)
    .aggregate(
        "traffic-by-path",
        hits=count(),
        bytes=total("bytes"),
        errors=total(server_errors),
        p50_bytes=quantile(0.5, "bytes"),
        p99_bytes=quantile(0.99, "bytes"),
    )
)
minutes_of_paths.late().to(LATE_HITS, value=avro(Hit))
traffic = minutes_of_paths.final().map(Traffic.of, name="traffic")
traffic.to(TRAFFIC, value=avro(Traffic))

# The paths with the most hits in each minute, of all paths and therefore in one partition.
(
    traffic.group_by(lambda _: "all", store="all-paths", partitions=1, value=Json(Traffic))
    .window(Tumbling(minutes=1), grace=GRACE, close_idle_after=QUIET)
    .aggregate("top-paths", custom(list, ranked, name="top paths", type=list[PathHits]))
    .final()
    .map(TopPaths.of, name="ranking")
    .to(TOP_PATHS, value=avro(TopPaths))
)

# The traffic of each team in each minute, by the owners of the paths at that time.
owners = app.table(
    PATH_OWNERS, key=Text(), value=avro(Owner), store="path-owners", timestamp=lambda owner: owner.since
)
(
    traffic.key_by(lambda minute: section(minute.path), name="section")
    .left_join(owners, TeamTraffic.of, value=Json(Traffic), store="by-section")
    .group_by(lambda minute: minute.team, store="by-team", partitions=1, value=Json(TeamTraffic))
    .window(Tumbling(minutes=1), grace=GRACE, close_idle_after=QUIET)
    .reduce("traffic-by-team", TeamTraffic.plus)
    .final()
    .map(lambda window: window.value)
    .to(TEAM_TRAFFIC, value=avro(TeamTraffic))
)

# An alert when too many of a path's hits are errors, and another one when that is over.
traffic.process(Watcher, stores=[WATCHES]).to(ALERTS, value=avro(Alert))

# The hits of a client without a pause of half an hour.
(
    hits.map(Visit.of, name="visit-of-a-hit")
    .group_by(lambda visit: visit.client, store="visitors", value=Json(Visit))
    .window(Session(minutes=30), grace=GRACE, close_idle_after=QUIET)
    .reduce("visits", Visit.joined)
    .final()
    .map(lambda window: window.value)
    .to(VISITS, value=avro(Visit))
)
