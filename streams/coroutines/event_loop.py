"""The event loop of a process, in a separate thread, and calls of async functions in it.

All steps of all workers of a process share one loop, so that what async functions share, e.g. the connections
of an HTTP client, lives as long as the process.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections import deque
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.coroutines.awaitables import is_awaitable, unawaited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CANCEL_SECONDS = 2.0
"""How long to wait for a cancelled call to end before it is abandoned."""


class Finished(NamedTuple):
    """The result of one call, or its error."""

    result: Any
    error: Exception | None = None


class Running(NamedTuple):
    """A call that has not ended."""

    coroutine: object
    seconds: float
    """Seconds since it started."""


class EventLoop:
    """An event loop that runs in a separate thread until it is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="streams-asyncio", daemon=True)
        self._thread.start()

    @property
    def thread(self) -> int:
        """The identifier of the loop's thread."""
        assert self._thread.ident is not None
        return self._thread.ident

    def close(self) -> None:
        """Cancel all remaining tasks and end the thread; a thread that a function blocks is abandoned."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(CANCEL_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.wait(left, timeout=CANCEL_SECONDS / 2))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


_lock = threading.Lock()
_loops: list[EventLoop] = []
_waiting: dict[int, Calls] = {}
"""The calls for which threads wait, by thread identifier."""


def current_loop() -> EventLoop:
    """The event loop of this process, started on first use."""
    with _lock:
        if not _loops:
            _loops.append(EventLoop())
        return _loops[0]


def _abandon(loop: EventLoop) -> None:
    """Use another loop from now on, because a function blocks this one's thread."""
    with _lock:
        if loop in _loops:
            _loops.remove(loop)


def _close_all() -> None:
    for loop in _loops:
        loop.close()


atexit.register(_close_all)
# A forked child process does not have the loop's thread.
os.register_at_fork(after_in_child=_loops.clear)


