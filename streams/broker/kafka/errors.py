"""Map error codes of librdkafka and Kafka to the engine's errors: the only table of them."""

from __future__ import annotations

from confluent_kafka import KafkaError

from streams.errors import (
    BrokerError,
    FatalBrokerError,
    NotAuthorized,
    OutcomeUnknown,
    Retriable,
    Right,
    TransactionAborted,
)

UNREACHABLE = {
    KafkaError._TRANSPORT,  # noqa: SLF001 - the library's public names for its local errors begin with _
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001 - as above
    KafkaError._TIMED_OUT,  # noqa: SLF001 - as above
    KafkaError._RESOLVE,  # noqa: SLF001 - as above
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - as above
    KafkaError._SSL,  # noqa: SLF001 - as above
    # The metadata of a broker that has just restarted has no brokers, not even itself.
    KafkaError._PARTIAL,  # noqa: SLF001 - as above
}

TRANSIENT = {
    KafkaError._WAIT_COORD,  # noqa: SLF001 - as above
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError._MSG_TIMED_OUT,  # noqa: SLF001 - as above
}

REFUSED_BY_CLIENT = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError._BAD_MSG,  # noqa: SLF001 - as above
    KafkaError._INVALID_ARG,  # noqa: SLF001 - as above
}
"""Errors with which the client rejects a record before queueing it."""

REFUSED_BY_BROKER = {
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.INVALID_RECORD,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    KafkaError.POLICY_VIOLATION,
}
"""Errors with which a broker rejects a record or batch for what is in it: a retry would fail again."""

TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}

REJECTED = {
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - as above
    KafkaError._SSL,  # noqa: SLF001 - as above
    KafkaError.SASL_AUTHENTICATION_FAILED,
}

FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: Right("READ or WRITE", "topic", "?"),
    KafkaError.GROUP_AUTHORIZATION_FAILED: Right("READ", "group", "?"),
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: Right("CLUSTER_ACTION", "cluster"),
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: Right("WRITE", "transactional id", "?"),
}
"""The resource of each authorization error, and the missing right if the caller does not name it."""

_STALE_MEMBER = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError.REBALANCE_IN_PROGRESS,
}

_FENCED = {
    KafkaError._FENCED,  # noqa: SLF001 - as above
    KafkaError._STATE,  # noqa: SLF001 - as above
    KafkaError._CONFLICT,  # noqa: SLF001 - as above
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.INVALID_TXN_STATE,
}


def classify(
    error: KafkaError,
    doing: str,
    *rights: Right,
    principal: str | None = None,
    replaceable: bool = False,
) -> BrokerError:
    """The engine's error for a client error.

    ``rights`` are those that the call needs; the error's code says for which resource they are missing.
    ``principal`` is the client's name in ACLs. A ``replaceable`` client, a producer, can be fenced and is
    then replaced by a new one; for other clients the same codes are fatal.

    The order of the checks matters: a missing right also aborts the transaction, but rewinding would repeat
    for ever; a stale member's commit is aborted, and its partitions are read again by their new owner; after
    fencing or an invalid state, only a new producer works.
    """
    code = error.code()
    message = f"{doing}: {error.str()} ({error.name()})"
    if code in FORBIDDEN:
        usual = FORBIDDEN[code]
        missing = [right for right in rights if right.resource == usual.resource]
        return NotAuthorized(message, missing or [usual], principal=principal)
    if code in _STALE_MEMBER:
        return TransactionAborted(message)
    # Once fenced, a producer rejects each further row with _FATAL, but without the flag ``fatal``.
    if replaceable and (code in _FENCED or code == KafkaError._FATAL or error.fatal()):  # noqa: SLF001 - as above
        return OutcomeUnknown(message)
    if error.fatal():
        return FatalBrokerError(message)
    if error.txn_requires_abort():
        return TransactionAborted(message)
    if error.retriable() or code in UNREACHABLE or code in TRANSIENT:
        return Retriable(message)
    return FatalBrokerError(message)
