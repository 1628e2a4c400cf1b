"""The Processor API: the protocols of a custom processor, of its context and of its stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from structlog.stdlib import BoundLogger

    from streams.records import Batch, Record
    from streams.replaying import Replay

TimeKind: TypeAlias = Literal["stream_time", "wall_clock"]
"""What a schedule follows."""

Cancel: TypeAlias = "Callable[[], None]"
"""Ends a schedule; calling it again does nothing."""


class KeyValueStore(Protocol):
    """A key-value store of a processor, returned by ``Context.store``.

    Changes are committed atomically with the results, and are rolled back when the call that made them
    raises. Keys must be hashable. ``put`` stores a copy of the value and ``get`` returns a copy (see
    ``operators.snapshot``): modifying a value does not change the store until it is put again.
    """

    def get(self, key: Any) -> Any:
        """The value, or ``None``."""

    def get_many(self, keys: Sequence[Any]) -> list[Any]:
        """The values of the keys, ``None`` for those without a value, in one read."""

    def put(self, key: Any, value: Any) -> None:
        """Set a value; ``None`` deletes."""

    def put_many(self, entries: Mapping[Any, Any]) -> None:
        """Set several values; ``None`` deletes."""

    def delete(self, key: Any) -> None:
        """Remove the entry if there is one."""

    def scan(
        self, start: Any = None, stop: Any = None, *, reverse: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        """Iterate over entries from ``start`` to ``stop`` (exclusive), in the order of their encoded keys."""

    def prefix(self, prefix: bytes) -> Iterator[tuple[Any, Any]]:
        """Iterate over entries whose encoded key starts with ``prefix``, in order."""


class Context(Protocol):
    """A processor's access to its task: stores, schedules, stream time, and forwarding records."""

    @property
    def step(self) -> str:
        """The name of the processor's step in the topology."""

    @property
    def subtopology(self) -> int:
        """The number of the subtopology that the processor's task runs."""

    @property
    def partition(self) -> int:
        """The partition number of the processor's task."""

    @property
    def log(self) -> BoundLogger:
        """As ``App.log``, with the step's name too; also in ``open``, ``close`` and scheduled calls."""

    @property
    def stream_time(self) -> int:
        """The highest event time so far, in milliseconds since the epoch; -1 before the first record."""

    @property
    def replay(self) -> Replay | None:
        """The replay in which the processor runs; ``None`` in a worker. As ``streams.current_replay``."""

    def store(self, name: str) -> KeyValueStore:
        """Return a store that the step names in ``stores=``. Raises ``TopologyError`` for another name."""

    def schedule(self, every: timedelta, call: Callable[[int], None], *, on: TimeKind) -> Cancel:
        """Call ``call(time)`` each time stream time or the wall clock advances by ``every``.

        To be called in ``open``. ``call`` may use the context as ``process`` does. With stream time, it runs
        at multiples of ``every`` since the epoch, once if stream time jumps over several; with the wall
        clock, it runs between batches. ``time`` is in milliseconds since the epoch.
        """

    def forward(self, output: Record[Any, Any] | Batch[Any, Any], *, to: str | None = None) -> None:
        """Forward a record or a batch to the steps downstream, or only to the one named ``to``.

        Records are forwarded when the surrounding ``process`` call returns, and discarded when it raises. A
        forwarded record has its own key, value, timestamp and headers, and the topic, partition and offset of
        the input record. The record is copied: the caller may change it, its headers and its value afterwards
        (see ``operators.snapshot``), and also the columns of a batch. The values in a batch are not copied:
        replace them instead of modifying them.

        In ``process_batch``, make records from those of the batch (``batch.records()``, then
        ``record.with_``), so that errors name the input record. Raises ``ValueError`` for a record whose
        input record is not known, and ``TopologyError`` in ``open`` or on another thread.
        """


class Processor(Protocol):
    """Processes one record at a time. Each task has an instance: keep state of the partition on ``self``.

    An optional method ``open(context)`` is called once before the first record, after the task's stores are
    restored, to get stores and to schedule calls.

    An optional method ``close()`` is called once when the task ends: when its partition moves to another
    worker, the worker stops or fails, or the task restarts from the committed offsets. Unless there was an
    error, all processed records have been committed before. Processors are closed before those downstream,
    then the stores, and when the worker stops also its resources (``App.resource``). In ``close``, nothing
    can be forwarded, and changes to stores are lost. An error in it is logged and does not stop the worker.
    It is not called when the process is killed.
    """

    def process(self, record: Record[Any, Any], context: Context) -> None:
        """Process one record. If it raises, the step's error policy applies to the record."""


class BatchProcessor(Protocol):
    """Processes a batch at a time, which is faster. ``open(context)`` and ``close()`` as for ``Processor``.

    If ``process_batch`` raises, what it forwarded and stored is rolled back, and it is called again for each
    record of the batch alone, so that the error policy applies only to the records that fail. Side effects
    outside of the context must tolerate this repetition.
    """

    def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
        """Process a batch of at least one record."""


ProcessorFactory: TypeAlias = "Callable[[], Processor | BatchProcessor]"
