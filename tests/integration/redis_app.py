"""An app between Redis and Kafka, in one of the directions, run as processes."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from streams import App, Text, fail
from streams.connectors.redis import RedisList, RedisSink, RedisStream
from streams.durations import seconds

if TYPE_CHECKING:
    from streams.connectors.source import SourceConnector

PREFIX = os.environ["REDIS_PREFIX"]
URL = os.environ["REDIS_URL"]

app = App(f"{PREFIX}-redis")

if os.environ["REDIS_DIRECTION"] == "in":
    sources: dict[str, SourceConnector[Any, str]] = {
        "stream": RedisStream(URL, "stream", field="n", max_records=50),
        "group": RedisStream(URL, "stream", field="n", group="g", claim_after=seconds(3_600), max_records=50),
        "list": RedisList(URL, "list", max_records=50),
    }
    for name, source in sources.items():
        prefixed = partial("{}-{}".format, name)
        app.source(source, store=name).map(prefixed, on_error=fail).to(f"{PREFIX}-out", value=Text())
else:
    records = app.stream(f"{PREFIX}-in", key=Text(), value=Text())
    records.sink(RedisSink(URL, stream="stream", field="n", max_rows=100))
    records.sink(RedisSink(URL, list="list", max_rows=100))
    records.map(lambda value: {"n": value}).sink(RedisSink(URL, hashes="hash:", max_rows=100))
