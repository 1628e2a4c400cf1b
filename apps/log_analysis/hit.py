r"""One request of a web server's access log, and the parsers of its line.

``parse`` detects the format of each line among those that servers write by default; docs/log-analysis.md
lists them. ``line_parser`` returns a parser for one of them, or for a custom format. Nearly all lines are in
the common or combined format or in nginx's ``main``, so these three have a fast path::

    client identity user [time] "request" status size
    client identity user [time] "request" status size "referrer" "agent"
    client identity user [time] "request" status size "referrer" "agent" "forwarded"

The client is the address of the connection; addresses from headers are used only on request.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from apps.log_analysis.formats import fields
from apps.log_analysis.formats.detection import FORMATS, detect
from apps.log_analysis.formats.fields import MONTHS, is_bot, milliseconds
from apps.log_analysis.formats.template import compile_format
from apps.log_analysis.formats.text import LINE_END, NEEDED, QUOTED, QUOTED_TEXT, SIZE, TIME, USER, WORD
from apps.log_analysis.malformed import MalformedLine, Reason
from apps.log_analysis.memo import Memo
from streams import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from apps.log_analysis.formats.detection import Format
    from apps.log_analysis.formats.fields import Fields

__all__ = [
    "MONTHS",
    "Client",
    "Hit",
    "MalformedLine",
    "Memo",
    "Reason",
    "configured_parser",
    "is_bot",
    "line_parser",
    "milliseconds",
    "parse",
]

Client: TypeAlias = Literal["peer", "forwarded"]
"""The source of the client: the address of the connection, or the first one in ``X-Forwarded-For``."""


class Hit(msgspec.Struct, frozen=True, gc=False):
    """One request from an access log line; ``None`` where the line has ``-`` or no such field.

    A request that is not HTTP (a TLS handshake on a plain port, or none at all: ``-``, usual with status 408)
    has method and protocol ``-`` and the request's text as its path.
    """

    time: int
    """The request's time: event time, milliseconds since the epoch, as exact as the log has it."""
    client: str
    """The client's IPv4 or IPv6 address or its host name."""
    user: str | None
    """The authenticated user."""
    method: str
    path: str
    """The request's target without its query string. May be an absolute URI, ``host:port`` or ``*``."""
    query: str | None
    """The text after the target's first ``?``; may be empty."""
    protocol: str
    """E.g. ``HTTP/1.1``; ``HTTP/0.9`` for a request that names none, ``-`` where the log has none."""
    status: int
    status_class: str
    """The status by its first digit, e.g. ``2xx``, for grouping."""
    bytes: int
    """The response body's size in bytes, or the response's where the log has only that; 0 for ``-``."""
    referrer: str | None
    agent: str | None
    bot: bool
    """Whether the agent looks like a program's rather than a person's browser: see ``is_bot``."""


# The usual identity is a dash. Lines with another one, or with a prefix, take the slow path.
_WHO: Final = re.compile(rf"(\S++) - ({USER}) ")
_LINE: Final = re.compile(
    rf'([^\[]*+)\[([^\]]*+)\]{QUOTED}{WORD}{SIZE}(?:{QUOTED}{QUOTED}(?: "{QUOTED_TEXT}")?+)?+{LINE_END}',
    re.DOTALL,
)

times: Final = fields.times
requests: Final = fields.requests
agents: Final = fields.agents
_clients: Final = fields.clients
_users: Final = fields.users
_referrers: Final = fields.referrers
_STATUSES: Final = fields.STATUSES


def _who(text: str) -> tuple[str, str | None]:
    """Client and user, around the identity and before the time's bracket."""
    match = _WHO.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return _clients[match[1]], _users[match[2]]


_whos: Final = Memo(_who)


