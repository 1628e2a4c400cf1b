"""The processor that forwards alerts about the traffic of paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.log_analysis.alert import CALM, Alert, Rule, Watch, watched
from streams import Json, Record, key_value_store

if TYPE_CHECKING:
    from apps.log_analysis.traffic import Traffic
    from streams import Context

RULE = Rule()
WATCHES = key_value_store("alert-watches", value=Json(Watch))


class Watcher:
    """Applies the rule to the traffic of each path, window by window, and forwards alerts."""

    def process(self, record: Record[str, Traffic], context: Context) -> None:
        """Process one window of one path."""
        store, traffic = context.store(WATCHES.name), record.value
        before = store.get(traffic.path) or CALM
        after = watched(before, traffic, RULE)
        if after != before:
            # Most paths have no errors, so only the others are stored.
            store.put(traffic.path, None if after == CALM else after)
        if after.raised != before.raised:
            alert = Alert(
                traffic.path, "raised" if after.raised else "cleared", traffic.end, traffic.error_share
            )
            context.forward(Record(record.key, alert, record.timestamp))
