"""Formats with a JSON object per line: Caddy, Traefik, Google's and Azure's load balancers.

The client is the address of the connection. An address forwarded by a proxy, such as Azure Front Door's
``clientIp`` and Caddy's ``client_ip``, is ``Fields.forwarded``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from apps.log_analysis.formats import fields
from apps.log_analysis.formats.fields import Fields
from apps.log_analysis.formats.text import NEEDED
from apps.log_analysis.malformed import MalformedLine

if TYPE_CHECKING:
    from collections.abc import Callable

Entry = dict[str, Any]


class BadEntry(ValueError):
    """``field`` of an entry is invalid; ``name`` is its name in the entry."""

    def __init__(self, field: str, name: str, value: object) -> None:
        super().__init__(field, name, value)
        self.field = field
        self.name = name
        self.value = value


class JsonFormat:
    """A format whose lines are objects that ``wants`` recognizes and ``fields_of`` reads."""

    local = False

    def __init__(
        self, name: str, wants: Callable[[Entry], bool], fields_of: Callable[[Entry], Fields]
    ) -> None:
        self.name = name
        self.wants = wants
        self._fields_of = fields_of

    def read(self, line: str) -> Fields | None:
        """The fields of a line; ``None`` if it is in another format, see ``TextFormat.read``."""
        entry = entry_of(line)
        return self.fields(line, entry) if entry is not None and self.wants(entry) else None

    def fields(self, line: str, entry: Entry) -> Fields:
        """The fields of a parsed line."""
        try:
            return self._fields_of(entry)
        except BadEntry as error:
            reason, needed = NEEDED[error.field]
            shown = msgspec.json.encode(error.value).decode()[:40]
            raise MalformedLine(
                reason, 1, f"{needed} as {error.name!r} instead of {shown}", line.rstrip("\r\n")
            ) from None


def entry_of(line: str) -> Entry | None:
    """The JSON object of a line; ``None`` if it is something else.

    Raises ``MalformedLine`` if the line ends within the object.
    """
    if not line.startswith("{"):
        return None
    try:
        entry = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        if "truncated" in str(error):
            end = len(line.rstrip("\r\n"))
            raise MalformedLine("line ends early", end + 1, "the rest of a JSON object", "") from None
        return None
    except RecursionError:
        return None
    return cast("Entry", entry) if isinstance(entry, dict) else None


def _at(entry: Entry, *names: str) -> Any:
    """The value at this path in nested objects; ``None`` if a part of the path is missing."""
    found: Any = entry
    for name in names:
        if not isinstance(found, dict):
            return None
        found = cast("Entry", found).get(name)
    return found


def _read(entry: Entry, field: str, reader: Callable[[str], Any], *names: str) -> Any:
    value = _at(entry, *names)
    try:
        if isinstance(value, str):
            return reader(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return reader(f"{value:.6f}" if isinstance(value, float) else str(value))
    except (KeyError, ValueError):
        pass
    raise BadEntry(field, ".".join(names), value)


def _text(entry: Entry, field: str, *names: str) -> str:
    text: str = _read(entry, field, fields.plain_text, *names)
    if not text:
        raise BadEntry(field, ".".join(names), text)
    return text


def _optional(entry: Entry, field: str, *names: str) -> str | None:
    value = _at(entry, *names)
    if value is None or value in {"", "-"}:
        return None
    return _text(entry, field, *names)


def _size(entry: Entry, *names: str) -> int:
    if _at(entry, *names) is None:
        return 0
    size: int = _read(entry, "size", fields.size, *names)
    return size


def _status(entry: Entry, *names: str) -> tuple[int, str]:
    status: tuple[int, str] = _read(entry, "status", fields.STATUSES.__getitem__, *names)
    return status


_METHOD: Final = re.compile(r"[A-Z][A-Z_-]*+")


def _method(entry: Entry, *names: str) -> str:
    method = _text(entry, "method", *names)
    if _METHOD.fullmatch(method) is None:
        raise BadEntry("method", ".".join(names), method)
    return method


def _epoch_or_iso(text: str) -> int:
    return fields.iso_times[text] if "-" in text else fields.epoch_milliseconds(text)


def _caddy(entry: Entry) -> Fields:
    old = _at(entry, "request", "remote_ip") is None
    return Fields(
        _read(entry, "time", _epoch_or_iso, "ts"),
        # Caddy before 2.5 wrote the address with the port.
        _read(entry, "client", fields.address, "request", "remote_addr" if old else "remote_ip"),
        _optional(entry, "user", "user_id"),
        (
            _method(entry, "request", "method"),
            *fields.split_target(_text(entry, "target", "request", "uri")),
            _text(entry, "protocol", "request", "proto"),
        ),
        _status(entry, "status"),
        _read(entry, "size", fields.size, "size"),
        _first(entry, "referrer", "request", "headers", "Referer"),
        _first(entry, "agent", "request", "headers", "User-Agent"),
        _optional(entry, "forwarded", "request", "client_ip"),
    )


def _first(entry: Entry, field: str, *names: str) -> str | None:
    """The first of a header's values."""
    values = _at(entry, *names)
    if values is None or values == []:
        return None
    if not isinstance(values, list) or not isinstance(values[0], str) or "\0" in values[0]:
        raise BadEntry(field, ".".join(names), cast("object", values))
    return values[0] or None


