"""A program with the real Celery, which sends tasks and waits for their results."""

from __future__ import annotations

import itertools
from typing import Any

from celery import Celery
from kombu.utils.json import dumps

_NAMES = itertools.count()


def celery_client(broker: str = "memory://", results: str | None = None, **settings: Any) -> Celery:
    """A client with settings of its own. By default its messages stay in memory, see ``take``."""
    client = Celery(f"client-{next(_NAMES)}", broker=broker, backend=results, set_as_current=False)
    client.conf.update(task_publish_retry=False, **settings)
    return client


def take(client: Celery, queue: str = "celery") -> list[bytes]:
    """The messages in a queue in memory, in the form in which Redis has them."""
    with client.connection_for_write() as connection:
        channel = connection.default_channel
        found = []
        while channel._size(queue):  # noqa: SLF001 - the transport's own interface
            found.append(dumps(channel._get(queue)).encode())  # noqa: SLF001 - as above
        return found


def sent(client: Celery, name: str, *args: Any, **options: Any) -> tuple[str, bytes]:
    """Send a task; returns its id and its message."""
    identifier = client.send_task(name, args, **options).id
    (message,) = take(client, options.get("queue", "celery"))
    return identifier, message
