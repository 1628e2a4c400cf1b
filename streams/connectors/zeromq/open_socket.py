"""A socket of a connector: its own context, its options, and what follows its connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import zmq

from streams.connectors.zeromq.access import Access
from streams.connectors.zeromq.connections import Connections
from streams.connectors.zeromq.curve import CurveServer, set_keys
from streams.errors import ConnectorError

if TYPE_CHECKING:
    from streams.connectors.zeromq.curve import CurveClient
    from streams.connectors.zeromq.endpoints import Endpoints
    from streams.errors import ConnectorUnavailable

RECONNECT_MILLISECONDS: Final = 100
LONGEST_RECONNECT_MILLISECONDS: Final = 5_000
"""Waits between attempts to connect, which double."""

KEEPALIVE_IDLE_SECONDS: Final = 30
KEEPALIVE_INTERVAL_SECONDS: Final = 10
KEEPALIVE_COUNT: Final = 3
"""A host that is gone without a word is noticed after a minute, by TCP. ZeroMQ's own heartbeats would end the
connection to a receiver that is only slow: while its buffer is full it reads nothing, heartbeats neither.
"""

_MISTAKES: Final = frozenset({zmq.EINVAL, zmq.EPROTONOSUPPORT, zmq.ENOCOMPATPROTO})


class OpenSocket:
    """A socket that is bound or connects, and is used by one thread at a time.

    ``high_water_mark`` is in messages, for each connection; ``max_message_bytes`` for what it receives.
    Raises ``unavailable`` where an address is in use or not of this machine, ``ConnectorError`` for one that
    is none, and for keys that cannot be read.
    """

    def __init__(
        self,
        kind: int,
        endpoints: Endpoints,
        curve: CurveServer | CurveClient | None,
        *,
        high_water_mark: int,
        unavailable: type[ConnectorUnavailable],
        max_message_bytes: int = -1,
        subscriptions: tuple[bytes, ...] = (),
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        self._access: Access | None = None
        self.connections = Connections(self.socket)
        try:
            self._set(high_water_mark, max_message_bytes, ipv6=endpoints.ipv6)
            for prefix in subscriptions:
                self.socket.subscribe(prefix)
            set_keys(self.socket, curve)
            if isinstance(curve, CurveServer) and curve.folder is not None:
                self._access = Access(self._context, curve.folder)
                # Without a handler, as while messages linger, connections are refused.
                self.socket.zap_domain = b"streams"
                self.socket.zap_enforce_domain = True
            self._begin(endpoints, unavailable)
        except BaseException:
            self.close(linger=0)
            raise

    def close(self, *, linger: int) -> None:
        """Close it; what was sent and is not on its way yet is waited for, up to ``linger`` milliseconds."""
        if self.socket.closed:
            return
        self.connections.stop()
        self.socket.close(linger)
        self._context.term()
        if self._access is not None:
            self._access.join()

    def _set(self, high_water_mark: int, max_message_bytes: int, *, ipv6: bool) -> None:
        socket = self.socket
        socket.sndhwm = socket.rcvhwm = high_water_mark
        socket.maxmsgsize = max_message_bytes
        socket.ipv6 = ipv6
        socket.reconnect_ivl = RECONNECT_MILLISECONDS
        socket.reconnect_ivl_max = LONGEST_RECONNECT_MILLISECONDS
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = KEEPALIVE_IDLE_SECONDS
        socket.tcp_keepalive_intvl = KEEPALIVE_INTERVAL_SECONDS
        socket.tcp_keepalive_cnt = KEEPALIVE_COUNT

    def _begin(self, endpoints: Endpoints, unavailable: type[ConnectorUnavailable]) -> None:
        for address in endpoints.addresses:
            try:
                if endpoints.bound:
                    self.socket.bind(address)
                else:
                    self.socket.connect(address)
            except zmq.ZMQError as error:
                doing = "bound to" if endpoints.bound else "connected to"
                text = f"a socket cannot be {doing} {address}: {zmq.strerror(error.errno or 0)}"
                if error.errno in _MISTAKES:
                    raise ConnectorError(text, hint="correct the address") from error
                raise unavailable(text) from error
