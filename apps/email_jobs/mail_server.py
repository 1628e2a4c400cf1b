"""The SMTP server: connections that are used again, and what its refusals mean."""

from __future__ import annotations

import smtplib
import ssl
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from email.message import EmailMessage

    from apps.email_jobs.settings import MailSettings

IDLE_SECONDS = 10.0
"""A connection that was not used for longer is closed: servers end idle ones."""

BUSY = 421


class TemporaryRefusal(Exception):
    """The server refuses the mail for now (4xx), or the connection was lost: worth another attempt."""


class PermanentRefusal(Exception):
    """The server refuses the mail for good (5xx), e.g. as there is no such recipient."""


class ServerBusy(Exception):
    """The server takes no mail at the moment (421)."""


class MailServer:
    """Sends mails through one SMTP server. Any number of threads may use it at once."""

    def __init__(self, settings: MailSettings) -> None:
        self._settings = settings
        self._idle: deque[tuple[smtplib.SMTP, float]] = deque()
        """Connections that no thread uses, and since when."""

    def send(self, message: EmailMessage) -> None:
        """Send a mail to its one recipient; returns once the server has taken responsibility for it.

        Raises ``TemporaryRefusal``, ``PermanentRefusal`` or ``ServerBusy``. After a lost connection it is not
        known whether the server has taken it.
        """
        connection: smtplib.SMTP | None = None
        usable = False
        try:
            connection = self._connection()
            connection.send_message(message)
            usable = True
        except (smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused) as error:
            # The connection is closed after a 421; otherwise both sides have forgotten the mail.
            usable = True
            raise _refusal(*_answer(error)) from error
        except smtplib.SMTPNotSupportedError as error:
            raise PermanentRefusal(str(error)) from error
        except smtplib.SMTPResponseException as error:
            raise _refusal(error.smtp_code, error.smtp_error) from error
        except (smtplib.SMTPServerDisconnected, OSError) as error:
            raise TemporaryRefusal(f"the connection was lost: {error}") from error
        finally:
            if connection is not None:
                if usable and connection.sock is not None:
                    self._idle.append((connection, time.monotonic()))
                else:
                    connection.close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            connection, _ = self._idle.pop()
            connection.close()

    def _connection(self) -> smtplib.SMTP:
        while True:
            try:
                connection, since = self._idle.pop()
            except IndexError:
                return self._connect()
            if time.monotonic() - since <= IDLE_SECONDS:
                return connection
            connection.close()

    def _connect(self) -> smtplib.SMTP:
        settings = self._settings
        connection = smtplib.SMTP(settings.host, settings.port, timeout=settings.timeout.total_seconds())
        try:
            if settings.starttls:
                connection.starttls(context=ssl.create_default_context())
            if settings.user is not None:
                connection.login(settings.user, settings.password or "")
        except BaseException:
            connection.close()
            raise
        return connection


def _answer(error: smtplib.SMTPRecipientsRefused | smtplib.SMTPSenderRefused) -> tuple[int, bytes | str]:
    if isinstance(error, smtplib.SMTPSenderRefused):
        return error.smtp_code, error.smtp_error
    ((code, answer),) = error.recipients.values()
    return code, answer


def _refusal(code: int, answer: bytes | str) -> Exception:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
    said = f"the server has answered {code} {text}"
    if code == BUSY:
        return ServerBusy(said)
    # -1: what it has sent is no answer.
    return TemporaryRefusal(said) if code < 500 else PermanentRefusal(said)
