"""The page of the ledger."""

from __future__ import annotations

from streams import App, Text
from streams.monitoring.ledger import Difference, LedgerFigures
from tests.support.waiting import wait_until
from tests.support.worker_reports import console_of, report


def figures(task: str, topic: str, read: int, difference: int = 0) -> LedgerFigures:
    return LedgerFigures(
        task=task,
        topic=topic,
        read=read,
        made=0,
        written=read - difference,
        filtered=0,
        late=0,
        dead_letters=0,
        skipped=0,
        held=0,
        replaced=0,
        ended=0,
        empty_offsets=0,
        difference=difference,
    )


def test_topics_are_summed_up_and_a_difference_is_said_with_its_place():
    app = App("shop")
    app.stream("orders", value=Text()).to("out")
    lost = Difference(
        task="0_1",
        topic="orders",
        partition=1,
        first=70,
        next=80,
        records=3,
        place="in step 'keep'",
        sentence="3 records are missing in step 'keep' of task 0_1 <orders>",
    )
    workers = [
        report("a", ledger=[figures("0_0", "orders", 1_000), figures("0_0", "returns", 7)]),
        report("b", ledger=[figures("0_1", "orders", 234, 3)], differences=[lost]),
    ]
    with console_of(app, *workers) as (client, _):
        wait_until(lambda: "1,234" in client.get("/apps/shop/ledger").text, what="the figures")
        page = client.get("/apps/shop/ledger").text
        assert page.index(">orders<") < page.index(">returns<")
        assert "of task 0_1 &lt;orders&gt;" in page
        assert "balanced" not in page
        tasks = client.get("/apps/shop/ledger?topic=orders").text
        assert "0_0" in tasks
        assert "returns" not in tasks.partition("<tbody>")[2]
        assert "3 records are missing" in client.get("/apps/shop/overview").text
