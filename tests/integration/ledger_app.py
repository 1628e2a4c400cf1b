"""An app that the tests run as processes, with a fault in a step: values that begin with ``lost`` vanish.

Only with ``LEDGER_FAULT``: commands that import the app share a process with other tests.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from streams import AlertRule, Alerts, App, Text, seconds
from streams.operators.stateless import Filter

if TYPE_CHECKING:
    from streams.operators import Binding, Children, Forward
    from streams.records import Batch

PREFIX = os.environ["LEDGER_PREFIX"]

app = App(
    f"{PREFIX}-ledger",
    alerts=Alerts(rules={"StreamsLedgerDifference": AlertRule(lasting=seconds(0))}),
)
values = app.stream(f"{PREFIX}-in", value=Text()).filter(lambda value: value != "filtered", name="choose")
values.to(f"{PREFIX}-out", value=Text())

bind = Filter.bind


def faulty(operator: Filter, step: Binding, children: Children) -> Forward:
    def losing(forward: Forward) -> Forward:
        def run(batch: Batch[Any, Any]) -> None:
            kept = [row for row, value in enumerate(batch.values) if not value.startswith("lost")]
            if kept:
                forward(batch.select(kept))

        return run

    return bind(operator, step, {name: losing(child) for name, child in children.items()})


if "LEDGER_FAULT" in os.environ:
    setattr(Filter, "bind", faulty)  # noqa: B010 - the fault, which the types would not allow
