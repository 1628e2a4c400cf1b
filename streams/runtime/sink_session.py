"""The connection of a worker to one sink: which partitions it has claimed there, and the open transaction."""

from __future__ import annotations

from concurrent.futures import Future, TimeoutError as FutureTimeout
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from streams.connectors.sink import keeps_positions
from streams.errors import SinkUnavailable
from streams.events import Event, get_logger
from streams.process.call_thread import CallThread
from streams.runtime.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.connectors.sink import RefusedRow, SinkContext, SinkRows, SinkWriter
    from streams.records import TopicPartition
    from streams.topology.graph import SinkConnectorNode

T = TypeVar("T")

LOOK_SECONDS = 0.02
"""How often a worker that waits for a sink serves its group."""

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0
"""Waits between attempts to reach a sink."""


class SinkState(Enum):
    """The states of a session.

    ::

        CLOSED ──claim──> CLAIMING ──positions read──> OPEN ──write──> WRITTEN
          ^                  │ ^                       │ ^ ^              │ │
          │                  │ └─────────claim─────────┘ │ └─commit───────┘ │
          │                  │                           └───rollback───────┘
          └──────────────────┴─── failed, from any state
    """

    CLOSED = "closed"
    """Not connected; the partitions wait until they are claimed."""
    CLAIMING = "claiming"
    """The positions of added partitions are being read, in the session's thread."""
    OPEN = "open"
    WRITTEN = "written"
    """The sink's transaction is open and has all rows."""

    def may_become(self, other: SinkState) -> bool:
        """Whether the transition is allowed."""
        return other in _NEXT[self]


_NEXT = {
    SinkState.CLOSED: {SinkState.CLAIMING, SinkState.CLOSED},
    SinkState.CLAIMING: {SinkState.OPEN, SinkState.CLOSED},
    SinkState.OPEN: {SinkState.CLAIMING, SinkState.WRITTEN, SinkState.CLOSED},
    SinkState.WRITTEN: {SinkState.OPEN, SinkState.CLOSED},
}


class _Claimed(NamedTuple):
    writer: SinkWriter
    positions: dict[TopicPartition, int]


def _close(writer: SinkWriter | None, claim: Future[_Claimed] | None) -> None:
    """Close the writer of a session after its last call: the one that a claim has opened meanwhile."""
    if claim is not None and claim.exception() is None:
        writer = claim.result().writer
    if writer is not None:
        writer.close()


