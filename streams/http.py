"""A small HTTP server beside the worker, on threads of its own, and the question to another worker's."""

from __future__ import annotations

import hmac
import threading
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, unquote

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import TracebackType
    from typing import Self


class Response(NamedTuple):
    """What a route answers."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class Request(NamedTuple):
    """What a route with parameters is asked. Bytes that are no UTF-8 become surrogates, as in file names."""

    target: str
    """Path and query as they came."""

    parameters: Mapping[str, str]
    """The parts of the path that the route has names for, percent-decoded."""

    query: Mapping[str, str]
    """The query's pairs, percent-decoded; of several with one name, the last."""

    headers: Mapping[str, str]
    """By their names in small letters."""


class HttpServer:
    """Serves GET requests until closed.

    ``routes`` are fixed paths. ``templates`` are paths with parameters, as ``/stores/{store}``, each of which
    stands for one part between slashes. ``port`` 0 takes a free one. With a ``token``, whatever is not
    ``public`` is answered only to requests that have it: ``Authorization: Bearer <token>``. Raises
    ``ConfigurationError`` when the port is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Mapping[str, Callable[[], Response]],
        templates: Mapping[str, Callable[[Request], Response]] | None = None,
        *,
        token: str | None = None,
        public: Collection[str] = (),
    ) -> None:
        try:
            self._server = _Server((host, port), _handler(routes, templates or {}, token, public))
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"http port {host}:{port} cannot be used: {error}",
                hint="choose another http_port; further workers of one command use the ports above it",
            ) from error
        self.host, self.port = host, self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="streams-http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        """Answer no more requests."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


UNAUTHORIZED = Response(401, b"a token is needed: Authorization: Bearer ...\n")


def bearer(token: str | None) -> dict[str, str]:
    """The header that has the token, if there is one."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _has_token(headers: Mapping[str, str], token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    # How long it takes must not tell how much of a guess was right.
    same = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), token.encode())
    return same and scheme.lower() == "bearer"


def _handler(
    routes: Mapping[str, Callable[[], Response]],
    templates: Mapping[str, Callable[[Request], Response]],
    token: str | None,
    public: Collection[str],
) -> type[BaseHTTPRequestHandler]:
    def answer(target: str, headers: Mapping[str, str]) -> Response:
        path, _, query = target.partition("?")
        if token is not None and path not in public and not _has_token(headers, token):
            return UNAUTHORIZED
        if path in routes:
            return routes[path]()
        for template, route in templates.items():
            parameters = match_path(template, path)
            if parameters is not None:
                pairs = dict(parse_qsl(query, keep_blank_values=True, errors="surrogateescape"))
                return route(Request(target, parameters, pairs, headers))
        return Response(404, f"not here; try {', '.join([*routes, *templates])}\n".encode())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                response = answer(self.path, {name.lower(): text for name, text in self.headers.items()})
            except Exception as error:  # noqa: BLE001 - the server goes on; the caller is told
                response = Response(500, f"{type(error).__name__}: {error}\n".encode())
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
            if response.status == UNAUTHORIZED.status:
                self.send_header("WWW-Authenticate", "Bearer")
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's signature
            """Say nothing: a scrape every few seconds is no news."""

    return Handler


def match_path(template: str, path: str) -> dict[str, str] | None:
    """The template's parameters as the path has them, percent-decoded; ``None`` if it is another path."""
    wanted, parts = template.split("/"), path.split("/")
    if len(wanted) != len(parts):
        return None
    found = {}
    for name, part in zip(wanted, parts, strict=True):
        if name.startswith("{"):
            # Split before it is decoded, so that a key may have a slash in it.
            found[name[1:-1]] = unquote(part, errors="surrogateescape")
        elif name != part:
            return None
    return found


def ask(address: str, target: str, *, headers: Mapping[str, str], timeout: float) -> Response | None:
    """GET ``target`` from ``host:port``; ``None`` when it does not answer. ``timeout`` is seconds a step."""
    connection = HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", target, headers=dict(headers))
        answer = connection.getresponse()
        return Response(answer.status, answer.read(), answer.headers.get("Content-Type", ""))
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()
