"""Check that a group member's partitions are those that the coordinator has assigned to it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.broker.kafka.client_factory import ClientFactory, LastError, Settings
from streams.broker.kafka.partitions import from_client
from streams.errors import BrokerError
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from concurrent.futures import Future

CHECK_SECONDS: Final = 8.0
"""The minimum time between two requests for the coordinator's view of a member's assignment."""

CHECK_MEMBERS: Final = 80
"""For each such number of members the time is extended by ``CHECK_SECONDS``, as all of them make requests."""

ANSWER_SECONDS: Final = 3600.0
"""The time-out of a request: the longest that the client allows.

A request that times out while the client still waits for a connection to the coordinator ends the process
when the connection is made: an assertion of librdkafka 2.16, its issue 4605. With a short time-out, it is
enough that the coordinator is unavailable for longer. ``tests/faults/describe_groups.py`` reproduces it.
"""

ABANDON_SECONDS: Final = 20.0
"""After this time without an answer the client is replaced: after an outage it may never receive one."""

MISMATCHES: Final = 3
"""The number of answers in a row that must differ from the member's assignment. That takes longer than the
longest heartbeat interval that a broker allows (``group.consumer.max.heartbeat.interval.ms``, 15 s), so that
the member has been notified of any change."""


class AssignmentCheck:
    """Detects that a member has missed a change of its assignment.

    After a heartbeat that was not answered in time, librdkafka 2.16 continues with ordinary heartbeats. But
    the coordinator sent the new assignment in the lost answer, and does not send it again until a heartbeat
    requests the complete assignment. The member keeps partitions for which others wait, until the coordinator
    evicts it after ``poll_deadline``.
    """

    def __init__(self, group: str, settings: Settings, factory: ClientFactory) -> None:
        self._group = group
        self._make = partial(factory.make, AdminClient, settings | {"error_cb": LastError()})
        self._client: AdminClient | None = None
        self._answer: Future[Any] | None = None
        self._held = frozenset[TopicPartition]()
        """The member's partitions when the request was made."""
        self._ask_at = time.monotonic() + CHECK_SECONDS
        self._asked_at = 0.0
        self._differed = 0

    def check(self, member: str, held: AbstractSet[TopicPartition]) -> str | None:
        """Describe the difference if the member has missed a change, else return ``None``. Never waits."""
        now = time.monotonic()
        if self._answer is None:
            if now >= self._ask_at:
                self._ask_at = now + CHECK_SECONDS
                # There may be no client, e.g. without a token; the next check tries again.
                with suppress(BrokerError):
                    self._answer, self._held, self._asked_at = self._request(), frozenset(held), now
            return None
        if not self._answer.done():
            if now - self._asked_at > ABANDON_SECONDS:
                self._abandon()
            return None
        answer, self._answer = self._answer, None
        self._ask_at = now + CHECK_SECONDS
        try:
            members = answer.result().members
        except KafkaException:
            # A coordinator that does not answer does not change assignments either.
            return None
        self._ask_at += CHECK_SECONDS * (len(members) // CHECK_MEMBERS)
        has, wanted = set[TopicPartition](), set[TopicPartition]()
        for description in members:
            if description.member_id == member:
                has, wanted = (
                    set(from_client(assignment.topic_partitions)) if assignment else set()
                    for assignment in (description.assignment, description.target_assignment)
                )
        differs = has - held or held - wanted
        self._differed = self._differed + 1 if differs and held == self._held else 0
        if self._differed < MISMATCHES:
            return None
        self._differed = 0
        return (
            f"its assignment differs from the coordinator's by {len(differs)} partitions, e.g. {min(differs)}"
        )

    def _abandon(self) -> None:
        """Close the client with its request. That may wait for a broker, so another thread does it."""
        self._answer = None
        clients, self._client = [self._client], None
        threading.Thread(target=clients.clear, name="streams-assignment-check", daemon=True).start()

    def _request(self) -> Future[Any]:
        self._client = self._client or self._make()
        # Polling lets the client renew its token.
        self._client.poll(0)
        return self._client.describe_consumer_groups([self._group], request_timeout=ANSWER_SECONDS)[
            self._group
        ]
