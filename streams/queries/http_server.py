"""The worker's HTTP server: uvicorn in a separate thread.

No client can block others: the number of connections is limited, and at the limit an idle connection is
closed for a new one. A connection that neither sends a request nor reads its response is closed as well. So
connections never use up the file descriptors that the worker needs.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from streams.errors import ConfigurationError
from streams.process import open_files
from streams.queries.http import UNAUTHORIZED, Request, Response, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import TracebackType
    from typing import Self

    from streams.queries.http import Tls

MOST_CONNECTIONS: Final = 256
"""The maximum number of open connections, or a quarter of the process's limit of open files, if less."""

IDLE_SECONDS: Final = 10.0
"""The time-out for the first and the next request of a connection."""

ANSWER_SECONDS: Final = 30.0
"""The time-out of a request, until the client has read the response."""

LOOK_SECONDS: Final = 2.5
"""Seconds between checks of each connection for these time-outs."""

LONGEST_HEAD: Final = 64 * 1024
"""The maximum size of a request's target and headers together, in bytes."""

THREADS: Final = 16
"""Threads for requests with parameters."""

FIXED_THREADS: Final = 4
"""Separate threads for requests to fixed paths, so that health checks do not wait for queries."""


class HttpServer:
    """Serves GET and HEAD requests, and applications, until it is closed.

    ``routes`` are fixed paths. ``templates`` are paths with parameters such as ``/stores/{store}``; each
    parameter matches one path segment. ``mounts`` are ASGI applications by the path below which they serve
    all requests, of any method; they check themselves who may do what. ``port`` 0 chooses a free port. With a
    ``token``, all other paths that are not ``public`` require it: ``Authorization: Bearer <token>``. With
    ``tls`` it serves HTTPS. Errors are JSON with ``reason`` and ``error``. Raises ``ConfigurationError`` if
    the port is in use, the host is not an address of this machine, or the certificate cannot be used.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Mapping[str, Callable[[], Response]],
        templates: Mapping[str, Callable[[Request], Response]] | None = None,
        *,
        mounts: Mapping[str, Any] | None = None,
        token: str | None = None,
        public: Collection[str] = (),
        tls: Tls | None = None,
    ) -> None:
        self._mounts = mounts or {}
        self._routes = routes
        self._templates = templates or {}
        self._token = token
        self._public = public
        self._secure = tls is not None
        most = max(8, min(MOST_CONNECTIONS, open_files.limit() // 4))
        config = uvicorn.Config(
            self._serve,
            http=partial(_Connection, most=most),  # type: ignore[arg-type]  # called like a class, and no more is done with it
            interface="asgi3",
            proxy_headers=False,
            loop="asyncio",
            ws="none",
            lifespan="off",
            # Other values would reconfigure uvicorn's loggers, which the program may use itself.
            log_config=None,
            log_level=None,
            server_header=False,
            h11_max_incomplete_event_size=LONGEST_HEAD,
            timeout_keep_alive=int(IDLE_SECONDS),
            timeout_graceful_shutdown=1,
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"the certificate for the HTTP port cannot be used: {error}",
                hint="set http_tls_certificate and http_tls_key to PEM files of a certificate and its key",
            ) from error
        listening = _listen(host, port)
        self.host, self.port = host, listening.getsockname()[1]
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="streams-http")
        self._fixed_threads = ThreadPoolExecutor(FIXED_THREADS, thread_name_prefix="streams-http")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listening],), name="streams-http", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self._secure}://{host}:{self.port}"

    def close(self) -> None:
        """Stop serving requests."""
        self._server.should_exit = True
        self._thread.join()
        for threads in (self._threads, self._fixed_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, as specified by ASGI."""
        for path, application in self._mounts.items():
            if scope["path"] == path or scope["path"].startswith(f"{path}/"):
                await application({**scope, "root_path": path}, receive, send)
                return
        response = await self._answer(scope)
        headers = [
            (b"content-type", response.content_type.encode()),
            (b"content-length", b"%d" % len(response.body)),
        ]
        if response.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if response.status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else response.body
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Any) -> Response:
        target = _ascii(scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b""))
        headers = {name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]}
        path, _, query = target.partition("?")
        if self._token is not None and path not in self._public and not _has_token(headers, self._token):
            return UNAUTHORIZED
        if scope["method"] not in ("GET", "HEAD"):
            return refusal(405, "method not allowed", f"{scope['method']} is not supported: use GET")
        if path in self._routes:
            return await self._run(self._fixed_threads, self._routes[path])
        for template, route in self._templates.items():
            parameters = match_path(template, path)
            if parameters is not None:
                pairs = dict(parse_qsl(query, keep_blank_values=True, errors="surrogateescape"))
                request = Request(target, parameters, pairs, headers)
                return await self._run(self._threads, partial(route, request))
        paths = ", ".join([*self._routes, *self._templates])
        return refusal(404, "no such path", f"there is no path {path}; paths are: {paths}")

    async def _run(self, threads: ThreadPoolExecutor, route: Callable[[], Response]) -> Response:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, route)
        except Exception as error:  # noqa: BLE001 - the server continues; the response has the error
            return refusal(500, "internal error", f"{type(error).__name__}: {error}")


