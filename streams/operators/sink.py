"""What a sink does: batches become outputs, encoded rows for one topic each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from streams.coroutines.awaitables import settled
from streams.operators import Operator
from streams.operators.guard import UnfitResult, column_transform
from streams.operators.keys import readable_keys
from streams.origin import with_origins
from streams.records import Output, take

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from streams.operators import Binding, Children, Forward, Refusals
    from streams.operators.guard import Guard
    from streams.operators.sink_columns import SinkColumns
    from streams.records import Batch, RowOwner, Rows
    from streams.serde import Serde


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode(Operator):
    """Serializes keys and values for the topic, or for the topic that a function names for each value.

    ``check_name`` raises for a name that this function must not give. ``internal``: origins are written
    before the values, and keys are found now that could not be read again. ``columns`` are what is written
    instead of what the records have.
    """

    kind: ClassVar[str] = "sink"
    terminal: ClassVar[bool] = True

    topic: str | Callable[[Any], str]
    key: Serde[Any]
    value: Serde[Any]
    internal: bool
    check_name: Callable[[str], None]
    columns: SinkColumns | None = None

    def bind(self, step: Binding, children: Children) -> Forward:  # noqa: ARG002 - nothing follows a sink
        guard, internal, refused = step.guard, self.internal, step.refused
        columns = self.columns
        # Keys of an internal topic are read again, and what cannot be is found now, by its record.
        serialize_key = column_transform(
            self.key, readable_keys(self.key) if internal else self.key.serialize
        )
        serialize_value = column_transform(self.value, self.value.serialize)

        def encode(batch: Batch[Any, Any], topic: str) -> None:
            partitions: Sequence[int] | None = None
            if columns is not None:
                batch, partitions = columns.apply(guard, batch)
            keys, rows = guard.each(serialize_key, batch.keys, batch)
            writable = (batch if rows is None else batch.select(rows)).with_keys(keys)
            if partitions is not None and rows is not None:
                partitions = take(partitions, rows)
            values, rows = guard.each(serialize_value, writable.values, writable)
            writable = writable if rows is None else writable.select(rows)
            if partitions is not None and rows is not None:
                partitions = take(partitions, rows)
            if len(values):
                owner = SinkRows(guard, topic, writable, step.sent_before(topic, writable))
                if internal:
                    values = with_origins(values, writable)
                output = Output(
                    topic,
                    writable.keys,
                    values,
                    writable.timestamps,
                    writable.headers,
                    partitions=partitions,
                    owner=owner,
                )
                if refused:
                    output = _without_refused(output, owner, refused)
                if len(output):
                    step.emit(output)

        if isinstance(self.topic, str):
            fixed = self.topic
            return lambda batch: encode(batch, fixed)
        choose = partial(_topic_names, self.topic, self.check_name)

        def run(batch: Batch[Any, Any]) -> None:
            addressed, topics = guard.apply(choose, batch.values, batch)
            by_topic: dict[str, list[int]] = {}
            for row, topic in enumerate(topics):
                by_topic.setdefault(topic, []).append(row)
            for topic, rows in by_topic.items():
                encode(addressed.select(rows), topic)

        return run


class SinkRows:
    """The rows of one batch that a sink writes to one topic; see ``RowOwner``.

    ``before`` are the batches that the sink has had for the topic in the same slice: several rows of one
    input record are told apart by their order in the slice, however slices are cut.
    """

    def __init__(
        self, guard: Guard, topic: str, batch: Batch[Any, Any], before: Sequence[Batch[Any, Any]]
    ) -> None:
        self._guard = guard
        self._topic = topic
        self._batch = batch
        self._before = before
        self._places: list[Hashable] | None = None

    def places(self) -> list[Hashable]:
        """Each row's place."""
        if self._places is None:
            seen = Counter(identity for batch in self._before for identity in batch.identities())
            self._places = []
            for identity in self._batch.identities():
                self._places.append((self._guard.step, self._topic, identity, seen[identity]))
                seen[identity] += 1
        return self._places

    def place(self, row: int) -> Hashable:
        return self.places()[row]

    def refuse(self, row: int, error: Exception) -> None:
        self._guard.refuse(self._batch, row, error)


class ChosenRows:
    """Those rows of another owner."""

    def __init__(self, owner: RowOwner, rows: Rows) -> None:
        self._owner = owner
        self._rows = rows

    def place(self, row: int) -> Hashable | None:
        return self._owner.place(self._rows[row])

    def refuse(self, row: int, error: Exception) -> None:
        self._owner.refuse(self._rows[row], error)


def _without_refused(output: Output, rows: SinkRows, refused: Refusals) -> Output:
    """The rows that the broker has not refused before; the others get the sink's policy."""
    kept = []
    for row, place in enumerate(rows.places()):
        error = refused.meet(place)
        if error is None:
            kept.append(row)
        else:
            rows.refuse(row, error)
    if len(kept) == len(output):
        return output
    return Output(
        output.topic,
        take(output.keys, kept),
        take(output.values, kept),
        take(output.timestamps, kept),
        None if output.headers is None else take(output.headers, kept),
        partitions=None if output.partitions is None else take(output.partitions, kept),
        owner=ChosenRows(rows, kept),
    )


def _topic_names(
    choose: Callable[[Any], str], check: Callable[[str], None], values: Sequence[Any]
) -> Iterator[str]:
    allowed: set[str] = set()
    for value in values:
        topic = choose(value)
        if type(topic) is not str or topic not in allowed:
            if type(topic) is not str or not topic:
                settled(topic)
                error = f"a topic's name is needed, got {topic!r:.80}"
                raise UnfitResult(error) if type(topic) is not str else TypeError(error)
            check(topic)
            allowed.add(topic)
        yield topic
