"""Now: one line for each app says whether it keeps up, since when, and what there is to know."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from streams.console.page import Page
from streams.console.pages.overview import recent_dead_letters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.console import Console


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def now(request: Request) -> Response:
        moment = time.time_ns() // 1_000_000
        apps = sorted(
            console.apps.values(),
            key=lambda app: (-_severity(app.report.condition), -(app.report.waiting or 0.0)),
        )
        return console.render(
            request,
            "now.html",
            page="now",
            title="Now",
            apps=[(app, recent_dead_letters(app, moment)) for app in apps],
            cluster=console.cluster,
        )

    return [console.get("/", now)]


def _severity(condition: str) -> int:
    order = ("keeping up", "unknown", "catching up", "restoring", "falling behind", "no workers", "stalled")
    return order.index(condition) if condition in order else 0


NOW: Final = Page("now", "Now", of_app=False, routes=routes)