def parse(line: str) -> Hit:
    """The hit of a line in any of the known formats. Raises ``MalformedLine``.

    Line breaks at the end are ignored. A time before 1970 is malformed, a time in the future is not.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        return _parse_other(line)
    who, time, request, status, size, referrer, agent = match.groups("-")
    try:
        client, user = _whos[who]
        method, path, query, protocol = requests[request]
        code, status_class = _STATUSES[status]
        known_agent, bot = agents[agent]
        # Positional, as keywords make the constructor a quarter slower.
        return Hit(
            times[time],
            client,
            user,
            method,
            path,
            query,
            protocol,
            code,
            status_class,
            0 if size == "-" else int(size),
            None if referrer == "-" else _referrers[referrer],
            known_agent,
            bot,
        )
    except (KeyError, ValueError):
        return _parse_other(line)


def _parse_other(line: str) -> Hit:
    found = detect(line)
    if found is None:
        raise _malformed(line)
    return _hit(found[0])


def _hit(read: Fields) -> Hit:
    method, path, query, protocol = read.request
    code, status_class = read.status
    agent = read.agent
    return Hit(
        read.time,
        read.client,
        read.user,
        method,
        path,
        query,
        protocol,
        code,
        status_class,
        read.size,
        read.referrer,
        agent,
        agent is not None and is_bot(agent),
    )


def line_parser(
    form: str | None = None,
    *,
    also: Sequence[str] = (),
    client: Client = "peer",
    time_zone: str = "UTC",
) -> Callable[[str], Hit]:
    """A parser like ``parse``, of lines in one format.

    ``form`` is the name of a known format, or nginx's ``log_format`` or Apache's ``LogFormat`` (see
    ``formats.template``); ``also`` are names of further ones. Without a ``form``, each line may be in any of
    the known ones. With ``client="forwarded"``
    the client is the first address in ``X-Forwarded-For`` where the line has one: any sender of a request can
    write anything into it, so this is for logs behind a proxy that sets it. Times that are written without an
    offset from UTC are in ``time_zone``.

    Raises ``ConfigurationError``.
    """
    if form is None and client == "peer" and time_zone == "UTC":
        return parse
    formats: list[Format] = []
    if form is not None:
        formats.append(
            FORMATS.get(form) or compile_format(_format_text(form), forwarded=client == "forwarded")
        )
        formats += [FORMATS[_known(name)] for name in also]
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigurationError(
            f"unknown time zone {time_zone!r}", hint="a name of the IANA database, e.g. Europe/Berlin"
        ) from error

    def parse_line(line: str) -> Hit:
        read, found = _read(line, formats)
        if client == "forwarded" and read.forwarded is not None:
            read = read._replace(client=_forwarded(read.forwarded, line))
        if not read.client:
            raise MalformedLine("bad client", 1, "a forwarded address", line.rstrip("\r\n"))
        if found.local:
            read = read._replace(time=_in_zone(read.time, zone))
        return _hit(read)

    return parse_line


def configured_parser(environment: Mapping[str, str]) -> Callable[[str], Hit]:
    """The parser configured by ``LOG_ANALYSIS_FORMAT``, ``_ALSO``, ``_CLIENT`` and ``_TIME_ZONE``.

    Raises ``ConfigurationError``.
    """
    client = environment.get("LOG_ANALYSIS_CLIENT") or "peer"
    if client not in {"peer", "forwarded"}:
        raise ConfigurationError(
            f"LOG_ANALYSIS_CLIENT is {client!r}",
            hint="peer is the address of the connection, forwarded the first one in X-Forwarded-For",
        )
    return line_parser(
        environment.get("LOG_ANALYSIS_FORMAT") or None,
        also=environment.get("LOG_ANALYSIS_ALSO", "").split(),
        client="forwarded" if client == "forwarded" else "peer",
        time_zone=environment.get("LOG_ANALYSIS_TIME_ZONE") or "UTC",
    )


def _format_text(form: str) -> str:
    return form if "$" in form or "%" in form else _known(form)


def _known(name: str) -> str:
    if name not in FORMATS:
        raise ConfigurationError(
            f"unknown log format {name!r}",
            hint=f"known are {', '.join(FORMATS)}; or give a log_format of nginx or a LogFormat of Apache",
        )
    return name


def _read(line: str, formats: Sequence[Format]) -> tuple[Fields, Format]:
    """The fields of a line in one of these formats, or in any known one if there are none."""
    if not formats:
        found = detect(line)
        if found is None:
            raise _malformed(line)
        return found
    refusal = None
    for each in formats:
        try:
            read = each.read(line)
        except MalformedLine as error:
            refusal = refusal or error
        else:
            if read is not None:
                return read, each
    if refusal is not None:
        raise refusal
    names = " or ".join(each.name for each in formats)
    raise MalformedLine("not a known format", 1, f"a line in the {names} format", line.rstrip("\r\n"))


def _forwarded(text: str, line: str) -> str:
    try:
        return fields.first_forwarded(text)
    except ValueError:
        # Written by the client or by proxies: its column depends on the escapes before it.
        raise MalformedLine("bad client", 1, f"a forwarded address, not {text[:40]!r}", line) from None


def _in_zone(time: int, zone: ZoneInfo) -> int:
    naive = datetime.fromtimestamp(time // 1000, UTC).replace(tzinfo=zone)
    return max(int(naive.timestamp()), 0) * 1000 + time % 1000


# Matches the longest valid beginning of a line: each part is optional, and follows those before it.
_ANY_IDENTITY: Final = rf"(\S++) [^ ]++ ({USER})"
_PROGRESS: Final = re.compile(
    f"(?:{_ANY_IDENTITY}(?:{TIME}(?:{QUOTED}(?:{WORD}(?:{WORD}(?:{QUOTED}(?:{QUOTED}(?:{QUOTED})?)?)?)?)?)?)?)?",
    re.DOTALL,
)
# The rest of a truncated line: nothing, or a bracket or quote that is not closed.
_UNFINISHED: Final = re.compile(r"(?: (?:\[[^\]]*+|\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\\?)?)?", re.DOTALL)
_MISSING: Final = {
    0: "client, identity and user, or another of the known formats",
    2: "a time such as [17/May/2015:10:05:03 +0000]",
    3: "a quoted request",
    4: "a status from 100 to 599",
    5: "a number of bytes or -",
    6: "a quoted referrer",
    7: "a quoted user agent",
    8: "the end of the line",
    9: "the end of the line",
}
"""What is expected after that many fields."""


_CHECKS: Final[tuple[tuple[int, str, Callable[[str], object]], ...]] = (
    (0, "client", _clients.__getitem__),
    (1, "user", _users.__getitem__),
    (2, "time", times.__getitem__),
    (3, "request", requests.__getitem__),
    (4, "status", _STATUSES.__getitem__),
    (5, "size", fields.size),
)


def _malformed(line: str) -> MalformedLine:
    """The reason and the column where a malformed line departs from the common and combined formats."""
    line = line.rstrip("\r\n")
    match = _PROGRESS.match(line)
    assert match is not None  # every part is optional
    found = match.groups()
    known = sum(field is not None for field in found)
    at = match.end()
    # Any three words look like a client, an identity and a user: only a time identifies a log line.
    is_log_line = known > 2 or line.startswith(" [", at)
    if is_log_line:
        # A first field that is not followed by a time is not a client.
        first = 0 if found[2] is not None and _reads(times.__getitem__, found[2]) else 2
        for position, name, reader in _CHECKS[first:]:
            text = found[position]
            if text is not None and not _reads(reader, text):
                reason, needed = NEEDED[name]
                if position >= 2:
                    needed = _MISSING[position]
                return MalformedLine(reason, match.start(position + 1) + 1, needed, text)
    stops = is_log_line and _UNFINISHED.fullmatch(line, at) is not None
    reason = "line ends early" if stops else "not a known format"
    return MalformedLine(reason, at + 1, _MISSING[known], line[at:])


def _reads(reader: Callable[[str], object], text: str) -> bool:
    try:
        reader(text)
    except (KeyError, ValueError):
        return False
    return True