_SILENT = logging.Logger("streams.http", logging.CRITICAL + 1)  # noqa: LOG001 - it must not be registered


class _Connection(H11Protocol):
    """uvicorn's connection, with a limit on their number and with time-outs."""

    def __init__(self, *arguments: Any, most: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Errors of clients are reported to them and not logged: uvicorn's loggers belong to the program.
        self.access_log, self.logger = False, _SILENT
        self._most = most
        self._last_request: object = None
        self._since = 0.0
        """When the connection was made, or its last request or response started."""
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        others = {other for other in self.connections if isinstance(other, _Connection)}
        super().connection_made(transport)
        self._since = self.loop.time()
        self._look = self.loop.call_later(LOOK_SECONDS, self._close_if_overdue)
        if len(others) < self._most:
            return
        idle = [other for other in others if not other._busy]  # noqa: SLF001 - of the same class
        if not idle:
            self._refuse(refusal(503, "overloaded", f"{self._most} requests are already being served"))
            return
        oldest = min(idle, key=lambda other: other._since)  # noqa: SLF001 - of the same class
        self.connections.discard(oldest)
        oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(refusal(400, "bad request", msg))

    @property
    def _busy(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def _close_if_overdue(self) -> None:
        now = self.loop.time()
        if self.cycle is not self._last_request:
            self._last_request, self._since = self.cycle, now
        if now - self._since > (ANSWER_SECONDS if self._busy else IDLE_SECONDS):
            self.transport.abort()
            return
        self._look = self.loop.call_later(LOOK_SECONDS, self._close_if_overdue)

    def _refuse(self, response: Response) -> None:
        """Send an error response without reading the request, and close the connection."""
        head = (
            f"HTTP/1.1 {response.status} Refused\r\nContent-Type: {response.content_type}\r\n"
            f"Content-Length: {len(response.body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + response.body)
        self.transport.close()


def _has_token(headers: Mapping[str, str], token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    # Compared in constant time, so that the duration does not reveal how much of a guess is right.
    same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    return same and scheme.lower() == "bearer"


def _ascii(target: bytes) -> str:
    return "".join(chr(byte) if 32 < byte < 127 else f"%{byte:02X}" for byte in target)


def _check_port(port: int) -> None:
    if port > 65535:
        raise OverflowError("the highest port is 65535")


def _listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; for ``::`` it accepts IPv4 and IPv6."""
    try:
        _check_port(port)
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        both = family == socket.AF_INET6 and host in ("", "::") and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=128, dualstack_ipv6=both)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigurationError(
            f"HTTP port {host}:{port} cannot be used: {error}",
            hint="set another http_port or http_host; further workers use the next higher ports",
        ) from error


def match_path(template: str, path: str) -> dict[str, str] | None:
    """The values of the template's parameters in a path, percent-decoded; ``None`` if it does not match."""
    wanted, parts = template.split("/"), path.split("/")
    if len(wanted) != len(parts):
        return None
    found = {}
    for name, part in zip(wanted, parts, strict=True):
        if name.startswith("{"):
            # The path is split before decoding, so that a key may contain a slash.
            found[name[1:-1]] = unquote(part, errors="surrogateescape")
        elif name != part:
            return None
    return found
