"""A queue of Celery's in RabbitMQ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.celery.message import TaskMessage
from streams.connectors.rabbitmq import RabbitMQQueue
from streams.serde import Bytes

if TYPE_CHECKING:
    from streams.records import Record

_PREFIX = "rabbitmq."


def rabbitmq_task_queue(url: str, queue: str) -> RabbitMQQueue[bytes]:
    """The source of a queue. Celery's messages have the id of their task as ``correlation_id``."""
    return RabbitMQQueue(
        url,
        queue,
        value=Bytes(),
        properties=["content_type", "content_encoding", "priority"],
        identity="correlation_id",
    )


def task_message(record: Record[Any, bytes]) -> Record[Any, TaskMessage]:
    """A message, of the record that the source has made of it."""
    headers: dict[str, Any] = {}
    properties: dict[str, str] = {}
    for name, value in record.headers or ():
        text = None if value is None else value.decode(errors="replace")
        if not name.startswith(_PREFIX):
            headers[name] = text
        elif text is not None:
            properties[name.removeprefix(_PREFIX)] = text
    priority = properties.get("priority", "")
    message = TaskMessage(
        record.value,
        properties.get("content_type", ""),
        properties.get("content_encoding", ""),
        headers,
        int(priority) if priority.isdecimal() else None,
    )
    return record.with_(value=message, headers=None)
