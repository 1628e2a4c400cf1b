"""The one exception tree.

Each class is named by what it means to the caller; ``exit_code`` is what the command line ends with.

::

    StreamsError                      1   a bug in this library, or a base class to catch everything
    ├── ConfigurationError            2   a setting, name or argument is wrong; nothing was started
    │   └── TopologyError             2   the program does not describe a runnable topology
    ├── BrokerError                   3   the broker said no, or said nothing
    │   ├── BrokerUnreachable         3   no broker answered within the time given
    │   ├── TopicError                3   a topic is missing or has another shape than needed
    │   ├── Retriable                 3   nothing happened: the same call may be made again
    │   ├── TransactionAborted        3   the transaction cannot commit: abort, rewind, go on
    │   ├── OutcomeUnknown            3   committed or not? new producer, read back, rewind
    │   ├── RecordRefused             3   one record can never be written (too large, …)
    │   │   └── TopicMissing          3   … as its topic does not exist
    │   ├── RecordsRefused            3   records that were queued were refused by the broker
    │   └── FatalBrokerError          3   this client can do nothing any more
    │       └── AccessDenied         10   the cluster does not let this client in, or not do what it must
    │           ├── NotAuthenticated 10   no connection: a password, token or certificate does not fit
    │           └── NotAuthorized    10   the cluster knows the client, which lacks a right (an ACL)
    ├── ProcessingError               4   user code or a serde failed on a record, under policy ``fail``
    ├── DeadLetterLimitExceeded       5   too large a share of the input became dead letters
    ├── OffsetOutOfRange             11   records were deleted before they were processed
    ├── Stalled                      12   a partition made no progress and ``stall_exit`` is set
    ├── NotCommitted                 13   stopped as asked, with something processed that is not committed
    ├── WorkersFailed                 6   workers died faster than the restart limit allows
    ├── LocalKafkaError               7   the local Kafka could not be set up, started or stopped
    ├── StateError                    8   state on disk or in a changelog topic cannot be used as it is
    └── QueryError                    9   a question about a store makes no sense: its kind, key or range
        ├── UnknownStore              9   the app has no such store
        └── StateUnavailable          9   nobody can answer now: ask again later
            └── HeldElsewhere         9   another replica may answer
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class StreamsError(Exception):
    """Base of every error this library raises on purpose.

    ``hint`` says what to do about it and is shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def message(self) -> str:
        """What went wrong, without the hint."""
        return super().__str__()

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


class ConfigurationError(StreamsError):
    """A setting, name or argument is wrong. Raised before anything is started."""

    exit_code = 2


class TopologyError(ConfigurationError):
    """The program does not describe a runnable topology, e.g. a step leads nowhere."""


class BrokerError(StreamsError):
    """The broker refused a call, or did not answer it."""

    exit_code = 3


class BrokerUnreachable(BrokerError):
    """No broker answered within the time given."""


class TopicError(BrokerError):
    """A topic is missing, or has another shape than the topology needs."""


class Retriable(BrokerError):
    """The call had no effect and may be made again as it is."""


class TransactionAborted(BrokerError):
    """The open transaction cannot commit: abort it, rewind to the committed offsets, go on."""


class OutcomeUnknown(BrokerError):
    """The producer is fenced, or a commit may or may not have happened.

    The same producer must not be used again: make a new one, read the committed offsets back, rewind to them.
    """


