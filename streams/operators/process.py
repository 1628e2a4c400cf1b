"""The step that runs a user's processor."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from msgspec.structs import replace

from streams.coroutines.awaitables import settled
from streams.durations import to_milliseconds
from streams.errors import TopologyError
from streams.lineage import combined
from streams.operators import Operator, fan_out
from streams.operators.keys import keys_by_row
from streams.operators.processor_store import ProcessorStore
from streams.operators.snapshot import snapshot
from streams.operators.user_code import check_call, check_processor
from streams.records import Batch, Record, take
from streams.replaying import current_replay
from streams.state.deadlines import Deadlines, deadlines_name
from streams.state.expiring import ExpiringState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import timedelta

    from streams.lineage import Ancestry
    from streams.operators import Binding, Children, Forward
    from streams.operators.keys import KeptKeys
    from streams.operators.processor import Cancel, KeyValueStore, ProcessorFactory, TimeKind
    from streams.records import Headers, Rows
    from streams.replaying import Replay

_Forwarded: TypeAlias = "tuple[str | None, int, Batch[Any, Any] | _Columns]"
"""The child to forward to (``None`` for all), the input row (-1 for a batch), and what was forwarded."""

_Columns: TypeAlias = "tuple[Any, Any, int, Headers | None, tuple[str, int, int] | None, Ancestry | None]"
"""Key, value, timestamp and headers of a record when it was forwarded, its topic-partition-offset, and the
lineage of its row, where the input batch has a column of it.
"""

_Joined: TypeAlias = "tuple[str | None, Batch[Any, Any]]"


@dataclass(frozen=True, slots=True)
class Process(Operator):
    """Runs a custom processor, one instance for each task."""

    kind: ClassVar[str] = "process"
    terminal: ClassVar[bool] = True
    stamps: ClassVar[bool] = True
    makes_processors: ClassVar[bool] = True

    factory: ProcessorFactory
    stores: tuple[str, ...] = ()
    """The stores that the processor can get from its context."""
    kept_keys: KeptKeys | None = None
    prefix: str = ""
    """What the stores' names begin with, which the processor does not know."""

    @property
    def code(self) -> object:
        return self.factory

    def bind(self, step: Binding, children: Children) -> Forward:
        processor = settled(self.factory())
        context = _Context(step, children, self.stores, self.kept_keys, self.prefix)
        guard, account = step.guard, step.account
        process_batch = getattr(processor, "process_batch", None)
        process = getattr(processor, "process", None)
        if process_batch is None and process is None:
            raise TopologyError(
                f"step {guard.step}: {type(processor).__name__} has neither process(record, context) "
                "nor process_batch(batch, context)"
            )
        opened = getattr(processor, "open", None)
        check_processor(guard.step, processor)
        if opened is not None:
            settled(opened(context))
        closed = getattr(processor, "close", None)
        if closed is not None:
            step.at_close(lambda: settled(closed()))
        if process_batch is not None:

            def collect(batch: Batch[Any, Any]) -> list[_Joined]:
                with context.undone_on_failure():
                    settled(process_batch(context.begin_numbered(batch), context))
                    account.replaced(len(batch))
                    return context.collected()

            def run_whole(batch: Batch[Any, Any]) -> None:
                for forwarded in guard.whole(collect, batch):
                    context.release(forwarded)

            return run_whole

        def run_each(batch: Batch[Any, Any]) -> None:
            context.begin(batch)
            done, _ = guard.each(
                partial(map, partial(context.process_row, process)), range(len(batch)), batch
            )
            account.replaced(len(done))
            context.release(context.collected())

        return run_each


