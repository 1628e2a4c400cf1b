"""The app with state that the tests run as processes: it counts keys, by repartitioning and in windows."""

from __future__ import annotations

import os
import time

from streams import App, Text, Tumbling

PREFIX = os.environ["COUNT_PREFIX"]
SLOW_SECONDS = float(os.environ.get("COUNT_SLOW_SECONDS", "0"))

app = App(f"{PREFIX}-count")


def work(value: str) -> str:
    if SLOW_SECONDS:
        time.sleep(SLOW_SECONDS)
    return value


records = app.stream(f"{PREFIX}-in", key=Text(), value=Text())
records.map(work).group_by(str, value=Text()).count("counts").to(f"{PREFIX}-out")
records.group_by_key().window(Tumbling(seconds=1)).count("windows").final().to(f"{PREFIX}-final")
