"""Write records without transactions, and report the outcome of each."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams.broker.kafka.client_factory import LastError
from streams.errors import RecordRefused, Retriable, Right
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.broker.kafka.client_factory import ClientFactory, Settings
    from streams.errors import BrokerError

WAIT_SECONDS: Final = 0.1
"""How long a wait for the broker lasts before ``waiting`` is called."""

# Errors in the content of a record, or of another one in its batch.
_REFUSED: Final = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.INVALID_RECORD,
    KafkaError._INVALID_DIFFERENT_RECORD,  # noqa: SLF001 - public names of the library begin with _
    KafkaError._BAD_MSG,  # noqa: SLF001 - as above
    KafkaError._INVALID_ARG,  # noqa: SLF001 - as above
}


class RefusedRow(NamedTuple):
    """A row that the broker rejects, with the number that the caller gave it."""

    number: int
    size: int
    """The size of its value in bytes."""
    error: RecordRefused


class KafkaWriter:
    """Writes rows to a topic, and counts exactly those that the broker has acknowledged.

    A rejected row does not affect others: the rows of a batch that fails are written again one by one, so
    that only the rejected ones fail. Not thread-safe.
    """

    def __init__(self, settings: Settings, factory: ClientFactory, topic: str) -> None:
        self._factory = factory
        self._topic = topic
        self._client = factory.make(Producer, settings | {"error_cb": LastError()})
        self._queued = 0
        self._failed = 0
        self._again: list[tuple[int, Output, int]] = []
        """Rows to be written alone: number, output and row."""
        self._refused: list[RefusedRow] = []
        self._fault: KafkaError | None = None
        """A failure that is not due to a row's content."""

    @property
    def acknowledged(self) -> int:
        """The number of rows that the broker has acknowledged."""
        self._client.poll(0)
        return self._queued - self._failed - len(self._client)

    def write(self, output: Output, first: int, waiting: Callable[[], None]) -> None:
        """Queue rows, numbered from ``first``. ``waiting`` is called while the queue is full; it may raise.

        Raises ``BrokerError`` for a failure that is not due to a row's content, also of earlier rows.
        """
        self._queue(output, first, _Batch(self, output, first).failed, waiting)
        self._client.poll(0)
        if self._again:
            self.settle(None, waiting)
        self._raise_fault()

    def settle(self, timeout: float | None, waiting: Callable[[], None]) -> None:
        """Wait until the outcome of all rows is known, at most ``timeout`` seconds.

        Raises ``BrokerError`` for a failure, ``Retriable`` after the time-out.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._drain(deadline, waiting)
        while self._again:
            number, output, row = self._again.pop(0)
            alone = _Alone(self)
            self._queue(_one(output, row), number, alone.failed, waiting)
            self._drain(deadline, waiting)
            if alone.error is not None:
                self._refuse(number, output.values[row], alone.error)
        self._raise_fault()

    def take_refused(self) -> Sequence[RefusedRow]:
        """The rows rejected since the last call."""
        refused, self._refused = self._refused, []
        return refused

    def close(self) -> None:
        """Close the client. Rows that are not acknowledged yet may or may not be written."""
        self._client.purge()
        self._client.flush(0)

    def _queue(
        self,
        output: Output,
        first: int,
        failed: Callable[[KafkaError | None, Message], None],
        waiting: Callable[[], None],
    ) -> None:
        topic, produce = self._topic, self._client.produce
        columns = output.keys, output.values, output.timestamps
        at, total = 0, len(output)
        while at < total:
            begun = at
            try:
                # For the client, a timestamp of 0 means the current time.
                if output.headers is None:
                    for key, value, stamp in zip(*(column[at:] for column in columns), strict=True):
                        produce(topic, value, key, -1, failed, None, max(stamp, 1))
                        at += 1
                else:
                    for key, value, stamp, headers in zip(
                        *(column[at:] for column in columns), output.headers[at:], strict=True
                    ):
                        produce(topic, value, key, -1, failed, None, max(stamp, 1), headers)
                        at += 1
            except BufferError:
                self._queued += at - begun
                self._client.poll(WAIT_SECONDS)
                waiting()
            except KafkaException as error:
                self._queued += at - begun
                cause: KafkaError = error.args[0]
                if cause.code() not in _REFUSED:
                    raise self._to_error(cause) from error
                self._refuse(first + at, output.values[at], cause)
                at += 1
            else:
                self._queued += at - begun

    def _drain(self, deadline: float | None, waiting: Callable[[], None]) -> None:
        while left := self._client.flush(WAIT_SECONDS):
            waiting()
            if deadline is not None and time.monotonic() >= deadline:
                raise Retriable(f"writing to {self._topic}: {left} records are not acknowledged")

    def counts(self, error: KafkaError) -> bool:
        """Count a row that was not written. Returns whether it is due to the content of its batch."""
        self._failed += 1
        if error.code() in _REFUSED:
            return True
        self._fault = self._fault or error
        return False

    def failed(self, number: int, output: Output, row: int, error: KafkaError) -> None:
        """Note that the row with this number was not written."""
        if self.counts(error):
            self._again.append((number, output, row))

    def _refuse(self, number: int, value: bytes | None, error: KafkaError) -> None:
        refusal = RecordRefused(f"{error.str()} ({error.name()})", position=0)
        self._refused.append(RefusedRow(number, len(value or b""), refusal))

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._to_error(self._fault)

    def _to_error(self, error: KafkaError) -> BrokerError:
        return self._factory.to_error(
            error, f"writing to {self._topic}", Right("WRITE", "topic", self._topic)
        )


class _Alone:
    """The outcome of a row that is written again alone."""

    def __init__(self, writer: KafkaWriter) -> None:
        self._writer = writer
        self.error: KafkaError | None = None
        """Why it is rejected, if it is."""

    def failed(self, error: KafkaError | None, _message: Message) -> None:
        """The client's callback if the row was not written."""
        if error is not None and self._writer.counts(error):
            self.error = error


class _Batch:
    """Finds the rows of an output for the client's reports, which only have the rows' contents."""

    def __init__(self, writer: KafkaWriter, output: Output, first: int) -> None:
        self._writer = writer
        self._output = output
        self._first = first
        self._rows: defaultdict[bytes, deque[int]] | None = None

    def failed(self, error: KafkaError | None, message: Message) -> None:
        """The client's callback for each row that was not written."""
        if error is None:
            return
        if self._rows is None:
            self._rows = defaultdict(deque)
            for row, value in enumerate(self._output.values):
                self._rows[value or b""].append(row)
        row = self._rows[message.value() or b""].popleft()
        self._writer.failed(self._first + row, self._output, row, error)


def _one(output: Output, row: int) -> Output:
    headers = None if output.headers is None else [output.headers[row]]
    return Output(output.topic, [output.keys[row]], [output.values[row]], [output.timestamps[row]], headers)
