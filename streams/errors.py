"""All exceptions that this library raises on purpose.

Each class is named after what it means to the caller; ``exit_code`` is the exit code of the command line.

::

    StreamsError                      1   a bug in this library, or a base class to catch everything
    ├── ConfigurationError            2   a setting, name or argument is wrong; nothing was started
    │   └── TopologyError             2   the program does not describe a runnable topology
    ├── BrokerError                   3   the broker rejected a call, or did not answer
    │   ├── BrokerUnreachable         3   no broker answered before the time-out
    │   ├── TopicError                3   a topic is missing, or does not fit the topology
    │   ├── GroupActive               3   the group has members, so its offsets cannot be replaced
    │   ├── Retriable                 3   the call had no effect and may be repeated
    │   ├── TransactionAborted        3   the transaction cannot commit: abort, rewind, continue
    │   ├── OutcomeUnknown            3   fenced, or commit unknown: new producer, read back, rewind
    │   ├── RecordRefused             3   one record can never be written (too large, …)
    │   │   └── TopicMissing          3   … because its topic does not exist
    │   ├── RecordsRefused            3   the broker rejected records that were already queued
    │   └── FatalBrokerError          3   the client cannot be used any more
    │       └── AccessDenied         10   the cluster denies access to this client
    │           ├── NotAuthenticated 10   no connection: wrong password, token or certificate
    │           └── NotAuthorized    10   the client is authenticated, but lacks a right (an ACL)
    ├── ConnectorUnavailable          3   another system does not answer, or refuses for now: repeat later
    │   ├── SinkUnavailable           3   … a sink: nothing was committed
    │   │   ├── SinkFenced            3   … because another worker has moved the sink's position
    │   │   └── SinkOutcomeUnknown    3   … or its commit may have happened: read its position back
    │   ├── SourceUnavailable         3   … a source
    │   └── RegistryUnavailable       3   … a schema registry
    ├── ConnectorError               14   another system does not fit, or lost what was to be read
    │   ├── SinkMismatch             14   the sink's position belongs to another topic of that name
    │   └── SchemaRegistryError      14   the schema registry rejected a request
    │       └── SchemaRefused        14   … or a schema, which does not fit the others of its subject
    ├── ProcessingError               4   user code or a serde failed on a record, under policy ``fail``
    ├── DeadLetterLimitExceeded       5   too large a share of the input became dead letters
    ├── OffsetOutOfRange             11   records were deleted before they were processed
    ├── Stalled                      12   a partition made no progress and ``stall_exit`` is set
    ├── NotCommitted                 13   stopped on request, but could not commit everything processed
    ├── JobFailed                    16   a job has failed for good, has expired or was cancelled
    ├── JobPending                   16   a job has not ended yet
    ├── JobUnknown                   16   there is no job with this id
    ├── SwitchAborted                15   a blue/green switch was aborted; the emitter continues
    ├── WorkersFailed                 6   workers died more often than the restart limit allows
    ├── LocalKafkaError               7   the local Kafka could not be set up, started or stopped
    ├── LocalPostgresError            7   … the local Postgres
    ├── LocalRabbitMQError            7   … the local RabbitMQ
    ├── LocalRedisError               7   … the local Redis
    ├── StateError                    8   state on disk or in a changelog topic cannot be used as it is
    └── QueryError                    9   a query is invalid: wrong kind of store, key or range
        ├── UnknownStore              9   the app has no such store
        └── StateUnavailable          9   the state is not available now: try again later
            └── HeldElsewhere         9   another worker has the partition
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class StreamsError(Exception):
    """Base class of every error that this library raises on purpose.

    ``hint`` says what to do about it and is printed on a separate line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def message(self) -> str:
        """The message without the hint."""
        return super().__str__()

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


class ConfigurationError(StreamsError):
    """A setting, name or argument is wrong. Raised before anything is started."""

    exit_code = 2


class TopologyError(ConfigurationError):
    """The program does not describe a runnable topology, e.g. the output of a step is not used."""


class BrokerError(StreamsError):
    """The broker rejected a call, or did not answer it."""

    exit_code = 3


class BrokerUnreachable(BrokerError):
    """No broker answered before the time-out."""


class TopicError(BrokerError):
    """A topic is missing, or does not fit the topology, e.g. by its number of partitions."""


class GroupActive(BrokerError):
    """The group has members: only these may commit its offsets."""


class Retriable(BrokerError):
    """The call had no effect and may be repeated unchanged."""


class TransactionAborted(BrokerError):
    """The open transaction cannot commit: abort it, rewind to the committed offsets, continue."""


class OutcomeUnknown(BrokerError):
    """The producer is fenced, or a commit may or may not have happened.

    The producer must not be used again: create a new one, read the committed offsets back, rewind to them.
    """