class RecordRefused(BrokerError):
    """The record at ``position`` of the output given can never be written, e.g. because it is too large.

    Records before ``position`` were accepted, those after it were not yet offered.
    """

    def __init__(self, message: str, *, position: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.position = position


class RecordsRefused(BrokerError):
    """The broker refused records that were already queued, each for a reason of its own.

    ``Producer.take_refused`` returns which. Other records of the same requests were not written either.
    """


class TopicMissing(RecordRefused):
    """The topic that these records are for does not exist."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            f"topic {topic!r} does not exist",
            position=0,
            hint=f"create it, e.g. with: streams topics create {topic} --partitions 4",
        )
        self.topic = topic


class FatalBrokerError(BrokerError):
    """The client is in a state it cannot leave."""


class AccessDenied(FatalBrokerError):
    """The cluster does not let this client in, or does not let it do what it must."""

    exit_code = 10


class NotAuthenticated(AccessDenied):
    """No connection comes about: TLS fails, or the broker does not accept the client's credentials."""


class Right(NamedTuple):
    """A right in the words of Kafka's access control lists, e.g. ``READ`` on the ``topic`` ``orders``."""

    operation: str
    resource: str
    """``topic``, ``group``, ``transactional id`` or ``cluster``."""

    name: str = ""
    """Empty for the cluster."""

    def __str__(self) -> str:
        place = f"{self.resource} {self.name!r}" if self.name else f"the {self.resource}"
        return f"{self.operation} on {place}"


class NotAuthorized(AccessDenied):
    """The client lacks ``rights``. ``principal`` is who the cluster takes it for, where that is known."""

    def __init__(self, doing: str, rights: Iterable[Right], *, principal: str | None = None) -> None:
        self.rights = tuple(dict.fromkeys(rights))
        self.principal = principal
        which = ", ".join(map(str, self.rights))
        lacks = f"{principal or 'this client'} lacks the right{'s' * (len(self.rights) > 1)}"
        super().__init__(f"{lacks} {which} ({doing})", hint="\n        ".join(self._commands()))

    def _commands(self) -> list[str]:
        """What an administrator may do about it."""
        operations: dict[tuple[str, str], list[str]] = {}
        for right in self.rights:
            operations.setdefault((right.resource, right.name), []).append(right.operation)
        who = shlex.quote(self.principal) if self.principal else "User:NAME"
        commands = ["grant what is missing, e.g.:"]
        for (resource, name), wanted in operations.items():
            options = " ".join(f"--operation {operation}" for operation in wanted)
            where = f"--{resource.replace(' ', '-')}" + (f" {shlex.quote(name)}" if name else "")
            commands.append(f"kafka-acls --add --allow-principal {who} {options} {where}")
        return commands


class ProcessingError(StreamsError):
    """User code or a serde failed on a record and the step's policy is ``fail``."""

    exit_code = 4


class DeadLetterLimitExceeded(StreamsError):
    """A larger share of the input became dead letters than ``dead_letter_limit`` allows."""

    exit_code = 5


class OffsetOutOfRange(StreamsError):
    """An input's log has no such offset as comes next: records were deleted before they were processed."""

    exit_code = 11


class Stalled(StreamsError):
    """A partition made no progress for ``stall_timeout``, which a restart may mend."""

    exit_code = 12


class NotCommitted(StreamsError):
    """A worker was stopped, and could not commit what it had processed: that will be processed again."""

    exit_code = 13


class WorkersFailed(StreamsError):
    """The supervised workers died faster than the restart limit allows."""

    exit_code = 6


class LocalKafkaError(StreamsError):
    """The local Kafka could not be set up, started or stopped."""

    exit_code = 7


class StateError(StreamsError):
    """State on disk or in a changelog topic cannot be used as it is, and must not be ignored either."""

    exit_code = 8


class QueryError(StreamsError):
    """A question about a store that has no answer, e.g. as the key is none of the store's type."""

    exit_code = 9


class UnknownStore(QueryError):
    """The app has no store of that name that can be asked."""


class StateUnavailable(QueryError):
    """The state is not there at the moment, e.g. as it is being restored: the question may be asked again."""


class HeldElsewhere(StateUnavailable):
    """The partition of the store is not this worker's."""


def error_text(error: Exception) -> str:
    """What an error says, also where user code makes that fail."""
    try:
        return error.message if isinstance(error, StreamsError) else str(error)
    except Exception as also:  # noqa: BLE001 - the record's fate must not hang on its error's text
        return f"({type(also).__name__} while putting it into words)"
