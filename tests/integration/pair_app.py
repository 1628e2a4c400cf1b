"""The two apps of a blue/green pair, as the tests run them as processes: the same program under two names."""

from __future__ import annotations

import os
from typing import Any

from streams import App, Context, Json, Record, Text, Tumbling, key_value_store

PREFIX = os.environ["PAIR_PREFIX"]

app = App(f"{PREFIX}-{os.environ['PAIR_APP']}", blue_green=f"{PREFIX}-pair")


class Numbered:
    """Numbers the records of each group, so that lost and repeated state shows in the results."""

    def open(self, context: Context) -> None:
        self.seen = context.store("numbers")

    def process(self, record: Record[str, Any], context: Context) -> None:
        number = (self.seen.get(record.key) or 0) + 1
        self.seen.put(record.key, number)
        context.forward(record.with_(value={"number": number, **record.value}))


orders = app.stream(f"{PREFIX}-in", key=Text(), value=Json(dict[str, Any]))
orders.filter(lambda order: order["n"] % 3 > 0).to(f"{PREFIX}-plain")
grouped = orders.key_by(lambda order: f"g{order['n'] % 8}").process(
    Numbered, stores=[key_value_store("numbers", value=Json(int))]
)
grouped.to(f"{PREFIX}-numbered")
grouped.group_by(lambda value: value["key"]).window(Tumbling(seconds=1)).count("windows").final().to(
    f"{PREFIX}-windowed"
)
