"""The app under test of the data sync campaign: one table, captured, and written to three targets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from streams import App, Json
from streams.connectors.change_json import ChangeJson
from streams.connectors.debezium import Debezium
from streams.connectors.postgres import PostgresSink
from streams.connectors.sqlite import SqliteSink

if TYPE_CHECKING:
    from streams.connectors.change import Change

SOURCE, TARGET, LITE = (os.environ.get(name, "") for name in ("SYNC_SOURCE", "SYNC_TARGET", "SYNC_LITE"))

app = App("synced", create_topics=True)
app.source(Debezium.postgres(SOURCE or "host=nowhere", ["public.items"]), store="items").to_change_topics(
    "shop", partitions=3
)
changes = app.stream(
    "shop.public.items", key=Json(dict[str, Any]), value=ChangeJson(), tombstones=True, name="changes"
)


def is_history(change: Change[dict[str, Any]] | None) -> bool:
    """Whether it is an event of the table, and not of a snapshot."""
    return change is not None and change.op in {"c", "u", "d"}


def history(change: Change[dict[str, Any]] | None) -> dict[str, Any]:
    """What the history keeps: a row that was written twice is seen there."""
    assert change is not None
    row = change.after or change.before
    assert row is not None
    return {"op": change.op, "id": row["id"], "version": row["version"] if change.after else None}


changes.sink(PostgresSink(TARGET or "host=nowhere", "items"), store="items")
changes.sink(SqliteSink(LITE or "nowhere.db", table="items", key=("id",)), store="items-lite")
changes.filter(is_history).map(history).sink(
    PostgresSink(TARGET or "host=nowhere", "history", mode="append"), store="history"
)
