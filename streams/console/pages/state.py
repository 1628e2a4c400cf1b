"""State: which stores there are, where their partitions are, and what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from starlette.exceptions import HTTPException

from streams.console.moments import HINT, optional_moment
from streams.console.page import Page
from streams.console.store_queries import (
    ask_any,
    key_path,
    put_together,
    range_path,
    read_stores,
    windows_path,
)
from streams.console.worker_figures import worker_figures
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console
    from streams.console.lookups import Lookup
    from streams.console.store_queries import Answer, StoreView

STORES_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 5.0
"""How long an answer is shown before it is asked for again."""

LIMITS: Final = (20, 100, 500)
"""How many entries of a range, or windows of a key, can be asked for."""

SHOWN_WORKERS: Final = 8
"""The holders of a store that are shown before it is opened."""


class Row(NamedTuple):
    """An entry of a range, or a window."""

    key: str | None
    start: int | None
    end: int | None
    closed: bool
    value: str


class Question(NamedTuple):
    """What the address asks for."""

    key: str | None
    base64: bool
    start: str
    stop: str
    limit: int
    listing: bool


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def state(request: Request) -> Response:
        app = console.app(request)
        looked = _stores(console, app)
        views, internal = put_together(app.topology, looked.value or {})
        figures = worker_figures(console, app)
        memory = {
            worker: None if scrape is None else scrape.total("streams_state_bytes")
            for worker, scrape in sorted((figures.value or {}).items())
        }
        silent = sorted(worker for worker, held in (looked.value or {}).items() if held is None)
        return console.render(
            request,
            "state.html",
            page="state",
            title="State",
            app=app,
            looked=looked,
            views=views,
            internal=internal,
            memory=memory,
            figures=figures,
            silent=silent,
            shown_workers=SHOWN_WORKERS,
        )

    def store(request: Request) -> Response:
        app = console.app(request)
        name = request.path_params["store"]
        looked = _stores(console, app)
        views, internal = put_together(app.topology, looked.value or {})
        view = next((view for view in views if view.name == name), None)
        if view is None and looked.done and not looked.error:
            reason = "it cannot be queried" if name in internal else "the app has none of that name"
            raise HTTPException(404, f"store {name!r}: {reason}")
        question = _question(request)
        problem, answer, path = "", None, ""
        if view is not None and view.windowed is not None:
            try:
                path = _path(view, question)
            except ConfigurationError as error:
                problem = str(error)
        if path:
            watched, addresses = console.collector.watched(app.name), list(app.addresses.values())
            answer = console.lookups.get(
                ("store", app.name, path), lambda: ask_any(watched, addresses, path), keep=ANSWER_SECONDS
            )
        return console.render(
            request,
            "store.html",
            page="state",
            title=name,
            app=app,
            store=name,
            view=view,
            looked=looked,
            question=question,
            limits=LIMITS,
            problem=problem,
            answer=answer,
            rows=_rows(console, answer),
            hint=key_hint("" if view is None else view.key),
            moment_hint=HINT,
            store_url=console.app_url(request, app.name, f"state/{quote(name, safe='')}"),
            here_name=f"state/{quote(name, safe='')}",
        )

    return [console.get("/apps/{app}/state", state), console.get("/apps/{app}/state/{store}", store)]


def _stores(console: Console, app: AppSnapshot) -> Lookup[Any]:
    watched, addresses = console.collector.watched(app.name), dict(app.addresses)
    return console.lookups.get(
        ("stores", app.name), lambda: read_stores(watched, addresses), keep=STORES_SECONDS
    )


def _question(request: Request) -> Question:
    query = request.query_params
    limit = query.get("limit", "")
    return Question(
        query.get("key"),
        query.get("encoding") == "base64",
        query.get("start", "").strip(),
        query.get("stop", "").strip(),
        int(limit) if limit.isdecimal() and int(limit) in LIMITS else LIMITS[0],
        query.get("list") == "1",
    )


def _path(view: StoreView, question: Question) -> str:
    """The path that a worker is asked for; empty if nothing is asked. Raises ``ConfigurationError``."""
    if question.key is None and not question.listing:
        return ""
    start: object = question.start or None
    stop: object = question.stop or None
    if view.windowed:
        start, stop = optional_moment(question.start), optional_moment(question.stop)
        if question.key is not None:
            return windows_path(
                view.name,
                question.key,
                start=start,
                stop=stop,
                limit=question.limit,
                base64=question.base64,
            )
    elif question.key is not None:
        return key_path(view.name, question.key, base64=question.base64)
    return range_path(view.name, start=start, stop=stop, limit=question.limit, base64=question.base64)


def _rows(console: Console, answer: Lookup[Answer] | None) -> list[Row]:
    if answer is None or answer.value is None or answer.value.state != "found":
        return []
    content = answer.value.content
    if "value" in content:
        return [Row(None, None, None, False, console.values.text(content["value"], indent=2))]
    return [_row(console, item) for item in content.get("windows", content.get("entries", ()))]


def _row(console: Console, item: Mapping[str, Any]) -> Row:
    key = item.get("key")
    return Row(
        key if key is None or isinstance(key, str) else console.values.text(key),
        item.get("start"),
        item.get("end"),
        bool(item.get("closed")),
        console.values.text(item["value"]),
    )


def key_hint(serde: str) -> str:
    """How a key is typed, by the serde of the store's keys."""
    if serde == "Text":
        return "text, as it is"
    if serde == "Bytes":
        return "text, or bytes in base64"
    if serde:
        return f'JSON, as the keys are {serde}: 17, "text" with its quotes, {{"id": 17}}'
    return ""


STATE: Final = Page("state", "State", of_app=True, routes=routes)
