"""The Processor API: what a user's own processor is, and what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from structlog.stdlib import BoundLogger

    from streams.records import Batch, Record

TimeKind: TypeAlias = Literal["stream_time", "wall_clock"]
"""What a schedule follows."""

Cancel: TypeAlias = "Callable[[], None]"
"""Ends a schedule; calling it again does nothing."""


class KeyValueStore(Protocol):
    """A store that a processor was given by name.

    Changes are committed with the results, in one transaction, and are taken back when the call that made
    them raises. Keys must be hashable. What is put is the value as it is then, and what is got is a copy (see
    ``operators.snapshot``): a value is changed in the store by putting it, and by nothing else.
    """

    def get(self, key: Any) -> Any:
        """The value, or ``None``."""

    def get_many(self, keys: Sequence[Any]) -> list[Any]:
        """The values of these keys, in one read."""

    def put(self, key: Any, value: Any) -> None:
        """Set a value; ``None`` deletes."""

    def put_many(self, entries: Mapping[Any, Any]) -> None:
        """Set several values; ``None`` deletes."""

    def delete(self, key: Any) -> None:
        """Remove the entry if there is one."""

    def scan(
        self, start: Any = None, stop: Any = None, *, reverse: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        """Entries from ``start`` up to, without, ``stop``, in the order of their encoded keys."""

    def prefix(self, prefix: bytes) -> Iterator[tuple[Any, Any]]:
        """Entries whose encoded key begins so, in order."""


class Context(Protocol):
    """What a processor may do besides computing."""

    @property
    def step(self) -> str:
        """The name of the processor's step in the topology."""

    @property
    def subtopology(self) -> int:
        """Number of the subtopology that the processor's task runs."""

    @property
    def partition(self) -> int:
        """Partition number that the processor's task runs on."""

    @property
    def log(self) -> BoundLogger:
        """As ``App.log``, with the step's name too; also for ``open``, ``close`` and what is scheduled."""

    @property
    def stream_time(self) -> int:
        """The highest event time that has come, in milliseconds since the epoch; -1 before the first."""

    def store(self, name: str) -> KeyValueStore:
        """A store that the step was given with ``stores=``. Raises ``TopologyError`` for another name."""

    def schedule(self, every: timedelta, call: Callable[[int], None], *, on: TimeKind) -> Cancel:
        """Call ``call(time)`` whenever ``every`` of stream time or wall clock passed, e.g. ``minutes(1)``.

        For use in ``open``; it may use the context as ``process`` does. On stream time, calls come at
        multiples of ``every`` since the epoch, one for all multiples that a jump passed; on the wall clock
        between batches. Times are milliseconds since the epoch.
        """

    def forward(self, output: Record[Any, Any] | Batch[Any, Any], *, to: str | None = None) -> None:
        """Send a record or a batch to the steps that follow, or only to the one named ``to``.

        It takes effect when the ``process`` call that made it returns, and not at all when that call raises.
        A record forwarded keeps its own key, value, timestamp and headers; its topic, partition and offset
        stay those of the input record. What is forwarded is the record as it is now: the caller may change
        the record, its headers and its value afterwards (see ``operators.snapshot``), and the columns of a
        batch. The values in a batch are not copied: put new ones in instead of changing them.

        In ``process_batch``, make records from those of the batch (``batch.records()``, then
        ``record.with_``): that tells which input an error is about. Raises ``ValueError`` for a record
        of which it cannot be told, and ``TopologyError`` in ``open`` or on another thread.
        """


class Processor(Protocol):
    """One record at a time. A new one is made for every task: keep per-partition things on ``self``.

    If there is a method ``open(context)``, it is called once before the first record, when the task's stores
    are restored: to get stores and to schedule.

    If there is a method ``close()``, it is called once when the task ends: its partition goes to another
    worker, the worker stops or fails, or the task begins again from what is committed. Unless something has
    failed, what was processed is committed by then. Processors are closed before those that follow them, then
    the stores, and at the worker's end its resources (``App.resource``). Nothing may be forwarded any more,
    and what is put into stores is lost. An error is logged, and ends nothing. A process that is killed closes
    nothing.
    """

    def process(self, record: Record[Any, Any], context: Context) -> None:
        """Handle one record. Where it raises, the step's error policy applies to that record."""


class BatchProcessor(Protocol):
    """A batch at a time: the faster form. ``open(context)`` and ``close()`` as for ``Processor``.

    Where ``process_batch`` raises, what it forwarded and stored is taken back and it is called again with
    each record of the batch alone, so that only the failing one meets the error policy. Effects outside of
    the context must bear that.
    """

    def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
        """Handle a batch of at least one record."""


ProcessorFactory: TypeAlias = "Callable[[], Processor | BatchProcessor]"
