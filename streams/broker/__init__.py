"""What the engine needs from a broker, as protocols: ``kafka`` is the real one, ``memory`` the one for tests.

Times are seconds unless a name says otherwise. Every call raises errors of ``streams.errors`` only:
``Retriable``, ``TransactionAborted``, ``OutcomeUnknown``, ``RecordRefused`` and ``FatalBrokerError`` tell the
engine what to do next, so no caller ever looks at a client library's error codes. Records that the broker
refuses after they were queued are returned by ``Producer.take_refused``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.errors import RecordRefused
    from streams.records import Fetched, Output, TopicPartition

Isolation: TypeAlias = Literal["read_committed", "read_uncommitted"]
OffsetReset: TypeAlias = Literal["earliest", "latest"]
GroupProtocol: TypeAlias = Literal["auto", "consumer", "classic"]

BEGINNING = -2
"""As an offset to ``assign``: the oldest record still there."""

END = -1
"""As an offset to ``assign``: past the newest record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """How a consumer joins its group.

    ``protocol`` ``consumer`` is KIP-848, ``classic`` the older one; ``auto`` takes ``consumer`` where the
    broker offers it. ``poll_deadline`` is the longest time between two polls before the member is evicted,
    ``session_timeout`` the time without heartbeats (with ``consumer``, the broker decides it).
    """

    group: str
    offset_reset: OffsetReset = "earliest"
    isolation: Isolation = "read_committed"
    protocol: GroupProtocol = "auto"
    instance_id: str | None = None
    poll_deadline: float = 300.0
    session_timeout: float = 45.0
    tells_out_of_range: bool = False
    """Whether polls tell of a next offset that is not in the log, instead of going on by ``offset_reset``."""


class OutOfRange(NamedTuple):
    """The next offset of a partition whose log has no such place (any more)."""

    offset: int
    beginning: int
    """The offset of the oldest record still there."""
    end: int
    """The offset after the newest one."""

    @property
    def lost(self) -> int:
        """How many records (and markers) from the next offset on have been deleted."""
        return max(0, self.beginning - self.offset)


class Polled(NamedTuple):
    """What a poll brought: records, and for partitions found to be at their end the offset of that end.

    An end is the next offset to read. It may lie past the last record + 1, where transaction markers are. It
    is told when it is reached: again after more records, a seek or an assignment, not with every poll.
    """

    fetched: Sequence[Fetched]
    ends: dict[TopicPartition, int]
    out_of_range: Mapping[TopicPartition, OutOfRange] = MappingProxyType({})
    """Told once, to those who asked for it: these bring no records until a seek."""


class NamePattern(Protocol):
    """Says which topics of a cluster are meant by their whole names, as a compiled pattern does."""

    def fullmatch(self, string: str, /) -> object:
        """Whether a topic of that name is meant; a true value if so."""


class RebalanceListener(Protocol):
    """Told of changes to the assignment, always from inside ``poll``, ``keep_alive`` or ``close``."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """These were added: their records come with later polls, from the committed offsets on."""

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """These are about to go to another member: until this returns, committing for them is allowed."""

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These may be another member's already: nothing may be committed for them."""


class Consumer(Protocol):
    """A member of a consumer group, or (after ``assign``) a reader of partitions. Used by one thread."""

    def subscribe(self, topics: Collection[str | NamePattern], listener: RebalanceListener) -> None:
        """Join the group for these topics; a pattern must match a topic's whole name.

        Patterns are matched here, by ``fullmatch``, not by the cluster. Topics that are created later are
        read, and deleted ones left, within seconds. The broker's own topics (``__…``) never match.
        """

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read these partitions from these offsets (or ``BEGINNING``, ``END``), in no group."""

    def poll(self, max_records: int, timeout: float) -> Polled:
        """Up to ``max_records`` records, at once when there are any, else after waiting up to ``timeout``.

        Raises ``TopicError`` when the broker says that a subscribed topic does not exist.
        """

    def keep_alive(self) -> None:
        """Serve the group and keep the poll deadline without taking records. May call the listener."""

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        """Continue assigned partitions from these offsets; what was fetched is discarded.

        ``BEGINNING`` and ``END`` will do for offsets. Allowed in ``assigned`` too.
        """

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver no records of these until resumed. An assignment starts unpaused."""

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver records of these again."""

    def assignment(self) -> set[TopicPartition]:
        """The partitions held now."""

    def positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Where the next poll would read assigned partitions; asks nobody.

        At first that is the committed offset; where there is none, ``BEGINNING`` or ``END`` or where that is.
        Left out are those of which the broker cannot tell yet, e.g. as an open transaction may still commit
        their offsets.
        """

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's committed next offsets; partitions without one are left out.

        Raises ``Retriable`` while an open transaction may still commit offsets of these.
        """

    def committed_metadata(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, str]:
        """The text that the last commit of each partition's offset has left beside it, where it has left any.

        Raises as ``committed`` does.
        """

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        """Commit next offsets for the group, outside of any transaction; returns when the broker has them.

        ``offset_metadata`` is a text to keep beside an offset, until the next commit of that partition; the
        broker takes 4096 bytes of it. Raises ``TransactionAborted`` when the membership is out of date.
        """

    def known_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The partitions' high watermarks as far as fetching has told them; asks nobody, may be behind.

        While a transaction is open, that is further than what can be read.
        """

    @property
    def member(self) -> str | None:
        """What this member is sorted by when partitions are shared out; ``None`` outside of a group.

        The range assignor gives lower partition numbers to members that sort lower.
        """

    def group_metadata(self) -> object:
        """The membership that ``Producer.send_offsets`` fences with (KIP-447). Ask for it each time."""

    def close(self) -> None:
        """Leave the group. Partitions still held are revoked first. Once is enough, twice is fine."""


