"""The reader of a source connector: read by a thread of its own, processed and confirmed by the worker."""

from __future__ import annotations

import queue
import threading
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

from streams.connectors.source import SourceContext, SourceHealth
from streams.errors import SourceUnavailable
from streams.events import Event, get_logger
from streams.runtime.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.connectors.source import SourceBatch, SourceReader
    from streams.topology.graph import SourceNode

READ_SECONDS = 0.5
"""How long a reader waits for records before its thread looks whether it has to end."""

WAITING_BATCHES = 2
"""How many batches are read ahead of what is processed."""

HEALTH_SECONDS = 2.0

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0


class FeedState(Enum):
    """The states of a feed, which its thread changes.

    ::

        OPENING ──opened──> READING ──unavailable──> WAITING ──> OPENING
           │                   │                        │
           └───────────────────┴──── closed, or failed ─┴──────> CLOSED
    """

    OPENING = "opening"
    READING = "reading"
    WAITING = "waiting"
    """The source was not available: it is opened again after a while."""
    CLOSED = "closed"

    def may_become(self, other: FeedState) -> bool:
        """Whether the transition is allowed."""
        return other in _NEXT[self]


_NEXT = {
    FeedState.OPENING: {FeedState.READING, FeedState.WAITING, FeedState.CLOSED},
    FeedState.READING: {FeedState.WAITING, FeedState.CLOSED},
    FeedState.WAITING: {FeedState.OPENING, FeedState.CLOSED},
    FeedState.CLOSED: set(),
}


class SourceFeed:
    """The batches of one task's source, from ``position`` and the source's own ``state`` on.

    Those that were processed and are not committed are kept, so that a rewind does not need the source.
    ``clock`` returns seconds.
    """

    def __init__(
        self,
        node: SourceNode,
        application: str,
        task: int,
        position: bytes,
        state: bytes,
        *,
        clock: Callable[[], float],
    ) -> None:
        assert node.connector is not None
        self._node = node
        self._connector = node.connector
        self._application = application
        self._task = task
        self._clock = clock
        self._log = get_logger()
        self._position = position
        """After the last batch that was read."""
        self._source_state = state
        """The same, of the source."""
        self._confirmed = position
        self._processed: deque[SourceBatch] = deque()
        """Processed and not committed."""
        self._again: deque[SourceBatch] = deque()
        """Processed before a rewind, and to be processed again."""
        self._read: queue.Queue[SourceBatch] = queue.Queue(WAITING_BATCHES)
        self._head: SourceBatch | None = None
        self._reader: SourceReader | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._state = FeedState.OPENING
        self._backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        self.problem = ""
        """Why the source cannot be read now; empty while it can."""
        self.health = SourceHealth("", {})
        """What the source reported last."""
        self._thread = threading.Thread(target=self._run, name=f"streams-source-{node.name}", daemon=True)
        self._thread.start()
        threading.Thread(target=self._look, name=f"streams-health-{node.name}", daemon=True).start()

    @property
    def state(self) -> FeedState:
        return self._state

    @property
    def backlog(self) -> bool:
        """Whether there are batches to process."""
        return bool(self._again) or self._head is not None or not self._read.empty()

    def peek(self) -> SourceBatch | None:
        """The next batch to process, if one is there. Raises what ended the reader."""
        if self._again:
            return self._again[0]
        if self._head is None:
            try:
                self._head = self._read.get_nowait()
            except queue.Empty:
                if self._error is not None:
                    raise self._error from None
                return None
        return self._head

    def processed(self) -> None:
        """The batch that ``peek`` returned is processed."""
        if self._again:
            self._processed.append(self._again.popleft())
            return
        assert self._head is not None, "no batch was taken"
        self._processed.append(self._head)
        self._head = None

    def committed(self) -> None:
        """All processed batches are committed: confirm them to the source."""
        if not self._processed:
            return
        self._confirm(self._processed[-1].position)
        self._processed.clear()

    def rewind(self) -> None:
        """What was processed since the last commit is processed again."""
        self._again.extendleft(reversed(self._processed))
        self._processed.clear()

    def continue_at(self, position: bytes) -> bool:
        """Continue after a position that was read back, if the feed still has what follows it."""
        self.rewind()
        if position == self._confirmed:
            return True
        if all(batch.position != position for batch in self._again):
            return False
        while self._again.popleft().position != position:
            pass
        self._confirm(position)
        return True

    def close(self) -> None:
        """End reading."""
        self._ended.set()
        reader = self._reader
        if reader is not None:
            reader.close()

    def _confirm(self, position: bytes) -> None:
        self._confirmed = position
        reader = self._reader
        if reader is not None:
            reader.confirm(position)

    # --- the feed's own threads

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._read_until_failure()
            except SourceUnavailable as error:
                self._unavailable(error)
            except BaseException as error:  # noqa: BLE001 - raised by peek, in the worker's thread
                self._error = error
                self._ended.set()
            finally:
                reader, self._reader = self._reader, None
                if reader is not None:
                    reader.close()
        self._become(FeedState.CLOSED)

    def _read_until_failure(self) -> None:
        if self._state is FeedState.WAITING:
            self._become(FeedState.OPENING)
        self._reader = reader = self._connector.open(
            SourceContext(
                application=self._application,
                name=self._node.store,
                task=self._task,
                position=self._position,
                state=self._source_state,
            )
        )
        self._become(FeedState.READING)
        while not self._ended.is_set():
            batch = reader.read(READ_SECONDS)
            if self.problem:
                self._log.info(Event.SOURCE_AVAILABLE, source=self._node.name)
                self.problem = ""
            self._backoff.succeeded()
            if batch is not None:
                self._hand_over(batch)

    def _hand_over(self, batch: SourceBatch) -> None:
        while not self._ended.is_set():
            try:
                self._read.put(batch, timeout=READ_SECONDS)
            except queue.Full:
                continue
            self._position = batch.position
            if batch.state is not None:
                self._source_state = batch.state
            return

    def _unavailable(self, error: SourceUnavailable) -> None:
        self._become(FeedState.WAITING)
        self._backoff.failed()
        wait = max(FIRST_BACKOFF_SECONDS, self._backoff.seconds)
        text = str(error).partition("\n")[0]
        if text != self.problem:
            self._log.warning(Event.SOURCE_UNAVAILABLE, source=self._node.name, error=text, seconds=wait)
        self.problem = text
        self._ended.wait(wait)

    def _look(self) -> None:
        while not self._ended.wait(HEALTH_SECONDS):
            reader = self._reader
            if reader is None:
                continue
            try:
                self.health = reader.health()
            except Exception as error:  # noqa: BLE001 - a source that cannot be looked at is not healthy
                self.health = SourceHealth(f"{type(error).__name__}: {error}", self.health.metrics)

    def _become(self, state: FeedState) -> None:
        assert self._state.may_become(state), (
            f"source {self._node.name!r} is {self._state.value}: it cannot become {state.value}"
        )
        self._state = state
