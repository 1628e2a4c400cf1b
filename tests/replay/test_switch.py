"""Switches between the apps of a blue/green pair: each input has its result once and in order."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Text
from streams.broker import NewTopic
from streams.errors import BrokerError, ConfigurationError, SwitchAborted, TopicError
from streams.records import Output
from streams.runtime.switch_topic import SwitchPhase
from tests.support.connectors import Feed, MemorySource
from tests.support.logs import capture_logs
from tests.support.pair import PEEKED, Chaos, JoiningPair, Pair, SinkPair

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.replay.switch import Switch

ACTIVE = [SwitchPhase.FREEZING, SwitchPhase.ADVANCING, SwitchPhase.SEALING]


def running(make: Callable[..., Pair] = Pair, **settings: Any) -> Pair:
    """A pair of which blue emits, with one worker each."""
    pair = make(**settings)
    pair.start("blue")
    pair.send(10)
    pair.settle()
    pair.start("green")
    pair.settle()
    return pair


def in_phase(pair: Pair, phase: SwitchPhase) -> Switch:
    """The command to switch to green, as soon as the phase has begun."""
    command = pair.command("green")
    for _ in range(3_000):
        command.step()
        record = command.status()["phase"]
        if record == phase.value:
            return command
        pair.turn()
    raise AssertionError(f"never {phase.value}: {command.missing}")


def drive(pair: Pair, command: Switch, rounds: int) -> None:
    for _ in range(rounds):
        command.step()
        pair.turn()


@pytest.mark.parametrize("make", [Pair, JoiningPair, SinkPair])
def test_green_continues_where_blue_ends_and_back(make: Callable[..., Pair]) -> None:
    pair = running(make)
    for app, other in (("green", "blue"), ("blue", "green"), ("green", "blue")):
        pair.send(20)
        pair.turn(2)
        pair.send(10)
        result = pair.switch(app)
        assert (result.emitter, result.before, result.already) == (app, other, False)
        assert result.pause is not None
        again = pair.switch(app)
        assert (again.emitter, again.pause, again.already) == (app, result.pause, True)
    pair.send(20)
    pair.check()


def test_effects_of_the_emitter_only() -> None:
    pair = running()
    assert {name for name, _ in PEEKED} == {"blue"}
    pair.switch("green")
    pair.send(10)
    pair.settle()
    assert Counter(name for name, _ in PEEKED).keys() == {"blue", "green"}
    assert len(PEEKED) == len(set(PEEKED)) == len(pair.results("plain"))
    switchings = {app: worker.switching for (app, _), worker in pair.alive.items()}
    assert {app: item is not None and item.muted for app, item in switchings.items()} == {
        "blue": True,
        "green": False,
    }
    assert all(item is not None and item.dropped for item in switchings.values())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [Pair, JoiningPair, SinkPair])
def test_kills_at_any_moment(make: Callable[..., Pair], seed: int) -> None:
    Chaos(make(), seed, workers=2 + seed % 2).run(3)


@pytest.mark.parametrize("seed", range(2))
def test_at_least_once_loses_nothing(seed: int) -> None:
    pair = Pair(guarantee="at_least_once")
    pair.check = pair.finish  # type: ignore[method-assign]  # results may be repeated
    Chaos(pair, seed).run(3)
    found = {value["id"] for _, value in pair.results("plain")}
    assert found == {f"{key}-{n}" for key, count in pair.sent.items() for n in range(count) if n % 3}
    found = {value["id"] for _, value in pair.results("numbered")}
    assert found == {f"{key}-{n}" for key, count in pair.sent.items() for n in range(count)}


@pytest.mark.parametrize("phase", ACTIVE)
def test_command_that_is_gone(phase: SwitchPhase) -> None:
    pair = running()
    pair.send(10)
    gone = in_phase(pair, phase)
    before = len(pair.results("plain"))
    pair.turn(3)
    with capture_logs() as logs:
        pair.clock.advance(31)
        pair.until(lambda: pair.command("blue").status()["phase"] == "running", 20)
    assert any("not finished within 30 s" in str(line.get("reason")) for line in logs)
    pair.settle()
    assert len(pair.results("plain")) > before
    # It comes back: what it writes now is refused.
    with pytest.raises(SwitchAborted, match="not finished within 30 s"):
        drive(pair, gone, 10)
    assert pair.command("blue").status()["emitter"] == "blue"
    pair.switch("green")
    pair.check()


@pytest.mark.parametrize("phase", ACTIVE)
def test_late_change_of_a_command_that_was_replaced(phase: SwitchPhase) -> None:
    pair = running()
    first = in_phase(pair, phase)
    second = pair.command("green")
    assert second.abort("requested").emitter == "blue"
    with pytest.raises(SwitchAborted, match="requested"):
        first.step()
    second.close()
    pair.send(10)
    pair.check()


def test_a_switch_to_another_app_is_not_disturbed() -> None:
    pair = running()
    in_phase(pair, SwitchPhase.FREEZING)
    with pytest.raises(SwitchAborted, match="is being switched to 'green'"):
        pair.command("blue").step()


def test_waits_until_green_has_caught_up_and_has_workers() -> None:
    pair = running()
    pair.stop("green")
    pair.send(40)
    pair.settle()
    seen: list[Any] = []
    command = pair.command("green", max_lag=10, waiting=seen.append)
    for _ in range(5):
        assert command.step() is None
        pair.turn()
    assert command.status()["phase"] == "running"
    assert seen[-1].apart == 40 * 6
    assert seen[-1].members == {"green": 0, "blue": 1}
    pair.start("green")
    result = None
    for _ in range(3_000):
        result = result or command.step()
        pair.turn()
    assert result is not None
    assert any(item.per_second for item in seen)
    pair.check()


def test_new_partitions_during_a_switch() -> None:
    def copying(name: str, **settings: Any) -> App:
        app = App(name, blue_green="pair", **settings)
        app.stream("in", value=Text()).to("plain")
        return app

    pair = Pair(copying)
    pair.start("blue")
    pair.start("green")
    pair.send(10)
    pair.settle()
    command = in_phase(pair, SwitchPhase.ADVANCING)
    pair.broker.add_partitions("in", 3)
    with pytest.raises(SwitchAborted, match=r"in got more partitions"):
        drive(pair, command, 200)
    assert pair.switch("green").emitter == "green"
    pair.settle()
    assert len(pair.results("plain")) == sum(pair.sent.values())


def test_what_cannot_be_switched() -> None:
    pair = Pair()
    with pytest.raises(TopicError, match="no app of the pair 'pair' has ever started"):
        pair.command("green").step()
    pair.start("blue")
    with pytest.raises(TopicError, match="no worker of 'green' has ever started"):
        pair.command("green").step()
    more = App("more", blue_green="pair")
    more.stream(["in", "extra"]).to("plain")
    pair.admin.create_topics([NewTopic(name="extra", partitions=2)])
    pair.apps["more"], pair.counts["more"] = more, {"in": 2, "extra": 2}
    pair.start("more")
    with pytest.raises(ConfigurationError, match="read the same topics: only more reads extra"):
        pair.command("more").step()


def test_apps_that_cannot_be_in_a_pair() -> None:
    pair = Pair()
    pattern = App("pattern", blue_green="pair")
    pattern.stream(re.compile("in.*")).to("plain")
    source = App("source", blue_green="pair")
    source.source(MemorySource(Feed()), store="rows").to("plain")
    for app, text in ((pattern, "by a pattern"), (source, "a source connector has one position")):
        with pytest.raises(ConfigurationError, match=text):
            pair.make_worker(app, "worker")


def test_records_of_others_in_the_topic() -> None:
    pair = running()
    pair.write(Output("pair-switch", [b"switch"], [b"{}"], [0]))
    with pytest.raises(BrokerError, match="has a record that is not of a switch"):
        pair.command("green").step()
