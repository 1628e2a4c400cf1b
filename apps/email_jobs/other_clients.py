"""Programs that know nothing of this library, and have mails sent: through RabbitMQ, Redis and Celery.

``python -m apps.email_jobs.other_clients --mails 500 --redis URL --rabbitmq URL --celery URL --results FILE``
sends as many mails through each of them, waits for the results of Celery's tasks, and writes these into the
file, a line of JSON for each. The app reads the queues, see ``other_queues.py``.
"""

# pyright: basic
# As amqp and Celery have no types.

from __future__ import annotations

import argparse
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

QUEUE: Final = "mails"
TASK: Final = "send-mail"
TO_A_DOMAIN: Final = 20
RESULT_SECONDS: Final = 600.0


def addresses(system: str, count: int) -> list[str]:
    """Who gets the mails that go through a system."""
    return [f"person-{number}@{system}-{number // TO_A_DOMAIN}.example" for number in range(count)]


def mails(system: str, count: int) -> list[dict[str, str]]:
    """The mails that go through a system."""
    text = f"Sent by a program that has {system}.\n"
    return [{"to": to, "subject": "News", "text": text} for to in addresses(system, count)]


def send_through_redis(url: str, count: int) -> None:
    """Append the mails to a list."""
    import redis  # noqa: PLC0415 - each client needs only its own package

    with redis.Redis.from_url(url) as client:
        client.rpush(QUEUE, *map(json.dumps, mails("redis", count)))


def rabbitmq_connection(url: str) -> Any:
    """A connection that waits until the server has each message."""
    import amqp  # noqa: PLC0415 - as above

    server = urlsplit(url)
    return amqp.Connection(
        f"{server.hostname}:{server.port}",
        server.username or "guest",
        server.password or "guest",
        login_method="PLAIN",
        confirm_publish=True,
        # A busy server may take nothing for longer than the client's own second.
        socket_settings={socket.TCP_USER_TIMEOUT: 60_000},
    )


def declare_queue(url: str) -> None:
    """Create the queue in RabbitMQ, which the app expects to be there."""
    with rabbitmq_connection(url) as connection:
        connection.channel().queue_declare(QUEUE, durable=True, auto_delete=False)


def send_through_rabbitmq(url: str, count: int) -> None:
    """Publish the mails to the queue, each with an id."""
    import amqp  # noqa: PLC0415 - as above

    with rabbitmq_connection(url) as connection:
        channel = connection.channel()
        for number, mail in enumerate(mails("rabbitmq", count)):
            message = amqp.Message(json.dumps(mail), message_id=f"mail-{number}", delivery_mode=2)
            channel.basic_publish(message, "", QUEUE)


def send_through_celery(url: str, count: int, results: Path) -> None:
    """Send the mails as tasks, and wait for their results."""
    from celery import Celery  # noqa: PLC0415 - as above

    client = Celery("shop", broker=url, backend=url, set_as_current=False)
    sent = [(mail["to"], client.send_task(TASK, kwargs=mail, queue=QUEUE)) for mail in mails("celery", count)]
    with results.open("w", encoding="utf-8") as file:
        for to, result in sent:
            file.write(json.dumps({"to": to, "result": result.get(timeout=RESULT_SECONDS)}) + "\n")
    client.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Send mails through the systems whose URLs are given."""
    parser = argparse.ArgumentParser(prog="python -m apps.email_jobs.other_clients", description=__doc__)
    parser.add_argument("--mails", type=int, required=True)
    parser.add_argument("--redis")
    parser.add_argument("--rabbitmq")
    parser.add_argument("--celery")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args(arguments)
    if options.redis:
        send_through_redis(options.redis, options.mails)
    if options.rabbitmq:
        send_through_rabbitmq(options.rabbitmq, options.mails)
    if options.celery:
        send_through_celery(options.celery, options.mails, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