class _Context:
    """Collects what a processor forwards, and releases it only once the processor's call has returned."""

    def __init__(
        self,
        step: Binding,
        children: Children,
        stores: Collection[str],
        kept_keys: KeptKeys | None,
        prefix: str,
    ) -> None:
        self._binding = step
        self._account = step.account
        self._kept_keys = kept_keys
        # Requested here, because the task tracks stream time only from the first request on.
        self._clock = step.clock
        self._stores = {name: self._state(f"{prefix}{name}") for name in stores}
        self.step = step.guard.step
        self.subtopology = step.subtopology
        self.partition = step.partition
        self.log = step.log
        self._children = children
        self._everywhere = fan_out(children)
        self._forwarded: list[_Forwarded] = []
        self._source: Batch[Any, Any] | None = None
        self._row: int | None = None
        self._input_rows: Rows = ()
        self._number = 0
        self._by_offset: dict[int, int] | None = None
        self._keys_by_row: dict[int, list[Any]] | None = None
        self._collecting = False
        self._headers: Sequence[Headers | None] | None = None
        self._times: Sequence[int] | None = None

    @property
    def replay(self) -> Replay | None:
        return current_replay()

    @property
    def stream_time(self) -> int:
        return self._clock.time

    def store(self, name: str) -> KeyValueStore:
        try:
            return self._stores[name]
        except KeyError:
            raise TopologyError(
                f"step {self.step} has no store {name!r}; its stores: {', '.join(self._stores) or 'none'}",
                hint="add it to the stores of the step: .process(…, stores=[…])",
            ) from None

    def schedule(self, every: timedelta, call: Callable[[int], None], *, on: TimeKind) -> Cancel:
        period = to_milliseconds(every, f"step {self.step!r}: schedule(every)", least=None)
        check_call(self.step, call)
        timed: Callable[[int], object] = call

        def run(now: int) -> None:
            self.begin(None)
            with self.undone_on_failure():
                settled(timed(now))
            self.release(self.collected())

        return self._binding.schedule(period, on, run)

    @contextlib.contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Roll back what a call has stored if it raises."""
        stores = self._stores.values()
        for store in stores:
            store.mark()
        try:
            yield
        except BaseException:
            for store in stores:
                store.rollback()
            raise
        for store in stores:
            store.keep()

    def forward(self, output: Record[Any, Any] | Batch[Any, Any], *, to: str | None = None) -> None:
        if to is not None and to not in self._children:
            raise TopologyError(
                f"step {self.step} forwards to {to!r}, which is not directly downstream of it; "
                f"its downstream steps: {', '.join(self._children) or 'none'}"
            )
        if not self._collecting:
            raise TopologyError(
                f"step {self.step} forwards outside of its calls: records can be forwarded in process, "
                "process_batch and scheduled calls, but not in open or from another thread"
            )
        # Forwarded records are copied, as they are released later and the caller may change them until then.
        if isinstance(output, Batch):
            if self._kept_keys is not None and self._source is not None:
                self._kept_keys.check_batch(output, self._source)
            if len(output):
                self._forwarded.append((to, -1, output.copy()))
        elif isinstance(output, Record):
            headers = output.headers
            row = self._row_of(output)
            columns = (
                output.key,
                snapshot(output.value),
                output.timestamp,
                list(headers) if headers else headers,
                (output.topic, output.partition, output.offset) if output.offset >= 0 else None,
                self._ancestry_of(row),
            )
            if self._kept_keys is not None and self._source is not None:
                self._kept_keys.check(output.key, *self._keys_of(row))
            self._forwarded.append((to, row, columns))
        else:
            raise TypeError(f"forward takes a Record or a Batch, got {type(output).__name__}")

    def begin(self, source: Batch[Any, Any] | None) -> None:
        """Start collecting what is forwarded for ``source``, or by a timer if it is ``None``."""
        self._source = source
        self._row = None
        self._input_rows = () if source is None else source.rows
        self._by_offset = self._keys_by_row = None
        self._headers = None if source is None else source.headers
        self._times = None
        self._forwarded = []
        self._collecting = True

    def begin_numbered(self, source: Batch[Any, Any]) -> Batch[Any, Any]:
        """As ``begin``, for a call that processes all of ``source``; return the batch to pass to it.

        The columns are copies, because ``source`` is needed again when the call fails. The records have their
        row numbers.
        """
        self.begin(source)
        self._number = next(_NUMBERS)
        lent = source if self._kept_keys is None else self._kept_keys.lent(source)
        return lent.copy(number=self._number)

    def process_row(self, process: Any, row: int) -> None:
        """Call a record-wise processor on one row; roll back what it forwarded and stored if it raises."""
        source = self._source
        assert source is not None
        headers = self._headers
        before = len(self._forwarded)
        self._row = row
        stores = self._stores.values()
        for store in stores:
            store.mark()
        try:
            result = process(
                Record(
                    source.keys[row] if self._kept_keys is None else snapshot(source.keys[row]),
                    source.values[row],
                    source.timestamps[row],
                    list(own) if headers and (own := headers[row]) else None,
                    source.topic,
                    source.partition,
                    source.offset(row),
                ),
                self,
            )
            if result is not None:
                settled(result)
        except BaseException:
            del self._forwarded[before:]
            for store in stores:
                store.rollback()
            raise
        for store in stores:
            store.keep()

    def collected(self) -> list[_Joined]:
        """Return what was forwarded since ``begin``, consecutive records to the same child as one batch."""
        source = self._source
        joined: list[_Joined] = []
        for (to, single), group in groupby(self._forwarded, key=lambda item: (item[0], item[1] >= 0)):
            if not single:
                batches = [batch for _, _, batch in group if isinstance(batch, Batch)]
                self._account.made(sum(map(len, batches)), to)
                joined.extend((to, batch) for batch in batches)
                continue
            rows, records = zip(*((row, columns) for _, row, columns in group), strict=True)
            self._account.made(len(records), to)
            keys, values, timestamps, headers, places, ancestry = map(list, zip(*records, strict=True))
            if source is None:
                # A timer may forward input records that the processor has kept until then.
                batch = self._binding.derive(None, keys, values, timestamps, partial(take, places))
            else:
                lineage = None if source.lineage is None else ancestry
                batch = source.of_rows(rows, values, lineage).with_keys(keys).with_timestamps(timestamps)
            if self._headers is not None or any(headers):
                batch = batch.with_headers(headers)
            joined.append((to, batch))
        self._forwarded = []
        self._collecting = False
        return joined

    def release(self, collected: list[_Joined]) -> None:
        """Forward the batches to the steps downstream."""
        for to, batch in collected:
            (self._everywhere if to is None else self._children[to])(batch)

    def _state(self, name: str) -> ProcessorStore:
        state, definition = self._binding.state(name), self._binding.definition(name)
        if definition.ttl is None:
            return ProcessorStore(state, definition)
        deadlines: Deadlines[Any] = Deadlines(self._binding.windows(deadlines_name(name)))
        expiring: ExpiringState[Any, Any] = ExpiringState(state, deadlines, ttl=definition.ttl, now=self._now)
        self._binding.at_slice_end(partial(self._expire, expiring))
        return ProcessorStore(expiring, definition)

    def _expire(self, store: ExpiringState[Any, Any]) -> None:
        self._source = self._row = None
        store.expire()

    def _now(self) -> int:
        """Stream time at the record being processed, or after its batch."""
        if self._row is None or self._source is None:
            return self._clock.time
        if self._times is None:
            self._times = self._clock.times(self._source)
        return self._times[self._row]

    def _keys_of(self, row: int) -> Sequence[Any]:
        """The keys that output of an input row may have: several where a step upstream split the row."""
        assert self._source is not None
        if self._row is not None:
            return (self._source.keys[self._row],)
        if self._keys_by_row is None:
            self._keys_by_row = keys_by_row(self._source)
        return self._keys_by_row[row]

    def _ancestry_of(self, row: int) -> Ancestry | None:
        """The lineage of an input row, if the batch has a column of it."""
        source = self._source
        if source is None or source.lineage is None:
            return None
        if self._row is not None:
            ancestry: Ancestry = source.lineage[self._row]
            return ancestry
        # Of the rows that a step upstream has made of one record, it cannot be told which this is.
        possible: list[Ancestry] = [
            item for at, item in zip(source.rows, source.lineage, strict=True) if at == row
        ]
        if len(possible) == 1:
            return possible[0]
        return replace(combined(possible), complete=False)

    def _row_of(self, record: Record[Any, Any]) -> int:
        """The input row of a forwarded record."""
        if self._row is not None:
            return self._input_rows[self._row]
        if self._source is None:
            return 0
        if record.source_row is not None and record.source_row[0] == self._number:
            return record.source_row[1]
        if self._by_offset is None:
            # Records that come from state have a negative offset, which does not identify them.
            pairs = zip(self._source.offsets, self._input_rows, strict=True)
            self._by_offset = {offset: row for offset, row in pairs if offset >= 0}
        row = self._by_offset.get(record.offset)
        if row is None:
            offsets = self._source.offsets
            raise ValueError(
                f"step {self.step} forwards a record whose offset {record.offset} is not in the batch being "
                f"processed ({offsets[0]} to {offsets[-1]}): a dead letter could not be traced to its input; "
                "make it from a record of the batch, with record.with_"
            )
        return row


_NUMBERS = count(1)
