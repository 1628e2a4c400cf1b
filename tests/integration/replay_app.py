"""Two programs that the tests replay: alerts and window counts of readings; the new one has another limit."""

from __future__ import annotations

import os
import sys
from typing import Any

from streams import App, Json, Text, Tumbling

PREFIX = os.environ["REPLAY_PREFIX"]


def program(name: str, limit: int) -> App:
    made = App(f"{PREFIX}-{name}", create_topics=True)
    readings = made.stream(f"{PREFIX}-in", key=Text(), value=Json(dict[str, Any]))
    readings.filter(lambda reading: reading["size"] > limit).to(f"{PREFIX}-alerts", value=Json())
    readings.peek(lambda _: sys.stdout.write("effect\n"))
    windows = readings.group_by(lambda reading: str(reading["size"] % 10)).window(Tumbling(seconds=2))
    windows.count("sizes").final().to(f"{PREFIX}-final", value=Json())
    return made


app = program("app", 50)
new = program("new", 60)
