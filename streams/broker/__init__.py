"""The engine's interface to a broker, as protocols. ``kafka`` implements it on Kafka, ``memory`` for tests.

Times are seconds unless a name says otherwise. Calls raise only errors of ``streams.errors``: ``Retriable``,
``TransactionAborted``, ``OutcomeUnknown``, ``RecordRefused`` and ``FatalBrokerError`` determine what the
engine does next, so that no caller handles error codes of a client library. Records that the broker rejects
after they were queued are returned by ``Producer.take_refused``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.broker.throttling import Throttled
    from streams.errors import RecordRefused
    from streams.records import Fetched, Output, TopicPartition

Isolation: TypeAlias = Literal["read_committed", "read_uncommitted"]
OffsetReset: TypeAlias = Literal["earliest", "latest"]
GroupProtocol: TypeAlias = Literal["auto", "consumer", "classic"]

BEGINNING = -2
"""The logical offset of the oldest record that exists, for ``assign`` and ``seek``."""

END = -1
"""The logical offset after the newest record, for ``assign`` and ``seek``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """How a consumer joins its group.

    The ``protocol`` ``consumer`` is KIP-848, ``classic`` the older one; ``auto`` uses ``consumer`` if the
    broker supports it. ``poll_deadline`` is the maximum time between two polls before the member is evicted,
    ``session_timeout`` the maximum time without heartbeats (with ``consumer``, the broker sets it).
    """

    group: str
    offset_reset: OffsetReset = "earliest"
    isolation: Isolation = "read_committed"
    protocol: GroupProtocol = "auto"
    instance_id: str | None = None
    poll_deadline: float = 300.0
    session_timeout: float = 45.0
    reports_out_of_range: bool = False
    """Whether polls report a next offset that is not in the log, instead of applying ``offset_reset``."""


class OutOfRange(NamedTuple):
    """The next offset of a partition, which is not in its log (any more)."""

    offset: int
    beginning: int
    """The offset of the oldest record that exists."""
    end: int
    """The offset after the newest record."""

    @property
    def lost(self) -> int:
        """The number of offsets (records and markers) from the next offset on that were deleted."""
        return max(0, self.beginning - self.offset)


class Polled(NamedTuple):
    """The result of a poll: records, and the end offsets of partitions that were read to their end.

    An end is the next offset to read. Because of transaction markers it may be higher than the offset of the
    last record + 1. It is reported when it is reached: again after further records, a seek or an assignment,
    but not with every poll.
    """

    fetched: Sequence[Fetched]
    ends: dict[TopicPartition, int]
    out_of_range: Mapping[TopicPartition, OutOfRange] = MappingProxyType({})
    """Reported once, if requested by ``reports_out_of_range``: no records follow before a seek."""


class NamePattern(Protocol):
    """Selects topics of a cluster by their full names, as a compiled pattern does."""

    def fullmatch(self, string: str, /) -> object:
        """Return a true value if the topic of that name is selected."""


class RebalanceListener(Protocol):
    """Called with changes of the assignment, always from inside ``poll``, ``keep_alive`` or ``close``."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions were added: later polls return their records, from the committed offsets on."""

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions will move to another member: their offsets may be committed until this returns."""

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Another member may already have these partitions: their offsets must not be committed."""


