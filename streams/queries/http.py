"""The requests and responses of the worker's HTTP port, and the client for requests to other workers."""

from __future__ import annotations

import json
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON: Final = "application/json"


class Response(NamedTuple):
    """The response of a route."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class Request(NamedTuple):
    """A request for a route with parameters. Bytes that are not UTF-8 become surrogates, as in file names."""

    target: str
    """Path and query as received, in ASCII: other bytes are percent-encoded."""

    parameters: Mapping[str, str]
    """The values of the template's parameters, percent-decoded."""

    query: Mapping[str, str]
    """The query's pairs, percent-decoded; the last of several with the same name."""

    headers: Mapping[str, str]
    """The headers, by lower-case name."""


class Tls(NamedTuple):
    """Files in PEM format: a server's certificate with its chain, and its private key."""

    certificate: str
    key: str


def refusal(status: int, reason: str, error: str) -> Response:
    """An error response in JSON: ``reason`` is one of a few fixed strings, ``error`` is the message."""
    body = json.dumps({"reason": reason, "error": error}, ensure_ascii=False)
    return Response(status, body.encode(errors="surrogateescape") + b"\n", JSON)


UNAUTHORIZED: Final = refusal(401, "unauthorized", "a token is required: Authorization: Bearer ...")


def client_tls(authorities: str | None) -> ssl.SSLContext:
    """A TLS context that trusts the certificate authorities in a file (PEM), or the system's without one.

    Raises ``ConfigurationError`` for a file that cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"http_tls_ca={authorities!r} cannot be used: {error}",
            hint="set it to a file (PEM) with the certificates of the authorities to trust",
        ) from error


def bearer(token: str | None) -> dict[str, str]:
    """The ``Authorization`` header for the token; empty without a token."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def ask(
    address: str,
    target: str,
    *,
    headers: Mapping[str, str],
    timeout: float,
    tls: ssl.SSLContext | None = None,
) -> Response | None:
    """GET ``target`` from ``host:port``; ``None`` if there is no response.

    ``timeout`` is in seconds, for connecting and for each read. With ``tls`` it uses HTTPS. Raises
    ``ssl.SSLCertVerificationError`` for a certificate that is not trusted.
    """
    connection: HTTPConnection | None = None
    try:
        if tls is None:
            connection = HTTPConnection(address, timeout=timeout)
        else:
            connection = HTTPSConnection(address, timeout=timeout, context=tls)
        connection.request("GET", target, headers=dict(headers))
        answer = connection.getresponse()
        return Response(answer.status, answer.read(), answer.headers.get("Content-Type", ""))
    except ssl.SSLCertVerificationError:
        raise
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        if connection is not None:
            connection.close()
