"""What an error of the server or the client means for a connector."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from amqp.exceptions import AMQPError, ConsumerCancelled

from streams.errors import ConnectorError, SourceUnavailable

if TYPE_CHECKING:
    from streams.errors import ConnectorUnavailable

CLIENT_ERRORS: Final = (AMQPError, OSError)
"""What the client raises. Time-outs are among them, and errors of TLS."""

ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
PRECONDITION_FAILED: Final = 406
NOT_ALLOWED: Final = 530

_LASTING: Final = frozenset({ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, NOT_ALLOWED})
"""Codes of refusals that end a start. In a worker that runs they may pass: what is missing is declared, a
password changed back, a right granted, a virtual host restored."""

_ADVICE: Final = {
    ACCESS_REFUSED: "check user, password (URL, RABBITMQ_USERNAME, RABBITMQ_PASSWORD) and the user's rights",
    NOT_FOUND: "create it, or let the connector declare it with declare=",
    PRECONDITION_FAILED: "name the properties that it has, delete it, or give another name",
    NOT_ALLOWED: "check the virtual host in the url, and the user's right to it",
}


def to_error(
    error: Exception,
    doing: str,
    *,
    starting: bool = False,
    unavailable: type[ConnectorUnavailable] = SourceUnavailable,
) -> ConnectorError | ConnectorUnavailable:
    """The connector's error. While ``starting``, what is refused or missing ends the worker."""
    if isinstance(error, ConsumerCancelled):
        return unavailable(f"RabbitMQ has ended {doing}: the queue was deleted, or moved to another node")
    code = getattr(error, "reply_code", None)
    if code:
        text = f"RabbitMQ refuses {doing}: {code} {getattr(error, 'reply_text', '') or error}"
        if starting and code in _LASTING:
            return ConnectorError(text, hint=_ADVICE[code])
        return unavailable(text)
    text = f"RabbitMQ does not answer ({doing}): {str(error) or type(error).__name__}"
    if starting and _certificate_refused(error):
        return ConnectorError(text, hint="name the authority's file: amqps://…?cacertfile=/path/ca.pem")
    return unavailable(text)


def _certificate_refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
