"""The producer of a Kafka cluster, with or without transactions."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from confluent_kafka import KafkaError, KafkaException, Producer

from streams.broker.kafka.client_factory import REQUEST_SECONDS, ClientFactory, LastError, Settings
from streams.broker.kafka.deliveries import Failure, Sent, most_specific, refusals
from streams.broker.kafka.errors import FORBIDDEN, REFUSED_BY_CLIENT
from streams.broker.kafka.partitions import with_offsets
from streams.broker.placement import first_misplaced
from streams.errors import (
    BrokerError,
    OutcomeUnknown,
    RecordRefused,
    RecordsRefused,
    Retriable,
    Right,
    TopicMissing,
    TransactionAborted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.broker import Refusal
    from streams.broker.kafka.consumer import Membership
    from streams.broker.kafka.topic_rules import AllTopicRules, TopicRules
    from streams.records import Output, TopicPartition

OVERDRAFT_SECONDS: Final = 1.0
"""How much longer than its own time-out a call may take before it counts as hung."""

MISSING_TOPIC_SECONDS: Final = 5.0
"""How long a missing topic is not looked up again."""

WAIT_SECONDS: Final = 0.1
"""How long to wait for a full queue before ``waiting`` is called."""

SETTLE_SECONDS: Final = 1.0
"""How long to wait for delivery reports after a transaction has failed."""

LARGEST_RECORD: Final = 60_000_000
"""The maximum size of a record in bytes, before compression, given by the size of the client's queue."""

COMPRESSIONS: Final = ("compression.type", "compression.codec")


