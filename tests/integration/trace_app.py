"""A program whose results the tests trace: copies, and counts behind a repartition topic."""

from __future__ import annotations

import os
from typing import Any

from streams import App, Json, Text, Tumbling, seconds

PREFIX = os.environ["TRACE_PREFIX"]


def refuse_negative(reading: dict[str, Any]) -> dict[str, Any]:
    if reading["size"] < 0:
        raise ValueError("a negative size")
    return reading


app = App(f"{PREFIX}-app", create_topics=True, commit_interval=0.1)
readings = app.stream(f"{PREFIX}-in", key=Text(), value=Json(dict[str, Any]))
good = readings.map(refuse_negative)
good.filter(lambda reading: reading["size"] > 5).to(f"{PREFIX}-large", value=Json())
teams = good.group_by(lambda reading: str(reading["team"]), store="teams", value=Json(dict[str, Any]))
teams.count("counts").to(f"{PREFIX}-counts", value=Json())
teams.window(Tumbling(seconds(10))).count("windows").final().to(f"{PREFIX}-final", value=Json())
