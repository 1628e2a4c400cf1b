"""The operator of sinks: batches become outputs, encoded rows for one topic each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from streams.coroutines.awaitables import settled
from streams.lineage import stamped
from streams.operators import Operator
from streams.operators.guard import column_transform
from streams.operators.keys import readable_keys
from streams.origin import with_origins
from streams.records import Output, take
from streams.serde.topics import serde_for

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from streams.operators import Binding, Children, Forward, Refusals
    from streams.operators.guard import Guard, Transform
    from streams.operators.sink_columns import SinkColumns
    from streams.records import Batch, RowOwner, Rows
    from streams.serde import Serde


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode(Operator):
    """Serializes keys and values for the topic, or for the topic that a function names for each value.

    ``check_name`` raises for a name that the function must not return. With ``internal``, origins are written
    before the values, and keys that could not be read again fail here. ``columns`` replace columns of the
    records.
    """

    kind: ClassVar[str] = "sink"
    terminal: ClassVar[bool] = True

    topic: str | Callable[[Any], str]
    key: Serde[Any]
    value: Serde[Any]
    internal: bool
    check_name: Callable[[str], None]
    columns: SinkColumns | None = None
    lineage: str | None = None
    """The app's name, to be written into the headers with the rows' lineage; ``None``: no lineage."""

    def bind(self, step: Binding, children: Children) -> Forward:  # noqa: ARG002 - a sink has no children
        guard, internal, refused = step.guard, self.internal, step.refused
        columns, application = self.columns, self.lineage
        # Keys of an internal topic are read again; one that cannot be fails here, with its record.
        internal_key = column_transform(self.key, readable_keys(self.key)) if internal else None
        transforms: dict[str, tuple[Transform, Transform]] = {}

        def transforms_for(topic: str) -> tuple[Transform, Transform]:
            # Only the app reads an internal topic: its records need no schema in a registry.
            value = self.value if internal else serde_for(self.value, topic)
            transform = column_transform(value, value.serialize)
            if internal_key is not None:
                return internal_key, transform
            key = serde_for(self.key, topic)
            return column_transform(key, key.serialize), transform

        def encode(batch: Batch[Any, Any], topic: str) -> None:
            found = transforms.get(topic)
            if found is None:
                found = transforms[topic] = transforms_for(topic)
            serialize_key, serialize_value = found
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
                    writable.headers
                    if application is None
                    else stamped(application, writable, internal=internal),
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

    ``before`` are the earlier batches of the sink for the topic in the same slice: several rows of one input
    record are distinguished by their order, which does not depend on how input is divided into slices.
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
        """The place of each row."""
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
    """Selected rows of another owner."""

    def __init__(self, owner: RowOwner, rows: Rows) -> None:
        self._owner = owner
        self._rows = rows

    def place(self, row: int) -> Hashable | None:
        return self._owner.place(self._rows[row])

    def refuse(self, row: int, error: Exception) -> None:
        self._owner.refuse(self._rows[row], error)


def _without_refused(output: Output, rows: SinkRows, refused: Refusals) -> Output:
    """The rows that the broker has not rejected before; the sink's policy applies to the others."""
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
                raise TypeError(f"the function must return the name of a topic, got {topic!r}")
            check(topic)
            allowed.add(topic)
        yield topic
