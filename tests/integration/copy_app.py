"""An app that the tests run as processes: copies a topic, configured by environment variables."""

from __future__ import annotations

import os
import re
import threading
import time

import streams
from streams import App, Text

PREFIX = os.environ["COPY_PREFIX"]
SLOW_SECONDS = float(os.environ.get("COPY_SLOW_SECONDS", "0"))
SPIN_SECONDS = float(os.environ.get("COPY_SPIN", "0"))
ON_ERROR = eval(os.environ.get("COPY_ON_ERROR", "streams.fail"), {"streams": streams})
SUBSCRIPTION = os.environ.get("COPY_PATTERN")

app = App(f"{PREFIX}-copy")


def work(value: str) -> str:
    if SPIN_SECONDS:
        until = time.perf_counter() + SPIN_SECONDS
        while time.perf_counter() < until:
            pass
    if SLOW_SECONDS:
        time.sleep(SLOW_SECONDS)
    if value.startswith("hang"):
        threading.Event().wait()
    if value.startswith("poison"):
        raise ValueError(f"cannot swallow {value}")
    return value


(
    app.stream(re.compile(SUBSCRIPTION) if SUBSCRIPTION else f"{PREFIX}-in", value=Text())
    .map(work, on_error=ON_ERROR)
    .to(f"{PREFIX}-out", value=Text())
)
