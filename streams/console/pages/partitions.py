"""Partitions and tasks: what waits, for how long, and what is restored; the worst first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.console.page import Page
from streams.console.partition_rows import SHOWN, SORTS, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.console import Console

PAGE_ROWS: Final = 200
MOST_RESTORES: Final = 10

COLUMNS: Final = (
    ("partition", "Partition", ""),
    ("waiting", "Waiting time", "n"),
    ("lag", "Lag", "n"),
    ("arriving", "Arriving", "n"),
    ("processed", "Processed", "n"),
    ("caught-up", "Caught up in", "n"),
    ("deleted", "Deleted in", "n"),
    ("position", "Position", "n"),
    ("end", "End", "n"),
    ("stream-time", "Stream time", ""),
    ("task", "Task", ""),
    ("worker", "Worker", ""),
    ("age", "As of", ""),
)
"""Names for the query, titles and classes."""


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def partitions(request: Request) -> Response:
        app = console.app(request)
        query = request.query_params
        wanted = {
            "topic": query.get("topic") or None,
            "worker": query.get("worker") or None,
            "show": query.get("show") if query.get("show") in SHOWN and query.get("show") != "all" else None,
        }
        sort = query.get("sort", "worst")
        reverse = sort.startswith("-")
        sort = sort.removeprefix("-")
        if sort not in SORTS:
            sort, reverse = "worst", False
        found = rows_of(app)
        _, shown = SHOWN[wanted["show"] or "all"]
        rows = [
            row
            for row in found.partitions
            if wanted["topic"] in (None, row.topic) and wanted["worker"] in (None, row.worker) and shown(row)
        ]
        rows.sort(key=SORTS[sort], reverse=reverse)
        pages = max(1, -(-len(rows) // PAGE_ROWS))
        number = query.get("page", "1")
        page = min(pages, max(1, int(number))) if number.isascii() and number.isdecimal() else 1
        asked = None if (sort, reverse) == ("worst", False) else f"{'-' * reverse}{sort}"
        return console.render(
            request,
            "partitions.html",
            page="partitions",
            title="Partitions and tasks",
            app=app,
            rows=rows[(page - 1) * PAGE_ROWS : page * PAGE_ROWS],
            first=(page - 1) * PAGE_ROWS,
            count=len(rows),
            total=len(found.partitions),
            number=page,
            pages=pages,
            restores=found.restores[:MOST_RESTORES],
            more_restores=max(0, len(found.restores) - MOST_RESTORES),
            sort=sort,
            reverse=reverse,
            asked=asked,
            wanted=wanted,
            columns=COLUMNS,
            shows=[(name, text) for name, (text, _) in SHOWN.items()],
            topics=sorted({row.topic for row in found.partitions}),
            workers=sorted(worker.worker for worker in app.report.workers),
            tasks=sum(len(worker.tasks) for worker in app.report.workers),
            problems=sum(bool(row.problem) for row in found.partitions),
        )

    return [console.get("/apps/{app}/partitions", partitions)]


PARTITIONS: Final = Page("partitions", "Partitions and tasks", of_app=True, routes=routes)
