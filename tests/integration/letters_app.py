"""An app that the tests run as processes: fails on some values, until it is started without that mistake."""

from __future__ import annotations

import os
import time

from streams import App, Text

PREFIX = os.environ["LETTERS_PREFIX"]
BROKEN = tuple(filter(None, os.environ.get("LETTERS_BROKEN", "").split(",")))
SLOW_SECONDS = float(os.environ.get("LETTERS_SLOW_SECONDS", "0"))

app = App(f"{PREFIX}-letters", dead_letter_limit=1.0)


def work(value: str) -> str:
    if SLOW_SECONDS:
        time.sleep(SLOW_SECONDS)
    if BROKEN and value.startswith(BROKEN):
        kind = ValueError if value.startswith("a") else KeyError
        raise kind(f"{value[0]} is not supported")
    return value


records = app.stream(f"{PREFIX}-in", key=Text(), value=Text())
worked = records.map(work, name="work")
worked.to(f"{PREFIX}-out", value=Text())
worked.group_by(lambda value: value[0], value=Text()).count("counted").to(f"{PREFIX}-counts")
records.to(f"{PREFIX}-copy", value=Text())
