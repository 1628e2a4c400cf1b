"""The outputs of a task that the worker has not written yet."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.operators.guard import came_from
from streams.records import Batch, TopicPartition, total_bytes
from streams.runtime.dead_letter_rows import DeadLetter, DeadLetterRows, dead_letter_output
from streams.runtime.ledger import Outside
from streams.runtime.retried import retried_from

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from streams.operators.guard import Guard
    from streams.operators.runtime import Runtime
    from streams.policy import Action
    from streams.records import Fetched, Headers, Output, Trace
    from streams.runtime.counts import Counts
    from streams.runtime.dead_letters import FirstFailures
    from streams.runtime.ledger import TaskLedger
    from streams.runtime.refused_rows import RefusedRows
    from streams.topology.graph import Node
    from streams.tracing.spans import Carried


class Delivery(NamedTuple):
    """Rows of one batch for a sink connector, and the guard that applies the sink's policy."""

    sink: str
    guard: Guard
    batch: Batch[Any, Any]


class Outbox:
    """Outputs and dead letters of complete slices, and of the open one.

    ``read`` is the input of the open slice, if it has any. ``refused`` are rows that the broker has rejected:
    their dead letters are written with less content. ``failures`` logs the first failures of steps, which
    ``node`` looks up by name.
    """

    def __init__(
        self,
        runtime: Runtime,
        counts: Counts,
        ledger: TaskLedger,
        refused: RefusedRows,
        failures: FirstFailures,
        *,
        node: Callable[[str], Node],
        application: str,
        dead_letter_topic: str,
    ) -> None:
        self.refused = refused
        self.read: Fetched | None = None
        self._runtime = runtime
        self._counts = counts
        self._ledger = ledger
        self._in_slice = False
        self._failures = failures
        self._node = node
        self._application = application
        self._dead_letter_topic = dead_letter_topic
        self._outputs: list[Output] = []
        self._dead_letters: list[DeadLetter] = []
        self._deliveries: list[Delivery] = []
        self._before_slice = 0, 0, 0
        """The numbers of outputs, dead letters and deliveries before the open slice."""
        self._context: Headers = []
        """The context of the last slice's span, for dead letters of rows that the broker refuses."""
        self._sent: dict[tuple[str, str], list[Batch[Any, Any]]] = {}
        """The batches that each sink has written in the open slice, by sink and topic."""

    def begin_slice(self) -> None:
        """Open a slice."""
        self._in_slice = True
        self._before_slice = len(self._outputs), len(self._dead_letters), len(self._deliveries)

    def end_slice(self) -> None:
        """Close the slice, complete or abandoned."""
        self._sent = {}
        self.read = None
        self._in_slice = False

    def drop_slice(self) -> None:
        """Discard what the open slice has produced."""
        outputs, letters, deliveries = self._before_slice
        del self._outputs[outputs:], self._dead_letters[letters:], self._deliveries[deliveries:]

    def carry(self, span: Carried) -> tuple[Iterator[tuple[str, Exception, str]], int]:
        """Let the rows of the slice that has just been completed carry the context of its span.

        Returns its dead letters, as step, error and record, and their number.
        """
        outputs, letters, deliveries = self._before_slice
        for output in self._outputs[outputs:]:
            output.headers = span.stamped(output.headers, len(output))
        for at in range(deliveries, len(self._deliveries)):
            batch = self._deliveries[at].batch
            column = span.stamped(batch.headers, len(batch))
            if column is not None:
                self._deliveries[at] = self._deliveries[at]._replace(batch=batch.with_headers(column))
        # A row that a sink connector refuses may be of any slice since the last commit.
        self._context = [] if len(self._deliveries) > deliveries else span.headers
        failed = [letter._replace(context=span.headers) for letter in self._dead_letters[letters:]]
        self._dead_letters[letters:] = failed
        return ((item.step, item.error, came_from(item.batch, item.row)) for item in failed), len(failed)

    def drop(self) -> None:
        """Discard everything."""
        self._outputs, self._dead_letters, self._deliveries = [], [], []

    def emit(self, output: Output) -> None:
        """Add encoded rows of a sink."""
        self._outputs.append(output)

    def deliver(self, delivery: Delivery) -> None:
        """Add rows for a sink connector."""
        self._deliveries.append(delivery)

    @property
    def undelivered(self) -> int:
        """The number of rows for sink connectors."""
        return sum(len(delivery.batch) for delivery in self._deliveries)

    def take_deliveries(self) -> list[Delivery]:
        """Take the rows for sink connectors since the last call. Not while a slice is open."""
        deliveries, self._deliveries = self._deliveries, []
        self._ledger.outside[Outside.TAKEN_ROWS] += sum(len(delivery.batch) for delivery in deliveries)
        return deliveries

    def drop_dead_letters(self, known: Callable[[TopicPartition, int], bool]) -> None:
        """Discard dead letters of input records that ``known`` says were written before."""
        before = len(self._dead_letters)
        self._dead_letters = [
            letter
            for letter in self._dead_letters
            if not known(
                TopicPartition(letter.batch.topic, letter.batch.partition), letter.batch.offset(letter.row)
            )
        ]
        self._ledger.outside[Outside.KNOWN] += before - len(self._dead_letters)

    def sent_before(self, sink: str, topic: str, batch: Batch[Any, Any]) -> Sequence[Batch[Any, Any]]:
        """Add a batch that the sink writes to the topic; return the earlier ones of the open slice."""
        sent = self._sent.setdefault((sink, topic), [])
        before = tuple(sent)
        sent.append(batch)
        return before

    def failed(self, action: Action, batch: Batch[Any, Any], row: int, step: str, error: Exception) -> None:
        """Add a dead letter for a record that ``step`` could not process, or count it as skipped.

        A dead letter that is retried is neither: its outcome is.
        """
        if self._failures.is_first(step, error):
            self._failures.log(action, batch, row, self._node(step), error)
        retried = retried_from(batch.fetched)
        if retried is not None and retried.fail(batch.rows[row], step, error):
            # It is a dead letter already, whatever the policy.
            self._ledger.failed(step, None, in_slice=self._in_slice)
            return
        self._ledger.failed(step, action, in_slice=self._in_slice)
        if action == "skip":
            self._counts.skipped[step] += 1
            return
        self._counts.dead_letters[step] += 1
        self._dead_letters.append(DeadLetter(batch, row, step, error, context=self._context))

    def last_read(self) -> Trace | None:
        """The last record of the open slice, if it has input."""
        if self.read is None:
            return None
        (trace,) = Batch(self.read, [None], rows=[len(self.read) - 1]).traces([0])
        return trace

    def take(self) -> list[Output]:
        """Take everything, dead letters last. Raises ``ProcessingError`` for one that cannot be written."""
        outputs, self._outputs = self._outputs, []
        letters, self._dead_letters = self._dead_letters, []
        if letters:
            outputs.append(self._dead_letter_output(letters))
        for output in outputs:
            self._counts.records_out += len(output)
            self._counts.bytes_out += total_bytes(output.values)
        self._ledger.outside[Outside.TAKEN] += sum(map(len, outputs))
        return outputs

    def settle(self) -> None:
        """Everything that was taken is committed. What an open slice has produced is not counted yet."""
        outputs, letters, deliveries = self._outputs, self._dead_letters, self._deliveries
        if self._in_slice:
            before = self._before_slice
            outputs, letters, deliveries = outputs[: before[0]], letters[: before[1]], deliveries[: before[2]]
        rows = sum(len(delivery.batch) for delivery in deliveries)
        self._ledger.settle(sum(map(len, outputs)) + len(letters), rows)

    def _requeue(self, letter: DeadLetter) -> None:
        """Add a dead letter again that was refused, with less content."""
        self._ledger.outside[Outside.REQUEUED] += 1
        self._dead_letters.append(letter)

    def _dead_letter_output(self, letters: Sequence[DeadLetter]) -> Output:
        places = _places(letters)
        if self.refused:
            errors = map(self.refused.meet, places)
            letters = [
                letter if error is None else letter.cut_to(self.refused.times(place), error)
                for letter, place, error in zip(letters, places, errors, strict=True)
            ]
        owner = DeadLetterRows(letters, places, self._requeue)
        return dead_letter_output(
            letters,
            self._dead_letter_topic,
            self._application,
            owner,
            self._runtime.wall_clock,
            self._runtime.originals,
        )


def _places(letters: Sequence[DeadLetter]) -> list[Hashable]:
    seen: Counter[Hashable] = Counter()
    places: list[Hashable] = []
    for letter in letters:
        source = ("dead letter", letter.step, letter.identity)
        places.append((*source, seen[source]))
        seen[source] += 1
    return places