class Consumer(Protocol):
    """A member of a consumer group, or (after ``assign``) a reader of partitions. Not thread-safe."""

    def subscribe(self, topics: Collection[str | NamePattern], listener: RebalanceListener) -> None:
        """Join the group for these topics; a pattern must match a topic's full name.

        Patterns are matched by this client with ``fullmatch``, not by the broker. Topics that are created or
        deleted later are subscribed to or removed within seconds. Kafka's own topics (``__…``) never match.
        """

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read these partitions from these offsets (or ``BEGINNING``, ``END``), without joining a group."""

    def poll(self, max_records: int, timeout: float) -> Polled:
        """Return up to ``max_records`` records: at once if there are any, else after at most ``timeout``.

        Raises ``TopicError`` if the broker reports that a subscribed topic does not exist.
        """

    def keep_alive(self) -> None:
        """Handle rebalances and meet the poll deadline without taking records. May call the listener."""

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        """Continue assigned partitions from these offsets; records fetched before are discarded.

        Offsets may be ``BEGINNING`` and ``END``. It may also be called in ``assigned``.
        """

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Do not deliver records of these partitions until resumed. New partitions are not paused."""

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver records of these partitions again."""

    def assignment(self) -> set[TopicPartition]:
        """The partitions that are currently assigned."""

    def positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offsets from which the next poll would read assigned partitions; makes no request.

        After an assignment that is the committed offset; without one, ``BEGINNING`` or ``END``, or the offset
        these stand for. Partitions are left out while their position is not known, e.g. because an open
        transaction may still commit their offsets.
        """

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's committed next offsets; partitions without one are left out.

        Raises ``Retriable`` while an open transaction may still commit offsets of these.
        """

    def committed_metadata(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, str]:
        """The metadata of each partition's committed offset, where the last commit has left any.

        Raises as ``committed`` does.
        """

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        """Commit next offsets for the group, without a transaction; returns when the broker has stored them.

        ``offset_metadata`` is a text to store with an offset, until the next commit of that partition; the
        broker takes 4096 bytes of it. Raises ``TransactionAborted`` if the membership is out of date.
        """

    def known_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The high watermarks known from fetching; makes no request, so they may be outdated.

        While a transaction is open, they are higher than the offsets that can be read.
        """

    @property
    def member(self) -> str | None:
        """The key by which the assignor sorts this member; ``None`` outside of a group.

        The range assignor gives lower partition numbers to members that sort lower.
        """

    def group_metadata(self) -> object:
        """The membership by which ``Producer.send_offsets`` is fenced (KIP-447). Read it for each commit."""

    def close(self) -> None:
        """Leave the group, after revoking the assigned partitions. A second call does nothing."""


class Refusal(NamedTuple):
    """A record that the broker rejected for what is in it: its time, its size, a missing key."""

    output: Output
    row: int
    """Its position in the output."""
    error: RecordRefused


