"""The console as an ASGI application: pages, files, sessions, and the headers that keep browsers safe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from streams.console.console import read_form
from streams.console.pages import PAGES
from streams.console.sessions import COOKIE, SESSION_SECONDS
from streams.events import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.middleware.base import RequestResponseEndpoint
    from starlette.requests import Request

    from streams.console.console import Console

ASSETS: Final = Path(__file__).parent / "assets"

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def application(console: Console, hosts: Collection[str] = ()) -> Starlette:
    """The ASGI application of a console.

    A console without a token serves only requests whose ``Host`` is loopback or one of ``hosts``: a page of
    another site may have its own name resolved to this machine, and would read what the browser may read.
    """
    console.pages = PAGES

    async def login(request: Request) -> Response:
        if request.method == "POST":
            form = await read_form(request)
            if not console.sessions.accepts(form.get("token", "")):
                return console.render(
                    request, "login.html", page="login", title="Sign in", live=False, status=403, wrong=True
                )
            response = RedirectResponse(console.url(request, "/"), 303)
            _set_session(request, response, console.sessions.begin())
            return response
        return console.render(request, "login.html", page="login", title="Sign in", live=False, wrong=False)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return console.render(
            request,
            "refused.html",
            page="refused",
            title=f"{error.status_code}",
            live=False,
            status=error.status_code,
            reason=error.detail,
        )

    def failed(request: Request, error: Exception) -> Response:
        get_logger().error(
            Event.CONSOLE_FAILED,
            error=f"{type(error).__name__}: {error}",
            page=request.url.path,
            exc_info=error,
        )
        return PlainTextResponse("this page failed: the console's log has the reason\n", 500, headers=HEADERS)

    routes: list[Route | Mount] = [
        Mount("/assets", StaticFiles(directory=ASSETS), name="assets"),
        Route("/login", login, methods=["GET", "POST"]),
    ]
    for page in PAGES:
        routes += page.routes(console)

    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await _guarded(console, request, call_next, LOOPBACK | set(hosts))
        response.headers.update(HEADERS)
        if not _is_asset(request):
            response.headers["cache-control"] = "no-store"
        return response

    return Starlette(
        routes=routes,
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        exception_handlers={HTTPException: refused, Exception: failed},
    )


async def _guarded(
    console: Console, request: Request, call_next: RequestResponseEndpoint, hosts: Collection[str]
) -> Response:
    """Serve a request that has a session, begin one where none is needed, or ask for the token."""
    sessions = console.sessions
    if sessions.open and (request.url.hostname or "") not in hosts:
        return PlainTextResponse(
            f"the host {request.url.hostname!r} is not one of this console's: {', '.join(sorted(hosts))}\n",
            403,
        )
    if request.method not in {"GET", "HEAD"} and not _same_site(request):
        return PlainTextResponse("forms of other sites are refused\n", 403)
    cookie = request.cookies.get(COOKIE, "")
    known = sessions.is_valid(cookie)
    request.state.session = cookie if known else sessions.begin()
    path = _path(request)
    if known or _is_asset(request) or (path == "/login" and not sessions.open):
        return await call_next(request)
    if not sessions.open:
        if request.method not in {"GET", "HEAD"}:
            return PlainTextResponse("sign in first\n", 401)
        return RedirectResponse(console.url(request, "/login"), 303)
    response = await call_next(request)
    _set_session(request, response, request.state.session)
    return response


def _set_session(request: Request, response: Response, session: str) -> None:
    response.set_cookie(
        COOKIE,
        session,
        max_age=SESSION_SECONDS,
        path=request.scope.get("root_path", "") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def _same_site(request: Request) -> bool:
    """Whether a form comes from this console, as far as the browser says."""
    return request.headers.get("sec-fetch-site", "same-origin") in {"same-origin", "none"}


def _path(request: Request) -> str:
    return request.url.path.removeprefix(request.scope.get("root_path", "")) or "/"


def _is_asset(request: Request) -> bool:
    return _path(request).startswith("/assets/")
