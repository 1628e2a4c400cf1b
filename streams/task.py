"""One subtopology on one partition number, at work: bytes in, bytes out, no client."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from streams.guard import Guard, error_text
from streams.operators import fan_out
from streams.operators.stateless import extract_timestamps
from streams.records import Batch, Output, TopicPartition
from streams.serde import Bytes, nullable
from streams.topology import Node, Sink, Source, Step, Subtopology, function_name, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.operators import Forward
    from streams.policy import Action
    from streams.records import Fetched, Headers


class TaskId(NamedTuple):
    """Which subtopology, on which partition number."""

    subtopology: int
    partition: int

    def __str__(self) -> str:
        return f"{self.subtopology}_{self.partition}"


class Runtime(Protocol):
    """What a task needs of whatever runs it while user code is slow or waits."""

    def keep_alive(self) -> None:
        """Serve the group if it is due. Raises ``Interrupted`` when the open slice must be given up."""

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        """Let time pass while serving the group, as ``step`` failed. Raises ``Interrupted`` too."""


class Pending(NamedTuple):
    """An output to be written, and whom to tell about a row that the broker will never take."""

    output: Output
    refuse: Callable[[int, Exception], None]


@dataclass(slots=True)
class Counts:
    """What a task has done since it was made. ``seconds`` by stage: ``decode`` and ``process``."""

    records_in: int = 0
    bytes_in: int = 0
    records_out: int = 0
    bytes_out: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)
    """Records written as dead letters, by step."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Records left out under policy ``skip``, by step."""
    seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "process": 0.0})

    def add(self, other: Counts) -> None:
        """Count what another has counted too."""
        self.records_in += other.records_in
        self.bytes_in += other.bytes_in
        self.records_out += other.records_out
        self.bytes_out += other.bytes_out
        self.dead_letters.update(other.dead_letters)
        self.skipped.update(other.skipped)
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


class _Binding(NamedTuple):
    guard: Guard
    subtopology: int
    partition: int


class _DeadLetter(NamedTuple):
    batch: Batch[Any, Any]
    row: int
    step: str
    error: Exception


