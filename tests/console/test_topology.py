"""The page of the topology, and what real workers say on all pages of an app."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from starlette.testclient import TestClient

from streams import Alerts, App, Json, Text, count
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.console import collector, recent_reports
from streams.console.mounted import served
from streams.console.topology_drawing import NODE, draw
from streams.console.topology_graph import read_graph
from streams.records import Output
from tests.support.waiting import wait_until
from tests.support.worker_reports import cause, console_of, milliseconds, partition, report, step, task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATH = "/apps/shop/topology"


def shop(broker: MemoryBroker | None = None, **settings: Any) -> App:
    """An app with a join, a repartition and a second input."""

    class Local(App):
        def broker(self, **_: Any) -> MemoryBroker:
            assert broker is not None
            return broker

    def check(value: dict[str, Any]) -> dict[str, Any]:
        if value["amount"] < 0:
            raise ValueError("an amount below 0")
        return value

    def enrich(order: dict[str, Any], name: str | None) -> dict[str, Any]:
        return order | {"name": name}

    app = Local("shop", **settings)
    customers = app.table("customers", key=Text(), value=Text())
    orders = app.stream("orders", key=Text(), value=Json(dict[str, Any])).map(check, name="check")
    joined = orders.left_join(customers, enrich, name="enrich")
    joined.to("enriched")
    joined.key_by(lambda order: str(order["amount"] % 2), name="by-amount").group_by_key().aggregate(
        "sales", count()
    )
    app.stream("clicks", value=Text()).peek(lambda _: None, name="look")
    return app


def plain(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def node(text: str, name: str) -> str:
    """What is drawn of a node."""
    found = re.search(rf'<a class="(?P<kind>node[^"]*)"[^>]*aria-label="\w+ {name}".*?</a>', text, re.DOTALL)
    assert found is not None, text
    return found[0]


def test_the_graph_has_every_node_its_topics_and_its_stores():
    with console_of(shop(), report("a", tasks=[task("0_0"), task("0_1"), task("1_0")])) as (client, _):
        text = client.get(PATH).text
    drawing = text.partition('<svg class="topology"')[2].partition("</svg>")[0]
    for name in ("orders", "customers", "check", "enrich", "by-amount", "sales", "look", "clicks"):
        assert node(drawing, name)
    assert re.findall(r"Subtopology (\d)<tspan[^>]*> · (\d) task", drawing) == [
        ("0", "2"),
        ("1", "1"),
        ("2", "0"),
    ]
    names = re.findall(r'<text class="topic-name"[^>]*>([^<]+)<', drawing)
    assert sorted(names) == ["clicks", "customers", "enriched", "orders", "shop-sales-repartition"]
    assert 'class="store-name"' in node(drawing, "sales")
    assert "connector" not in drawing
    # The same as text.
    table = plain(text.partition('id="steps"')[2])
    assert re.search(r"check map check unknown unknown unknown 0 0 0 orders", table)
    assert "customers-table" in table


def test_without_workers_figures_are_unknown_and_the_graph_is_the_program_s():
    with console_of(shop(), silent=1) as (client, _):
        text = client.get(PATH).text
    assert "No worker answers: figures are unknown." in plain(text)
    assert "unknown" in node(text, "enrich")
    assert "0/s" not in text


def test_rates_shares_and_failures_are_of_all_workers_and_the_bottleneck_is_marked(monkeypatch):
    monkeypatch.setattr(recent_reports, "SHORTEST_MILLISECONDS", 1)
    begun = milliseconds()

    def at(name: str, moment: int, seconds: float, records: int):
        return report(
            name,
            partition(0 if name == "a" else 1, processing_rate=90.0),
            at=moment,
            steps=[
                step("check", records, seconds / 9, dead_letters=3),
                step("enrich", records, seconds, late=1),
                step("to-enriched", records // 2, 0.0),
                step("by-amount", 0, 0.0),
            ],
            bottlenecks=[cause("enrich")] if name == "a" else [],
        )

    first = [at("a", begun - 10_000, 1.0, 1_000), at("b", begun - 10_000, 1.0, 1_000)]
    with console_of(shop(), *first) as (client, workers):
        assert "are known once workers have been watched" in client.get(PATH).text
        workers.reports |= {"a": at("a", begun, 10.0, 1_600), "b": at("b", begun, 4.0, 1_400)}
        text = wait_until(
            lambda: found if "share-bar" in (found := client.get(PATH).text) else "", what="rates"
        )
        details = plain(client.get(f"{PATH}?step=enrich").text)
    # 600 and 400 records in 10 s; 9 and 3 of 20 s.
    assert "100/s · 60%" in plain(node(text, "enrich"))
    assert "node hot" in node(text, "enrich")
    assert "heated" in node(text, "enrich")
    assert "6 failed" in node(text, "check")
    assert "node hot" not in node(text, "check")
    assert re.search(r'class="edge flow-3"[^>]*>', text)
    assert re.search(r'class="edge-rate"[^>]*>50.0/s<', text)
    assert "step &#39;enrich&#39; takes 80% (a)" in text
    assert "enrich bottleneck join" in plain(text.partition('id="steps"')[2])
    # What a source reads is what reaches the step behind it: offsets count markers of transactions, too.
    assert "100/s" in plain(node(text, "orders"))
    assert "enrich step bottleneck close step &#39;enrich&#39; takes 80% Operator join" in details
    assert "a 60.0/s 90% 0 0 1 b 40.0/s 30% 0 0 1" in details


def test_a_cause_in_a_topic_marks_the_topic():
    partitions = [partition(number, arrival_rate=100.0 if number == 2 else 1.0) for number in range(4)]
    with console_of(shop(), report("a", *partitions)) as (client, _):
        text = client.get(PATH).text
    (hot,) = re.findall(r'<g class="topic hot".*?</g>', text, re.DOTALL)
    assert "orders" in hot
    assert "partition orders-2 gets 97%" in hot


def test_a_silent_worker_is_said_to_be_missing_in_the_sums():
    with console_of(shop(), report("a"), silent=1) as (client, _):
        assert "Figures lack the worker at 127.0.0.1:1, which does not answer." in client.get(PATH).text


@pytest.mark.parametrize("query", ["?step=nothing", "?zoom=fit", "?zoom=150", "?zoom=x&step=check", "?step="])
def test_any_address_is_a_page(query):
    with console_of(shop()) as (client, _):
        assert client.get(PATH + query).status_code == 200


def test_nodes_boxes_and_topics_do_not_overlap_in_a_large_graph():
    def first(value: str, _: str) -> str:
        return value

    app = App("large")
    for number in range(6):
        stream = app.stream(f"input-{number}", key=Text(), value=Text())
        table = app.table(f"table-{number}", key=Text(), value=Text())
        for length in range(3):
            stream = stream.filter(bool, name=f"filter-{number}-{length}")
        joined = stream.join(table, first, name=f"join-{number}")
        joined.to(f"output-{number}")
        joined.key_by(lambda value: value, name=f"key-{number}").group_by_key().aggregate(
            f"counts-{number}", count()
        )
    graph = read_graph(_json(app))
    assert graph is not None
    assert len(graph.nodes) >= 60
    drawing = draw(graph)
    assert {drawn.node.name for drawn in drawing.nodes} == {node.name for _, node in graph.nodes}
    places = {
        "nodes": [(drawn.x, drawn.y, NODE.width, drawn.height) for drawn in drawing.nodes],
        "boxes": [(box.x, box.y, box.width, box.height) for box in drawing.boxes],
        "boxes and topics": [
            *((box.x, box.y, box.width, box.height) for box in drawing.boxes),
            *((topic.x, topic.y, 176.0, 34.0) for topic in drawing.topics),
        ],
    }
    for what, rectangles in places.items():
        for one, other in combinations(rectangles, 2):
            assert _apart(one, other), f"{what}: {one} and {other}"
    for drawn in drawing.nodes:
        assert any(
            box.x <= drawn.x
            and drawn.x + NODE.width <= box.x + box.width
            and box.y <= drawn.y
            and drawn.y + drawn.height <= box.y + box.height
            for box in drawing.boxes
        )
    assert all(box.x >= 0 and box.x + box.width <= drawing.width for box in drawing.boxes)
    # Parts that are not connected are below each other, too.
    assert drawing.width < 3_000


def _json(app: App) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(app.topology.describe("json"))
    return found


Rectangle = tuple[float, float, float, float]


def _apart(one: Rectangle, other: Rectangle) -> bool:
    return (
        one[0] + one[2] <= other[0]
        or other[0] + other[2] <= one[0]
        or one[1] + one[3] <= other[1]
        or other[1] + other[3] <= one[1]
    )


def test_a_topology_of_another_version_is_unknown_and_no_error():
    assert read_graph({"subtopologies": [{"number": "x"}]}) is None
    assert read_graph(None) is None


# --- a real worker


@contextmanager
def running(app: App, broker: MemoryBroker) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=lambda: app.run(broker=broker, stop=stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def produce(broker: MemoryBroker, count: int) -> None:
    """Orders of which each third is refused."""
    producer = broker.producer()
    values = [b'{"amount": %d}' % (number % 3 - 1) for number in range(count)]
    now = milliseconds()
    producer.produce(
        Output("orders", [b"k%d" % (number % 5) for number in range(count)], values, [now] * count)
    )
    producer.produce(Output("clicks", [None], [b"x"], [now]))
    producer.flush(1)
    producer.close()


def test_a_running_worker_fills_all_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recent_reports, "SHORTEST_MILLISECONDS", 500)
    monkeypatch.setattr(collector, "COLLECT_SECONDS", 0.2)
    monkeypatch.setattr(collector, "DIRECTORY_SECONDS", 0.2)
    broker = MemoryBroker()
    topics = ("orders", "customers", "clicks", "enriched")
    broker.admin().create_topics([NewTopic(name=name, partitions=3) for name in topics])
    app = shop(
        broker,
        http_port=0,
        state_dir=str(tmp_path),
        commit_interval=0.05,
        dead_letter_limit=1,
        alerts=Alerts(),
    )
    with (
        running(app, broker),
        served(broker, app.settings, [app], token=None, read_only=False) as application,
    ):
        client = TestClient(application, base_url="http://localhost")

        def seen(path: str, pattern: str) -> str:
            """The page as soon as it says that; meanwhile there is always something to do."""

            def look() -> str:
                produce(broker, 30)
                response = client.get(path)
                assert response.status_code == 200
                return response.text if re.search(pattern, plain(response.text)) else ""

            return wait_until(look, what=f"{path} with {pattern}")

        wait_until(lambda: client.get("/").status_code == 200 and "shop" in client.get("/").text, what="app")
        topology = seen(PATH, r"enrich join \S+ customers [\d.,]+/s \d+% \d+% 0 0 0 check")
        assert re.search(r"check map check [\d.,]+/s \d+% \d+% [1-9]", plain(topology))
        seen(PATH, r" orders source: [^/]+ of orders [\d.,]+/s")
        partitions = seen("/apps/shop/partitions", r"orders-0 \d\S* (s|min) [\d,]+ [\d.,]+/s [\d.,]+/s")
        assert "shop-sales-repartition-2" in partitions
        assert "no worker reports it" not in partitions
        workers = seen("/apps/shop/workers", r"vm-\d+ 127\.0\.0\.1:\d+ .* version \d.* \S+ joined joined")
        assert "No worker is known" not in workers
        seen("/apps/shop/workers", r"shop-\d+ memory 127\.0\.0\.1 12")
        seen("/apps/shop/alerts", "nothing fires")
