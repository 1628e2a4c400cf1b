"""``streams query``: the state of an app's running workers."""

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
    store: Annotated[str | None, typer.Argument(help="The store; all are listed without it.")] = None,
    key: Annotated[str | None, typer.Argument(help="As in a URL, not encoded; all without it.")] = None,
    *,
    url: Annotated[
        str, typer.Option(help="Where a worker of the app serves HTTP.")
    ] = "http://127.0.0.1:8080",
    start: Annotated[str | None, typer.Option(help="The first key, or start of windows (ms).")] = None,
    stop: Annotated[str | None, typer.Option(help="Where to end: itself no longer shown.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many entries.")] = None,
    base64: Annotated[
        bool, typer.Option("--base64", help="Keys are given and shown in base64: for those that are no text.")
    ] = False,
) -> None:
    """Ask the running workers of an app for their state, as JSON lines: any of them answers for all.

    The token, if they want one, is taken from STREAMS_HTTP_TOKEN, and the file with the authorities by which
    HTTPS certificates are checked, if not the system's, from STREAMS_HTTP_TLS_CA.
    """
    asked = partial(_asked, _parse_url(url))
    stores = {item["name"]: item for item in asked("/stores", {})["stores"]}
    if store is None:
        for item in stores.values():
            print_line(item)
        return
    encoding = {"encoding": "base64"} if base64 else {}
    bounds = {"start": start, "stop": stop, "limit": limit} | encoding
    path = f"/stores/{quote(store, safe='')}"
    if key is None:
        for entry in asked(path, bounds | {"all": "true"})["entries"]:
            print_line(entry)
        return
    # Sessions and sliding windows are values of keys too: those that are open.
    windowed = (store in stores and stores[store]["windowed"]) or (start, stop, limit) != (None, None, None)
    path += f"/{'windows' if windowed else 'keys'}/{quote(key, safe='', errors='surrogateescape')}"
    answer = asked(path, bounds if windowed else encoding)
    for entry in answer["windows"] if windowed else [answer]:
        print_line(entry)


class _Url(NamedTuple):
    """Where a worker, or a proxy in front of workers, serves HTTP."""

    address: str
    prefix: str
    secure: bool


def _parse_url(text: str) -> _Url:
    """Raises ``ConfigurationError`` for what is no address of a worker."""
    hint = "write http://HOST:PORT or https://HOST:PORT, with a path if a proxy serves the workers below one"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is no URL: {error}", hint=hint) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(f"{text!r} is no worker's URL", hint=hint)
    if "@" in parts.netloc:
        raise ConfigurationError(
            "a name and a password in the URL are not sent", hint="give the token in STREAMS_HTTP_TOKEN"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    secure = parts.scheme == "https"
    return _Url(f"{host}:{port or (443 if secure else 80)}", parts.path.rstrip("/"), secure)


def _asked(url: _Url, path: str, options: Mapping[str, object]) -> Any:
    """A worker's answer. Raises ``StateUnavailable`` where none answers, ``QueryError`` with what it says."""
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
            hint="STREAMS_HTTP_TLS_CA names a file (PEM) with the authority that signed it",
        ) from error
    if response is None:
        raise StateUnavailable(
            f"nobody answers at {address}", hint="--url names a worker's HTTP port (setting http_port)"
        )
    if response.status == UNAUTHORIZED.status:
        raise QueryError(
            f"{address} does not answer without {'another' if token else 'a'} token",
            hint="set STREAMS_HTTP_TOKEN to the app's http_token",
        )
    answer = _json_object(response)
    if answer is None:
        text = response.body.decode(errors="replace").strip()
        raise QueryError(f"{address} has no {path}: {text[:200]}", hint="is a worker's HTTP port there?")
    if response.status != 200:
        raise QueryError(str(answer.get("error", answer)))
    return answer


def _json_object(response: Response) -> dict[str, Any] | None:
    """The object in an answer; ``None`` where there is something else, as of another server."""
    if response.content_type.partition(";")[0].strip() != JSON:
        return None
    try:
        found = json.loads(response.body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
