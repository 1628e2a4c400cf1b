"""Writes records for programs outside of a worker, and returns where they are."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from confluent_kafka import KafkaException, Producer

from streams.broker import Appended
from streams.broker.kafka.client_factory import LastError
from streams.broker.kafka.errors import REFUSED_BY_BROKER, REFUSED_BY_CLIENT
from streams.errors import BrokerError, OutcomeUnknown, RecordRefused, Retriable, Right, TransactionAborted

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

    from streams.broker.kafka.client_factory import ClientFactory, Settings
    from streams.records import Output

APPEND_SECONDS: Final = 30.0
"""How long the client tries to write a record, and how long a transaction may take."""

POLL_SECONDS: Final = 0.05


class KafkaAppender:
    """``Appender`` of a ``KafkaBroker``. The clients are created when they are first used."""

    def __init__(self, settings: Settings, transactional: Settings, factory: ClientFactory) -> None:
        self._settings = settings | {"error_cb": LastError()}
        self._transactional = transactional | {"error_cb": LastError()}
        self._factory = factory
        self._lock = threading.Lock()
        """Held while a client is created or closed."""
        self._transaction = threading.Lock()
        """Held by the thread whose transaction is open."""
        self._plain: Producer | None = None
        self._together: Producer | None = None

    def append(self, output: Output, timeout: float) -> list[Appended]:
        with self._lock:
            if self._plain is None:
                self._plain = self._factory.make(Producer, self._settings)
            client = self._plain
        rows = _Rows(output)
        rows.produce(client, self._to_error)
        if not rows.wait(client, timeout):
            raise Retriable(
                f"writing to {output.topic}: not acknowledged within {timeout:g} s; it may still be written"
            )
        return rows.places(self._to_error)

    def append_together(self, output: Output, timeout: float) -> list[Appended]:
        deadline = time.monotonic() + timeout
        with self._transaction:
            client = self._opened(deadline)
            rows = _Rows(output)
            try:
                client.begin_transaction()
                rows.produce(client, self._to_error)
                places = rows.places(self._to_error) if rows.wait(client, timeout) else None
            except BaseException as error:
                self._abort(client)
                if isinstance(error, KafkaException):
                    raise self._to_error(error.args[0], output.topic) from error
                raise
            if places is None:
                self._abort(client)
                raise TransactionAborted(f"writing to {output.topic}: not acknowledged within {timeout:g} s")
            self._commit(client, output.topic, deadline)
            return places

    def close(self) -> None:
        with self._lock:
            clients, self._plain = [self._plain], None
        with self._transaction:
            clients.append(self._together)
            self._together = None
        for client in clients:
            if client is not None:
                client.flush(1.0)

    def _opened(self, deadline: float) -> Producer:
        if self._together is None:
            client = self._factory.make(Producer, self._transactional)
            try:
                client.init_transactions(max(0.1, deadline - time.monotonic()))
            except KafkaException as error:
                raise self._to_error(error.args[0], "transactions") from error
            self._together = client
        return self._together

    def _commit(self, client: Producer, topic: str, deadline: float) -> None:
        try:
            self._commit_in_time(client, deadline)
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.txn_requires_abort():
                self._abort(client)
                raise TransactionAborted(f"writing to {topic}: {cause.str()}") from error
            # A new client with the same id completes or aborts the transaction.
            self._together = None
            raise OutcomeUnknown(
                f"writing to {topic}: the transaction may or may not be committed: {cause.str()}"
            ) from error

    def _commit_in_time(self, client: Producer, deadline: float) -> None:
        while True:
            try:
                client.commit_transaction(max(0.1, deadline - time.monotonic()))
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() >= deadline:
                    raise
            else:
                return

    def _abort(self, client: Producer) -> None:
        # After an undelivered record the client miscounts sequence numbers: the next one is a new client.
        self._together = None
        with suppress(KafkaException):
            client.abort_transaction(5.0)

    def _to_error(self, error: KafkaError, topic: str) -> BrokerError:
        if error.code() in REFUSED_BY_BROKER | REFUSED_BY_CLIENT:
            return RecordRefused(f"{topic}: {error.str()} ({error.name()})", position=0)
        return self._factory.to_error(error, f"writing to {topic}", Right("WRITE", "topic", topic))


class _Rows:
    """Rows that were given to the client, and what became of each."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._places: list[Appended | None] = [None] * len(output)
        self._settled: list[int] = []
        """Rows whose outcome is known; two threads may handle callbacks at once, and appending is atomic."""
        self._error: KafkaError | None = None

    def produce(self, client: Producer, to_error: Any) -> None:
        output = self._output
        headers = output.headers or [None] * len(output)
        partitions = output.partitions or [-1] * len(output)
        for row, (key, value, stamp, header, partition) in enumerate(
            zip(output.keys, output.values, output.timestamps, headers, partitions, strict=True)
        ):
            while True:
                try:
                    client.produce(
                        output.topic,
                        value,
                        key,
                        partition,
                        # Bound to the row: two rows may have equal contents.
                        partial(self._delivered, row),
                        None,
                        max(stamp, 1),
                        cast("Any", header),
                    )
                except BufferError:
                    client.poll(POLL_SECONDS)
                except KafkaException as error:
                    raise to_error(error.args[0], output.topic) from error
                else:
                    break

    def wait(self, client: Producer, timeout: float) -> bool:
        """Wait until the outcome of all rows is known; returns whether it is."""
        deadline = time.monotonic() + timeout
        # Another thread may handle the callbacks of these rows, too.
        while len(self._settled) < len(self._output) and time.monotonic() < deadline:
            client.poll(POLL_SECONDS)
        return len(self._settled) == len(self._output)

    def places(self, to_error: Any) -> list[Appended]:
        """Where all rows are. Raises the error of the first that was not written."""
        if self._error is not None:
            raise to_error(self._error, self._output.topic)
        return [place for place in self._places if place is not None]

    def _delivered(self, row: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            partition, offset = message.partition(), message.offset()
            assert partition is not None, "a delivered record has a place"
            assert offset is not None, "a delivered record has a place"
            self._places[row] = Appended(partition, offset)
        # Others fail with it, for no reason of their own.
        elif self._error is None or self._error.code() not in REFUSED_BY_BROKER:
            self._error = error
        self._settled.append(row)
