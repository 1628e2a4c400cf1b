"""The URL of a server, with its secrets kept out of everything that is shown."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis.connection import parse_url

from streams.errors import ConfigurationError

PASSWORD_VARIABLE = "REDISCLI_AUTH"  # noqa: S105 - the name of the variable
"""Has the password that a URL leaves out, as for ``redis-cli``."""

_OPTIONS = {
    "db",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
    "ssl_password",
}
"""What a URL may have after its ``?``: others would change what this library relies on, e.g. time-outs."""


def client_options(url: str, what: str) -> dict[str, Any]:
    """The options of the client for a URL. Raises ``ConfigurationError``, which shows none of it.

    ``what`` names the connector. The option ``connection_class`` is missing for a plain connection.
    """
    hint = "write redis://HOST:PORT/DATABASE, rediss://… for TLS, or unix:///path?db=0"
    try:
        parts = urlsplit(url)
        # An unknown database would be ignored.
        _ = int(parts.path.strip("/") or "0") if parts.scheme in {"redis", "rediss"} else 0
        options = parse_url(url)  # type: ignore[no-untyped-call]  # the client has no types for it
    except ValueError:
        # Its message may have a part of the URL, and with it the password.
        raise ConfigurationError(f"{what}: the url is none of Redis", hint=hint) from None
    if parts.scheme in {"redis", "rediss"} and not parts.hostname:
        raise ConfigurationError(f"{what}: the url names no host", hint=hint)
    unknown = sorted(parse_qs(parts.query).keys() - _OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"{what}: the url has the options {', '.join(unknown)}, which are not known",
            hint=f"these are: {', '.join(sorted(_OPTIONS))}",
        )
    if options.get("password") is None and (password := os.environ.get(PASSWORD_VARIABLE)):
        options["password"] = password
    return dict(options)


def shown_address(url: str) -> str:
    """The server as errors and descriptions name it: without user, password and options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix:{parts.path}"
    database = parts.path.strip("/") or parse_qs(parts.query).get("db", ["0"])[0]
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}/{database}"
