"""Overview of an app: its state, what holds it back, and its figures of the last hours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from streams.console.charts import Line, chart
from streams.console.formats import duration, number, rate, share
from streams.console.history import STEP
from streams.console.page import Page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console

HOUR: Final = 3_600_000
SPANS: Final = {"15m": HOUR // 4, "1h": HOUR, "6h": 6 * HOUR}
"""Spans of the charts, in milliseconds."""

SHOWN_MARKS: Final = 20


def recent_dead_letters(app: AppSnapshot, now: int) -> int | None:
    """The dead letters of the last hour before ``now``; ``None`` if no worker has reported in it."""
    points = app.history.points(now - HOUR, now)
    return sum(point.dead_letters for point in points) if points else None


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def overview(request: Request) -> Response:
        app = console.app(request)
        now = time.time_ns() // 1_000_000
        span = request.query_params.get("span", "15m")
        length = SPANS.get(span, SPANS["15m"])
        return console.render(
            request,
            "overview.html",
            page="overview",
            title="Overview",
            app=app,
            span=span,
            spans=list(SPANS),
            charts=charts(app, now, length),
            marks=list(reversed(app.history.marks(now - length)))[:SHOWN_MARKS],
            dead_letters=recent_dead_letters(app, now),
        )

    return [console.get("/apps/{app}/overview", overview)]


def charts(app: AppSnapshot, now: int, length: int) -> list[tuple[str, list[str], Markup]]:
    """Titles, names of the lines, and charts of the last ``length`` milliseconds."""
    until = now // STEP * STEP
    since = until - length
    points = app.history.points(since, until)
    marks = app.history.marks(since)
    waiting = [Line("waiting time", [(point.time, point.waiting) for point in points])]
    rates = [
        Line("processed", [(point.time, point.processing_rate) for point in points]),
        Line("arriving", [(point.time, point.arrival_rate) for point in points]),
    ]
    lag = [Line("lag", [(point.time, point.lag) for point in points])]
    busy = [Line("busiest worker", [(point.time, point.busy) for point in points])]
    drawn = [
        ("Waiting time", waiting, duration, None),
        ("Records", rates, rate, None),
        ("Lag", lag, number, None),
        ("Busy share", busy, share, 1.0),
    ]
    return [
        (
            title,
            [line.name for line in lines],
            chart(title, lines, since, until, text=text, gap=3 * STEP, marks=marks, highest=highest),
        )
        for title, lines, text, highest in drawn
    ]


OVERVIEW: Final = Page("overview", "Overview", of_app=True, routes=routes)
