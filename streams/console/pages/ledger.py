"""Ledger: what became of the records of each topic, and whether any is not accounted for."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.console.page import Page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console
    from streams.monitoring.ledger import Difference, LedgerFigures

SHOWN_DIFFERENCES: Final = 200

COLUMNS: Final = (
    "read",
    "made",
    "written",
    "filtered",
    "late",
    "dead_letters",
    "skipped",
    "held",
    "replaced",
    "ended",
    "empty_offsets",
    "difference",
)
"""The figures of a row, as ``LedgerFigures`` names them."""


class Row(NamedTuple):
    """The figures of a topic, or of one task's part of it."""

    topic: str
    """Empty for what is made without input."""
    task: str
    """Empty for all tasks together."""
    figures: Sequence[int]
    """In the order of ``COLUMNS``."""


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def ledger(request: Request) -> Response:
        app = console.app(request)
        topic = request.query_params.get("topic")
        differences = _differences(app)
        return console.render(
            request,
            "ledger.html",
            page="ledger",
            title="Ledger",
            app=app,
            topic=topic,
            columns=[name.replace("_", " ") for name in COLUMNS],
            rows=rows(app, topic),
            differences=differences[:SHOWN_DIFFERENCES],
            left_out=max(0, len(differences) - SHOWN_DIFFERENCES),
            unchecked=[
                worker.worker for worker in app.report.workers if worker.partitions and not worker.ledger
            ],
        )

    return [console.get("/apps/{app}/ledger", ledger)]


def rows(app: AppSnapshot, topic: str | None) -> list[Row]:
    """The topics, those with a difference first; with ``topic``, the tasks that read it."""
    found: defaultdict[tuple[str, str], list[LedgerFigures]] = defaultdict(list)
    for worker in app.report.workers:
        for item in worker.ledger:
            if topic is None:
                found[item.topic, ""].append(item)
            elif item.topic == topic:
                found[topic, item.task].append(item)
    made = [
        Row(of_topic, task, [sum(getattr(item, name) for item in items) for name in COLUMNS])
        for (of_topic, task), items in found.items()
    ]
    return sorted(made, key=lambda row: (-row.figures[-1], row.topic, row.task))


def _differences(app: AppSnapshot) -> list[tuple[str, Difference]]:
    return [(worker.worker, item) for worker in app.report.workers for item in worker.differences]


LEDGER: Final = Page("ledger", "Ledger", of_app=True, routes=routes)
