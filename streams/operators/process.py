"""The step that runs a user's processor."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from streams.errors import TopologyError
from streams.operators import fan_out
from streams.records import Batch, Record
from streams.state.deadlines import Deadlines, deadlines_name
from streams.state.expiring import ExpiringState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from streams.operators import Binding, Children, Forward
    from streams.processor import Cancel, KeyValueStore, ProcessorFactory, TimeKind
    from streams.records import Headers
    from streams.state.buffered import KeyValueState

_Forwarded: TypeAlias = "tuple[str | None, int, Record[Any, Any] | Batch[Any, Any]]"
"""The child asked for (``None`` for all), the row it came from (-1 for a batch), and what was forwarded."""

_Joined: TypeAlias = "tuple[str | None, Batch[Any, Any]]"


@dataclass(frozen=True, slots=True)
class Process:
    """Runs a processor of the user's, made anew for each task."""

    kind: ClassVar[str] = "process"
    terminal: ClassVar[bool] = True
    stamps: ClassVar[bool] = True

    factory: ProcessorFactory
    stores: tuple[str, ...] = ()
    """The stores that its context gives."""

    @property
    def code(self) -> object:
        return self.factory

    def bind(self, step: Binding, children: Children) -> Forward:
        processor = self.factory()
        context = _Context(step, children, self.stores)
        guard = step.guard
        process_batch = getattr(processor, "process_batch", None)
        process = getattr(processor, "process", None)
        if process_batch is None and process is None:
            raise TopologyError(
                f"step {guard.step}: {type(processor).__name__} has neither process(record, context) "
                "nor process_batch(batch, context)"
            )
        opened = getattr(processor, "open", None)
        if opened is not None:
            opened(context)
        if process_batch is not None:

            def collect(batch: Batch[Any, Any]) -> list[_Joined]:
                with context.undone_on_failure():
                    context.begin(batch)
                    process_batch(batch, context)
                    return context.collected()

            def run_whole(batch: Batch[Any, Any]) -> None:
                for forwarded in guard.whole(collect, batch):
                    context.release(forwarded)

            return run_whole

        def run_each(batch: Batch[Any, Any]) -> None:
            context.begin(batch)
            guard.each(partial(map, partial(context.process_row, process)), range(len(batch)), batch)
            context.release(context.collected())

        return run_each


