"""The producer of a Kafka cluster, in transactions or without."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams.broker.kafka.access import REQUEST_SECONDS, Access, LastError, Settings
from streams.broker.kafka.errors import FORBIDDEN
from streams.broker.kafka.partitions import with_offsets
from streams.errors import BrokerError, OutcomeUnknown, RecordRefused, Retriable, Right, TopicMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.broker.kafka.consumer import Membership
    from streams.records import Output, TopicPartition

OVERDRAFT_SECONDS: Final = 1.0
"""How much longer than its own time-out a call may take before it counts as hanging."""

MISSING_TOPIC_SECONDS: Final = 5.0
"""How long a topic that was found missing is not asked for again."""

_REFUSED = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError._BAD_MSG,  # noqa: SLF001 - as above
    KafkaError._INVALID_ARG,  # noqa: SLF001 - as above
}


class KafkaProducer:
    """See ``streams.broker.Producer``."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self._access = access
        self._transactional_id: str | None = settings.get("transactional.id")
        self._written: set[str] = set()
        """Topics of the open transaction, or since the last flush."""
        self._failed: tuple[KafkaError, str] | None = None
        own = {"on_delivery": self._on_failure, "error_cb": LastError()}
        self._client = access.make(Producer, settings | own)
        self._patience = _Patience()
        self._known: set[str] = set()
        self._missing: dict[str, float] = {}

    def produce(self, output: Output) -> None:
        topic = output.topic
        if topic not in self._known:
            self._require(topic)
        self._written.add(topic)
        produce = self._client.produce
        partition = -1 if output.partition is None else output.partition
        headers = output.headers
        at = 0
        total = len(output)
        while at < total:
            try:
                # Positional arguments save a fifth of a call that is made for every record. For the client, a
                # time of 0 means now: right for a record without one, and 1970's first millisecond becomes 1.
                if headers is None:
                    for key, value, stamp in _rest(at, output.keys, output.values, output.timestamps):
                        produce(topic, value, key, partition, None, None, max(stamp or 1, 0))
                        at += 1
                else:
                    for key, value, stamp, header in _rest(
                        at, output.keys, output.values, output.timestamps, headers
                    ):
                        produce(topic, value, key, partition, None, None, max(stamp or 1, 0), header)
                        at += 1
            except BufferError:
                # The queue is full: let the broker take some of it.
                self._client.poll(0.1)
            except KafkaException as error:
                self._refuse(error.args[0], topic, at)
        self._client.poll(0)

    def flush(self, timeout: float) -> None:
        left = self._client.flush(timeout)
        failed, self._failed = self._failed, None
        if failed is not None:
            error, topic = failed
            raise self._means(error, f"producer: writing to {topic}", [topic])
        if left:
            raise Retriable(f"producer: {left} records not acknowledged within {timeout:.0f} s")

    def init_transactions(self, timeout: float) -> None:
        self._until(timeout, "producer: starting transactions", self._client.init_transactions)

    def begin(self) -> None:
        self._failed = None
        self._written.clear()
        try:
            self._client.begin_transaction()
        except KafkaException as error:
            raise self._means(error.args[0], "producer: beginning a transaction") from error

    def send_offsets(self, offsets: Mapping[TopicPartition, int], group_metadata: object) -> None:
        targets = with_offsets(offsets)
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
        self._until(timeout, "producer: aborting the transaction", self._client.abort_transaction)

    def close(self) -> None:
        if self._patience.given_up:
            return
        # A producer that was fenced has nothing more to say.
        with suppress(KafkaException):
            self._client.purge()
            self._client.flush(0)

    def _until(self, timeout: float, doing: str, call: Callable[[float], object], *rights: Right) -> None:
        """Repeat a transactional call that may be repeated. Without an answer in time, nobody knows."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                call(max(left, 0.1))
            except KafkaException as error:
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
        if error.code() in _REFUSED:
            raise RecordRefused(f"writing to {topic}: {error.str()}", position=position)
        raise self._means(error, f"producer: writing to {topic}", [topic])

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        # What was purged belongs to an aborted transaction.
        if error is not None and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):  # noqa: SLF001 - public names of the library
            self._failed = self._failed or (error, cast("str", message.topic()))

    def _means(
        self, error: KafkaError, doing: str, topics: Iterable[str] = (), *rights: Right
    ) -> BrokerError:
        # The client names the topics whose offsets it may not commit, and no others.
        needed = [right for right in rights if right.resource == "topic" and f" {right.name}(" in error.str()]
        needed = needed or [Right("WRITE", "topic", topic) for topic in topics]
        needed += [right for right in rights if right.resource != "topic"]
        if self._transactional_id is not None:
            needed.append(Right("WRITE", "transactional id", self._transactional_id))
        return self._access.means(error, doing, *needed)


def _rest(at: int, *columns: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
    return zip(*(column[at:] if at else column for column in columns), strict=True)


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
