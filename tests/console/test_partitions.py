"""The page of partitions and tasks."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING

import pytest

from streams import App, Text
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.console import recent_reports
from tests.support.waiting import wait_until
from tests.support.worker_reports import console_of, milliseconds, partition, report, task

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from streams.monitoring.worker_report import WorkerReport

PATH = "/apps/shop/partitions"


def shop() -> App:
    app = App("shop")
    app.stream(["orders", "returns"], value=Text()).filter(bool, name="keep").to("out")
    return app


def rows(client: TestClient, query: str = "") -> list[list[str]]:
    """The texts of the cells of the table of partitions."""
    text = client.get(PATH + query).text
    if 'id="partitions"' not in text:
        return []
    body = text.partition('id="partitions"')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    return [
        [
            " ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split())
            for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
        ]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    ]


def names(client: TestClient, query: str = "") -> list[str]:
    return [row[0].split()[0] for row in rows(client, query)]


@pytest.fixture
def broker() -> MemoryBroker:
    made = MemoryBroker()
    made.admin().create_topics(
        [NewTopic(name="orders", partitions=6), NewTopic(name="returns", partitions=1)]
    )
    return made


def crowd() -> list[WorkerReport]:
    return [
        report(
            "a",
            partition(0, lag=3, waiting_seconds=1.0, position=2),
            partition(1, lag=900, waiting_seconds=12.0, processing_rate=0.5, caught_up_in_seconds=None),
            partition(2, problem="function enrich does not return", lag=1, waiting_seconds=2.0),
        ),
        report(
            "b",
            partition(3, lag=None, waiting_seconds=None, end=None, arrival_rate=None, age_seconds=None),
            partition(4, lag=40, waiting_seconds=300.0, deleted_in_seconds=7_000.0),
            partition(0, topic="returns", task="0_0"),
        ),
    ]


def test_the_worst_is_first_and_a_partition_without_a_worker_is_unknown(broker):
    with console_of(shop(), *crowd(), broker=broker) as (client, _):
        wait_until(lambda: "orders-5" in client.get(PATH).text, what="the topics are read")
        assert names(client) == [
            "orders-2",
            "orders-5",
            "orders-3",
            "orders-4",
            "orders-1",
            "orders-0",
            "returns-0",
        ]
        found = {row[0].split()[0]: row for row in rows(client)}
        cards = client.get(PATH).text
    assert found["orders-2"][0] == "orders-2 function enrich does not return"
    assert found["orders-5"][1] == "unknown: no worker reports it"
    # Unknown is never 0.
    assert found["orders-3"][1:4] == ["unknown", "unknown", "unknown"]
    assert found["orders-3"][8] == "unknown"
    assert found["orders-3"][12] == "unknown"
    assert found["returns-0"][1:5] == ["0 s", "0", "1.0/s", "1.0/s"]
    assert found["orders-4"][6] == "2 h" or found["orders-4"][6] == "117 min"
    # It does not catch up; one that has nothing to do says nothing.
    assert found["orders-1"][5] == "not"
    assert not found["returns-0"][5]
    # A sum that lacks a partition is unknown.
    assert re.search(r"<b><span class=\"unknown\">unknown</span></b><span>lag", cards)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?sort=lag", ["orders-1", "orders-4", "orders-0", "orders-2", "returns-0", "orders-3"]),
        ("?sort=partition", ["orders-0", "orders-1", "orders-2", "orders-3", "orders-4", "returns-0"]),
        ("?sort=-partition", ["returns-0", "orders-4", "orders-3", "orders-2", "orders-1", "orders-0"]),
        ("?sort=deleted&show=deleted", ["orders-4"]),
        ("?topic=returns", ["returns-0"]),
        ("?worker=a&sort=waiting", ["orders-1", "orders-2", "orders-0"]),
        ("?show=problem", ["orders-2"]),
        ("?show=late", ["orders-4"]),
        ("?show=lag&worker=b", ["orders-3", "orders-4"]),
        ("?topic=nothing", []),
        ("?sort=nothing&show=nothing&page=x", ["orders-2", "orders-3", "orders-4"]),
    ],
)
def test_order_and_filters_are_in_the_address(query, expected):
    with console_of(shop(), *crowd()) as (client, _):
        found = names(client, query)
    assert found[: len(expected)] == expected
    assert bool(found) == bool(expected)


def test_headings_sort_and_turn_the_order_and_keep_the_filter():
    with console_of(shop(), *crowd()) as (client, _):
        text = client.get(f"{PATH}?worker=a").text
        assert "/apps/shop/partitions?sort=lag&amp;worker=a" in text
        assert "/apps/shop/partitions?sort=-lag&amp;worker=a" in client.get(f"{PATH}?worker=a&sort=lag").text


def test_many_partitions_are_on_pages():
    many = [partition(number, lag=1_000 - number) for number in range(450)]
    with console_of(shop(), report("a", *many)) as (client, _):
        first, last = rows(client, "?sort=lag"), rows(client, "?sort=lag&page=3")
        text = client.get(f"{PATH}?sort=lag&page=2").text
        assert rows(client, "?sort=lag&page=99") == last
    assert [len(first), first[0][0], len(last), last[-1][0]] == [200, "orders-0", 50, "orders-449"]
    assert "201 to 400 of 450" in text
    assert "/apps/shop/partitions?sort=lag&amp;page=3" in text


def test_a_restore_says_how_long_it_will_take(monkeypatch):
    monkeypatch.setattr(recent_reports, "SHORTEST_MILLISECONDS", 1)
    begun = milliseconds()

    def at(moment: int, done: int):
        return report(
            "a", partition(1), at=moment, tasks=[task("0_1", restored=done, to_restore=9_000), task("0_2")]
        )

    with console_of(shop(), at(begun - 10_000, 1_000)) as (client, workers):
        text = client.get(PATH).text
        assert "done in <span" in text, "nothing is known of its rate yet"
        workers.reports["a"] = at(begun, 5_000)
        wait_until(lambda: "400/s" in client.get(PATH).text, what="the rate of the restore")
        (row,) = rows(client, "?show=restoring")
        text = client.get(PATH).text
    assert row[0] == "orders-1 restoring 56%, done in 10 s"
    assert '<progress value="0.556" max="1"' in text


def test_names_are_escaped():
    evil = "<script>alert(1)</script>"
    with console_of(shop(), report(evil, partition(0, problem=evil))) as (client, _):
        text = client.get(f"{PATH}?topic={evil}").text + client.get(PATH).text
    assert evil not in text
    assert "&lt;script&gt;" in text
