"""What pages need from a broker or a worker and is not collected: looked up in the background.

A request starts a lookup, and shows what is there: the result, or that it is still being looked up. The page
refreshes itself, and finds the result of the same lookup then.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")

THREADS: Final = 8
KEPT: Final = 200
"""Results that are kept, those that were read last."""

AT_ONCE_SECONDS: Final = 0.1
"""How long a request waits for a result, so that what is fast needs no second request."""

SHOWN_SECONDS: Final = 60.0
"""How long after its time a result is still shown, while the next one is being looked up."""


class Lookup(NamedTuple, Generic[T]):
    """A result, or why there is none. Times are milliseconds since the epoch."""

    value: T | None
    error: str
    """What went wrong; empty if nothing did."""
    begun: int
    done: bool

    @property
    def pending(self) -> bool:
        """Whether there is nothing yet."""
        return not self.done


@dataclass(slots=True)
class _Running:
    future: Future[Any]
    begun: int
    before: Lookup[Any] | None
    """The result that it replaces, which is shown until it is there."""
    ended: float | None = None
    """When it ended: what took long is kept as long as what did not."""

    def note_end(self, future: Future[Any]) -> None:
        assert future is self.future
        self.ended = time.monotonic()

    def result(self, timeout: float) -> Lookup[Any]:
        """What was found, after ``timeout`` seconds at most."""
        if not wait([self.future], timeout).done:
            return Lookup(None, "", self.begun, False)
        try:
            return Lookup(self.future.result(), "", self.begun, True)
        except StreamsError as error:
            return Lookup(None, str(error), self.begun, True)
        except CancelledError:
            return Lookup(None, "", self.begun, False)
        except Exception as error:  # noqa: BLE001 - the page says it
            return Lookup(None, f"{type(error).__name__}: {error}", self.begun, True)


class Lookups:
    """Runs lookups in a few threads, and keeps their results for a while. Used from any thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="streams-console-lookup")
        self._lock = threading.Lock()
        self._running: OrderedDict[Hashable, _Running] = OrderedDict()

    def get(self, what: Hashable, run: Callable[[], T], *, keep: float) -> Lookup[T]:
        """The result of a lookup named ``what``, which ``run`` makes, unless one is at most ``keep`` s old.

        Where there is an older result, at most a minute longer, it is the result until the new one is there.
        ``run`` is called in another thread. It must end by itself: its requests need time-outs.
        """
        now = time.monotonic()
        with self._lock:
            running = self._running.get(what)
            if running is None or (running.ended is not None and now - running.ended > keep):
                recent = running is not None and now - (running.ended or now) < keep + SHOWN_SECONDS
                before = running.result(0.0) if running is not None and recent else None
                running = _Running(self._pool.submit(run), time.time_ns() // 1_000_000, before)
                running.future.add_done_callback(running.note_end)
                self._running[what] = running
            self._running.move_to_end(what)
            while len(self._running) > KEPT:
                _, oldest = self._running.popitem(last=False)
                oldest.future.cancel()
        found = running.result(AT_ONCE_SECONDS if running.before is None else 0.0)
        return running.before if found.pending and running.before is not None else found

    def forget(self, *beginning: Hashable) -> None:
        """Drop the results whose name is a tuple that begins so, after an action has changed them."""
        with self._lock:
            for what in list(self._running):
                if isinstance(what, tuple) and what[: len(beginning)] == beginning:
                    del self._running[what]

    def close(self) -> None:
        """Stop. Does not wait for what is running."""
        self._pool.shutdown(wait=False, cancel_futures=True)
