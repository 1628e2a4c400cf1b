"""The app that the tests query: it counts the actions of each user, in total and in windows."""

from __future__ import annotations

import os

from streams import App, Text, Tumbling

PREFIX = os.environ["QUERY_PREFIX"]

app = App(f"{PREFIX}-visits")
visits = app.stream(f"{PREFIX}-in", key=Text(), value=Text()).group_by_key()
visits.count("visits").to(f"{PREFIX}-out", key=Text())
visits.window(Tumbling(days=1)).count("daily").updates().to(f"{PREFIX}-out", key=Text())
