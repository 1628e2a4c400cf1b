"""``streams query``: read the stores of an app's running workers."""

from __future__ import annotations

import json
import os
from functools import partial
from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import typer

from streams.cli.output import print_line
from streams.config import load_settings
from streams.errors import ConfigurationError, QueryError, StateUnavailable
from streams.queries.http import JSON, UNAUTHORIZED, ask, bearer, client_tls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.queries.http import Response


def query(
    store: Annotated[str | None, typer.Argument(help="The store; without it, all stores are listed.")] = None,
    key: Annotated[
        str | None,
        typer.Argument(help="The key as in a URL, but not percent-encoded; without it, all keys."),
    ] = None,
    *,
    url: Annotated[
        str, typer.Option(help="HTTP address of any worker of the app.")
    ] = "http://127.0.0.1:8080",
    start: Annotated[
        str | None, typer.Option(help="First key; for windows, first window start (milliseconds).")
    ] = None,
    stop: Annotated[str | None, typer.Option(help="End of the range, exclusive.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this number of entries.")] = None,
    base64: Annotated[
        bool, typer.Option("--base64", help="Read and print keys in base64, for keys that are not text.")
    ] = False,
) -> None:
    """Query the state of a running app, as JSON lines. Any worker answers for all workers.

    If the workers require a token, it is read from STREAMS_HTTP_TOKEN. For HTTPS, STREAMS_HTTP_TLS_CA names
    a file with the certificate authorities to trust, if they are not the system's.
    """
    request = partial(_request, _parse_url(url))
    stores = {item["name"]: item for item in request("/stores", {})["stores"]}
    if store is None:
        for item in stores.values():
            print_line(item)
        return
    encoding = {"encoding": "base64"} if base64 else {}
    bounds = {"start": start, "stop": stop, "limit": limit} | encoding
    path = f"/stores/{quote(store, safe='')}"
    if key is None:
        for entry in request(path, bounds | {"all": "true"})["entries"]:
            print_line(entry)
        return
    # Sessions and sliding windows are values of keys too: those that are open.
    windowed = (store in stores and stores[store]["windowed"]) or (start, stop, limit) != (None, None, None)
    path += f"/{'windows' if windowed else 'keys'}/{quote(key, safe='', errors='surrogateescape')}"
    answer = request(path, bounds if windowed else encoding)
    for entry in answer["windows"] if windowed else [answer]:
        print_line(entry)


class _Url(NamedTuple):
    """The HTTP address of a worker, or of a proxy for the workers."""

    address: str
    prefix: str
    secure: bool


def _parse_url(text: str) -> _Url:
    """Parse a worker's URL. Raises ``ConfigurationError`` if it cannot be one."""
    hint = "write http://HOST:PORT or https://HOST:PORT, followed by a path if a proxy needs one"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is not a URL: {error}", hint=hint) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(f"{text!r} is not the URL of a worker", hint=hint)
    if "@" in parts.netloc:
        raise ConfigurationError(
            "a URL with a user name and password is not supported",
            hint="put the token into STREAMS_HTTP_TOKEN",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    secure = parts.scheme == "https"
    return _Url(f"{host}:{port or (443 if secure else 80)}", parts.path.rstrip("/"), secure)


def _request(url: _Url, path: str, options: Mapping[str, object]) -> Any:
    """A worker's JSON response. Raises ``StateUnavailable`` if there is none, ``QueryError`` for an error."""
    address = url.address
    chosen = {name: value for name, value in options.items() if value is not None}
    target = url.prefix + (f"{path}?{urlencode(chosen, errors='surrogateescape')}" if chosen else path)
    settings = load_settings({}, os.environ)
    token = settings.http_token
    tls = client_tls(settings.http_tls_ca) if url.secure else None
    try:
        response = ask(address, target, headers=bearer(token), timeout=10, tls=tls)
    except SSLCertVerificationError as error:
        raise QueryError(
            f"the certificate of {address} is not trusted: {error}",
            hint="set STREAMS_HTTP_TLS_CA to a file (PEM) with the certificate authority that signed it",
        ) from error
    if response is None:
        raise StateUnavailable(
            f"no worker answers at {address}", hint="give a worker's HTTP port with --url (setting http_port)"
        )
    if response.status == UNAUTHORIZED.status:
        raise QueryError(
            f"{address} rejects the token" if token else f"{address} requires a token",
            hint="set STREAMS_HTTP_TOKEN to the app's http_token",
        )
    answer = _json_object(response)
    if answer is None:
        text = response.body.decode(errors="replace").strip()
        raise QueryError(
            f"{address} has no {path}: {text[:200]}", hint="check that --url is a worker's HTTP port"
        )
    if response.status != 200:
        raise QueryError(str(answer.get("error", answer)))
    return answer


def _json_object(response: Response) -> dict[str, Any] | None:
    """The JSON object in a response; ``None`` for anything else, e.g. from another kind of server."""
    if response.content_type.partition(";")[0].strip() != JSON:
        return None
    try:
        found = json.loads(response.body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
