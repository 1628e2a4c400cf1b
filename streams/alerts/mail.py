"""Notifies by e-mail."""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from email.utils import formatdate
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from streams.alerts.notification import from_environment, text, title
from streams.durations import to_milliseconds
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.alerts.alert import Alert


@dataclass(frozen=True, slots=True, kw_only=True)
class Email:
    """Send alerts by SMTP, until the server has accepted them.

    With ``user``, the password is read from the environment variable ``password_from``; it is only sent if
    the connection is encrypted. ``security`` is ``starttls``, ``tls`` from the first byte, or ``none``.
    ``timeout`` is that of each answer. Raises ``ConfigurationError``.
    """

    host: str
    sender_address: str
    to: Sequence[str]
    name: str = "email"
    port: int = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    password_from: str | None = None
    timeout: timedelta = timedelta(seconds=20)

    def __post_init__(self) -> None:
        if isinstance(self.to, str) or not self.to:
            raise ConfigurationError(f"Email {self.name!r}: to is a list of addresses, got {self.to!r:.80}")
        for address in (self.sender_address, *self.to):
            if "@" not in address or not address.isprintable() or any(mark in address for mark in " ,;<>"):
                raise ConfigurationError(f"Email {self.name!r}: {address!r:.80} is not an address")
        if self.security not in {"starttls", "tls", "none"}:
            raise ConfigurationError(
                f"Email {self.name!r}: security={self.security!r:.80}", hint="starttls, tls or none"
            )
        if (self.user is None) != (self.password_from is None):
            raise ConfigurationError(
                f"Email {self.name!r}: user and password_from belong together",
                hint="password_from= is the name of the environment variable with the password",
            )
        if self.user is not None and self.security == "none":
            raise ConfigurationError(
                f"Email {self.name!r}: a password is not sent over a connection that anyone can read",
                hint="security='starttls' or 'tls'",
            )
        if to_milliseconds(self.timeout, f"Email {self.name!r}: timeout") == 0:
            raise ConfigurationError(f"Email {self.name!r}: timeout must be longer than 0")


class EmailSender:
    """Sends by one server."""

    def __init__(self, receiver: Email, password: str | None) -> None:
        self._receiver = receiver
        self._password = password
        self._left: tuple[str, list[str]] = ("", [])
        """The Message-ID of a mail that was accepted for some addresses, and the others."""

    def send(self, alert: Alert) -> None:
        """Send it. Raises ``OSError`` or ``smtplib.SMTPException``, and ``PartlyRefused``."""
        receiver, message = self._receiver, self._message(alert)
        identity, left = self._left
        # Those that have it must not get it with each attempt for the others.
        addresses = left if identity == message["Message-ID"] else list(receiver.to)
        with self._connect() as server:
            if receiver.security == "starttls":
                server.starttls(context=ssl.create_default_context())
            if receiver.user is not None:
                server.login(receiver.user, self._password or "")
            refused = server.send_message(message, receiver.sender_address, addresses)
        if refused:
            self._left = str(message["Message-ID"]), list(refused)
            raise PartlyRefused(f"refused for {len(refused)} of {len(receiver.to)} addresses")

    def _connect(self) -> smtplib.SMTP:
        receiver, seconds = self._receiver, self._receiver.timeout.total_seconds()
        if receiver.security == "tls":
            return smtplib.SMTP_SSL(
                receiver.host, receiver.port, timeout=seconds, context=ssl.create_default_context()
            )
        return smtplib.SMTP(receiver.host, receiver.port, timeout=seconds)

    def _message(self, alert: Alert) -> EmailMessage:
        receiver = self._receiver
        message = EmailMessage()
        message["Subject"] = " ".join(title(alert).split())
        message["From"] = receiver.sender_address
        message["To"] = ", ".join(receiver.to)
        message["Date"] = formatdate()
        # The same for the same notification: mail servers and programs recognise one that was sent twice.
        identity = sha256(f"{alert.occurrence}/{alert.state.value}".encode()).hexdigest()[:32]
        message["Message-ID"] = f"<{identity}@{receiver.sender_address.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text(alert))
        return message


class PartlyRefused(Exception):
    """The server accepted the mail for some addresses and refused it for others."""


def email_sender(receiver: Email) -> EmailSender:
    """What sends to it. Raises ``ConfigurationError`` if the password's variable is not set."""
    variable = receiver.password_from
    return EmailSender(receiver, None if variable is None else from_environment(variable, receiver.name))
