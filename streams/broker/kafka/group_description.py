"""The members of a group, requested so that an unavailable coordinator cannot end the process."""

from __future__ import annotations

import threading
import time
from concurrent.futures import TimeoutError as NotAnswered
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streams.broker import GroupMember
from streams.broker.kafka.assignment_check import ABANDON_SECONDS, ANSWER_SECONDS
from streams.broker.kafka.client_factory import LastError
from streams.broker.kafka.errors import TRANSIENT, UNREACHABLE
from streams.broker.kafka.partitions import from_client
from streams.errors import Retriable, Right

if TYPE_CHECKING:
    from streams.broker.kafka.client_factory import ClientFactory, Settings

RETRY_SECONDS = 0.2


def group_members(group: str, settings: Settings, factory: ClientFactory) -> list[GroupMember]:
    """See ``Admin.group_members``.

    The request has the longest time-out that there is, and its client is closed if there is no answer: a
    request that times out by itself may end the process (see ``ANSWER_SECONDS``). So the client is this
    request's own.
    """
    deadline = time.monotonic() + ABANDON_SECONDS
    while True:
        clients = [factory.make(AdminClient, settings | {"error_cb": LastError()})]
        (answer,) = clients[0].describe_consumer_groups([group], request_timeout=ANSWER_SECONDS).values()
        try:
            description = answer.result(max(0.0, deadline - time.monotonic()))
        except NotAnswered:
            raise Retriable(f"the coordinator of group {group} did not describe it") from None
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.code() == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            if cause.code() not in TRANSIENT | UNREACHABLE or time.monotonic() > deadline:
                raise factory.to_error(
                    cause, f"describing group {group}", Right("DESCRIBE", "group", group)
                ) from error
        else:
            return [_member(item) for item in description.members]
        finally:
            # Without a reference it is closed, which may wait for a broker that does not answer.
            threading.Thread(target=clients.clear, name="streams-group-description", daemon=True).start()
        time.sleep(RETRY_SECONDS)


def _member(description: Any) -> GroupMember:
    assignment = description.assignment
    return GroupMember(
        description.member_id,
        description.client_id,
        description.host,
        description.group_instance_id,
        tuple(sorted(from_client(assignment.topic_partitions))) if assignment else (),
    )
