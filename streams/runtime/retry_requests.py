"""What a worker knows of the requests to retry dead letters: which are open, and for which partitions.

All workers read the topic of requests and outcomes, outside of the group. A request is processed by the
worker that holds the partition from which the step reads. Its outcome is committed with an offset of that
partition, so a worker that has lost the partition commits none; and the next owner begins with requests when
it has read every outcome that its predecessors may have committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from streams.broker import BEGINNING, GroupSettings
from streams.errors import BrokerError
from streams.events import Event, get_logger
from streams.process.call_thread import CallThread
from streams.records import Output, TopicPartition
from streams.runtime.retried import Ordered
from streams.runtime.retry_log import (
    Kind,
    RetryOutcome,
    RetryRequest,
    decode_entry,
    decode_key,
    encode_entry,
    encode_key,
    retry_topic,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping
    from concurrent.futures import Future

    from streams.broker import Admin, Broker, Consumer
    from streams.records import Fetched
    from streams.runtime.letter import LetterId
    from streams.runtime.retried import Retried

T = TypeVar("T")

LOOK_SECONDS = 5.0
"""How often a worker checks whether there is a topic of requests, as long as there is none."""

POLL_SECONDS = 0.1
"""How often it reads that topic."""

TROUBLE_SECONDS = 5.0
"""Wait after an error before the topic is read again."""

CHUNK_RECORDS = 1_000

MOST_BYTES = 32_000_000
"""Bytes of requests kept in memory; more are read again when it is their turn."""

BATCH_RECORDS = 200
"""Most dead letters of one slice."""


class _Open(NamedTuple):
    """A request without an outcome. Its content is read again when it is needed."""

    letter: LetterId
    number: int
    step: str
    size: int


class _Known(NamedTuple):
    """The last outcome of a dead letter."""

    number: int
    tries: int


class _Barrier(NamedTuple):
    """The end of the topic, requested when these partitions were held; by the assignment of each."""

    end: Future[dict[TopicPartition, int]]
    settled: Mapping[TopicPartition, object]


class RetryRequests:
    """The requests of one app, as one worker reads them. Used by one thread.

    ``clock`` returns seconds. ``submit`` runs calls that may block; by default in a thread of their own.
    """

    def __init__(
        self,
        broker: Broker,
        application: str,
        clock: Callable[[], float],
        submit: Callable[[Callable[[], Any]], Future[Any]] | None = None,
    ) -> None:
        self.topic = retry_topic(application)
        self._broker = broker
        self._application = application
        self._clock = clock
        self._submit = submit
        self._thread: CallThread | None = None
        self._log = get_logger()
        self._admin: Admin | None = None
        self._consumer: Consumer | None = None
        self._look: Future[bool] | None = None
        self._next_look = self._next_poll = -float("inf")
        self._trouble = ""
        """The last error that was logged."""
        self._clear()

    def _clear(self) -> None:
        self._position = 0
        """The next offset to read for the first time."""
        self._open: dict[TopicPartition, dict[int, _Open]] = {}
        """The open requests of each partition by their offset, in that order."""
        self._offsets: dict[LetterId, tuple[TopicPartition, int]] = {}
        """Where each of them is."""
        self._known: dict[LetterId, _Known] = {}
        self._contents: dict[int, RetryRequest] = {}
        """The requests themselves by their offset, as far as they are in memory."""
        self._bytes = 0
        self._wanted: int | None = None
        """The offset of a request that is being read again."""
        self._barrier: _Barrier | None = None
        self._ready: dict[TopicPartition, object] = {}
        """Partitions for which all earlier outcomes are known, by their assignment."""

    @property
    def due(self) -> bool:
        """Whether there is anything to read or to process."""
        return bool(self._open) or self._clock() >= self._next_poll

    # --- reading

    def poll(self, settled: Mapping[TopicPartition, object]) -> None:
        """Read on. ``settled`` are the partitions whose committed offsets are known, by their assignment.

        Errors of the broker are logged, and it is tried again.
        """
        now = self._clock()
        if now < self._next_poll:
            return
        self._next_poll = now + POLL_SECONDS
        try:
            if self._consumer is None:
                self._begin(now)
            else:
                self._read(self._consumer)
                self._note_ready(settled)
        except BrokerError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._log.warning(Event.RETRIES_UNREAD, topic=self.topic.topic, error=self._trouble)
            self._next_poll = now + TROUBLE_SECONDS
            self._release()

    def _begin(self, now: float) -> None:
        if self._look is None:
            if now >= self._next_look:
                self._next_look = now + LOOK_SECONDS
                self._look = self._call(self._can_be_read)
        elif self._look.done():
            look, self._look = self._look, None
            if look.result():
                self._consumer = self._broker.consumer(
                    GroupSettings(group=f"{self._application}-retrying", protocol="classic")
                )
                self._consumer.assign({self.topic: BEGINNING})

    def _read(self, consumer: Consumer) -> None:
        polled = consumer.poll(CHUNK_RECORDS, 0)
        for fetched in polled.fetched:
            self._apply(fetched)
            if self._wanted is not None and fetched.next_offset > self._wanted:
                self._found_wanted(self._wanted)
            self._position = max(self._position, fetched.next_offset)
        for end in polled.ends.values():
            self._position = max(self._position, end)

    def _apply(self, fetched: Fetched) -> None:
        columns = fetched.offsets(), fetched.keys(), fetched.values()
        for offset, key, value in zip(*columns, strict=True):
            decoded = decode_key(key)
            if decoded is None or value is None:
                # A request that was removed has an outcome.
                continue
            kind, letter = decoded
            if kind is Kind.REQUEST or kind is Kind.OUTCOME:
                entry = decode_entry(kind, value)
                if isinstance(entry, RetryRequest):
                    self._add(offset, letter, entry, len(value))
                elif isinstance(entry, RetryOutcome):
                    self._note(letter, entry)

    def _add(self, offset: int, letter: LetterId, request: RetryRequest, size: int) -> None:
        known = self._known.get(letter)
        if known is not None and request.number <= known.number:
            return
        before = self._offsets.get(letter)
        if before is not None and before[1] != offset:
            if self._open[before[0]][before[1]].number >= request.number:
                return
            self._forget(letter)
        if before is None or before[1] != offset:
            place = request.source
            self._open.setdefault(place, {})[offset] = _Open(letter, request.number, request.step, size)
            self._offsets[letter] = place, offset
        fits = self._bytes + size <= MOST_BYTES or offset == self._wanted
        if offset not in self._contents and fits:
            self._contents[offset] = request
            self._bytes += size

    def _note(self, letter: LetterId, outcome: RetryOutcome) -> None:
        known = self._known.get(letter)
        if known is None or outcome.number > known.number:
            self._known[letter] = _Known(outcome.number, outcome.tries)
        place = self._offsets.get(letter)
        if place is not None and self._open[place[0]][place[1]].number <= outcome.number:
            self._forget(letter)

    def _forget(self, letter: LetterId) -> None:
        place, offset = self._offsets.pop(letter)
        found = self._open[place].pop(offset)
        if not self._open[place]:
            del self._open[place]
        if self._contents.pop(offset, None) is not None:
            self._bytes -= found.size

    def _note_ready(self, settled: Mapping[TopicPartition, object]) -> None:
        """Find the partitions for which every outcome is known that an earlier owner may have committed."""
        self._ready = {
            place: assignment for place, assignment in self._ready.items() if settled.get(place) is assignment
        }
        if self._barrier is None:
            new = {place: item for place, item in settled.items() if place not in self._ready}
            if new and any(place in self._open for place in new):
                # Outcomes of transactions that are still open count, so their ends are waited for.
                self._barrier = _Barrier(
                    self._call(lambda: self._opened_admin().end_offsets([self.topic], "read_uncommitted")),
                    new,
                )
        elif self._barrier.end.done() and self._position >= self._barrier.end.result()[self.topic]:
            self._ready |= {
                place: item for place, item in self._barrier.settled.items() if settled.get(place) is item
            }
            self._barrier = None

    # --- processing

    def take(self, waiting_for: Iterable[TopicPartition], taken: Container[int]) -> list[Ordered]:
        """Take the next requests of one of these partitions for one step, in their order.

        Empty if none is due. ``taken`` are the offsets of those whose outcome is not committed yet.
        """
        for place in waiting_for:
            if place not in self._ready:
                continue
            chosen: list[Ordered] = []
            for offset, item in self._open.get(place, {}).items():
                if offset in taken:
                    continue
                request = self._contents.get(offset)
                if request is None:
                    if not chosen:
                        self._read_again(offset)
                    break
                if chosen and (item.step != chosen[0].request.step or len(chosen) == BATCH_RECORDS):
                    break
                known = self._known.get(item.letter)
                chosen.append(Ordered(item.letter, request, 1 if known is None else known.tries, offset))
            if chosen:
                return chosen
        return []

    def _read_again(self, offset: int) -> None:
        """Read requests again whose contents are not in memory."""
        if self._consumer is None or self._wanted == offset:
            return
        self._wanted = offset
        # What is left is of other workers' partitions, or processed.
        self._contents.clear()
        self._bytes = 0
        self._consumer.seek({self.topic: offset})

    def _found_wanted(self, offset: int) -> None:
        self._wanted = None
        gone = next((item for own in self._open.values() for at, item in own.items() if at == offset), None)
        if gone is not None and offset not in self._contents:
            # Its record no longer exists.
            self._forget(gone.letter)

    def outcomes(self, records: Iterable[Retried], at: int) -> list[Output]:
        """What has become of requests, to be committed with their results."""
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        for item in records:
            for letter, outcome in item.outcomes(at):
                keys += [encode_key(Kind.OUTCOME, letter), encode_key(Kind.REQUEST, letter)]
                # The request is removed from the compacted topic.
                values += [encode_entry(outcome), None]
        if not keys:
            return []
        return [Output(self.topic.topic, keys, values, [at] * len(keys), partition=self.topic.partition)]

    def handled(self, records: Iterable[Retried]) -> None:
        """The outcomes of these are committed."""
        for item in records:
            for letter, outcome in item.outcomes(0):
                self._note(letter, outcome)

    def doubt(self) -> None:
        """It is not known whether outcomes were committed: they have to be read first."""
        self._ready.clear()
        self._barrier = None

    # --- clients

    def close(self) -> None:
        """Release the clients."""
        self._release()
        if self._thread is not None:
            self._thread.close()
            self._thread = None

    def _release(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()
        self._look = None
        known = self._known
        self._clear()
        self._known = known
        if self._admin is not None:
            admin, self._admin = self._admin, None
            # In the thread that uses it.
            self._call(admin.close)

    def _can_be_read(self) -> bool:
        """Whether the topic exists. Raises ``NotAuthorized``: without WRITE, a retry would end the worker."""
        admin, name = self._opened_admin(), self.topic.topic
        if not admin.topic_ids([name]):
            return False
        admin.require_rights({name: ["READ", "WRITE"]})
        return True

    def _opened_admin(self) -> Admin:
        if self._admin is None:
            self._admin = self._broker.admin()
        return self._admin

    def _call(self, call: Callable[[], T]) -> Future[T]:
        if self._submit is not None:
            return self._submit(call)
        if self._thread is None:
            self._thread = CallThread("streams-retries")
        return self._thread.submit(call)
