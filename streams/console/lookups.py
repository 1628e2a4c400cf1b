"""What pages need from a broker or a worker and is not collected: looked up in the background.

A request starts a lookup, and shows what is there: the result, or that it is still being looked up. The page
refreshes itself, and finds the result of the same lookup then.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
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


class Lookup(NamedTuple, Generic[T]):
    """A result, or why there is none. Times are milliseconds since the epoch."""

    value: T | None
    error: str
    """What went wrong; empty if nothing did."""
    begun: int
    done: bool
    before: T | None = None
    """The result of the lookup before, while it is looked up again."""

    @property
    def known(self) -> T | None:
        """The result, or the one before while it is looked up again."""
        return self.before if self.value is None and not self.done else self.value

    @property
    def pending(self) -> bool:
        """Whether it is still being looked up."""
        return not self.done


@dataclass(slots=True)
class _Running:
    future: Future[Any]
    begun: int
    before: Any = None
    ended: float | None = None
    """When it ended: what took long is kept as long as what did not."""

    def note_end(self, future: Future[Any]) -> None:
        assert future is self.future
        self.ended = time.monotonic()


class Lookups:
    """Runs lookups in a few threads, and keeps their results for a while. Used from any thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="streams-console-lookup")
        self._lock = threading.Lock()
        self._running: OrderedDict[Hashable, _Running] = OrderedDict()

    def get(self, what: Hashable, run: Callable[[], T], *, keep: float) -> Lookup[T]:
        """The result of a lookup named ``what``, which ``run`` makes, unless one is at most ``keep`` s old.

        ``run`` is called in another thread. It must end by itself: its requests need time-outs.
        """
        now = time.monotonic()
        with self._lock:
            running = self._running.get(what)
            if running is None or (running.ended is not None and now - running.ended > keep):
                before = None if running is None else _result(running.future)
                running = _Running(self._pool.submit(run), time.time_ns() // 1_000_000, before)
                running.future.add_done_callback(running.note_end)
                self._running[what] = running
            self._running.move_to_end(what)
            while len(self._running) > KEPT:
                _, oldest = self._running.popitem(last=False)
                oldest.future.cancel()
        if not wait([running.future], AT_ONCE_SECONDS).done:
            return Lookup(None, "", running.begun, False, running.before)
        try:
            return Lookup(running.future.result(), "", running.begun, True)
        except StreamsError as error:
            return Lookup(None, str(error), running.begun, True)
        except Exception as error:  # noqa: BLE001 - the page says it
            return Lookup(None, f"{type(error).__name__}: {error}", running.begun, True)

    def forget(self, *beginning: Hashable) -> None:
        """Drop the results whose name is a tuple that begins so, after an action has changed them."""
        with self._lock:
            for what in list(self._running):
                if isinstance(what, tuple) and what[: len(beginning)] == beginning:
                    del self._running[what]

    def close(self) -> None:
        """Stop. Does not wait for what is running."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Any]) -> Any:
    """What a lookup that has ended has found; ``None`` if it failed."""
    return None if future.cancelled() or future.exception() is not None else future.result()