class SinkSession:
    """One sink of one worker. Calls to the system run in a thread of their own.

    ``waiting`` is called while the worker waits for one; an error that it raises abandons the session.
    ``committed`` reads the group's offsets, for a connector that keeps no positions. ``clock`` returns
    seconds.
    """

    def __init__(
        self,
        node: SinkConnectorNode,
        context: SinkContext,
        *,
        committed: Callable[[Collection[TopicPartition]], Mapping[TopicPartition, int]],
        waiting: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.node = node
        self.keeps_positions = keeps_positions(node.connector)
        self.positions: dict[TopicPartition, int] = {}
        """The claimed partitions, and their positions after the last commit."""
        self.unclaimed: set[TopicPartition] = set()
        """Partitions that wait for their positions."""
        self._context = context
        self._committed = committed
        self._waiting = waiting
        self._clock = clock
        self._log = get_logger()
        self._state = SinkState.CLOSED
        self._writer: SinkWriter | None = None
        self._thread: CallThread | None = None
        self._claim: Future[_Claimed] | None = None
        self._claimed_now: set[TopicPartition] = set()
        self._fresh: dict[TopicPartition, int] = {}
        """Positions that were read, and not returned yet."""
        self._moves: dict[TopicPartition, int] = {}
        self._backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        self._retry_at = -float("inf")
        self.must_check = False
        """Whether the connector's check, which comes first, could not be made."""
        self.losses = 0
        """How often the session was closed and its partitions have to be claimed again."""
        self.problem = ""
        """Why the sink cannot be written to; empty while it can."""
        self._waited = 0.0
        """How long the worker has waited for calls that have ended."""
        self._called: float | None = None
        """Since when it waits for a call."""

    @property
    def state(self) -> SinkState:
        return self._state

    @property
    def seconds(self) -> float:
        """How long the worker has waited for the sink, in the present call too; from any thread."""
        waited, called = self._waited, self._called
        return waited if called is None else waited + self._clock() - called

    @property
    def ready(self) -> bool:
        """Whether rows can be written."""
        return self._state is SinkState.OPEN

    # --- partitions

    def add(self, partition: TopicPartition) -> None:
        """Let a partition wait until its position is read."""
        self.positions.pop(partition, None)
        self.unclaimed.add(partition)

    def release(self, partitions: Collection[TopicPartition]) -> None:
        """Forget partitions that the worker no longer holds."""
        # In the middle of a commit that a rebalance has aborted.
        self.rollback()
        self.unclaimed.difference_update(partitions)
        self._claimed_now.difference_update(partitions)
        gone = [partition for partition in partitions if self.positions.pop(partition, None) is not None]
        if gone and self._writer is not None and self._thread is not None:
            writer = self._writer
            self._thread.submit(lambda: writer.release(gone))

    def claim(self, topic_ids: Callable[[Collection[str]], Mapping[str, str]]) -> dict[TopicPartition, int]:
        """Read the positions of waiting partitions, without waiting for the sink.

        Returns those that are known by now. ``topic_ids`` reads the ids of topics. Raises ``ConnectorError``,
        and ``SinkUnavailable`` after which the session is closed.
        """
        if self._state is SinkState.CLAIMING:
            assert self._claim is not None
            if self._claim.done():
                self._take_claim()
        elif (
            self.unclaimed
            and not self._fresh
            and self._state is not SinkState.WRITTEN
            and self._clock() >= self._retry_at
        ):
            self._begin_claim(topic_ids)
        fresh, self._fresh = self._fresh, {}
        return {item: position for item, position in fresh.items() if item in self.positions}

    def _begin_claim(self, topic_ids: Callable[[Collection[str]], Mapping[str, str]]) -> None:
        ids = topic_ids({partition.topic for partition in self.unclaimed})
        wanted = {item: ids[item.topic] for item in sorted(self.unclaimed) if item.topic in ids}
        if not wanted:
            return
        # They do not move meanwhile: these partitions wait, and no other member may commit for them.
        offsets = {} if self.keeps_positions else self._committed(list(wanted))
        if self._thread is None:
            self._thread = CallThread(f"streams-sink-{self.node.name}")
        self._claimed_now = set(wanted)
        self._become(SinkState.CLAIMING)
        writer = self._writer
        self._claim = self._thread.submit(lambda: self._open_and_claim(writer, wanted, offsets))

    def _open_and_claim(
        self,
        writer: SinkWriter | None,
        wanted: Mapping[TopicPartition, str],
        offsets: Mapping[TopicPartition, int],
    ) -> _Claimed:
        """Called by the thread: the session may be closed meanwhile, and even have opened another writer."""
        if self.must_check:
            self.node.connector.check(self._context)
            self.must_check = False
        if writer is not None:
            return _Claimed(writer, {**writer.claim(wanted), **offsets})
        writer = self.node.connector.open(self._context)
        try:
            return _Claimed(writer, {**writer.claim(wanted), **offsets})
        except BaseException:
            writer.close()
            raise

    def _take_claim(self) -> None:
        assert self._claim is not None
        claim, self._claim = self._claim, None
        try:
            self._writer, found = claim.result()
        except SinkUnavailable as error:
            self.failed(error)
            raise
        self._become(SinkState.OPEN)
        if self.problem:
            self._log.info(Event.SINK_AVAILABLE, sink=self.node.name, store=self.node.store)
        self.problem = ""
        claimed = {item: position for item, position in found.items() if item in self._claimed_now}
        self.unclaimed.difference_update(claimed)
        self.positions |= claimed
        self._fresh |= claimed

    # --- the transaction

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        """Write rows in a transaction that ``commit`` commits. Raises ``SinkUnavailable`` after closing."""
        writer = self._writer
        assert writer is not None, "a sink is written to before it is open"
        refused = self._call(lambda: writer.write(rows))
        self._become(SinkState.WRITTEN)
        self._moves = {item.partition: item.next_offset for item in rows}
        return refused

    def commit(self, seconds: float) -> None:
        """Commit the transaction, within ``seconds``; the group is not served meanwhile.

        Raises ``SinkUnavailable`` after closing: whether it was committed is known from the next claim.
        """
        writer = self._writer
        assert writer is not None
        assert self._state is SinkState.WRITTEN, "nothing is written to the sink"
        until = self._clock() + seconds

        def in_time() -> None:
            if self._clock() > until:
                raise SinkUnavailable(f"sink {self.node.name!r} has not answered a commit for {seconds:g} s")

        self._call(writer.commit, in_time)
        self._become(SinkState.OPEN)
        # Not after a claim: a sink whose positions can be read may still refuse every row.
        self._backoff.succeeded()
        self.positions |= self._moves

    def rollback(self) -> None:
        """Discard the transaction, if there is one."""
        if self._state is SinkState.WRITTEN:
            assert self._writer is not None
            assert self._thread is not None
            # Before the next call in that thread; its owner need not wait.
            self._thread.submit(self._writer.rollback)
            self._become(SinkState.OPEN)

    def finish_claim(self) -> None:
        """Wait until the positions that are being read are known, so that rows can be written."""
        if self._claim is not None:
            self._wait(self._claim, self._waiting)
            self._take_claim()

    def abandon(self) -> None:
        """Close the session without waiting for a call: its partitions have to be claimed again."""
        self.losses += 1
        self.unclaimed.update(self.positions)
        self.positions.clear()
        self._fresh.clear()
        self.close()

    def failed(self, error: SinkUnavailable) -> None:
        """Close the session after an error; it is opened again after a while."""
        self._backoff.failed()
        wait = max(FIRST_BACKOFF_SECONDS, self._backoff.seconds)
        self._retry_at = self._clock() + wait
        text = str(error).partition("\n")[0]
        if text != self.problem:
            self._log.warning(
                Event.SINK_UNAVAILABLE, sink=self.node.name, store=self.node.store, error=text, seconds=wait
            )
        self.problem = text
        self.abandon()

    def close(self) -> Future[None] | None:
        """Release the connection, after the call that may still be running; returns when it is released."""
        writer, self._writer = self._writer, None
        thread, self._thread = self._thread, None
        claim, self._claim = self._claim, None
        released = None
        if thread is not None:
            released = thread.submit(lambda: _close(writer, claim))
            thread.close()
        self._become(SinkState.CLOSED)
        return released

    def _call(self, call: Callable[[], T], waiting: Callable[[], None] | None = None) -> T:
        assert self._thread is not None
        future = self._thread.submit(call)
        self._called = begun = self._clock()
        try:
            self._wait(future, waiting or self._waiting)
            return future.result()
        except SinkUnavailable as error:
            self.failed(error)
            raise
        finally:
            self._called = None
            self._waited += self._clock() - begun

    def _wait(self, future: Future[Any], waiting: Callable[[], None]) -> None:
        while True:
            try:
                future.exception(LOOK_SECONDS)
            except FutureTimeout:
                try:
                    waiting()
                except SinkUnavailable:
                    raise
                except BaseException:
                    # The call may still take effect: the next claim finds out.
                    self.abandon()
                    raise
            else:
                return

    def _become(self, state: SinkState) -> None:
        assert self._state.may_become(state), (
            f"sink {self.node.name!r} is {self._state.value}: it cannot become {state.value}"
        )
        self._state = state
