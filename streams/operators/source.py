"""The operator of sources: fetched records become batches of values."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from streams.operators import NodeOperator, fan_out
from streams.operators.decoded import DecodedRecords, decode, pieces, value_reader
from streams.operators.guard import column_transform
from streams.operators.stateless import extract_timestamps
from streams.origin import Relayed
from streams.records import Batch
from streams.serde import Bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.operators import Binding, Children, Receive
    from streams.operators.decoded import Columns
    from streams.operators.guard import Guard, Transform
    from streams.records import Fetched
    from streams.serde import Serde


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode(NodeOperator):
    """Deserializes keys and values, and takes event times (milliseconds since the epoch) from the values.

    With ``needs_key`` or ``needs_value``, the policy applies to records without a key or value. With
    ``tombstones``, null values are ``None`` and keep their record's time; otherwise the policy applies to
    them. With ``internal``, values are prefixed by the origins of their records.
    """

    kind: ClassVar[str] = "source"
    stamps: ClassVar[bool] = True

    key: Serde[Any]
    value: Serde[Any]
    timestamp: Callable[[Any], int] | None
    tombstones: bool
    needs_key: bool
    needs_value: bool
    internal: bool

    def bind(self, step: Binding, children: Children) -> Receive:
        """Bind the operator to one task: return the function that processes fetched records."""
        forward, guard = fan_out(children), step.guard
        deserialize_value = column_transform(self.value, self.value.deserialize, self._read)
        # Keys that stay bytes are not read from the client's messages until they are used.
        deserialize_key = (
            None if isinstance(self.key, Bytes) else column_transform(self.key, self.key.deserialize)
        )
        timestamp, tombstones, internal = self.timestamp, self.tombstones, self.internal
        needs_key, needs_value = self.needs_key, self.needs_value

        def run(fetched: Fetched) -> None:
            begun = time.perf_counter()
            if internal:
                fetched = Relayed(fetched)
            payloads = fetched.values()
            step.reading(fetched, payloads)
            batch: Batch[Any, Any] = Batch(fetched, payloads)
            decoded = fetched.take() if isinstance(fetched, DecodedRecords) else None
            if decoded is None:
                readable, values = guard.apply(deserialize_value, payloads, batch)
                batch = readable.with_values(values)
            else:
                batch = batch.with_values(decoded.values).with_timestamps(decoded.times)
            if deserialize_key is not None:
                readable, keys = guard.apply(deserialize_key, batch.keys, batch)
                batch = readable.with_keys(keys)
            if needs_key and None in batch.keys:
                batch = _present(guard, batch, batch.keys, "key")
            if needs_value and None in batch.values:
                batch = _present(guard, batch, batch.values, "value")
            if timestamp is not None and decoded is None:
                batch = extract_timestamps(guard, timestamp, batch, table=tombstones)
            step.decoded(time.perf_counter() - begun)
            if len(batch):
                forward(batch)

        return run

    def timed(self, fetched: Fetched, decoded: Callable[[float], None]) -> Iterable[Fetched]:
        """The records in pieces whose ``event_times`` can be read before they are processed.

        Where event times are extracted from the values, these are decoded once, for both. ``decoded`` is
        called with the seconds that each piece takes.
        """
        if self.timestamp is None:
            return (fetched,)
        return pieces(fetched, partial(self._columns, decoded=decoded))

    def event_times(self, fetched: Fetched, decoded: Callable[[float], None]) -> Sequence[int]:
        """The records' event times as they will be extracted; if there is none, the one before."""
        if isinstance(fetched, DecodedRecords):
            return fetched.event_times()
        return fetched.timestamps() if self.timestamp is None else self._columns(fetched, decoded).times

    @property
    def _read(self) -> Transform:
        return value_reader(self.value.deserialize, tombstones=self.tombstones)

    def _columns(self, fetched: Fetched, decoded: Callable[[float], None]) -> Columns:
        assert self.timestamp is not None
        begun = time.perf_counter()
        columns = decode(self._read, self.timestamp, fetched, table=self.tombstones)
        decoded(time.perf_counter() - begun)
        return columns


def _present(guard: Guard, batch: Batch[Any, Any], column: Sequence[Any], what: str) -> Batch[Any, Any]:
    """The rows with the key and value that are required; the policy applies to the others."""
    for row in [row for row, item in enumerate(column) if item is None]:
        guard.refuse(batch, row, ValueError(f"the app writes no record without a {what} to this topic"))
    return batch.select([row for row, item in enumerate(column) if item is not None])
