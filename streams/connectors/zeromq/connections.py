"""The connections of a socket, as its own events report them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final

import zmq
from zmq.utils.monitor import recv_monitor_message

if TYPE_CHECKING:
    from collections.abc import Callable

_OPENED: Final = frozenset({zmq.Event.ACCEPTED, zmq.Event.CONNECTED})
_FAILED: Final = {
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "the other side ended the handshake",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "the other side has other security settings, or another key",
    zmq.Event.HANDSHAKE_FAILED_AUTH: "the other side's key is not allowed",
}
_EVENTS: Final = (
    zmq.Event.ACCEPTED
    | zmq.Event.CONNECTED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.MONITOR_STOPPED
)


class Connections:
    """Follows one socket in a thread of its own, from before it is bound or connects until ``stop``.

    A connection counts when both sides have accepted each other's keys. Events of handshakes do not say which
    connection they mean: the one that has waited longest at that address.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.failed_handshakes = 0
        self.problem = ""
        """Why the last handshake failed; empty after one that succeeded."""
        self._socket = socket
        self._opening: dict[bytes, deque[int]] = defaultdict(deque)
        self._open: set[int] = set()
        self._ended: dict[str, float] = {}
        """When a connection ended at each address, for those that were not tried again since."""
        self._changed = threading.Condition()
        self._events = socket.get_monitor_socket(_EVENTS)
        self._thread = threading.Thread(target=self._run, name="streams-zeromq-events", daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """How many there are now; from any thread."""
        return len(self._open)

    def wait_until(self, reached: Callable[[int], bool], seconds: float) -> bool:
        """Wait for a count of connections; returns whether it was reached in time."""
        with self._changed:
            return self._changed.wait_for(lambda: reached(len(self._open)), seconds)

    def ended_before(self, seconds: float) -> list[str]:
        """The addresses at which a connection ended so long ago, and libzmq does not connect again.

        It never does after an error of the protocol: a peer with other security settings, or none of ZeroMQ.
        """
        with self._changed:
            until = time.monotonic() - seconds
            found = [address for address, since in self._ended.items() if since < until]
            for address in found:
                del self._ended[address]
            return found

    def stop(self) -> None:
        """End following; called by the socket's owner, before the socket is closed."""
        self._socket.disable_monitor()
        self._thread.join()

    def _run(self) -> None:
        with self._events as events:
            while True:
                message = recv_monitor_message(events)
                event = zmq.Event(message["event"])
                if event is zmq.Event.MONITOR_STOPPED:
                    break
                with self._changed:
                    self._take(event, message["value"], message["endpoint"])
                    self._changed.notify_all()

    def _take(self, event: zmq.Event, descriptor: int, endpoint: bytes) -> None:
        opening = self._opening[endpoint]
        if event in _OPENED:
            opening.append(descriptor)
        elif event is zmq.Event.HANDSHAKE_SUCCEEDED:
            self.problem = ""
            if opening:
                self._open.add(opening.popleft())
        elif event in _FAILED:
            self.failed_handshakes += 1
            self.problem = _FAILED[event]
            if opening:
                opening.popleft()
        elif event is zmq.Event.CONNECT_RETRIED:
            self._ended.pop(endpoint.decode(), None)
        else:
            self._ended[endpoint.decode()] = time.monotonic()
            self._open.discard(descriptor)
            if descriptor in opening:
                opening.remove(descriptor)