def _traefik(entry: Entry) -> Fields:
    time = next((name for name in ("StartUTC", "StartLocal", "time") if name in entry), "StartUTC")
    return Fields(
        _read(entry, "time", fields.iso_times.__getitem__, time),
        _read(entry, "client", fields.address, *_traefik_client(entry)),
        _optional(entry, "user", "ClientUsername"),
        (
            _method(entry, "RequestMethod"),
            *fields.split_target(_text(entry, "target", "RequestPath")),
            _text(entry, "protocol", "RequestProtocol"),
        ),
        _status(entry, "DownstreamStatus"),
        _size(entry, "DownstreamContentSize"),
        _optional(entry, "referrer", "request_Referer"),
        _optional(entry, "agent", "request_User-Agent"),
        _optional(entry, "forwarded", "request_X-Forwarded-For"),
    )


def _traefik_client(entry: Entry) -> tuple[str]:
    return ("ClientHost",) if "ClientHost" in entry else ("ClientAddr",)


def _google(entry: Entry) -> Fields:
    url = _text(entry, "target", "httpRequest", "requestUrl")
    return Fields(
        _read(entry, "time", fields.iso_times.__getitem__, "timestamp"),
        _read(entry, "client", fields.address, "httpRequest", "remoteIp"),
        None,
        (
            _method(entry, "httpRequest", "requestMethod"),
            *fields.split_target(fields.relative_path(url)),
            _optional(entry, "protocol", "httpRequest", "protocol") or "-",
        ),
        _status(entry, "httpRequest", "status"),
        _size(entry, "httpRequest", "responseSize"),
        _optional(entry, "referrer", "httpRequest", "referer"),
        _optional(entry, "agent", "httpRequest", "userAgent"),
        None,
    )


_CACHE_NOTES: Final = "X-AzureApplicationGateway-"


def _application_gateway(entry: Entry) -> Fields:
    within = "properties"
    original = _optional(entry, "target", within, "originalRequestUriWithArgs")
    path, query = fields.split_target(original or _text(entry, "target", within, "requestUri"))
    if original is None and query is None:
        query = _optional(entry, "query", within, "requestQuery")
        # Gateways of the first version append their own notes about the request to its query.
        query = (query and query.partition(_CACHE_NOTES)[0].removesuffix("&")) or None
    return Fields(
        _read(entry, "time", fields.iso_times.__getitem__, "timeStamp" if "timeStamp" in entry else "time"),
        _read(entry, "client", fields.address, within, "clientIP"),
        None,
        (
            _method(entry, within, "httpMethod"),
            path,
            query,
            _text(entry, "protocol", within, "httpVersion"),
        ),
        _status(entry, within, "httpStatus"),
        _read(entry, "size", fields.size, within, "sentBytes"),
        _optional(entry, "referrer", within, "referer"),
        _optional(entry, "agent", within, "userAgent"),
        None,
    )


def _front_door(entry: Entry) -> Fields:
    within = "properties"
    version = _text(entry, "protocol", within, "httpVersion")
    url = _text(entry, "target", within, "requestUri")
    properties = entry[within]
    # ``clientIp`` is the value of X-Forwarded-For, if the request has it.
    peer = next((name for name in ("socketIp", "socketIP") if name in properties), "socketIp")
    forwarded = next((name for name in ("clientIp", "clientIP") if name in properties), "clientIp")
    return Fields(
        _read(entry, "time", fields.iso_times.__getitem__, "time"),
        _read(entry, "client", fields.address, within, peer),
        None,
        (
            _method(entry, within, "httpMethod"),
            *fields.split_target(fields.relative_path(url)),
            version if version.startswith("HTTP/") else f"HTTP/{version.removesuffix('.0.0')}",
        ),
        _status(entry, within, "httpStatusCode"),
        _read(entry, "size", fields.size, within, "responseBytes"),
        _optional(entry, "referrer", within, "referer"),
        _optional(entry, "agent", within, "userAgent"),
        _optional(entry, "forwarded", within, forwarded),
    )


def _is_category(entry: Entry, category: str) -> bool:
    found = entry.get("category")
    return isinstance(found, str) and found.lower() == category and isinstance(entry.get("properties"), dict)


def _is_caddy(entry: Entry) -> bool:
    # The same request may also be in an error's entry, which has no size.
    logger = entry.get("logger", "http.log.access")
    is_access = isinstance(logger, str) and logger.startswith("http.log.access")
    return is_access and isinstance(entry.get("request"), dict) and "status" in entry and "size" in entry


JSON_FORMATS: Final = (
    JsonFormat("caddy", _is_caddy, _caddy),
    JsonFormat(
        "traefik_json",
        lambda entry: "DownstreamStatus" in entry and "RequestMethod" in entry,
        _traefik,
    ),
    JsonFormat("google", lambda entry: isinstance(entry.get("httpRequest"), dict), _google),
    JsonFormat(
        "azure_application_gateway",
        lambda entry: _is_category(entry, "applicationgatewayaccesslog"),
        _application_gateway,
    ),
    JsonFormat("azure_front_door", lambda entry: _is_category(entry, "frontdooraccesslog"), _front_door),
)
"""An entry matches at most one of them."""


def read_entry(line: str) -> tuple[Fields, JsonFormat] | None:
    """The fields of a line and the format that it is in; ``None`` if it is in none of ``JSON_FORMATS``."""
    entry = entry_of(line)
    if entry is None:
        return None
    for each in JSON_FORMATS:
        if each.wants(entry):
            return each.fields(line, entry), each
    return None
