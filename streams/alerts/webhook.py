"""Notifies by an HTTP POST of JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from http.client import HTTPConnection, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from streams.alerts.notification import Notification, from_environment
from streams.durations import to_milliseconds
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from streams.alerts.alert import Alert


@dataclass(frozen=True, slots=True)
class Webhook:
    """POST alerts as JSON to a URL, until it answers 2xx.

    A URL that is a secret itself is read from the environment variable ``url_from``. The value of the header
    ``header`` is read from the variable ``secret_from``, e.g. ``Bearer …``; without it, none is sent.
    ``timeout`` is that of connecting and of each answer. Redirects are not followed. Raises
    ``ConfigurationError``.
    """

    url: str | None = field(default=None, repr=False)
    name: str = "webhook"
    url_from: str | None = None
    secret_from: str | None = None
    header: str = "Authorization"
    timeout: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        if (self.url is None) == (self.url_from is None):
            raise ConfigurationError(
                f"Webhook {self.name!r} needs a URL",
                hint="url='https://…', or url_from= with the name of an environment variable",
            )
        if self.url is not None:
            _check_url(self.url, self.name)
        if not self.header.isascii() or not self.header.replace("-", "").isalnum():
            raise ConfigurationError(f"Webhook {self.name!r}: {self.header!r:.80} is not a header's name")
        if to_milliseconds(self.timeout, f"Webhook {self.name!r}: timeout") == 0:
            raise ConfigurationError(f"Webhook {self.name!r}: timeout must be longer than 0")


class WebhookSender:
    """Sends to one URL."""

    def __init__(self, url: str, headers: dict[str, str], timeout: float) -> None:
        parts = urlsplit(url)
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port, self._timeout = parts.hostname or "", parts.port, timeout
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = headers

    def send(self, alert: Alert) -> None:
        """POST it. Raises ``OSError``, ``HTTPException``, or ``WebhookRefused``."""
        # There are few notifications, and hours between them.
        connection = self._kind(self._host, self._port, timeout=self._timeout)
        try:
            body = msgspec.json.encode(Notification.of(alert))
            connection.request("POST", self._target, body, self._headers)
            # Its body may never end and says nothing that is needed.
            answer = connection.getresponse()
            if not 200 <= answer.status < 300:
                raise WebhookRefused(f"it answered {answer.status} {answer.reason:.80}".rstrip())
        finally:
            connection.close()


class WebhookRefused(Exception):
    """The server answered, and not that it took the notification."""


def _check_url(url: str, name: str) -> None:
    """Raise ``ConfigurationError`` for what is not a URL, without repeating it: it may be a secret."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or True)
    except ValueError:
        valid = False
    if not valid or "@" in url.partition("//")[2].partition("/")[0]:
        raise ConfigurationError(
            f"Webhook {name!r}: its URL is not one of http:// or https:// with a host",
            hint="without user and password: secret_from= names a variable with the value of a header",
        )


def webhook_sender(receiver: Webhook) -> WebhookSender:
    """What sends to it. Raises ``ConfigurationError`` if a variable is missing or is no URL."""
    name, url = receiver.name, receiver.url
    if receiver.url_from is not None:
        url = from_environment(receiver.url_from, name)
    assert url is not None, "one of the two is given"
    _check_url(url, name)
    headers = {"Content-Type": "application/json", "User-Agent": "streams"}
    if receiver.secret_from is not None:
        secret = from_environment(receiver.secret_from, name)
        if not secret.isascii() or not secret.isprintable():
            raise ConfigurationError(
                f"Webhook {name!r}: the value of {receiver.secret_from} cannot be sent as a header"
            )
        headers[receiver.header] = secret
    return WebhookSender(url, headers, receiver.timeout.total_seconds())
