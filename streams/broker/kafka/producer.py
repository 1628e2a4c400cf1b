"""The producer of a Kafka cluster, in transactions or without."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from confluent_kafka import KafkaError, KafkaException, Producer

from streams.broker.kafka.access import REQUEST_SECONDS, Access, LastError, Settings
from streams.broker.kafka.deliveries import Failure, Sent, refusals, telling
from streams.broker.kafka.errors import FORBIDDEN, REFUSED_BY_CLIENT
from streams.broker.kafka.partitions import with_offsets
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
"""How much longer than its own time-out a call may take before it counts as hanging."""

MISSING_TOPIC_SECONDS: Final = 5.0
"""How long a topic that was found missing is not asked for again."""

WAIT_SECONDS: Final = 0.1
"""How long one look at a full queue takes."""

SETTLE_SECONDS: Final = 1.0
"""How long deliveries may take to be reported once a transaction has failed."""

LARGEST_RECORD: Final = 60_000_000
"""What a record may have, in bytes, before compression. The client's queue has room for little more."""

COMPRESSIONS: Final = ("compression.type", "compression.codec")


class KafkaProducer:
    """See ``streams.broker.Producer``."""

    def __init__(self, settings: Settings, access: Access, rules: AllTopicRules) -> None:
        self._access = access
        self._rules = rules
        self._compresses = any(settings.get(name, "none") != "none" for name in COMPRESSIONS)
        self._transactional_id: str | None = settings.get("transactional.id")
        self._written: set[str] = set()
        """Topics of the open transaction, or since the last flush."""
        self._failures: list[Failure] = []
        """Records not delivered, that nothing was said of yet."""
        self._reported: list[Failure] = []
        """Those that the last ``flush`` failed for."""
        self._settings: Settings = settings | {"error_cb": LastError()}
        self._client = access.make(Producer, self._settings)
        self._patience = _Patience()
        self._known: set[str] = set()
        self._missing: dict[str, float] = {}

    def produce(self, output: Output, waiting: Callable[[], None] | None = None) -> None:
        topic = output.topic
        if topic not in self._known:
            self._require(topic)
        self._written.add(topic)
        rules = self._rules.of(topic)
        if rules is None:
            self._queue(output, 0, len(output), Sent(self._failures, output), waiting)
        else:
            self._queue_by_rules(output, rules, waiting)
        self._client.poll(0)

    def _queue(
        self, output: Output, at: int, stop: int, sent: Sent, waiting: Callable[[], None] | None
    ) -> None:
        """Queue the rows from ``at`` to ``stop``; ``sent`` is called for those that are not delivered."""
        topic, headers = output.topic, output.headers
        produce = self._client.produce
        partition = -1 if output.partition is None else output.partition
        while at < stop:
            try:
                # Positional arguments save a fifth of a call that is made for every record. For the client, a
                # time of 0 means now: right for a record without one, and 1970's first millisecond becomes 1.
                if headers is None:
                    for key, value, stamp in _part(at, stop, output.keys, output.values, output.timestamps):
                        produce(topic, value, key, partition, sent, None, max(stamp or 1, 0))
                        at += 1
                else:
                    for key, value, stamp, header in _part(
                        at, stop, output.keys, output.values, output.timestamps, headers
                    ):
                        produce(topic, value, key, partition, sent, None, max(stamp or 1, 0), header)
                        at += 1
            except BufferError:
                # The queue is full: let the broker take some of it.
                self._client.poll(WAIT_SECONDS)
                self._raise_if_failed()
                if waiting is not None:
                    waiting()
            except KafkaException as error:
                self._refuse(error.args[0], topic, at)

    def _queue_by_rules(self, output: Output, rules: TopicRules, waiting: Callable[[], None] | None) -> None:
        """Queue rows for a topic that has refused some: those known not to be taken are refused here."""
        refused = rules.first_refused(output, compressed=self._compresses)
        stop = len(output) if refused is None else refused.position
        if not rules.in_parts:
            self._queue(output, 0, stop, Sent(self._failures, output), waiting)
        else:
            for start, end in rules.parts(output, stop):
                self._queue(output, start, end, Sent(self._failures, output, alone=end - start == 1), waiting)
                while self._client.flush(WAIT_SECONDS):
                    if waiting is not None:
                        waiting()
                self._raise_if_failed()
        if refused is not None:
            raise refused

    def _raise_if_failed_by(self, error: KafkaError) -> None:
        """As ``_raise_if_failed``, for a call that failed: it may say no more than that it was out of place.

        After a record was not delivered, the client takes no others of the transaction, and no offsets.
        """
        if error.code() == KafkaError._STATE and self._transactional_id is not None:  # noqa: SLF001 - a public name of the library
            # What was not delivered is reported once the others of its time are through.
            self._client.flush(SETTLE_SECONDS)
            self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        """Raise ``TransactionAborted`` where a record was not delivered: the transaction cannot commit."""
        if self._transactional_id is not None and self._failures:
            failure = telling(self._failures)
            raise TransactionAborted(f"producer: writing to {failure.output.topic}: {failure.why}")

    def flush(self, timeout: float, waiting: Callable[[], None] | None = None) -> None:
        deadline = time.monotonic() + timeout
        while left := self._client.flush(max(0.0, min(WAIT_SECONDS, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                break
            if waiting is not None:
                waiting()
        failures = self._reported = self._taken_failures()
        if failures:
            failure = telling(failures)
            doing = f"producer: writing to {failure.output.topic}"
            if failure.of_the_record or failure.collateral:
                raise RecordsRefused(f"{doing}: {failure.why}")
            raise self._means(failure.error, doing, [failure.output.topic])
        if left:
            raise Retriable(f"producer: {left} records not acknowledged within {timeout:.0f} s")

    def take_refused(self) -> list[Refusal]:
        failures = self._reported + self._taken_failures()
        self._reported = []
        refused = refusals(failures)
        self._rules.learn(failures, refused, compressed=self._compresses)
        return [refusal.public for refusal in refused]

    def _taken_failures(self) -> list[Failure]:
        failures = self._failures.copy()
        # In place: the client has still calls to make that add to this list.
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
            raise self._means(error.args[0], "producer: beginning a transaction") from error

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
            lambda seconds: self._patience.call(
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
            # The client counts records that were not delivered: the next transaction would fail for the gap.
            self._release()
            self._client = self._access.make(Producer, self._settings)
            self.init_transactions(timeout)

    def close(self) -> None:
        if not self._patience.given_up:
            self._release()

    def _release(self) -> None:
        # A producer that was fenced has nothing more to say.
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
        """Repeat a transactional call that may be repeated. Without an answer in time, nobody knows."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                call(max(left, 0.1))
            except KafkaException as error:
                if not aborting:
                    self._raise_if_failed_by(error.args[0])
                means = self._means(error.args[0], doing, sorted(self._written), *rights)
                if not isinstance(means, Retriable):
                    raise means from error
                if time.monotonic() >= deadline:
                    raise OutcomeUnknown(f"{means}; gave up after {timeout:.0f} s") from error
                self._client.poll(0.05)
            else:
                return

    def _require(self, topic: str) -> None:
        """Look a topic up once: written to blindly, a missing one is only noticed after half a minute."""
        now = time.monotonic()
        if now - self._missing.get(topic, -MISSING_TOPIC_SECONDS) >= MISSING_TOPIC_SECONDS:
            try:
                found = self._client.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic]
            except KafkaException as error:
                raise self._means(error.args[0], f"producer: looking for topic {topic}", [topic]) from error
            if found.error is None or found.error.code() == KafkaError.LEADER_NOT_AVAILABLE:
                self._known.add(topic)
                return
            if found.error.code() in FORBIDDEN:
                raise self._means(found.error, f"producer: looking for topic {topic}", [topic])
            self._missing[topic] = now
        raise TopicMissing(topic)

    def _refuse(self, error: KafkaError, topic: str, position: int) -> NoReturn:
        if error.code() in REFUSED_BY_CLIENT:
            raise RecordRefused(f"writing to {topic}: {error.str()}", position=position)
        self._raise_if_failed_by(error)
        raise self._means(error, f"producer: writing to {topic}", [topic])

    def _means(
        self, error: KafkaError, doing: str, topics: Iterable[str] = (), *rights: Right
    ) -> BrokerError:
        # The client names the topics whose offsets it may not commit, and no others.
        needed = [right for right in rights if right.resource == "topic" and f" {right.name}(" in error.str()]
        needed = needed or [Right("WRITE", "topic", topic) for topic in topics]
        needed += [right for right in rights if right.resource != "topic"]
        if self._transactional_id is not None:
            needed.append(Right("WRITE", "transactional id", self._transactional_id))
        return self._access.means(error, doing, *needed, replaceable=True)


def _part(at: int, stop: int, *columns: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
    whole = at == 0 and stop == len(columns[0])
    return zip(*(column if whole else column[at:stop] for column in columns), strict=True)


class _Patience:
    """Makes client calls on a thread of its own, which is left behind when a call does not come back.

    librdkafka 2.16 may wait for ever, whatever the time-out, when a group's coordinator was restarted
    (its issues 5456 and 5511). The client is then unusable, and is freed should the call return after all.
    """

    def __init__(self) -> None:
        self.given_up = False
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], object], seconds: float) -> None:
        """Call and wait; raises what the call raises, ``OutcomeUnknown`` when it overdraws its time."""
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
            self.given_up = True
            self._calls.put(None)
            raise OutcomeUnknown(f"producer: a call has not come back for {seconds:.0f} s")
        if raised:
            raise raised[0]

    def __del__(self) -> None:
        self._calls.put(None)


def _serve(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