class KafkaProducer:
    """See ``streams.broker.Producer``."""

    def __init__(self, settings: Settings, factory: ClientFactory, rules: AllTopicRules) -> None:
        self._factory = factory
        self._rules = rules
        self._compresses = any(settings.get(name, "none") != "none" for name in COMPRESSIONS)
        self._transactional_id: str | None = settings.get("transactional.id")
        self._written: set[str] = set()
        """The topics written in the open transaction, or since the last flush."""
        self._failures: list[Failure] = []
        """Records that were not delivered, and not reported to the caller yet."""
        self._queued: Counter[str] = Counter()
        """How many records the client has taken since the last ``take_acknowledged``, by topic."""
        self._reported: list[Failure] = []
        """The failures that the last ``flush`` raised."""
        self._settings: Settings = settings | {"error_cb": LastError()}
        self._client = factory.make(Producer, self._settings)
        self._timed_calls = _TimedCalls()
        self._known: set[str] = set()
        self._missing: dict[str, float] = {}
        self._partitions: dict[str, tuple[int, float]] = {}
        """How many partitions topics have to which rows were written that name theirs, and since when that is
        known."""

    def produce(self, output: Output, waiting: Callable[[], None] | None = None) -> None:
        topic = output.topic
        if topic not in self._known:
            self._require(topic)
        self._written.add(topic)
        misplaced = None if output.partitions is None else self._first_misplaced(output)
        stop = len(output) if misplaced is None else misplaced.position
        rules = self._rules.of(topic)
        if rules is None:
            self._queue(output, 0, stop, Sent(self._failures, output), waiting)
        else:
            self._queue_by_rules(output, stop, rules, waiting)
        self._poll(0)
        if misplaced is not None:
            raise misplaced

    def _queue(
        self, output: Output, at: int, stop: int, sent: Sent, waiting: Callable[[], None] | None
    ) -> None:
        """Queue the rows from ``at`` to ``stop``; ``sent`` is called for those that are not delivered."""
        topic, headers, partitions = output.topic, output.headers, output.partitions
        produce = self._client.produce
        partition = -1 if output.partition is None else output.partition
        times = output.timestamps
        if at < stop and min(times) < 1:
            # For the client, 0 means now, which is right for records without one; an actual 0 becomes 1.
            times = [max(stamp or 1, 0) for stamp in times]
        while at < stop:
            begun = at
            try:
                # Positional arguments save a fifth of this call's time, for every record.
                if partitions is not None:
                    headers = [None] * len(output) if headers is None else headers
                    for key, value, stamp, header, place in _part(
                        at, stop, output.keys, output.values, times, headers, partitions
                    ):
                        produce(topic, value, key, place, sent, None, stamp, header)
                        at += 1
                elif headers is None:
                    for key, value, stamp in _part(at, stop, output.keys, output.values, times):
                        produce(topic, value, key, partition, sent, None, stamp)
                        at += 1
                else:
                    for key, value, stamp, header in _part(
                        at, stop, output.keys, output.values, times, headers
                    ):
                        produce(topic, value, key, partition, sent, None, stamp, header)
                        at += 1
            except BufferError:
                # The queue is full: wait until the broker has acknowledged some of it.
                self._poll(WAIT_SECONDS)
                self._raise_if_failed()
                if waiting is not None:
                    waiting()
            except KafkaException as error:
                code = error.args[0].code()
                if partitions is not None and code == KafkaError._UNKNOWN_PARTITION:  # noqa: SLF001 - a public name of the library
                    # The topic was made again, with less of them.
                    self._partitions.pop(topic, None)
                    raise RecordRefused(
                        f"topic {topic} has no partition {partitions[at]} any more", position=at
                    ) from error
                self._refuse(error.args[0], topic, at)
            finally:
                self._queued[topic] += at - begun

    def _poll(self, seconds: float) -> None:
        """Serve callbacks. Here the client raises what is fatal, e.g. that another one has fenced it."""
        try:
            self._client.poll(seconds)
        except KafkaException as error:
            raise self._to_error(error.args[0], "producer: writing", sorted(self._written)) from error

    def _flush(self, seconds: float) -> int:
        """Wait for deliveries, and return how many are left. Raises what ``_poll`` raises."""
        try:
            return self._client.flush(seconds)
        except KafkaException as error:
            raise self._to_error(error.args[0], "producer: writing", sorted(self._written)) from error

    def _queue_by_rules(
        self, output: Output, stop: int, rules: TopicRules, waiting: Callable[[], None] | None
    ) -> None:
        """Queue rows up to ``stop`` for a topic that has rejected some; certain rejections raise here."""
        refused = rules.first_refused(output, compressed=self._compresses)
        if refused is not None and refused.position >= stop:
            refused = None
        stop = stop if refused is None else refused.position
        if not rules.in_parts:
            self._queue(output, 0, stop, Sent(self._failures, output), waiting)
        else:
            for start, end in rules.parts(output, stop):
                self._queue(output, start, end, Sent(self._failures, output, alone=end - start == 1), waiting)
                while self._flush(WAIT_SECONDS):
                    if waiting is not None:
                        waiting()
                self._raise_if_failed()
        if refused is not None:
            raise refused

    def _raise_if_failed_by(self, error: KafkaError) -> None:
        """The same as ``_raise_if_failed`` after a failed call whose error is only about the client's state.

        After a record was not delivered, the client accepts no more records of the transaction, nor offsets.
        """
        if error.code() == KafkaError._STATE and self._transactional_id is not None:  # noqa: SLF001 - a public name of the library
            # The client reports the failure once the other records in flight are done.
            self._flush(SETTLE_SECONDS)
            self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        """Raise ``TransactionAborted`` if a record was not delivered: the transaction cannot commit."""
        if self._transactional_id is not None and self._failures:
            failure = most_specific(self._failures)
            raise TransactionAborted(f"producer: writing to {failure.output.topic}: {failure.why}")

    def flush(self, timeout: float, waiting: Callable[[], None] | None = None) -> None:
        deadline = time.monotonic() + timeout
        while left := self._flush(max(0.0, min(WAIT_SECONDS, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                break
            if waiting is not None:
                waiting()
        failures = self._reported = self._taken_failures()
        if failures:
            failure = most_specific(failures)
            doing = f"producer: writing to {failure.output.topic}"
            if failure.of_the_record or failure.collateral:
                raise RecordsRefused(f"{doing}: {failure.why}")
            raise self._to_error(failure.error, doing, [failure.output.topic])
        if left:
            raise Retriable(f"producer: {left} records were not acknowledged within {timeout:.0f} s")

    def take_refused(self) -> list[Refusal]:
        failures = self._reported + self._taken_failures()
        self._reported = []
        refused = refusals(failures)
        self._rules.learn(failures, refused, compressed=self._compresses)
        return [refusal.public for refusal in refused]

    def take_acknowledged(self) -> Mapping[str, int]:
        acknowledged, self._queued = self._queued, Counter()
        for failure in self._failures:
            acknowledged[failure.output.topic] -= 1
        if len(self._client):
            # The client counts what it has to call back for, too.
            with suppress(BrokerError):
                self._poll(0)
            if left := len(self._client):
                acknowledged[""] -= left
        return acknowledged

    def _taken_failures(self) -> list[Failure]:
        failures = self._failures.copy()
        # Cleared in place, as callbacks of the client still append to this list.
        self._failures.clear()
        return failures

    def init_transactions(self, timeout: float) -> None:
        self._until(timeout, "producer: starting transactions", self._client.init_transactions)

    def begin(self) -> None:
        self._failures.clear()
        self._written.clear()
        try:
            self._client.begin_transaction()
        except KafkaException as error:
            raise self._to_error(error.args[0], "producer: beginning a transaction") from error

    def send_offsets(
        self,
        offsets: Mapping[TopicPartition, int],
        group_metadata: object,
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        targets = with_offsets(offsets, offset_metadata)
        group, metadata = cast("Membership", group_metadata)
        inputs = sorted({partition.topic for partition in offsets})
        self._until(
            REQUEST_SECONDS,
            "producer: adding offsets to the transaction",
            lambda seconds: self._timed_calls.call(
                lambda: self._client.send_offsets_to_transaction(targets, metadata, seconds), seconds
            ),
            Right("READ", "group", group),
            *(Right("READ", "topic", topic) for topic in inputs),
        )

    def commit(self, timeout: float) -> None:
        self._until(timeout, "producer: committing the transaction", self._client.commit_transaction)

    def abort(self, timeout: float) -> None:
        self._until(
            timeout, "producer: aborting the transaction", self._client.abort_transaction, aborting=True
        )
        if self._failures:
            # The client counts undelivered records too: the next transaction would fail with a sequence gap.
            self._release()
            self._client = self._factory.make(Producer, self._settings)
            self.init_transactions(timeout)

    def close(self) -> None:
        if not self._timed_calls.hung:
            self._release()

    def _release(self) -> None:
        # The errors of a fenced producer no longer matter.
        with suppress(KafkaException):
            self._client.purge()
            self._client.flush(0)

    def _until(
        self,
        timeout: float,
        doing: str,
        call: Callable[[float], object],
        *rights: Right,
        aborting: bool = False,
    ) -> None:
        """Retry a transactional call. Raises ``OutcomeUnknown`` if it does not succeed within ``timeout``."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                call(max(left, 0.1))
            except KafkaException as error:
                if not aborting:
                    self._raise_if_failed_by(error.args[0])
                translated = self._to_error(error.args[0], doing, sorted(self._written), *rights)
                if not isinstance(translated, Retriable):
                    raise translated from error
                if time.monotonic() >= deadline:
                    raise OutcomeUnknown(f"{translated}; no success within {timeout:.0f} s") from error
                self._poll(0.05)
            else:
                return

    def _require(self, topic: str) -> None:
        """Check once that a topic exists: without it, a missing topic is only reported after 30 seconds."""
        now = time.monotonic()
        if now - self._missing.get(topic, -MISSING_TOPIC_SECONDS) >= MISSING_TOPIC_SECONDS:
            try:
                found = self._client.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic]
            except KafkaException as error:
                raise self._to_error(error.args[0], f"producer: looking up topic {topic}", [topic]) from error
            if found.error is None or found.error.code() == KafkaError.LEADER_NOT_AVAILABLE:
                self._known.add(topic)
                return
            if found.error.code() in FORBIDDEN:
                raise self._to_error(found.error, f"producer: looking up topic {topic}", [topic])
            self._missing[topic] = now
        raise TopicMissing(topic)

    def _first_misplaced(self, output: Output) -> RecordRefused | None:
        """The first row for a partition that the topic does not have, as far as the cluster knows now."""
        topic, now = output.topic, time.monotonic()
        count, known = self._partitions.get(topic, (0, -MISSING_TOPIC_SECONDS))
        misplaced = first_misplaced(output, count)
        if misplaced is None or now - known < MISSING_TOPIC_SECONDS:
            return misplaced
        # The topic may have got more partitions.
        try:
            count = len(self._client.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic].partitions)
        except KafkaException as error:
            raise self._to_error(error.args[0], f"producer: looking for topic {topic}", [topic]) from error
        if not count:
            raise TopicMissing(topic)
        self._partitions[topic] = count, now
        return first_misplaced(output, count)

    def _refuse(self, error: KafkaError, topic: str, position: int) -> NoReturn:
        if error.code() in REFUSED_BY_CLIENT:
            raise RecordRefused(f"writing to {topic}: {error.str()}", position=position)
        self._raise_if_failed_by(error)
        raise self._to_error(error, f"producer: writing to {topic}", [topic])

    def _to_error(
        self, error: KafkaError, doing: str, topics: Iterable[str] = (), *rights: Right
    ) -> BrokerError:
        # For offsets, the client's error names the topics that it may not commit; use only these.
        needed = [right for right in rights if right.resource == "topic" and f" {right.name}(" in error.str()]
        needed = needed or [Right("WRITE", "topic", topic) for topic in topics]
        needed += [right for right in rights if right.resource != "topic"]
        if self._transactional_id is not None:
            needed.append(Right("WRITE", "transactional id", self._transactional_id))
        return self._factory.to_error(error, doing, *needed, replaceable=True)


def _part(at: int, stop: int, *columns: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
    whole = at == 0 and stop == len(columns[0])
    return zip(*(column if whole else column[at:stop] for column in columns), strict=True)


class _TimedCalls:
    """Makes client calls with a time-out, in a separate thread that is abandoned if a call hangs.

    librdkafka 2.16 may wait for ever, whatever the call's own time-out, after a restart of a group's
    coordinator (its issues 5456 and 5511). The client is then unusable, and is freed if the call ever
    returns.
    """

    def __init__(self) -> None:
        self.hung = False
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], object], seconds: float) -> None:
        """Call and wait. Raises what the call raises, or ``OutcomeUnknown`` if it exceeds its time-out."""
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True)
            self._thread.start()
        done = threading.Event()
        raised: list[BaseException] = []

        def attempt() -> None:
            try:
                function()
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                raised.append(error)
            done.set()

        self._calls.put(attempt)
        if not done.wait(seconds + OVERDRAFT_SECONDS):
            self.hung = True
            self._calls.put(None)
            raise OutcomeUnknown(
                f"producer: a call did not return within {seconds + OVERDRAFT_SECONDS:.0f} s"
            )
        if raised:
            raise raised[0]

    def __del__(self) -> None:
        self._calls.put(None)


def _serve(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