class Refusal(NamedTuple):
    """A record that the broker refused for a reason of its own: its time, its size, a missing key."""

    output: Output
    row: int
    """Its position in the output."""
    error: RecordRefused


class Producer(Protocol):
    """Writes records; transactional when it was made with a transactional id. Used by one thread."""

    def produce(self, output: Output, waiting: Callable[[], None] | None = None) -> None:
        """Queue the rows for writing.

        While the queue is full, ``waiting`` is called several times a second; what it raises ends the call,
        in the middle of the rows. Raises ``RecordRefused`` for a row that can never be written, e.g. as its
        topic does not exist, and ``TransactionAborted`` where the broker refused earlier ones.
        """

    def flush(self, timeout: float, waiting: Callable[[], None] | None = None) -> None:
        """Wait until everything queued is acknowledged; raises ``BrokerError`` if something was not.

        That is ``RecordsRefused`` where the broker refused records for reasons of their own. ``waiting`` is
        called several times a second.
        """

    def take_refused(self) -> list[Refusal]:
        """The records that the broker has refused since the last call. Asked after ``abort`` or ``flush``."""

    def init_transactions(self, timeout: float) -> None:
        """Fence older producers of the same transactional id and finish what they left open."""

    def begin(self) -> None:
        """Start a transaction; rows produced from here on belong to it."""

    def send_offsets(
        self,
        offsets: Mapping[TopicPartition, int],
        group_metadata: object,
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        """Make the group's next offsets part of the transaction.

        ``offset_metadata`` is as for ``Consumer.commit``. With the ``group_metadata`` of a consumer that has
        joined no group, nothing but the transactional id fences.
        """

    def commit(self, timeout: float) -> None:
        """Commit rows and offsets as one. ``OutcomeUnknown`` after ``timeout`` without an answer."""

    def abort(self, timeout: float) -> None:
        """Discard rows and offsets of the open transaction."""

    def close(self) -> None:
        """Stop. What is still queued is dropped, an open transaction is left to be aborted. Never raises."""


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic as the broker has it."""

    name: str
    partitions: int
    replication_factor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTopic:
    """A topic to create; ``replication_factor`` ``None`` leaves it to the broker's default.

    ``wished`` are further settings, the most important one first. Where a broker refuses them, as it is too
    old to know them or its policy allows no such value, the topic is created without.
    """

    name: str
    partitions: int
    replication_factor: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    wished: Mapping[str, str] = field(default_factory=dict)


class Admin(Protocol):
    """Topics and groups, asked and changed. Raises ``BrokerUnreachable`` where nobody answers."""

    def topics(self) -> dict[str, TopicDescription]:
        """Every topic that this client may see, by name, internal ones included."""

    def create_topics(self, topics: Collection[NewTopic]) -> set[str]:
        """Create those that do not exist, wait until they can be used, and return the names created."""

    def delete_topics(self, names: Collection[str]) -> None:
        """Delete topics; names that do not exist are ignored."""

    def end_offsets(
        self, partitions: Collection[TopicPartition], isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        """The offset after the last readable record or marker of each partition."""

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset of the oldest record still there."""

    def delete_records(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Delete the records of each partition that lie before the offset."""

    def require_rights(self, rights: Mapping[str, Collection[str]]) -> None:
        """Check that this client has these rights on topics, by the topics' names.

        Rights are operations in the words of Kafka's access control lists, e.g. ``READ``. Topics that do not
        exist are left out. Raises ``NotAuthorized``, which names all that are missing: also those on topics
        which the client may not even see, whether they exist or not.
        """

    def settings(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        """The settings of these topics, those that have a default value included."""

    def committed_offsets(
        self, group: str, partitions: Collection[TopicPartition] | None = None
    ) -> dict[TopicPartition, int]:
        """The group's committed next offsets, for every partition (of these) that has one."""

    def close(self) -> None:
        """Release the connection."""


class Broker(Protocol):
    """A cluster to connect to: makes the clients."""

    def consumer(self, settings: GroupSettings) -> Consumer:
        """A new member of a group (or, with ``Consumer.assign``, a reader)."""

    def producer(self, *, transactional_id: str | None = None, transaction_timeout: float = 10.0) -> Producer:
        """A new producer; transactional when given an id."""

    def admin(self) -> Admin:
        """A new admin client."""
