"""A way to a schema registry on which requests can be refused."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator


class RegistryGate:
    """Passes requests on to a registry; those whose path has ``refused`` in it get status 503.

    With ``credentials`` (``name:password``), others get 401; with ``tls``, it serves HTTPS.
    """

    def __init__(
        self, url: str, *, credentials: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        wanted = None if credentials is None else b64encode(credentials.encode()).decode()
        self.refused: str | None = None
        self.nonsense = False
        """Whether it answers with a web page, as a wrong address does."""
        self.refusals = 0
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
                if wanted is not None and self.headers.get("Authorization") != f"Basic {wanted}":
                    status, content = 401, b'{"error_code": 401, "message": "who are you?"}'
                else:
                    status, content = gate.pass_on(f"{url}{self.path}", self.command, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = answer  # noqa: N815 - the base class finds them by these names

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - as in the base class
                """Nothing is logged."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_port}"

    def pass_on(self, url: str, method: str, body: bytes | None) -> tuple[int, bytes]:
        if self.refused is not None and self.refused in url:
            self.refusals += 1
            return 503, b'{"error_code": 503, "message": "not now"}'
        if self.nonsense:
            return 200, b"<html>hello</html>"
        request = urllib.request.Request(
            url, data=body, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    @contextmanager
    def open(self) -> Iterator[RegistryGate]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