class _Context:
    """Collects what a processor forwards, and releases it only once the processor's call has returned."""

    def __init__(self, step: Binding, children: Children, stores: Collection[str]) -> None:
        self._binding = step
        # Asked for now, as the records of this task's slices must be seen from the first on.
        self._clock = step.clock
        self._stores = {name: self._state(name) for name in stores}
        self.step = step.guard.step
        self.subtopology = step.subtopology
        self.partition = step.partition
        self._children = children
        self._everywhere = fan_out(children)
        self._forwarded: list[_Forwarded] = []
        self._source: Batch[Any, Any] | None = None
        self._row: int | None = None
        self._headers: Sequence[Headers | None] | None = None
        self._times: Sequence[int] | None = None

    @property
    def stream_time(self) -> int:
        return self._clock.time

    def store(self, name: str) -> KeyValueStore:
        try:
            return self._stores[name]
        except KeyError:
            raise TopologyError(
                f"step {self.step} has no store {name!r}; its stores: {', '.join(self._stores) or 'none'}",
                hint="name it where the step is made: .process(…, stores=[…])",
            ) from None

    def schedule(self, every: int, call: Callable[[int], None], *, on: TimeKind) -> Cancel:
        def run(now: int) -> None:
            self.begin(None)
            with self.undone_on_failure():
                call(now)
            self.release(self.collected())

        return self._binding.schedule(every, on, run)

    @contextlib.contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """What a call that raises has stored is taken back."""
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
                f"step {self.step} forwards to {to!r}, which does not follow it; "
                f"what follows: {', '.join(self._children) or 'nothing'}"
            )
        if isinstance(output, Batch):
            if len(output):
                self._forwarded.append((to, -1, output))
        elif isinstance(output, Record):
            self._forwarded.append((to, self._row_of(output), output))
        else:
            raise TypeError(f"forward takes a Record or a Batch, got {type(output).__name__}")

    def begin(self, source: Batch[Any, Any] | None) -> None:
        """Start collecting what is made of ``source``, or of the time alone."""
        self._source = source
        self._row = None
        self._headers = None if source is None else source.headers
        self._times = None
        self._forwarded = []

    def process_row(self, process: Any, row: int) -> None:
        """Call a record-wise processor on one row; a call that raises leaves nothing behind."""
        source = self._source
        assert source is not None
        headers = self._headers
        before = len(self._forwarded)
        self._row = row
        stores = self._stores.values()
        for store in stores:
            store.mark()
        try:
            process(
                Record(
                    source.keys[row],
                    source.values[row],
                    source.timestamps[row],
                    headers[row] if headers else None,
                    source.topic,
                    source.partition,
                    source.offset(row),
                ),
                self,
            )
        except BaseException:
            del self._forwarded[before:]
            for store in stores:
                store.rollback()
            raise
        for store in stores:
            store.keep()

    def collected(self) -> list[_Joined]:
        """What was forwarded since ``begin``, records to the same child joined into one batch."""
        source = self._source
        joined: list[_Joined] = []
        for (to, single), group in groupby(self._forwarded, key=lambda item: (item[0], item[1] >= 0)):
            if not single:
                joined.extend((to, batch) for _, _, batch in group if isinstance(batch, Batch))
                continue
            items = [(row, record) for _, row, record in group if isinstance(record, Record)]
            records = [record for _, record in items]
            if source is None:
                batch = self._binding.derive(
                    None,
                    [record.key for record in records],
                    [record.value for record in records],
                    [record.timestamp for record in records],
                )
            else:
                batch = (
                    source.select([row for row, _ in items])
                    .with_values([record.value for record in records])
                    .with_keys([record.key for record in records])
                    .with_timestamps([record.timestamp for record in records])
                )
            if self._headers is not None or any(record.headers for record in records):
                batch = batch.with_headers([record.headers for record in records])
            joined.append((to, batch))
        self._forwarded = []
        return joined

    def release(self, collected: list[_Joined]) -> None:
        """Let the following steps have it."""
        for to, batch in collected:
            (self._everywhere if to is None else self._children[to])(batch)

    def _state(self, name: str) -> KeyValueState[Any, Any] | ExpiringState[Any, Any]:
        state, ttl = self._binding.state(name), self._binding.ttl(name)
        if ttl is None:
            return state
        deadlines: Deadlines[Any] = Deadlines(self._binding.windows(deadlines_name(name)))
        expiring: ExpiringState[Any, Any] = ExpiringState(state, deadlines, ttl=ttl, now=self._now)
        self._binding.at_slice_end(partial(self._expire, expiring))
        return expiring

    def _expire(self, store: ExpiringState[Any, Any]) -> None:
        self.begin(None)
        store.expire()

    def _now(self) -> int:
        """Stream time when the record being processed had come, or the batch."""
        if self._row is None or self._source is None:
            return self._clock.time
        if self._times is None:
            self._times = self._clock.times(self._source)
        return self._times[self._row]

    def _row_of(self, record: Record[Any, Any]) -> int:
        if self._row is not None:
            return self._row
        if self._source is None:
            return 0
        offsets = list(self._source.offsets)
        try:
            return offsets.index(record.offset)
        except ValueError:
            raise ValueError(
                f"step {self.step} forwards a record whose offset {record.offset} is not in the batch being "
                f"processed ({offsets[0]} to {offsets[-1]}): a dead letter could not be traced to its input; "
                "make it from a record of the batch, with dataclasses.replace"
            ) from None
