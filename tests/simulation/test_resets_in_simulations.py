"""Resets in simulations: sound programs pass, and faults of the reset itself are found."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Text
from streams.broker.memory.admin import MemoryAdmin
from streams.replay.reset import Reset
from streams.runtime import commit_numbers
from streams.simulation import Simulator
from streams.simulation.pool import explain
from streams.simulation.resets import follows, repeats
from streams.simulation.schedule import make_schedule

if TYPE_CHECKING:
    from collections.abc import Callable
from tests.simulation.shop_apps import INPUT, NAMES, SALES, copying, last, shop


def derived() -> App:
    app = App("derived")
    names = app.table("names", key=Text(), value=Text(), store="names")
    names.group_by(lambda name: name[-1]).count("by-digit").to("by-digit")
    return app


@pytest.mark.parametrize(
    ("app", "inputs"),
    [(shop, INPUT), (copying, {"sales": SALES}), (derived, {"names": NAMES})],
    ids=["a table, counts and windows", "no state", "state of all changes of a table"],
)
def test_after_a_reset_the_results_are_those_from_the_position_on(
    app: Callable[[], App], inputs: dict[str, Any]
):
    report = last(Simulator(app(), inputs, reset=True), 30)
    assert [line for difference in report.differences for line in explain(difference)] == []
    assert report.faults["reset"] == report.schedules == 30
    assert report.faults.total() > 60


def test_results_at_least_once_may_be_repeated_after_a_reset():
    report = last(Simulator(copying(guarantee="at_least_once"), {"sales": SALES}, reset=True), 40)
    assert report.differences == []
    assert report.faults["reset"] == 40


def test_every_kind_of_reset_happens():
    seen: Counter[Any] = Counter()
    for seed in range(60):
        reset = make_schedule(seed, lambda _: {"poll": 30, "begin": 5}, ["crash"], positions=5).reset
        assert reset is not None
        seen.update([("position", reset.position), ("killed", reset.killed), ("away", reset.away)])
        seen["interrupted", reset.interrupted] += 1
    assert {name for name in seen if name[0] == "position"} == {("position", number) for number in range(5)}
    assert {("killed", True), ("killed", False), ("away", True), ("away", False)} <= set(seen)
    assert {("interrupted", number) for number in range(4)} <= set(seen)


def test_state_from_before_a_reset_that_is_still_used_is_found(monkeypatch: pytest.MonkeyPatch):
    """As if workers did not know the epoch: their disks look as if they belonged to the offsets."""
    monkeypatch.setattr(commit_numbers, "epoch", lambda _: 0)
    report = last(Simulator(shop(), INPUT, reset=True), 100)
    (difference,) = report.differences
    assert difference.schedule.reset is not None
    assert "reset of the group" in "\n".join(explain(difference))


def test_changelogs_that_are_not_emptied_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Reset, "_empty_changelog", lambda *_: None)
    (difference,) = last(Simulator(shop(), INPUT, reset=True), 100).differences
    assert difference.schedule.reset is not None


def test_repartition_topics_that_are_not_emptied_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MemoryAdmin, "delete_records", lambda *_: None)
    keep = vars(Reset)["_empty_repartitions"]

    def beginning(self: Reset) -> Any:
        return dict.fromkeys(keep(self), 0)

    monkeypatch.setattr(Reset, "_empty_repartitions", beginning)
    (difference,) = last(Simulator(shop(), INPUT, reset=True), 100).differences
    assert difference.schedule.reset is not None


@pytest.mark.parametrize(
    ("got", "ordered", "judged"),
    [
        ("abcabc", True, True),
        ("aabc", True, True),
        ("abc", True, True),
        ("bcabc", True, False),
        ("ab", True, False),
        ("abcab", True, False),
        ("cabca", False, True),
        ("aabca", False, False),
        ("ab", False, False),
    ],
)
def test_results_are_some_first_ones_and_then_all(got: str, ordered: bool, judged: bool):
    assert follows("abc", "abc", got, ordered=ordered) is judged
    assert repeats("abc", "abc", got) is ({*"abc"} == {*got})