class Producer(Protocol):
    """Writes records; transactional if it was created with a transactional id. Not thread-safe."""

    def produce(self, output: Output, waiting: Callable[[], None] | None = None) -> None:
        """Queue the rows for writing.

        While the queue is full, ``waiting`` is called several times a second; an exception that it raises
        ends the call, possibly after a part of the rows. Raises ``RecordRefused`` for a row that can never be
        written, e.g. because its topic does not exist, and ``TransactionAborted`` if the broker rejected
        earlier rows.
        """

    def flush(self, timeout: float, waiting: Callable[[], None] | None = None) -> None:
        """Wait until all queued rows are acknowledged; raises ``BrokerError`` if any was not.

        It raises ``RecordsRefused`` if the broker rejected records for what is in them. ``waiting`` is called
        several times a second.
        """

    def take_refused(self) -> list[Refusal]:
        """The records rejected by the broker since the last call. Call it after ``abort`` or ``flush``."""

    def take_acknowledged(self) -> Mapping[str, int]:
        """How many records were acknowledged since the last call, by topic.

        Of a transaction, records are counted whether it is committed or not. Records that are not
        acknowledged yet are counted as negative ones of the topic ``""``, and not again later. Call it after
        ``commit``, ``abort`` or ``flush``.
        """

    def init_transactions(self, timeout: float) -> None:
        """Fence older producers of the same transactional id, and complete their open transactions."""

    def begin(self) -> None:
        """Begin a transaction; rows produced from here on belong to it."""

    def send_offsets(
        self,
        offsets: Mapping[TopicPartition, int],
        group_metadata: object,
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        """Add the group's next offsets to the transaction.

        ``offset_metadata`` is as for ``Consumer.commit``. With the ``group_metadata`` of a consumer that has
        not joined a group, only the transactional id is fenced.
        """

    def commit(self, timeout: float) -> None:
        """Commit rows and offsets atomically. Raises ``OutcomeUnknown`` if ``timeout`` passes unanswered."""

    def abort(self, timeout: float) -> None:
        """Discard rows and offsets of the open transaction."""

    def close(self) -> None:
        """Close the client: drop queued rows, and leave an open transaction to its time-out. Never raises."""


class Appended(NamedTuple):
    """Where a record was written."""

    partition: int
    offset: int


class Appender(Protocol):
    """Writes records for a program outside of a worker, and returns where they are. Any thread may use it."""

    def append(self, output: Output, timeout: float) -> list[Appended]:
        """Write the rows, each for itself; returns once all are acknowledged.

        Raises ``RecordRefused`` for a row that the broker rejects, and ``BrokerError`` if it is not known
        that all are written.
        """

    def append_together(self, output: Output, timeout: float) -> list[Appended]:
        """Write the rows in one transaction; returns once it is committed.

        Raises as ``append``: then none of them was written, unless it is ``OutcomeUnknown``.
        """

    def close(self) -> None:
        """Close the client."""


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """The broker's description of a topic."""

    name: str
    partitions: int
    replication_factor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTopic:
    """A topic to create. With ``replication_factor`` ``None``, the broker's default applies.

    ``wished`` are optional settings, the most important one first. Those that a broker rejects, because it is
    too old or because of a policy, are left out.
    """

    name: str
    partitions: int
    replication_factor: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    wished: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member of a consumer group, as its coordinator describes it."""

    name: str
    """Its id in the group."""
    client: str
    """The client id that it was given."""
    host: str
    """The address from which it is connected."""
    instance: str | None = None
    """The instance id of a static member."""
    partitions: tuple[TopicPartition, ...] = ()

    def __str__(self) -> str:
        instance = f" (instance {self.instance})" if self.instance else ""
        return f"{self.name}{instance}, client {self.client}, host {self.host}"


class Admin(Protocol):
    """Reads and changes topics and groups. Raises ``BrokerUnreachable`` if no broker answers."""

    def topics(self) -> dict[str, TopicDescription]:
        """All topics that this client may see, by name, including internal ones."""

    def partition_count(self, topic: str) -> int | None:
        """How many partitions a topic has now; ``None`` if it does not exist, or is not described."""

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        """The ids of these topics, which a topic that is deleted and created again does not keep.

        Topics that do not exist are left out.
        """

    def create_topics(self, topics: Collection[NewTopic]) -> set[str]:
        """Create the topics that do not exist, wait until they are usable, and return the created names."""

    def delete_topics(self, names: Collection[str]) -> None:
        """Delete topics; names that do not exist are ignored."""

    def end_offsets(
        self, partitions: Collection[TopicPartition], isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        """The offset after the last readable record or marker of each partition."""

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset of the oldest record that exists in each partition."""

    def without_leader(self, topics: Collection[str]) -> set[TopicPartition]:
        """The partitions of these topics that no broker leads now: they can be neither read nor written.

        Requests about such a partition fail after a while, and with them those about others.
        """

    def offsets_for_times(
        self, times: Mapping[TopicPartition, int], isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        """The offset of each partition's first record with this timestamp or a later one, in one request.

        Timestamps are milliseconds since the epoch, as the topic has them (event times, unless the topic uses
        the time of writing). First means by offset. Without such a record it is the partition's end.
        """

    def delete_records(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Delete the records of each partition before the offset."""

    def require_rights(self, rights: Mapping[str, Collection[str]]) -> None:
        """Check that this client has these rights, by topic.

        Rights are operations of Kafka's access control lists, e.g. ``READ``. Topics that do not exist are
        skipped. Raises ``NotAuthorized`` with all missing rights, including those on topics that the client
        may not describe, whether these exist or not.
        """

    def settings(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        """The settings of these topics, including those with default values."""

    def own_settings(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        """The settings that were made for these topics themselves, without default values."""

    def committed_offsets(
        self, group: str, partitions: Collection[TopicPartition] | None = None
    ) -> dict[TopicPartition, int]:
        """The group's committed next offsets, of these partitions or of all that have one."""

    def committed_metadata(
        self, group: str, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, str]:
        """The texts beside the group's committed offsets, where there are any.

        A transaction that is open may commit others.
        """

    def group_members(self, group: str) -> list[GroupMember]:
        """The members of a group as its coordinator has them; none if there is no such group.

        A member that was killed stays until its session ends. Raises ``Retriable`` while the coordinator does
        not answer.
        """

    def close(self) -> None:
        """Close the connection."""


class Broker(Protocol):
    """A cluster, and a factory for its clients."""

    def consumer(self, settings: GroupSettings) -> Consumer:
        """Create a consumer: a group member, or, after ``Consumer.assign``, a reader without a group."""

    def producer(self, *, transactional_id: str | None = None, transaction_timeout: float = 10.0) -> Producer:
        """Create a producer; with an id it is transactional."""

    def appender(self, transactional_id: str) -> Appender:
        """Create a client for records of other programs; the id is for those written together."""

    def admin(self) -> Admin:
        """Create an admin client."""

    def throttled(self) -> Sequence[Throttled]:
        """For how long quotas have held back the clients created here, where they have; from any thread."""
