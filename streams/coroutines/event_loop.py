"""The event loop of a process, on a thread of its own, and calls of async functions in it.

There is one loop for all steps of all workers of a process, so that what async functions share, e.g. the
connections of an HTTP client, lives as long as the process.
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
"""A call that was cancelled may take so long to end; then it is left behind."""


class Finished(NamedTuple):
    """What became of one call: its result, or its error."""

    result: Any
    error: Exception | None = None


class Running(NamedTuple):
    """A call that has not ended."""

    coroutine: object
    seconds: float
    """Since it began."""


class EventLoop:
    """An event loop that runs on a thread of its own until it is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="streams-asyncio", daemon=True)
        self._thread.start()

    @property
    def thread(self) -> int:
        """The identifier of its thread."""
        assert self._thread.ident is not None
        return self._thread.ident

    def close(self) -> None:
        """Cancel what is left and end the thread; one that is blocked by a function is left behind."""
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
"""The calls that threads wait for, by the thread's identifier."""


def current_loop() -> EventLoop:
    """The event loop of this process, started when it is first asked for."""
    with _lock:
        if not _loops:
            _loops.append(EventLoop())
        return _loops[0]


def _abandon(loop: EventLoop) -> None:
    """Use another loop from now on, as this one's thread does not come back from a function."""
    with _lock:
        if loop in _loops:
            _loops.remove(loop)


def _close_all() -> None:
    for loop in _loops:
        loop.close()


atexit.register(_close_all)
# A child process has no thread that would run the loop.
os.register_at_fork(after_in_child=_loops.clear)


class Calls:
    """Calls of one async function, for rows of a column: at most ``concurrency`` at a time, begun in order.

    ``rows`` are the rows to call it for, ascending. Where there are ``keys`` (hashable ones), a call begins
    only after the calls for earlier rows of the same key; if one of these fails and ``holds`` its row, it
    does not begin at all. A call that takes longer than ``timeout`` seconds is cancelled and fails. With
    ``stops``, rows after the first that failed for good are not called, or cancelled.

    ``outcomes`` are complete once ``wait`` has returned true. Everything else happens in the loop's thread.
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
        """What a call raised that is meant to end the process, e.g. ``SystemExit``."""
        self._function = function
        self._values = values
        self._rows = rows
        self._keys = keys
        self._concurrency = concurrency
        self._timeout = timeout
        self._holds = holds
        self._stops = stops
        self._next = 0
        """Which of the rows is looked at next."""
        self._limit = (rows[-1] + 1) if rows else 0
        """Rows from here on are not called."""
        self._behind: dict[Any, deque[int]] = {}
        """For each key that has a call, or a row that is held, the rows that wait for it."""
        self._running: dict[int, tuple[asyncio.Task[Any], float]] = {}
        """The calls that have begun, oldest first, with the loop's time then."""
        self._cancelled: dict[int, float] = {}
        """When rows were cancelled, on the loop's time: because they took too long, or do not matter."""
        self._expired: set[int] = set()
        self._timer: asyncio.Handle | None = None
        self._done = threading.Event()
        self._event_loop = current_loop()
        self._loop = self._event_loop.loop

    @property
    def finished(self) -> int:
        """How many calls have ended."""
        return len(self.outcomes)

    def start(self) -> None:
        """Begin, in the context of the caller, whose thread waits for them until ``close``."""
        _waiting[threading.get_ident()] = self
        self._loop.call_soon_threadsafe(self._fill)

    def wait(self, seconds: float | None) -> bool:
        """Wait at most so long until all calls have ended. Returns whether they have."""
        return self._done.wait(seconds)

    def close(self) -> None:
        """The caller does not wait any more."""
        _waiting.pop(threading.get_ident(), None)

    def cancel(self) -> None:
        """Cancel what has begun and wait until it has ended; what ignores that is left behind."""
        self._loop.call_soon_threadsafe(self._stop_all)
        # Calls that ignore it are left behind after that long. Else a function blocks the loop.
        if not self._done.wait(CANCEL_SECONDS + 0.5):
            _abandon(self._event_loop)

    # --- in the loop's thread

    def _fill(self) -> None:
        """Begin as many calls as there is room for."""
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
            # It was left behind, and nothing waits for it. Its error would be logged unless it is looked at.
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
        """What became of a call; ``None`` for one that was cancelled as it does not matter any more."""
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
        """Cancel the calls that have taken too long, leave those behind that ignored it, and look again."""
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
        """Call no later rows than this one, and cancel those that have begun."""
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

    # --- for those who look on from another thread

    @property
    def running(self) -> int:
        """How many calls have begun and not ended."""
        return len(self._running)

    def oldest(self) -> Running | None:
        """The call that has taken longest."""
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
        raise TypeError(f"map_async needs something to await, the function returned {awaited!r:.80}")
    return awaited


def awaited_by(thread: int | None) -> Calls | None:
    """The calls that a thread waits for, if it does. From any thread."""
    return _waiting.get(-1 if thread is None else thread)