class Task:
    """Runs a subtopology over slices of input and keeps what comes of them until it is taken.

    ``positions`` are the next offsets after the slices that were processed as a whole: what may be
    committed once ``take`` has been written. ``starts`` are the offsets that it was given first, for each
    partition: where that is read again from if nothing of it was ever committed.
    """

    def __init__(
        self,
        identifier: TaskId,
        subtopology: Subtopology,
        runtime: Runtime,
        *,
        application: str,
        dead_letter_topic: str,
    ) -> None:
        self.id = identifier
        self.positions: dict[TopicPartition, int] = {}
        self.starts: dict[TopicPartition, int] = {}
        self.counts = Counts()
        self._runtime = runtime
        self._application = application
        self._dead_letter_topic = dead_letter_topic
        self._pending: list[Pending] = []
        self._dead_letters: list[_DeadLetter] = []
        self._subtopology = subtopology
        self._sources: dict[str, Callable[[Fetched], None]] = {}
        bound: dict[str, Forward] = {}
        for node in reversed(subtopology.nodes):
            children = {child.name: bound[child.name] for child in subtopology.children(node.name)}
            if isinstance(node, Source):
                self._sources[node.name] = self._bind_source(node, fan_out(children))
            elif isinstance(node, Step):
                bound[node.name] = node.operator.bind(self._binding(node), children)
            else:
                bound[node.name] = self._bind_sink(node)
        self._by_topic: dict[str, Callable[[Fetched], None]] = {}

    def process(self, fetched: Fetched) -> None:
        """Run one slice of one input partition, as a whole or not at all.

        Raises ``ProcessingError`` when a record fails under policy ``fail``, and ``Interrupted`` when the
        runtime gives the slice up; either way nothing of the slice is kept.
        """
        begun = time.perf_counter()
        decoding = self.counts.seconds["decode"]
        partition = TopicPartition(fetched.topic, fetched.partition)
        before = len(self._pending), len(self._dead_letters)
        try:
            self._source_for(fetched.topic)(fetched)
        except BaseException:
            del self._pending[before[0] :], self._dead_letters[before[1] :]
            raise
        self.positions[partition] = fetched.next_offset
        counts = self.counts
        counts.records_in += len(fetched)
        seconds = counts.seconds
        seconds["process"] += time.perf_counter() - begun - (seconds["decode"] - decoding)

    def advance(self, partition: TopicPartition, offset: int) -> None:
        """Note that nothing but markers lies before ``offset``: the partition's end, found by polling."""
        if offset > self.positions.get(partition, -1):
            self.starts.setdefault(partition, offset)
            self.positions[partition] = offset

    def take(self) -> list[Pending]:
        """What the slices since the last call produced, dead letters last. Empty when there is nothing."""
        pending, self._pending = self._pending, []
        letters, self._dead_letters = self._dead_letters, []
        if letters:
            pending.append(self._dead_letter_output(letters))
        for output, _ in pending:
            self.counts.records_out += len(output)
            self.counts.bytes_out += total_bytes(output.values)
        return pending

    def drop(self, positions: dict[TopicPartition, int]) -> None:
        """Forget what was produced and not taken, and continue from ``positions``."""
        self._pending, self._dead_letters = [], []
        self.positions = dict(positions)

    def forget(self, partition: TopicPartition) -> None:
        """Hold this input partition no longer."""
        self.positions.pop(partition, None)
        self.starts.pop(partition, None)

    def keep_alive(self) -> None:
        self._runtime.keep_alive()

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        self._runtime.wait(seconds, step, error)

    def failed(self, action: Action, batch: Batch[Any, Any], row: int, step: str, error: Exception) -> None:
        """Take note of a record that ``step`` could not process, as its policy says."""
        if action == "skip":
            self.counts.skipped[step] += 1
            return
        self.counts.dead_letters[step] += 1
        self._dead_letters.append(_DeadLetter(batch, row, step, error))

    def _binding(self, node: Node) -> _Binding:
        describe = f"step {node.name!r}"
        if isinstance(node, Step) and node.operator.code is not None:
            describe += f" ({_where(node.operator.code)})"
        return _Binding(Guard(node.name, node.policy, self, describe), *self.id)

    def _source_for(self, topic: str) -> Callable[[Fetched], None]:
        found = self._by_topic.get(topic)
        if found is None:
            name = next(
                source.name
                for source in self._subtopology.sources
                if any(matches(wanted, topic) for wanted in source.topics)
            )
            found = self._by_topic[topic] = self._sources[name]
        return found

    def _bind_source(self, source: Source, forward: Forward) -> Callable[[Fetched], None]:
        guard = self._binding(source).guard
        deserialize_value = nullable(source.value.deserialize)
        # Keys that stay bytes stay with the client too, until somebody asks for them.
        deserialize_key = None if isinstance(source.key, Bytes) else nullable(source.key.deserialize)
        timestamp, counts = source.timestamp, self.counts

        def run(fetched: Fetched) -> None:
            begun = time.perf_counter()
            payloads = fetched.values()
            counts.bytes_in += total_bytes(payloads)
            batch: Batch[Any, Any] = Batch(fetched, payloads)
            readable, values = guard.apply(deserialize_value, payloads, batch)
            batch = readable.with_values(values)
            if deserialize_key is not None:
                readable, keys = guard.apply(deserialize_key, batch.keys, batch)
                batch = readable.with_keys(keys)
            if timestamp is not None:
                batch = extract_timestamps(guard, timestamp, batch)
            counts.seconds["decode"] += time.perf_counter() - begun
            if len(batch):
                forward(batch)

        return run

    def _bind_sink(self, sink: Sink) -> Forward:
        guard = self._binding(sink).guard
        serialize_value, serialize_key = nullable(sink.value.serialize), nullable(sink.key.serialize)

        def encode(batch: Batch[Any, Any], topic: str) -> None:
            writable, keys = guard.apply(serialize_key, batch.keys, batch)
            writable, values = guard.apply(serialize_value, writable.values, writable.with_keys(keys))
            if values:
                output = Output(topic, writable.keys, values, writable.timestamps, writable.headers)
                self._pending.append(Pending(output, partial(guard.refuse, writable)))

        if isinstance(sink.topic, str):
            fixed = sink.topic
            return lambda batch: encode(batch, fixed)
        choose = partial(_topic_names, sink.topic)

        def run(batch: Batch[Any, Any]) -> None:
            addressed, topics = guard.apply(choose, batch.values, batch)
            by_topic: dict[str, list[int]] = {}
            for row, topic in enumerate(topics):
                by_topic.setdefault(topic, []).append(row)
            for topic, rows in by_topic.items():
                encode(addressed.select(rows), topic)

        return run

    def _dead_letter_output(self, letters: Sequence[_DeadLetter]) -> Pending:
        records = [letter.batch.original(letter.row) for letter in letters]
        headers: list[Headers | None] = [
            [
                *(record.headers or ()),
                ("__streams.errors.topic", record.topic.encode()),
                ("__streams.errors.partition", b"%d" % record.partition),
                ("__streams.errors.offset", b"%d" % record.offset),
                ("__streams.errors.timestamp", b"%d" % record.timestamp),
                ("__streams.errors.application", self._application.encode()),
                ("__streams.errors.step", letter.step.encode()),
                ("__streams.errors.exception", type(letter.error).__qualname__.encode()),
                ("__streams.errors.message", error_text(letter.error).encode(errors="replace")[:1024]),
            ]
            for record, letter in zip(records, letters, strict=True)
        ]
        output = Output(
            self._dead_letter_topic,
            [record.key for record in records],
            [record.value for record in records],
            [record.timestamp for record in records],
            headers,
        )
        return Pending(output, _refuse_dead_letter)


def total_bytes(payloads: Sequence[bytes | None]) -> int:
    """The sum of the payloads' lengths, nulls counting nothing."""
    try:
        return sum(map(len, payloads))  # type: ignore[arg-type]  # a null raises, and then they are left out
    except TypeError:
        return sum(map(len, filter(None, payloads)))


def _topic_names(choose: Callable[[Any], str], values: Sequence[Any]) -> Any:
    for value in values:
        topic = choose(value)
        if type(topic) is not str or not topic:
            raise TypeError(f"a topic's name is needed, got {topic!r}")
        yield topic


def _refuse_dead_letter(row: int, error: Exception) -> None:  # noqa: ARG001 - the row is in the error
    # Leaving it out would lose data silently, and a dead letter of a dead letter leads nowhere.
    raise error


def _where(code: object) -> str:
    source = getattr(code, "__code__", None)
    name = function_name(code)
    return f"{name}, {source.co_filename}:{source.co_firstlineno}" if source is not None else name
