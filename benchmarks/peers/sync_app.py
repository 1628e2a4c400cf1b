"""The app of the data sync benchmark: captures a table into a topic, and writes it to a target if given."""

from __future__ import annotations

import os
from typing import Any

from streams import App, Json
from streams.connectors.change_json import ChangeJson
from streams.connectors.debezium import Debezium
from streams.connectors.postgres import PostgresSink

NAME = os.environ.get("BENCH_NAME", "bench")
TARGET = os.environ.get("BENCH_TARGET")

app = App(NAME, create_topics=True)
app.source(
    Debezium.postgres(os.environ.get("BENCH_SOURCE", "host=nowhere"), ["public.items"]), store="items"
).to_change_topics(NAME)
if TARGET:
    app.stream(f"{NAME}.public.items", key=Json(dict[str, Any]), value=ChangeJson(), tombstones=True).sink(
        PostgresSink(TARGET, "items")
    )
