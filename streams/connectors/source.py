"""The contract of source connectors: records of another system enter the log, with the position they reach.

Records and the position after them are committed in one Kafka transaction. A reader that is opened with a
position continues there. What the system sends again is left out by the reader, which alone can recognise it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from streams.records import FetchedLists

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.records import Fetched, Headers
    from streams.serde import Serde

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Records as the system sent them (bytes), and the position after them.

    It is processed completely or not at all, so it should have at most some thousand records; it may have
    none, to move the position alone. ``records`` are decoded by the connector's serdes; their offsets are
    numbers that the reader gives them, for error reports.
    """

    records: Fetched
    position: bytes
    """Opaque to the engine. The empty position is the beginning."""
    state: bytes | None = None
    """What a reader needs beside the position and what rarely changes, as it is stored with the position only
    when it does: ``None`` for as before. At most some 100 kB."""

    @classmethod
    def of(
        cls,
        label: str,
        first: int,
        position: bytes,
        *,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        timestamps: Sequence[int],
        headers: Sequence[Headers | None] | None = None,
    ) -> SourceBatch:
        """A batch of these columns. Errors call its records ``label``, with numbers from ``first`` on."""
        numbers = range(first, first + len(values))
        return cls(FetchedLists(label, 0, keys, values, timestamps, numbers, headers), position)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceContext:
    """Who opens a reader, and where it continues.

    ``task`` is one of the ``tasks`` numbers that the connector asked for, from 0.
    """

    application: str
    name: str
    task: int
    position: bytes
    """The last committed position, or the empty one."""
    state: bytes = b""
    """What was last committed as the state of a batch."""


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """The state of a source, read from the system itself and not from the thread that reads it.

    ``problem`` is empty while all is well; ``metrics`` are plain numbers by name, e.g. ``lag_bytes``.
    """

    problem: str
    metrics: Mapping[str, float]


class SourceReader(Protocol):
    """An open source of one task.

    ``read`` is called by a thread of its own, everything else by the worker's. A reader never goes back:
    batches that were read and not committed are kept by the engine and processed again.
    """

    def read(self, timeout: float) -> SourceBatch | None:
        """Wait up to ``timeout`` seconds for records.

        Raises ``SourceUnavailable`` for a failure that may pass: the reader is closed, and a new one opened
        at the committed position. Any other error ends the worker, e.g. ``ConnectorError`` for a position
        that the system no longer has.
        """

    def confirm(self, position: bytes) -> None:
        """The position is committed: the system may forget what is before it. Must not block."""

    def health(self) -> SourceHealth:
        """Look at the source; called from any thread, every few seconds."""

    def close(self) -> None:
        """End reading; ``read`` returns soon. Never raises. May be called twice."""


class SourceConnector(Protocol, Generic[K, V]):
    """A source as the program names it: a frozen value, opened once for each of its tasks in the group."""

    @property
    def kind(self) -> str:
        """The system, for descriptions and generated names, e.g. ``debezium``."""

    @property
    def tasks(self) -> int:
        """How many tasks share the work; each is run by one worker of the group."""

    @property
    def key(self) -> Serde[K]:
        """Reads the records' keys."""

    @property
    def value(self) -> Serde[V]:
        """Reads the records' values."""

    @property
    def process(self) -> Callable[[], Any] | None:
        """Makes the processor (see ``streams.Processor``) that each task's records pass first, if any.

        It has the stores named by ``stores``, which are part of the task and are committed with the position.
        """

    @property
    def stores(self) -> Mapping[str, tuple[Serde[Any], Serde[Any]]]:
        """The stores of the processor by the names that it uses, with the serdes of keys and values."""

    def check(self, application: str, name: str) -> None:
        """Check, before the worker joins the group, what can be checked. Raises ``ConnectorError``."""

    def open(self, context: SourceContext) -> SourceReader:
        """Connect and begin to read at the context's position. Raises as ``SourceReader.read``."""


class PlainSource:
    """What a source connector may inherit whose records are passed on as they were read: no processor."""

    __slots__ = ()

    @property
    def process(self) -> Callable[[], Any] | None:
        """None."""
        return None

    @property
    def stores(self) -> Mapping[str, tuple[Serde[Any], Serde[Any]]]:
        """None."""
        return {}


@runtime_checkable
class TableSource(Protocol):
    """What a source connector has that captures tables, beside the contract."""

    def change_topics(self, prefix: str) -> Sequence[str]:
        """The topics of its tables, ``<prefix>.<schema>.<table>``."""
