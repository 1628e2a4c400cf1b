"""Where a group begins with ``offset_reset=latest``: committed before any of its members reads a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.broker import GroupSettings
from streams.events import Event, get_logger
from streams.records import TopicPartition
from streams.runtime.topics import input_partitions
from streams.topology.graph import matches

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.broker import Broker
    from streams.topology.graph import Topology

TRANSACTION_SECONDS = 10.0
"""How long the transaction that commits the starts may stay open, should its worker be killed."""


def commit_group_start(topology: Topology, broker: Broker, application: str) -> None:
    """Commit the end offsets of the inputs in which the group has not begun yet; others are not changed.

    The starts of all partitions of a topic are committed at once, before the group is joined, so that from
    then on a partition without a committed offset was added later: it is read from its beginning.
    Workers that start together agree: the transactional id is the same for all of them, so of several that
    find nothing committed only the last one to begin its transaction commits.

    Raises ``Retriable``, ``OutcomeUnknown`` or ``TransactionAborted`` when it has to be called again, and
    other errors of the clients.
    """
    admin = broker.admin()
    try:
        inputs = input_partitions(topology, admin.topics())
        places = [
            TopicPartition(topic, number)
            for topic, count in inputs.items()
            if topic not in topology.repartitions
            for number in range(count)
        ]
        # Read without a transaction: after the first start there is nothing to do.
        committed = admin.committed_offsets(application, places)
        if not topics_not_begun(topology, places, committed):
            return
        ends = _commit_ends(topology, broker, application, places)
    finally:
        admin.close()
    if ends:
        get_logger().info(
            Event.GROUP_BEGINS, group=application, starts={str(place): end for place, end in ends.items()}
        )


def topics_not_begun(
    topology: Topology, places: Collection[TopicPartition], committed: Mapping[TopicPartition, int]
) -> set[str]:
    """The topics of these partitions in which the group has not begun, given its committed offsets.

    A group that has committed an offset of any partition of a topic has begun in all of the topic. If it has
    begun in a topic that a pattern matches, it has begun in all topics of that pattern: others were added
    later.
    """
    begun = {place.topic for place in committed}
    fresh = {place.topic for place in places} - begun
    for pattern in topology.patterns:
        if any(matches(pattern, topic) for topic in begun):
            fresh = {topic for topic in fresh if not matches(pattern, topic)}
    return fresh


def _commit_ends(
    topology: Topology, broker: Broker, application: str, places: Collection[TopicPartition]
) -> dict[TopicPartition, int]:
    producer = broker.producer(
        transactional_id=f"{application}-group-start", transaction_timeout=TRANSACTION_SECONDS
    )
    consumer = broker.consumer(GroupSettings(group=application, protocol="classic"))
    try:
        # This fences every worker that did the same before: offsets read from here on cannot change.
        producer.init_transactions(TRANSACTION_SECONDS)
        fresh = topics_not_begun(topology, places, consumer.committed(places))
        starting = [place for place in places if place.topic in fresh]
        if not starting:
            return {}
        admin = broker.admin()
        try:
            ends = admin.end_offsets(starting)
        finally:
            admin.close()
        producer.begin()
        # Left open after an error, the transaction is aborted by the next attempt's init_transactions.
        producer.send_offsets(ends, consumer.group_metadata())
        producer.commit(TRANSACTION_SECONDS)
    finally:
        consumer.close()
        producer.close()
    return ends
