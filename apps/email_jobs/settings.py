"""The settings of the app, from the environment. Durations are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams import seconds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class MailSettings:
    """Where mail is sent, and how fast."""

    host: str
    port: int
    user: str | None
    password: str | None
    starttls: bool
    sender: str
    timeout: timedelta
    """For each answer of the server."""
    per_second: int
    """How many mails to one domain begin in each second, in all workers."""
    at_once: int
    """How many mails to one domain are sent at the same time, in all workers."""
    tries: int
    backoff: timedelta
    """The wait after the first temporary refusal; it doubles with each further one."""
    busy_wait: timedelta
    """How long a domain rests after its server has said that it is busy."""
    remind_after: timedelta
    report_to: str
    """Who gets the report of each day."""
    report_at: str
    """When, as in cron."""
    zone: str
    """The time zone of days and reports."""
    rabbitmq: str | None
    """The URL of a RabbitMQ with mails in its queue ``mails``."""
    redis: str | None
    """The URL of a Redis with mails in its list ``mails``."""
    celery: str | None
    """The URL of a Redis in which programs with Celery send tasks to the queue ``mails``."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> MailSettings:
        """Read the variables. Raises ``ValueError`` for a number that is none."""
        get = environment.get
        return cls(
            host=get("SMTP_HOST", "localhost"),
            port=int(get("SMTP_PORT", "25")),
            user=get("SMTP_USER"),
            password=get("SMTP_PASSWORD"),
            starttls=get("SMTP_STARTTLS", "no") == "yes",
            sender=get("MAIL_FROM", "shop@example.com"),
            timeout=seconds(float(get("SMTP_TIMEOUT", "60"))),
            per_second=int(get("MAIL_PER_SECOND", "10")),
            at_once=int(get("MAIL_AT_ONCE", "5")),
            tries=int(get("MAIL_TRIES", "10")),
            backoff=seconds(float(get("MAIL_BACKOFF", "60"))),
            busy_wait=seconds(float(get("MAIL_BUSY_WAIT", "300"))),
            remind_after=seconds(float(get("REMIND_AFTER", str(3 * 24 * 3600)))),
            report_to=get("MAIL_REPORT_TO", "postmaster@example.com"),
            report_at=get("MAIL_REPORT_AT", "0 7 * * *"),
            zone=get("MAIL_ZONE", "UTC"),
            rabbitmq=get("MAIL_RABBITMQ"),
            redis=get("MAIL_REDIS"),
            celery=get("MAIL_CELERY"),
        )
