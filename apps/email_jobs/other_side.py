"""How the SMTP server of the demonstration answers."""

from __future__ import annotations

import time

from apps.email_jobs.mail import domain_of
from apps.email_jobs.smtp_server import OK, Answer, Delivery

LONG_SECONDS = 2.0
"""How long the server takes for a mail that is long in coming."""
BUSY_SECONDS = 1.0
"""How long the server of a busy domain is busy, from the first mail on."""


class OtherSide:
    """Answers of ``SmtpServer``, by the recipient's domain and the subject."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        """When a busy domain got its first mail."""
        self._refused: set[str] = set()
        """The Message-IDs of the mails that were refused once."""

    def at_recipient(self, delivery: Delivery) -> Answer:
        """Refuse recipients that do not exist, and those of a busy domain for a while."""
        domain = domain_of(delivery.to)
        if domain.startswith("refused-for-good-"):
            return Answer("550 5.1.1 no such user")
        if domain.startswith("server-busy-"):
            now = time.monotonic()
            if now - self._first.setdefault(domain, now) < BUSY_SECONDS:
                return Answer("421 4.3.2 too much to do")
        return OK

    def at_mail(self, delivery: Delivery) -> Answer:
        """Refuse some mails at first, or lose the connection, and take long for others."""
        if domain_of(delivery.to).startswith("long-"):
            return Answer(after=LONG_SECONDS)
        if delivery.subject == "Refused for now" and delivery.message_id not in self._refused:
            self._refused.add(delivery.message_id)
            if len(self._refused) % 2:
                return Answer(hang_up=True)
            return Answer("451 4.7.1 try again later")
        return OK
