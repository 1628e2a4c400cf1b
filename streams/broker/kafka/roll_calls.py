"""Whether a member of a group has what the group's coordinator believes it to have."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.broker.kafka.access import Access, LastError, Settings
from streams.broker.kafka.partitions import placed
from streams.errors import BrokerError
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from concurrent.futures import Future

ROLL_CALL_SECONDS: Final = 8.0
"""How often a member asks what the group's coordinator believes it to have: at least so long lies between."""

ROLL_CALL_MEMBERS: Final = 80
"""For each so many members that a group has, it is that time once more, as all of them ask."""

ANSWER_SECONDS: Final = 3600.0
"""How long an answer may take: as long as the client allows.

A question that times out while the client still waits for a connection to the coordinator ends the process
once there is one: an assertion of librdkafka 2.16, its issue 4605. With a short time, a coordinator that was
away for longer was enough for that. ``tests/faults/describe_groups.py`` shows it.
"""

ABANDON_SECONDS: Final = 20.0
"""After so long without an answer the client is replaced: after an outage it may never get one."""

ROLL_CALLS: Final = 3
"""So many answers in a row must differ from what a member has. Over that time even the slowest heartbeat that
a broker allows (``group.consumer.max.heartbeat.interval.ms``, 15 s) has told of any change."""


class RollCalls:
    """Finds out that a member has missed what its group's coordinator told it.

    After a heartbeat that was not answered in time, librdkafka 2.16 goes on with ordinary ones. But the
    coordinator has told of the change in the answer that was lost, and does not tell again until a heartbeat
    asks for all. The member keeps partitions that others wait for, until the coordinator loses patience
    with it, after ``poll_deadline``.
    """

    def __init__(self, group: str, settings: Settings, access: Access) -> None:
        self._group = group
        self._make = partial(access.make, AdminClient, settings | {"error_cb": LastError()})
        self._client: AdminClient | None = None
        self._answer: Future[Any] | None = None
        self._held = frozenset[TopicPartition]()
        """What the member had when the question was asked."""
        self._ask_at = time.monotonic() + ROLL_CALL_SECONDS
        self._asked_at = 0.0
        self._differed = 0

    def ask(self, member: str, held: AbstractSet[TopicPartition]) -> str | None:
        """What the coordinator has told of a member for so long that it must have missed it. Never waits."""
        now = time.monotonic()
        if self._answer is None:
            if now >= self._ask_at:
                self._ask_at = now + ROLL_CALL_SECONDS
                # Without a token, say, there is no client: then another time.
                with suppress(BrokerError):
                    self._answer, self._held, self._asked_at = self._asked(), frozenset(held), now
            return None
        if not self._answer.done():
            if now - self._asked_at > ABANDON_SECONDS:
                self._abandon()
            return None
        answer, self._answer = self._answer, None
        self._ask_at = now + ROLL_CALL_SECONDS
        try:
            members = answer.result().members
        except KafkaException:
            # A coordinator that cannot be asked does not assign anything either.
            return None
        self._ask_at += ROLL_CALL_SECONDS * (len(members) // ROLL_CALL_MEMBERS)
        has, wanted = set[TopicPartition](), set[TopicPartition]()
        for told in members:
            if told.member_id == member:
                has, wanted = (
                    set(placed(assignment.topic_partitions)) if assignment else set()
                    for assignment in (told.assignment, told.target_assignment)
                )
        differs = has - held or held - wanted
        self._differed = self._differed + 1 if differs and held == self._held else 0
        if self._differed < ROLL_CALLS:
            return None
        self._differed = 0
        return (
            f"{len(differs)} partitions, {min(differs)} among them, are not where the coordinator wants them"
        )

    def _abandon(self) -> None:
        """Release the client with its question. That may wait for a broker, so another thread does it."""
        self._answer = None
        clients, self._client = [self._client], None
        threading.Thread(target=clients.clear, name="streams-roll-calls", daemon=True).start()

    def _asked(self) -> Future[Any]:
        self._client = self._client or self._make()
        # Here the client has its token renewed.
        self._client.poll(0)
        return self._client.describe_consumer_groups([self._group], request_timeout=ANSWER_SECONDS)[
            self._group
        ]
