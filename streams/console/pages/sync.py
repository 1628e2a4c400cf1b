"""Data sync: what sources read and how far they are behind, and what sinks have written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.console.connector_status import connectors
from streams.console.page import Page
from streams.console.worker_figures import worker_figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.console import Console

SHOWN_TASKS: Final = 100
SHOWN_SINKS: Final = 50
SHOWN_PARTITIONS: Final = 50

MUCH_RETAINED: Final = 10e9
"""Bytes of log from which on the alert StreamsSlotUnhealthy fires."""


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def sync(request: Request) -> Response:
        app = console.app(request)
        figures = worker_figures(console, app)
        found = connectors(app, figures.value or {})
        return console.render(
            request,
            "sync.html",
            page="sync",
            title="Data sync",
            app=app,
            figures=figures,
            found=found,
            slots=any("retained_bytes" in task.figures for task in found.sources),
            unread=sorted(worker for worker, scrape in (figures.value or {}).items() if scrape is None),
            much=MUCH_RETAINED,
            shown_tasks=SHOWN_TASKS,
            shown_sinks=SHOWN_SINKS,
            shown_partitions=SHOWN_PARTITIONS,
        )

    return [console.get("/apps/{app}/sync", sync)]


SYNC: Final = Page("sync", "Data sync", of_app=True, routes=routes)
