"""The default policy, its overrides, errors that stop an app whatever the policy, and what is logged."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from streams import App, ConfigurationError, Json, Record, Text, dead_letter, fail, milliseconds, retry, skip
from streams.errors import ProcessingError, TopologyError
from streams.testing import TopologyDriver
from tests.support.logs import capture_logs


class Order(msgspec.Struct):
    item: str


def refuse(value: str) -> str:
    if value.startswith("bad"):
        raise ValueError(f"no {value}")
    return value


def copying(policy: Any = None, **options: Any) -> App:
    app = App("copy", dead_letter_limit=1.0, **options)
    app.stream("in", value=Text()).map(refuse, on_error=policy, name="work").to("out")
    return app


def test_a_step_that_is_given_no_policy_makes_dead_letters():
    driver = TopologyDriver(copying())
    driver.send_all("in", [Record(None, value, 0) for value in ("a", "bad", "b")])
    assert driver.values("out") == ["a", "b"]
    assert [letter.value for letter in driver.dead_letters()] == [b"bad"]


def test_a_step_s_policy_overrides_the_app_s_default():
    with pytest.raises(ProcessingError, match="no bad"):
        TopologyDriver(copying(on_error=fail)).send("in", "bad")
    driver = TopologyDriver(copying(dead_letter, on_error=fail))
    driver.send("in", "bad")
    assert len(driver.dead_letters()) == 1
    driver = TopologyDriver(copying(on_error=skip))
    driver.send("in", "bad")
    assert driver.skipped() == {"work": 1}


def every_step(app: App) -> App:
    stream = app.stream("in", key=Text(), value=Text())
    table = app.table("table", key=Text(), value=Text())
    stream.filter(bool).key_by(str).merge(stream).to("merged", value=Text())
    stream.branch({"one": bool})["one"].to("branched")
    stream.group_by(str).count("n").to_stream().to("counts")
    stream.join(table, lambda one, other: one + other).to("joined", value=Text())
    stream.join(
        app.stream("other", key=Text(), value=Text()),
        lambda one, _: one,
        within=milliseconds(1),
        store="pairs",
    ).to("p")
    stream.to_table("kept").join(table, lambda one, other: one + other).to("tables")
    return app


@pytest.mark.parametrize("policy", [dead_letter, skip, fail, retry(2)])
def test_all_steps_of_an_app_have_its_policy(policy):
    topology = every_step(App("all", on_error=policy)).topology
    assert {node.policy for node in topology.nodes} == {policy}
    assert {node.policy for node in every_step(App("all")).topology.nodes} == {dead_letter}


def test_an_app_s_policy_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match="on_error takes a policy, got 'skip'"):
        App("x", on_error="skip")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- mistakes of the program


async def fetch(value: str) -> str:
    return value


@pytest.mark.parametrize("policy", [dead_letter, skip, retry(3, then=dead_letter)])
def test_a_function_that_gives_nothing_but_awaitables_stops_the_app(policy):
    app = App("copy")
    app.stream("in", value=Text()).map(lambda value: fetch(value), on_error=policy).to("out")  # noqa: PLW0108 - a plain function that gives a coroutine is what this is about
    driver = TopologyDriver(app)
    with pytest.raises(ProcessingError, match=r"in-0 offset 0.*a coroutine of fetch.*use map_async"):
        driver.send_all("in", [Record(None, "a", 0), Record(None, "b", 0)])
    assert driver.topics == []


def test_a_processor_that_forwards_to_a_step_that_is_not_there_stops_the_app():
    class Lost:
        def process(self, record: Record[Any, Any], context: Any) -> None:
            context.forward(record, to="nowhere")

    app = App("copy")
    app.stream("in", value=Text()).process(Lost, on_error=dead_letter).to("out")
    with pytest.raises(ProcessingError, match="forwards to 'nowhere'"):
        TopologyDriver(app).send("in", "a")


def order_of(value: str) -> Order:
    return Order(value)


def test_a_serde_that_cannot_write_what_is_known_of_the_values_is_refused_when_the_step_is_made():
    orders = App("copy").stream("in", value=Text()).map(order_of)
    refused = r"values are of type Order, but Text writes only str\n.*Json\(Order\)"
    text: Any = Text()
    with pytest.raises(TopologyError, match=f"step 'to-out': {refused}"):
        orders.to("out", value=text)
    with pytest.raises(TopologyError, match=refused):
        orders.to_table("kept", value=text)
    with pytest.raises(TopologyError, match=refused):
        orders.repartition("again", value=text)
    with pytest.raises(TopologyError, match=refused):
        orders.group_by(lambda order: order.item, value=text)
    orders.to("out", value=Json(Order))


# --- what is logged


def test_a_step_that_continues_without_a_record_is_logged_once_for_each_kind_of_error():
    def work(value: str) -> str:
        raise KeyError(value) if value == "key" else ValueError(value)

    app = App("copy", dead_letter_limit=1.0)
    app.stream("in", value=Text()).map(work, name="work").to("out")
    driver = TopologyDriver(app, partitions=2)
    with capture_logs() as logs:
        for value, partition in [("a", 1), ("b", 0), ("key", 0), ("c", 1), ("key", 1)]:
            driver.send("in", value, partition=partition)
    first, second = [line for line in logs if line["event"] == "step failed"]
    assert first["step"] == second["step"] == "work"
    assert re.fullmatch(r"work, .*test_error_policies.py:\d+", first["code"])
    assert (first["error"], second["error"]) == ("ValueError: a", "KeyError: 'key'")
    assert (first["record"], second["record"]) == ("in-1 offset 0", "in-0 offset 1")
    assert (first["topic"], first["on_error"]) == ("copy-dead-letters", "dead_letter")
    assert re.search(r"test_error_policies.py:\d+$", first["raised_at"])
    assert re.search(r"test_error_policies.py:\d+$", first["declared_at"])
    assert len(driver.dead_letters()) == 5


# --- the driver


def test_a_driver_with_unread_dead_letters_raises_the_first_one_s_error_when_closed():
    with (
        pytest.raises(
            ProcessingError,
            match=r"2 dead letters were not read.*'work'.*in-0 offset 1: ValueError: no bad 1",
        ) as raised,
        TopologyDriver(copying()) as driver,
    ):
        driver.send_all("in", [Record(None, value, 0) for value in ("a", "bad 1", "bad 2")])
    assert "driver.dead_letters()" in str(raised.value)
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_driver_whose_dead_letters_were_read_or_are_not_to_be_checked_closes():
    with TopologyDriver(copying()) as driver:
        driver.send("in", "bad")
        driver.restart()
        assert len(driver.dead_letters()) == 1
    with TopologyDriver(copying(), check_dead_letters=False) as driver:
        driver.send("in", "bad")


def test_a_failing_test_is_not_hidden_by_dead_letters():
    def failing_test() -> None:
        with TopologyDriver(copying()) as driver:
            driver.send("in", "bad")
            raise AssertionError("the test's own")

    with pytest.raises(AssertionError, match="the test's own"):
        failing_test()
