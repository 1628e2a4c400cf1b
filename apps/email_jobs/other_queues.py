"""Mails in the queues of other systems, where programs put them that do not know of this library.

Each message enqueues its job exactly once: in the transaction that has the position in the queue, or, in
RabbitMQ, as far as its message id tells it apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.email_jobs.mail import Mail

if TYPE_CHECKING:
    from collections.abc import Callable

    from apps.email_jobs.settings import MailSettings
    from streams import App, Call, Job

QUEUE = "mails"


def read_queues(
    app: App, settings: MailSettings, job: Job[[str, str, str], str], call: Callable[[Mail], Call[str]]
) -> None:
    """Enqueue the mails of those systems that the settings name. Their packages are extras."""
    if settings.rabbitmq is not None:
        from streams.connectors.rabbitmq import RabbitMQQueue  # noqa: PLC0415 - as above

        published = app.source(RabbitMQQueue(settings.rabbitmq, QUEUE, Mail), store="rabbitmq")
        published.enqueue(job, call, name="from-rabbitmq")
    if settings.redis is not None:
        from streams.connectors.redis import RedisList  # noqa: PLC0415 - as above

        pushed = app.source(RedisList(settings.redis, QUEUE, Mail), store="redis")
        pushed.enqueue(job, call, name="from-redis")
    if settings.celery is not None:
        from streams.celery import read_celery  # noqa: PLC0415 - as above

        # The jobs of the app by the names of the tasks, and results to where they are awaited.
        read_celery(app, settings.celery, queues=[QUEUE], results=settings.celery)
