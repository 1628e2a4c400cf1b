"""The page of workers and the group."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Text
from streams.console import recent_reports
from streams.console.rebalance_history import OTHERS, rebalance_rows
from streams.console.recent_reports import MemberRebalance
from tests.support.waiting import wait_until
from tests.support.worker_reports import console_of, milliseconds, partition, rebalance, report, task

if TYPE_CHECKING:
    from streams.monitoring.worker_report import WorkerReport

PATH = "/apps/shop/workers"


def shop() -> App:
    app = App("shop")
    app.stream("orders", value=Text()).filter(bool, name="keep").to("out")
    return app


def plain(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def figure(text: str, name: str) -> str:
    found = re.search(rf'<div class="figure"><b[^>]*>(.*?)</b><span>{name}</span>', text)
    assert found is not None, text
    return plain(found[1])


def wanted(*parts: tuple[float | None, float | None]) -> list[WorkerReport]:
    return [
        report(f"w{number}", workers_wanted=want, workers_useful=useful)
        for number, (want, useful) in enumerate(parts)
    ]


def test_each_worker_has_a_row_and_an_address_where_none_answers_too():
    one = report(
        "a",
        partition(0),
        partition(1),
        tasks=[task("0_0"), task("0_1")],
        transactions_aborted=3,
        condition="falling behind",
    )
    other = report("b", state="stopping", problems={"warehouse": "connection refused"}, memory_bytes=None)
    with console_of(shop(), one, other, silent=1) as (client, workers):
        text = plain(client.get(PATH).text)
        addresses = workers.addresses
    assert "2 + 1 silent workers that answer" in text
    assert "127.0.0.1:1 silent unknown: no worker of shop answers there" in text
    for address in addresses:
        assert address in text
    assert f"a {addresses[0]} falling behind since" in text
    assert f"b {addresses[1]} stopping since" in text
    assert "version 1.2.3" in text
    assert "warehouse cannot be used: connection refused (b)" in text
    assert "3 transactions aborted since the start" in text


def test_busy_shares_are_those_of_the_last_seconds_by_stage(monkeypatch):
    monkeypatch.setattr(recent_reports, "SHORTEST_MILLISECONDS", 1)
    begun = milliseconds()

    def at(moment: int, seconds: float):
        spent = {"poll": 100.0, "decode": seconds, "process": 6 * seconds, "produce": 0.0, "commit": seconds}
        return report("a", at=moment, busy_seconds=spent)

    with console_of(shop(), at(begun - 10_000, 5.0)) as (client, workers):
        assert "stages" not in client.get(PATH).text
        workers.reports["a"] = at(begun, 6.0)
        text = wait_until(
            lambda: found if 'class="stages"' in (found := client.get(PATH).text) else "", what="shares"
        )
    assert "decode 10%, process 60%, produce 0%, commit 10%" in text
    assert '<rect class="stage-process" x="10.0" width="60.0"' in text
    assert '<span class="busy-share">80%</span>' in text


@pytest.mark.parametrize(
    ("parts", "expected", "sentence"),
    [
        (((0.6, 0.6), (0.9, 0.9)), ("2", "2"), "As many as are needed run"),
        (((1.9, 1.9), (1.8, 1.8)), ("4", "4"), "2 more are needed"),
        (((0.1, 0.1), (0.2, 0.2)), ("1", "1"), "1 would do"),
        (((0.0, 0.0), (0.0, 0.0)), ("0", "0"), "1 would do"),
        (((4.0, 1.0), (0.5, 0.5)), ("5", "2"), "more than 2 do not help"),
        # Three times a third is one.
        (((1 / 3, 1 / 3), (2 / 3, 2 / 3)), ("1", "1"), "1 would do"),
        (((0.6, 0.6), (None, None)), ("unknown", "unknown"), "w1 cannot say what its partitions need"),
    ],
)
def test_the_parts_of_workers_are_what_the_app_needs(parts, expected, sentence):
    with console_of(shop(), *wanted(*parts)) as (client, _):
        text = client.get(PATH).text
    assert (figure(text, "workers wanted"), figure(text, "at most useful")) == expected
    assert sentence in plain(text)


def test_a_worker_that_does_not_answer_makes_what_is_needed_unknown():
    with console_of(shop(), *wanted((0.6, 0.6)), silent=1) as (client, _):
        text = client.get(PATH).text
    assert figure(text, "workers wanted") == "unknown"


def change(worker: str, *arguments: Any) -> MemberRebalance:
    return MemberRebalance(worker, rebalance(*arguments))


def test_changes_of_several_workers_are_one_rebalance_that_says_who_caused_it():
    changes = [
        change("b", 203_000, "assigned", "members changed", "orders-0", "orders-1"),
        change("a", 202_000, "lost", "poll deadline", "orders-0", "orders-1"),
        change("c", 120_000, "assigned", "joined", "orders-3"),
        change("b", 119_000, "revoked", "members changed", "orders-3"),
        change("b", 60_000, "assigned", "members changed", "orders-3"),
    ]
    found = rebalance_rows(changes)
    assert [row.cause for row in found] == [
        "a did not poll for poll_deadline, as its code did not return",
        "c joined",
        OTHERS,
    ]
    assert [(row.workers, row.assigned, row.revoked, row.lost, row.bad) for row in found] == [
        (2, 2, 0, 2, True),
        (2, 1, 1, 0, False),
        (1, 1, 0, 0, False),
    ]
    assert (found[0].begun, found[0].ended) == (201_750, 203_000)


def test_a_storm_is_not_one_rebalance():
    changes = [
        change("a", moment * 1000, "assigned", "members changed", "o-1") for moment in range(600, 0, -5)
    ]
    assert len(rebalance_rows(changes)) > 5


def test_rebalances_are_in_one_table_with_filters_and_details():
    now = milliseconds()
    one = report("a", rebalances=[rebalance(now - 90_000, "assigned", "joined", "orders-0", "orders-1")])
    other = report(
        "b",
        rebalances=[
            rebalance(now - 30_000, "lost", "session timed out", "orders-2"),
            rebalance(now - 29_000, "assigned", "joined", "orders-2"),
        ],
    )
    with console_of(shop(), one, other) as (client, _):
        text = client.get(PATH).text
        assert text.index("b was not heard of for as long as a session lasts") < text.index(">a joined<")
        assert "orders-2" not in text
        (opened,) = re.findall(r"rebalance=(\d+)#rebalances\" aria-expanded=\"false\">b was not", text)
        details = plain(client.get(f"{PATH}?rebalance={opened}").text)
        assert (
            "b lost the worker was not heard of for as long as a session lasts 0.2 s 1: orders-2" in details
        )
        only = client.get(f"{PATH}?reason=joined&worker=a").text
        assert ">a joined<" in only
        assert "b was not heard of" not in only
        assert "No rebalance is like that" in client.get(f"{PATH}?reason=removed").text
        assert client.get(f"{PATH}?rebalance=x&sort=x").status_code == 200


def test_members_are_looked_up_and_the_group_may_have_none():
    with console_of(shop(), report("a")) as (client, _):
        wait_until(lambda: "The group has no members." in client.get(PATH).text, what="the members")
