"""Switches between the apps of a blue/green pair: each input has its result once and in order."""

from __future__ import annotations

from tests.support.pair import PEEKED, Pair


def test_green_continues_where_blue_ends() -> None:
    pair = Pair()
    pair.start("blue")
    pair.send(30)
    pair.settle()
    pair.start("green")
    pair.settle()
    assert {name for name, _ in PEEKED} == {"blue"}
    pair.send(30)
    pair.turn(3)
    pair.send(30)
    result = pair.switch("green")
    assert (result.emitter, result.before, result.already) == ("green", "blue", False)
    pair.send(40)
    pair.check()
    assert {name for name, _ in PEEKED} == {"blue", "green"}
    assert len(PEEKED) == len(set(PEEKED)) == len(pair.results("plain"))
