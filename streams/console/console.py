"""What pages share: what is known, how it is rendered, and how actions are done."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl, quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from streams.console import formats
from streams.console.sessions import FORM_TOKEN
from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.audit import Audit
    from streams.console.cluster_snapshot import ClusterSnapshot
    from streams.console.collector import Collector
    from streams.console.lookups import Lookups
    from streams.console.sessions import Sessions

LIVE_VERSION: Final = "x-live-version"
"""The header with the version of the content that a browser shows."""

LARGEST_FORM: Final = 2_000_000
"""Bytes of a form that are read."""

MOST_SESSIONS: Final = 1_000
"""Sessions whose notices are kept."""


class Entry(Protocol):
    """An entry of the navigation."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def of_app(self) -> bool: ...


class Planned(NamedTuple):
    """An action that is about to be done: what is recorded of it, and how it is done."""

    app: str
    target: str
    details: Mapping[str, str]
    run: Callable[[], str]
    """Does it, and returns what was done, in a sentence. May raise ``StreamsError``."""
    location: str
    """The page that the browser is sent to."""


class Notice(NamedTuple):
    """What came of an action, shown on the next page."""

    kind: str
    """``done`` or ``failed``."""
    sentence: str


class Console:
    """The parts of the console, for its pages."""

    def __init__(
        self,
        collector: Collector,
        lookups: Lookups,
        audit: Audit,
        sessions: Sessions,
        values: formats.ValueFormat,
        *,
        read_only: bool,
        user_header: str | None = None,
    ) -> None:
        self.collector = collector
        self.lookups = lookups
        self.audit = audit
        self.sessions = sessions
        self.values = values
        self.read_only = read_only
        self.user_header = user_header
        self.pages: Sequence[Entry] = ()
        """All pages, in the order of the navigation; set once, before requests are served."""
        self._notices: OrderedDict[str, deque[Notice]] = OrderedDict()
        self._templates = Environment(
            loader=PackageLoader("streams.console", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            number=formats.number,
            rate=formats.rate,
            share=formats.share,
            size=formats.size,
            duration=formats.duration,
            clock=formats.clock,
            ago=formats.ago,
            cut=formats.cut,
        )

    @property
    def apps(self) -> Mapping[str, AppSnapshot]:
        """What is known of each app."""
        return self.collector.apps

    @property
    def cluster(self) -> ClusterSnapshot:
        """What is known of the cluster."""
        return self.collector.cluster

    def app(self, request: Request) -> AppSnapshot:
        """The app that an address names. Raises ``HTTPException`` 404."""
        name = request.path_params["app"]
        try:
            return self.apps[name]
        except KeyError:
            raise HTTPException(404, f"no app {name!r} is watched") from None

    # --- routes

    def get(self, path: str, answer: Callable[[Request], Response]) -> Route:
        """A route of a page, or of a part of one. ``answer`` runs in a thread."""
        return Route(path, answer, methods=["GET"])

    def post(
        self, path: str, action: str, plan: Callable[[Request, Mapping[str, str]], Planned | Response]
    ) -> Route:
        """A route of an action. ``plan`` and what it returns run in a thread.

        The form's token is checked, the action is recorded before and after it is done, and the browser is
        sent to a page that shows what came of it. ``plan`` may raise ``HTTPException``, or ``StreamsError``
        for a form that cannot be used, before anything is done. A response that it returns is sent: the
        form again, with what is wrong in it.
        """

        async def do(request: Request) -> Response:
            form = await read_form(request)
            if self.read_only:
                raise HTTPException(403, "this console is read-only")
            if not self.sessions.form_is_own(request, form.pop(FORM_TOKEN, "")):
                raise HTTPException(403, "the form is too old, or of another site: load its page again")
            return await run_in_threadpool(self._act, request, action, plan, form)

        return Route(path, do, methods=["POST"])

    def _act(
        self,
        request: Request,
        action: str,
        plan: Callable[[Request, Mapping[str, str]], Planned | Response],
        form: Mapping[str, str],
    ) -> Response:
        try:
            planned = plan(request, form)
        except StreamsError as error:
            raise HTTPException(400, str(error)) from error
        if isinstance(planned, Response):
            return planned
        who = self.who(request)

        def record(outcome: str) -> None:
            self.audit.write(
                who=who,
                app=planned.app,
                action=action,
                target=planned.target,
                details=planned.details,
                outcome=outcome,
            )

        try:
            record("begun")
        except StreamsError as error:
            raise HTTPException(503, f"nothing was done, as it could not be recorded: {error}") from error
        try:
            notice, outcome = Notice("done", done := planned.run()), f"done: {done}"
        except StreamsError as error:
            notice, outcome = Notice("failed", str(error)), f"failed: {error.message}"
        self._notice(request, notice)
        try:
            record(outcome)
        except StreamsError as error:
            self._notice(request, Notice("failed", f"the outcome could not be recorded: {error}"))
        return RedirectResponse(self.url(request, planned.location), 303)

    def who(self, request: Request) -> str:
        """Who sends a request, for the audit."""
        address = "unknown" if request.client is None else request.client.host
        name = request.headers.get(self.user_header, "") if self.user_header else ""
        return f"{name} ({address})" if name else address

    def _notice(self, request: Request, notice: Notice) -> None:
        session = str(request.state.session)
        self._notices.setdefault(session, deque(maxlen=5)).append(notice)
        while len(self._notices) > MOST_SESSIONS:
            self._notices.popitem(last=False)

    # --- pages

    def url(self, request: Request, path: str, /, **query: object) -> str:
        """The address of a page, wherever the console is mounted; ``None`` is left out."""
        pairs = {name: value for name, value in query.items() if value is not None}
        return f"{request.scope.get('root_path', '')}{path}{f'?{urlencode(pairs)}' if pairs else ''}"

    def app_url(self, request: Request, app: str, page: str, /, **query: object) -> str:
        """The address of a page of an app."""
        return self.url(request, f"/apps/{quote(app, safe='')}/{page}", **query)

    def render(
        self,
        request: Request,
        template: str,
        *,
        page: str,
        title: str,
        app: AppSnapshot | None = None,
        live: bool = True,
        status: int = 200,
        **context: Any,
    ) -> Response:
        """A page. ``live`` ones refresh themselves: only what has changed is sent.

        ``page`` is the entry of the navigation that it belongs to. Templates have ``url`` and ``app_url``
        without the request, ``app``, ``console`` and ``form_token``, and this ``context``.
        """
        here = f"{request.url.path}{f'?{request.url.query}' if request.url.query else ''}"
        shared = {
            "console": self,
            "request": request,
            "here": here,
            "page": page,
            "title": title,
            "app": app,
            "live": live,
            "read_only": self.read_only,
            "url": lambda path, /, **query: self.url(request, path, **query),
            "app_url": lambda name, to, /, **query: self.app_url(request, name, to, **query),
            "form_token": Markup('<input type="hidden" name="{}" value="{}">').format(
                FORM_TOKEN, self.sessions.form_token(request)
            ),
        }
        content = self._templates.get_template(template).render(**shared, **context)
        version = hashlib.sha256(content.encode()).hexdigest()[:16]
        if request.headers.get(LIVE_VERSION) == version:
            return Response(status_code=204)
        fragment = LIVE_VERSION in request.headers
        notices = () if fragment else self._notices.pop(str(request.state.session), ())
        body = self._templates.get_template("live.html" if fragment else "base.html").render(
            **shared,
            content=Markup(content),  # noqa: S704 - rendered with escaping
            version=version,
            notices=notices,
        )
        return HTMLResponse(body, status)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form. Raises ``HTTPException`` for one that is too large or no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "a form is expected: application/x-www-form-urlencoded")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_FORM:
            raise HTTPException(413, f"the form has more than {LARGEST_FORM:,} bytes")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True))
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the form is not in UTF-8") from error
