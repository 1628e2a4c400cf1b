"""The contract of sink connectors: rows of Kafka partitions reach another system.

A sink that supports transactions keeps the position of each input partition itself, in the transaction that
writes the rows, so every row takes effect exactly once whatever fails. A restart continues from the sink's
own position; and the transaction of a worker that was replaced (a *zombie*) fails, as its position has moved.

A system that has no place for positions is written to before Kafka's commit, and continues at the group's
committed offsets (see ``keeps_positions``): rows are repeated after a crash, and none is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from streams.records import Headers, TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkRows:
    """The rows of one input partition for one transaction, in the order of their offsets.

    ``start`` is the position that the sink must have, ``next_offset`` the one that it has afterwards. There
    may be no row at all between them (all were filtered out). ``offsets`` are those of each row's input
    record: equal for several rows that were made of one record.

    A connector that ``takes_retries`` is also given rows of dead letters that are retried: their offsets are
    before ``start``, and ``next_offset`` may be equal to it.
    """

    partition: TopicPartition
    start: int
    next_offset: int
    keys: Sequence[Any]
    values: Sequence[Any]
    """``None`` deletes the key, where the sink writes by key."""
    timestamps: Sequence[int]
    """Event times, in milliseconds since the epoch."""
    headers: Sequence[Headers | None]
    offsets: Sequence[int]

    def __len__(self) -> int:
        return len(self.values)


class RefusedRow(NamedTuple):
    """A row that the system refuses for what is in it: it becomes a dead letter, the others are written."""

    partition: TopicPartition
    row: int
    """Its position in the ``SinkRows`` of the partition."""
    error: Exception
    """With the system's own message, and its code where it has one (e.g. ``SQLSTATE 22001``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkContext:
    """Who opens a sink. ``name`` is the sink's own, under which the app's positions are kept."""

    application: str
    name: str
    worker: str
    """Names the worker in the system's views and logs."""
    lock_timeout: float
    """Seconds after which locks of an owner that hangs must be released."""


class SinkWriter(Protocol):
    """An open sink of one worker; used by one thread at a time.

    ::

        CLAIMED ──write──> WRITTEN ──commit──> CLAIMED
                              └────rollback────^

    Each call may raise ``SinkUnavailable`` (nothing was committed; repeat later), and ``commit`` also
    ``SinkOutcomeUnknown``. After any of them, and after ``SinkFenced``, the writer is closed and another one
    opened, which reads the positions again.
    """

    def claim(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        """Return the next offset of each partition as the sink has it; 0 for a partition that is new.

        The values of ``partitions`` are the topics' ids. A transaction of an earlier owner that may still
        commit is waited for. Raises ``SinkMismatch`` where the sink's position belongs to another topic of
        that name (deleted and created again). A connector without ``keeps_positions`` returns 0 for each.
        """

    def release(self, partitions: Collection[TopicPartition]) -> None:
        """Forget partitions that this worker no longer holds."""

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        """Begin a transaction, move the positions from ``start`` to ``next_offset``, then write the rows.

        Returns the rows that are refused, which are not written. Raises ``SinkFenced`` where a position is
        not ``start``: another worker has moved it.
        """

    def commit(self) -> None:
        """Commit what ``write`` wrote. Raises ``SinkOutcomeUnknown`` where it may have been committed."""

    def rollback(self) -> None:
        """Discard what ``write`` wrote. Never raises."""

    def close(self) -> None:
        """Release the connection; an open transaction is rolled back. Never raises. May be called twice."""


class SinkConnector(Protocol):
    """A sink as the program names it: a frozen value, opened once for each worker that has tasks with it."""

    @property
    def kind(self) -> str:
        """The system, for descriptions and generated names, e.g. ``postgres``."""

    @property
    def target(self) -> str:
        """What it writes to, e.g. a table: the default name of its positions."""

    @property
    def max_rows(self) -> int:
        """How many rows a transaction has at most, about."""

    def check(self, context: SinkContext) -> None:
        """Check, before the worker joins the group, what can be checked; create what was asked for.

        Raises ``ConnectorError`` for a target that does not fit, ``SinkUnavailable`` if it does not answer.
        """

    def open(self, context: SinkContext) -> SinkWriter:
        """Connect. Raises ``SinkUnavailable``."""


def takes_retries(connector: SinkConnector) -> bool:
    """Whether a connector has a true attribute of this name: writing a row twice changes nothing there.

    Dead letters that are retried are written to such sinks. They are beside the positions, so after a crash
    some are written again.
    """
    return bool(getattr(connector, "takes_retries", False))


def keeps_positions(connector: SinkConnector) -> bool:
    """Whether a connector has no false attribute of this name: the positions are in its transactions.

    Without them, rows are delivered by ``write``, before the group's offsets are committed, which are the
    positions then: rows are delivered again after a crash and after ``rollback``, which takes nothing back.
    The partitions that are read for such a sink wait while it cannot be reached, for all sinks of the stream.
    When the worker ends, it waits for ``close``, within the time that it has to stop.
    """
    return bool(getattr(connector, "keeps_positions", True))


class MergeCounts(NamedTuple):
    """What a rebuild changed in a target."""

    added: int
    changed: int
    deleted: int


class SinkRebuild(Protocol):
    """A copy of a sink's target, filled beside it, which then replaces its content in one transaction."""

    def copy(self) -> SinkConnector:
        """Create the copy, empty, and return the sink that writes to it, with positions of its own."""

    def positions(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        """The positions of the target itself; as ``SinkWriter.claim``."""

    def lock(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        """As ``positions``, and keep them from moving until ``merge`` or ``close``."""

    def merge(self) -> MergeCounts:
        """Make the target equal to the copy, row by row, and release the positions."""

    def close(self) -> None:
        """Remove the copy; what is not merged has no effect. May be called twice."""


class RebuildableSink(SinkConnector, Protocol):
    """A sink whose target can be filled again from its input, while it is written to and read."""

    def rebuild(self, context: SinkContext) -> SinkRebuild:
        """Connect. Raises ``SinkUnavailable``."""