class RecordRefused(BrokerError):
    """The record at ``position`` of the output can never be written, e.g. because it is too large.

    Records before ``position`` were queued, those after it were not.
    """

    def __init__(self, message: str, *, position: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.position = position


class RecordsRefused(BrokerError):
    """The broker rejected records that were already queued, each for its own reason.

    ``Producer.take_refused`` returns these records. Other records of the same produce requests were not
    written either.
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
    """The client is in a fatal state and cannot be used any more."""


class AccessDenied(FatalBrokerError):
    """The cluster does not accept this client, or denies it an operation that it needs."""

    exit_code = 10


class NotAuthenticated(AccessDenied):
    """The connection fails: TLS fails, or the broker does not accept the client's credentials."""


class Right(NamedTuple):
    """A right as in Kafka's access control lists (ACLs), e.g. ``READ`` on the ``topic`` ``orders``."""

    operation: str
    resource: str
    """``topic``, ``group``, ``transactional id`` or ``cluster``."""

    name: str = ""
    """Empty for the cluster."""

    def __str__(self) -> str:
        place = f"{self.resource} {self.name!r}" if self.name else f"the {self.resource}"
        return f"{self.operation} on {place}"


class NotAuthorized(AccessDenied):
    """The client lacks ``rights``. ``principal`` is the client's name in ACLs, if it is known."""

    def __init__(self, doing: str, rights: Iterable[Right], *, principal: str | None = None) -> None:
        self.rights = tuple(dict.fromkeys(rights))
        self.principal = principal
        which = ", ".join(map(str, self.rights))
        lacks = f"{principal or 'this client'} lacks the right{'s' * (len(self.rights) > 1)}"
        super().__init__(f"{lacks} {which} ({doing})", hint="\n        ".join(self._commands()))

    def _commands(self) -> list[str]:
        """The commands with which an administrator grants the rights."""
        operations: dict[tuple[str, str], list[str]] = {}
        for right in self.rights:
            operations.setdefault((right.resource, right.name), []).append(right.operation)
        who = shlex.quote(self.principal) if self.principal else "User:NAME"
        commands = ["grant the missing rights, e.g.:"]
        for (resource, name), wanted in operations.items():
            options = " ".join(f"--operation {operation}" for operation in wanted)
            where = f"--{resource.replace(' ', '-')}" + (f" {shlex.quote(name)}" if name else "")
            commands.append(f"kafka-acls --add --allow-principal {who} {options} {where}")
        return commands


class ProcessingError(StreamsError):
    """User code or a serde failed on a record and the step's policy is ``fail``."""

    exit_code = 4


class ConnectorUnavailable(StreamsError):
    """Another system does not answer, or refuses for now (deadlock, read-only, too many connections)."""

    exit_code = 3


class SinkUnavailable(ConnectorUnavailable):
    """A sink cannot be written to now. Nothing was committed: the transaction is repeated."""


class SinkFenced(SinkUnavailable):
    """A position in the sink is not what this worker last wrote: another worker has moved it."""


class SinkOutcomeUnknown(SinkUnavailable):
    """The commit of a sink may or may not have happened: its positions must be read again."""


class SourceUnavailable(ConnectorUnavailable):
    """A source cannot be read now. It is opened again at the committed position."""


class ConnectorError(StreamsError):
    """Another system does not fit the program, or no longer has what was to be read. Repeating is useless."""

    exit_code = 14


class SinkMismatch(ConnectorError):
    """A position in the sink belongs to another topic of that name, which was deleted and created again."""


class RegistryUnavailable(ConnectorUnavailable):
    """The schema registry did not answer, or could not: the same request may succeed later."""


class SchemaRegistryError(ConnectorError):
    """The schema registry rejected a request, e.g. because of its credentials, or a schema as invalid."""


class SchemaRefused(SchemaRegistryError):
    """A schema is not compatible with the registered versions of its subject, or is not registered."""


class DeadLetterLimitExceeded(StreamsError):
    """A larger share of the input became dead letters than ``dead_letter_limit`` allows."""

    exit_code = 5


class OffsetOutOfRange(StreamsError):
    """An input's next offset is no longer in the log: records were deleted before they were processed."""

    exit_code = 11


class Stalled(StreamsError):
    """A partition made no progress for ``stall_timeout``, and a restart may fix it."""

    exit_code = 12


class NotCommitted(StreamsError):
    """A worker was stopped and could not commit everything that it had processed.

    What is not committed will be processed again.
    """

    exit_code = 13


class SwitchAborted(StreamsError):
    """A switch of a blue/green pair was aborted, or another one is being made: the emitter continues."""

    exit_code = 15


class WorkersFailed(StreamsError):
    """The supervised workers died more often than the restart limit allows."""

    exit_code = 6


class LocalKafkaError(StreamsError):
    """The local Kafka could not be set up, started or stopped."""

    exit_code = 7


class LocalPostgresError(StreamsError):
    """The local Postgres could not be set up, started or stopped."""

    exit_code = 7


class LocalRabbitMQError(StreamsError):
    """The local RabbitMQ could not be set up, started or stopped."""

    exit_code = 7


class LocalRedisError(StreamsError):
    """The local Redis could not be set up, started or stopped."""

    exit_code = 7


class StateError(StreamsError):
    """State on disk or in a changelog topic cannot be used as it is, and must not be ignored silently."""

    exit_code = 8


class QueryError(StreamsError):
    """A query of a store is invalid, e.g. its key does not have the type of the store's keys."""

    exit_code = 9


class UnknownStore(QueryError):
    """The app has no store of that name that can be queried."""


class StateUnavailable(QueryError):
    """The state is not available now, e.g. because it is being restored: the query may be repeated."""


class HeldElsewhere(StateUnavailable):
    """The partition of the store is not assigned to this worker."""


class JobFailed(StreamsError):
    """A job has failed for good, has expired or was cancelled.

    ``ending`` says which: ``failed``, ``expired`` or ``cancelled``; ``tries`` is how often it was executed,
    and ``error_type`` the name of the exception that the last attempt raised.
    """

    exit_code = 16

    def __init__(
        self, message: str, *, ending: str, tries: int, error_type: str | None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.ending = ending
        self.tries = tries
        self.error_type = error_type


class JobPending(StreamsError):
    """A job has not ended yet."""

    exit_code = 16


class JobUnknown(StreamsError):
    """There is no job with this id."""

    exit_code = 16


def error_text(error: Exception) -> str:
    """The message of an error, also if its ``__str__`` raises."""
    try:
        return error.message if isinstance(error, StreamsError) else str(error)
    except Exception as also:  # noqa: BLE001 - a failing __str__ must not change how the record is handled
        return f"(no message: its __str__ raised {type(also).__name__})"
