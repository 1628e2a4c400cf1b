"""Receivers of alerts in the process: an HTTP server and an SMTP server."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Posted(NamedTuple):
    """A request that the server has got."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class HookServer:
    """Takes notifications. ``statuses`` are its next answers, 200 afterwards; it waits for ``open`` first."""

    def __init__(self) -> None:
        self.posts: list[Posted] = []
        self.statuses: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Event()
        """Set once a request waits."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.waiting.set()
                server.open.wait(60)
                status = server.statuses.pop(0) if server.statuses else 200
                if status == 200:
                    server.posts.append(
                        Posted(
                            self.path,
                            {name.lower(): value for name, value in self.headers.items()},
                            json.loads(body),
                        )
                    )
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def states(self) -> list[tuple[str, str, str]]:
        """The alerts that it was notified of, in their order: name, subject, state."""
        return [(post.body["alert"], post.body["subject"], post.body["state"]) for post in self.posts]

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@contextmanager
def hook_server() -> Iterator[HookServer]:
    server = HookServer()
    try:
        yield server
    finally:
        server.close()
