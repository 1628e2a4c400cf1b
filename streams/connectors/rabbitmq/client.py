"""The library's connection, with every wait bounded, and frames of messages as columns.

The library logs in, declares and consumes. What a record costs is done here: bytes are read in large pieces,
and deliveries and confirms are taken from their frames without an object for each.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from itertools import accumulate
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import amqp
from amqp.exceptions import ChannelError, UnexpectedFrame, error_for_code
from amqp.transport import SSLTransport, TCPTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.connectors.rabbitmq.server_address import ServerAddress

ANSWER_SECONDS: Final = 10.0
"""How long an answer may take."""

CONNECT_SECONDS: Final = 10.0

# The library has the kernel end a connection whose other side takes nothing for a second, as RabbitMQ does
# when it lets a fast publisher wait. How long to wait is decided here. Only Linux has this option.
_PATIENT: Final = (
    {socket.TCP_USER_TIMEOUT: int(ANSWER_SECONDS * 1_000)} if hasattr(socket, "TCP_USER_TIMEOUT") else {}
)

READ_BYTES: Final = 256 * 1024
"""More than TLS has at a time: what is left to be read is in the kernel, where it can be waited for."""

_HEAD: Final = Struct(">BHI")
_LONG: Final = Struct(">Q")
_METHOD, _HEADER, _BODY, _END = 1, 2, 3, 0xCE

_DELIVER: Final = b"\x00\x3c\x00\x3c"
_ACK: Final = b"\x00\x3c\x00\x50"
_NACK: Final = b"\x00\x3c\x00\x78"
_CHANNEL_CLOSE: Final = b"\x00\x14\x00\x28"
_BLOCKED: Final = b"\x00\x0a\x00\x3c"
_UNBLOCKED: Final = b"\x00\x0a\x00\x3d"

_IN: Final = select.POLLIN | select.POLLHUP | select.POLLERR


class Deliveries:
    """Messages that were delivered, as columns of their frames' payloads."""

    def __init__(self) -> None:
        self.methods: list[bytes] = []
        self.headers: list[bytes] = []
        self.bodies: list[bytes] = []
        self.bytes = 0
        self._left = -1
        """Bytes of the body that have not arrived; -1 while no message is incomplete."""
        self._parts: list[bytes] = []

    def __len__(self) -> int:
        return len(self.bodies)

    @property
    def incomplete(self) -> bool:
        """Whether the next frames belong to a message that has begun."""
        return len(self.methods) > len(self.bodies)

    def take_header(self, payload: bytes) -> None:
        self.headers.append(payload)
        (self._left,) = _LONG.unpack_from(payload, 4)
        if not self._left:
            self.bodies.append(b"")

    def take_body(self, payload: bytes) -> None:
        if len(payload) == self._left and not self._parts:
            self.bodies.append(payload)
        else:
            self._parts.append(payload)
            self._left -= len(payload)
            if self._left:
                return
            payload = b"".join(self._parts)
            self.bodies.append(payload)
            self._parts.clear()
        self.bytes += len(payload)

    def take(self, count: int, size: int) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Remove the first complete messages, at most so many, and of about so many bytes.

        Returns the columns of their methods, headers and bodies.
        """
        count = min(count, len(self.bodies))
        if self.bytes > size:
            ends = accumulate(map(len, self.bodies[:count]))
            count = next((number for number, end in enumerate(ends, 1) if end >= size), count)
        taken = self.methods[:count], self.headers[:count], self.bodies[:count]
        del self.methods[:count], self.headers[:count], self.bodies[:count]
        self.bytes -= sum(map(len, taken[2]))
        return taken


class Client(amqp.Connection):  # type: ignore[misc]  # the library has no types
    """A connection whose messages and confirms are on one channel; used by one thread at a time.

    ``confirmed`` is called with a tag, whether it is for all before it too, and whether it is positive.
    Methods raise ``amqp.AMQPError`` and ``OSError``, after which it is to be closed.
    """

    def __init__(self, address: ServerAddress, *, name: str) -> None:
        self._address = address
        self._tls = address.tls()
        user, password = address.login()
        super().__init__(
            host=address.place,
            userid=user,
            password=password,
            login_method=address.mechanism,
            virtual_host=address.virtual_host,
            client_properties={"connection_name": name, "product": "streams"},
            ssl=address.secured,
            connect_timeout=CONNECT_SECONDS,
            heartbeat=address.heartbeat,
        )
        self.deliveries = Deliveries()
        self.confirmed: Callable[[int, bool, bool], None] = lambda *_: None
        self.blocked = ""
        """Why the server takes no messages now; empty while it does."""
        self.received_at = self.sent_at = time.monotonic()
        self.answer_seconds = ANSWER_SECONDS
        self._rest = b""
        self._poll: select.poll | None = None
        self._waking = threading.Lock()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)

    def Transport(self, host: str, connect_timeout: float, *_: Any, **__: Any) -> Any:  # noqa: N802 - the library's name
        """The socket, over TLS by our own settings."""
        if self._tls is None:
            return TCPTransport(host, connect_timeout=connect_timeout, socket_settings=_PATIENT)
        return _SecuredTransport(host, self._tls, self._address.server_name, connect_timeout)

    def open_channel(self) -> Any:
        """Connect, and open the channel on which messages and confirms are."""
        self.connect()
        return self.channel(1)

    def wake(self) -> None:
        """End a wait of another thread. Never blocks."""
        with self._waking, suppress(BlockingIOError):
            if self._wake >= 0:
                os.write(self._wake, b"\0")

    def drain_events(self, timeout: float | None = None) -> None:
        """Called by the library while it waits for an answer."""
        seconds = self.answer_seconds if timeout is None else min(timeout, self.answer_seconds)
        until = time.monotonic() + seconds
        while not self.receive(max(0.0, until - time.monotonic())):
            if time.monotonic() >= until:
                raise TimeoutError(f"no answer within {seconds:g} s")

    def receive(self, timeout: float) -> bool:
        """Take what arrives within so many seconds; whether anything did. ``wake`` ends this wait or the next."""
        sock = self.transport.sock
        if not self._readable(sock, timeout):
            return False
        if self._tls is None:
            data = sock.recv(READ_BYTES)
        else:
            # What has arrived may be a part of what TLS needs to have data.
            previous = sock.gettimeout()
            sock.settimeout(0.0)
            try:
                data = sock.recv(READ_BYTES)
            except ssl.SSLWantReadError:
                return False
            finally:
                sock.settimeout(previous)
        if not data:
            raise OSError("the server has closed the connection")
        self.received_at = time.monotonic()
        self._take_frames(self._rest + data if self._rest else data)
        return True

    def send(self, data: bytes) -> None:
        """Send frames. What arrives meanwhile is taken, so that neither side waits for the other."""
        sock = self.transport.sock
        view = memoryview(data)
        until = time.monotonic() + self.answer_seconds
        previous = sock.gettimeout()
        while view:
            if self._readable(sock, 0.0):
                self.receive(0.0)
                if self.blocked:
                    return
            sock.settimeout(1.0)
            try:
                view = view[sock.send(view) :]
                until = time.monotonic() + self.answer_seconds
            except TimeoutError:
                if time.monotonic() > until:
                    raise
            finally:
                sock.settimeout(previous)
        self.sent_at = time.monotonic()

    def beat(self) -> None:
        """Send a heartbeat if nothing else was sent. Raises ``OSError`` if the other side is silent."""
        now = time.monotonic()
        if now - self.received_at > 2 * self.heartbeat > 0:
            raise TimeoutError(f"no sign of life within {2 * self.heartbeat} s")
        if now - self.sent_at > self.heartbeat / 3 > 0:
            self.send_heartbeat()
            self.sent_at = now

    def interrupt(self) -> None:
        """End a call of another thread, which then raises. Never raises."""
        sock = getattr(self._transport, "sock", None)
        if sock is not None:
            with suppress(OSError):
                # The socket below TLS, whose own method forgets the session that is being used.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def discard(self) -> None:
        """Close it without a word. Never raises. May be called twice."""
        if self._transport is not None:
            sock = getattr(self._transport, "sock", None)
            if sock is not None:
                # Closing TLS would wait for the other side.
                with suppress(OSError):
                    sock.settimeout(0.0)
            self.collect()
        with self._waking:
            if self._wake >= 0:
                os.close(self._wake)
                os.close(self._woken)
                self._wake = self._woken = -1

    def _readable(self, sock: Any, timeout: float) -> bool:
        if self._poll is None:
            sock.settimeout(self.answer_seconds)
            self._poll = select.poll()
            self._poll.register(sock, _IN)
            self._poll.register(self._woken, _IN)
        ready = self._poll.poll(timeout * 1_000)
        # A look that does not wait leaves the call to the wait that follows.
        if timeout and any(descriptor == self._woken for descriptor, _ in ready):
            os.read(self._woken, 4096)
        return any(descriptor != self._woken for descriptor, _ in ready)

    def _take_frames(self, buffer: bytes) -> None:
        """Take the complete frames, and keep the rest."""
        deliveries = self.deliveries
        methods, take_header, take_body = deliveries.methods, deliveries.take_header, deliveries.take_body
        head = _HEAD.unpack_from
        at, end = 0, len(buffer)
        while end - at > 7:
            kind, channel, size = head(buffer, at)
            stop = at + 7 + size
            if stop >= end:
                break
            if buffer[stop] != _END:
                raise UnexpectedFrame("a frame does not end where it should")
            payload = buffer[at + 7 : stop]
            at = stop + 1
            if channel == 1:
                if kind == _BODY and deliveries.incomplete:
                    take_body(payload)
                    continue
                if kind == _HEADER and deliveries.incomplete:
                    take_header(payload)
                    continue
                method = payload[:4]
                if kind == _METHOD and method == _DELIVER:
                    methods.append(payload)
                    continue
                if kind == _METHOD and method in {_ACK, _NACK}:
                    (tag,) = _LONG.unpack_from(payload, 4)
                    self.confirmed(tag, bool(payload[12] & 1), method == _ACK)
                    continue
            # Others may end the connection, or have the library wait for what follows.
            self._rest = buffer[at:]
            self._take_other(kind, channel, payload)
            buffer = self._rest
            at, end = 0, len(buffer)
        self._rest = buffer[at:]

    def _take_other(self, kind: int, channel: int, payload: bytes) -> None:
        method = payload[:4]
        if kind == _METHOD and method == _CHANNEL_CLOSE and channel:
            # The library would open it again.
            code = int.from_bytes(payload[4:6])
            text = payload[7 : 7 + payload[6]].decode(errors="replace")
            raise error_for_code(code, text, (0, 0), ChannelError)
        if kind == _METHOD and not channel:
            if method == _BLOCKED:
                self.blocked = payload[5 : 5 + payload[4]].decode(errors="replace") or "blocked"
            elif method == _UNBLOCKED:
                self.blocked = ""
        self.on_inbound_frame((kind, channel, payload))


class _SecuredTransport(SSLTransport):  # type: ignore[misc]  # the library has no types
    """TLS that checks the server's certificate and name."""

    def __init__(self, host: str, context: ssl.SSLContext, server_name: str, connect_timeout: float) -> None:
        super().__init__(host, connect_timeout=connect_timeout, socket_settings=_PATIENT)
        self._context = context
        self._server_name = server_name

    def _wrap_socket(self, sock: Any, **_: Any) -> Any:
        return self._context.wrap_socket(
            sock, server_hostname=self._server_name, do_handshake_on_connect=False
        )
