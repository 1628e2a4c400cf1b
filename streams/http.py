"""A small HTTP server beside the worker: metrics and health, on a thread of its own."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self


class Response(NamedTuple):
    """What a route answers."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class HttpServer:
    """Serves GET requests for fixed paths until closed.

    ``port`` 0 takes a free one. Raises ``ConfigurationError`` when the port is taken.
    """

    def __init__(self, host: str, port: int, routes: Mapping[str, Callable[[], Response]]) -> None:
        try:
            self._server = _Server((host, port), _handler(routes))
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


def _handler(routes: Mapping[str, Callable[[], Response]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                response = Response(404, f"not here; try {', '.join(routes)}\n".encode())
            else:
                try:
                    response = route()
                except Exception as error:  # noqa: BLE001 - the server goes on; the caller is told
                    response = Response(500, f"{type(error).__name__}: {error}\n".encode())
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's signature
            """Say nothing: a scrape every few seconds is no news."""

    return Handler