class Calls:
    """Calls of an async function for rows of a column: at most ``concurrency`` at a time, started in order.

    ``rows`` are the rows to call it for, in ascending order. With ``keys`` (hashable), a call starts only
    after the calls for earlier rows of the same key have ended; if one of these fails and ``holds`` is true
    for its row, the later calls do not start at all. A call that takes longer than ``timeout`` seconds is
    cancelled and fails. With ``stops``, rows after the first final failure are not called, or are cancelled.

    ``outcomes`` is complete once ``wait`` has returned true. Everything else runs in the loop's thread.
    """

    def __init__(
        self,
        function: Callable[[Any], Awaitable[Any]],
        values: Sequence[Any],
        rows: Sequence[int],
        keys: Sequence[Any] | None,
        *,
        concurrency: int,
        timeout: float | None,
        holds: Callable[[int], bool],
        stops: bool,
    ) -> None:
        self.outcomes: dict[int, Finished] = {}
        self.fatal: BaseException | None = None
        """The exception of a call that is meant to end the process, e.g. ``SystemExit``."""
        self._function = function
        self._values = values
        self._rows = rows
        self._keys = keys
        self._concurrency = concurrency
        self._timeout = timeout
        self._holds = holds
        self._stops = stops
        self._next = 0
        """The index in ``rows`` of the next row."""
        self._limit = (rows[-1] + 1) if rows else 0
        """Rows from this one on are not called."""
        self._behind: dict[Any, deque[int]] = {}
        """The waiting rows of each key that has a running call or a held row."""
        self._running: dict[int, tuple[asyncio.Task[Any], float]] = {}
        """The running calls, oldest first, with their start on the loop's clock."""
        self._cancelled: dict[int, float] = {}
        """When rows were cancelled, on the loop's clock: they timed out, or follow a final failure."""
        self._expired: set[int] = set()
        self._timer: asyncio.Handle | None = None
        self._done = threading.Event()
        self._event_loop = current_loop()
        self._loop = self._event_loop.loop

    @property
    def finished(self) -> int:
        """The number of calls that have ended."""
        return len(self.outcomes)

    def start(self) -> None:
        """Start the calls in the caller's context; the caller's thread waits for them until ``close``."""
        _waiting[threading.get_ident()] = self
        self._loop.call_soon_threadsafe(self._fill)

    def wait(self, seconds: float | None) -> bool:
        """Wait at most ``seconds`` until all calls have ended. Returns whether they have."""
        return self._done.wait(seconds)

    def close(self) -> None:
        """End the caller's wait."""
        _waiting.pop(threading.get_ident(), None)

    def cancel(self) -> None:
        """Cancel the running calls and wait until they have ended; those that ignore it are abandoned."""
        self._loop.call_soon_threadsafe(self._stop_all)
        # Calls that ignore it are abandoned after CANCEL_SECONDS. Otherwise a function blocks the loop.
        if not self._done.wait(CANCEL_SECONDS + 0.5):
            _abandon(self._event_loop)

    # --- in the loop's thread

    def _fill(self) -> None:
        """Start calls up to the limit of ``concurrency``."""
        rows, keys = self._rows, self._keys
        while len(self._running) < self._concurrency and self._next < len(rows):
            row = rows[self._next]
            if row >= self._limit:
                break
            self._next += 1
            key = None if keys is None else keys[row]
            if key is None:
                self._begin(row)
            elif key in self._behind:
                self._behind[key].append(row)
            else:
                self._behind[key] = deque()
                self._begin(row)
        if not self._running:
            if self._timer is not None:
                self._timer.cancel()
            self._done.set()

    def _begin(self, row: int) -> None:
        task = self._loop.create_task(_call(self._function, self._values[row]))
        self._running[row] = task, self._loop.time()
        task.add_done_callback(partial(self._ended, row))
        if self._timeout is not None and self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._look)

    def _ended(self, row: int, task: asyncio.Task[Any]) -> None:
        if self._running.get(row, (None,))[0] is not task:
            # The call was abandoned. Reading its exception keeps asyncio from logging it.
            if not task.cancelled():
                task.exception()
            return
        del self._running[row]
        finished = self._outcome(row, task)
        if finished is not None:
            self._note(row, finished)
        self._fill()

    def _note(self, row: int, finished: Finished) -> None:
        self.outcomes[row] = finished
        held = finished.error is not None and self._holds(row)
        if finished.error is not None and not held and self._stops:
            self._stop_from(row)
        if self._keys is None or held:
            return
        key = self._keys[row]
        if key is not None:
            behind = self._behind[key]
            if behind and behind[0] < self._limit:
                self._begin(behind.popleft())
            elif not behind:
                del self._behind[key]

    def _outcome(self, row: int, task: asyncio.Task[Any]) -> Finished | None:
        """The outcome of a call; ``None`` if it was cancelled because it follows a final failure."""
        error = None if task.cancelled() else task.exception()
        if row in self._expired and (error is not None or task.cancelled()):
            return Finished(None, self._late(error))
        if task.cancelled():
            if row in self._cancelled:
                return None
            return Finished(None, RuntimeError("the call was cancelled by the function itself"))
        if isinstance(error, Exception):
            return Finished(None, error)
        result = task.result()
        if isinstance(result, _Fatal):
            self.fatal = self.fatal or result.error
            self._stop_from(-1)
            return None
        if is_awaitable(result):
            return Finished(None, unawaited(result))
        return Finished(result)

    def _late(self, error: BaseException | None) -> TimeoutError:
        late = TimeoutError(f"no result within {self._timeout:g} s")
        late.__cause__ = error
        return late

    def _look(self) -> None:
        """Cancel calls that timed out, abandon those that ignored it, and schedule the next check."""
        self._timer = None
        now = self._loop.time()
        for row, (task, begun) in list(self._running.items()):
            if row in self._cancelled:
                if now >= self._cancelled[row] + CANCEL_SECONDS:
                    del self._running[row]
                    if row in self._expired:
                        self._note(row, Finished(None, self._late(None)))
            elif self._timeout is not None and now >= begun + self._timeout:
                self._expired.add(row)
                self._cancelled[row] = now
                task.cancel()
        self._fill()
        if self._running and self._timer is None:
            self._timer = self._loop.call_at(min(map(self._due, self._running)), self._look)

    def _due(self, row: int) -> float:
        if row in self._cancelled:
            return self._cancelled[row] + CANCEL_SECONDS
        return float("inf") if self._timeout is None else self._running[row][1] + self._timeout

    def _stop_from(self, row: int) -> None:
        """Do not call rows after this one, and cancel those that are running."""
        self._limit = min(self._limit, row)
        now = self._loop.time()
        for other, (task, _) in self._running.items():
            if other > row and other not in self._cancelled:
                self._cancelled[other] = now
                task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_soon(self._look)

    def _stop_all(self) -> None:
        self._stop_from(-1)
        self._fill()

    # --- for other threads

    @property
    def running(self) -> int:
        """The number of running calls."""
        return len(self._running)

    def oldest(self) -> Running | None:
        """The running call that started first."""
        for task, begun in list(self._running.values()):
            return Running(task.get_coro(), self._loop.time() - begun)
        return None

    @property
    def loop_thread(self) -> int:
        """The identifier of the thread that runs the calls."""
        return self._event_loop.thread


class _Fatal(NamedTuple):
    error: BaseException


async def _call(function: Callable[[Any], Awaitable[Any]], value: Any) -> Any:
    try:
        return await _required(function(value))
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - raised again in the worker's thread; here it would end the loop
        return _Fatal(error)


def _required(awaited: object) -> Awaitable[Any]:
    if not isinstance(awaited, Awaitable):
        raise TypeError(f"map_async needs an awaitable, but the function returned {awaited!r:.80}")
    return awaited


def awaited_by(thread: int | None) -> Calls | None:
    """The calls for which a thread waits, if any. It may be called from any thread."""
    return _waiting.get(-1 if thread is None else thread)
