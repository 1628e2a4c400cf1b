"""The order in which a bounded run processes subtopologies."""

from __future__ import annotations

from typing import Any

from streams import App, Json, Text
from streams.replay.bounded.stages import stages


def numbers(app: App) -> list[tuple[int, ...]]:
    return [tuple(part.number for part in stage.parts) for stage in stages(app.topology)]


def test_each_stage_follows_those_that_feed_it():
    app = App("stages")
    orders = app.stream("orders", key=Text(), value=Json(dict[str, Any]))
    by_buyer = orders.group_by(lambda order: order["buyer"]).count("by-buyer")
    by_buyer.to_stream().key_by(str).group_by_key().count("by-count").to("result", value=Json())
    assert numbers(app) == [(0,), (1,), (2,)]
    assert [len(stage.units({"orders": 3, **repartitions(app, 2)})) for stage in stages(app.topology)] == [
        3,
        2,
        2,
    ]


def repartitions(app: App, count: int) -> dict[str, int]:
    return dict.fromkeys(app.topology.repartitions, count)


def test_subtopologies_that_feed_each_other_are_one_stage_of_one_unit():
    app = App("stages")
    orders = app.table("orders", key=Text(), value=Json(dict[str, Any]))
    buyers = app.table("buyers", key=Text(), value=Json(dict[str, Any]))
    joined = orders.join_foreign_key(
        buyers,
        lambda order: order["buyer"],
        lambda order, buyer: [order, buyer],
        store="joined",
        result=Json(),
    )
    joined.to("result")
    (stage,) = stages(app.topology)
    assert len(stage.parts) == 2
    (unit,) = stage.units({"orders": 3, "buyers": 2, **repartitions(app, 3)})
    assert len(unit) == 6
