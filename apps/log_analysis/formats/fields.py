r"""Parsers of the fields of access log lines.

Each function raises ``ValueError`` for an invalid text: the line is then malformed. A NUL byte is never
valid, as servers write it escaped: it is left by a crash or a truncated file. Inside quotes ``\"`` and ``\\``
(Apache) and ``\x22`` and ``\x5C`` (nginx) stand for the quote and the backslash. Other escapes (``\xhh``,
``\n``) are kept as the server wrote them: decoded, they may be control characters or bytes that are not text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import unquote

from apps.log_analysis.memo import Memo


class Fields(NamedTuple):
    """The fields of one request, from a line of any format; see ``Hit`` for their meaning."""

    time: int
    client: str
    """Empty where the format has only ``forwarded``."""
    user: str | None
    request: tuple[str, str, str | None, str]
    """Method, path, query and protocol."""
    status: tuple[int, str]
    """The status and its class."""
    size: int
    referrer: str | None
    agent: str | None
    forwarded: str | None
    """The value of ``X-Forwarded-For``, written by the client or proxies, if the format has it."""


MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_OFFSET: Final = r"([+-])([01][0-9]|2[0-3]):?([0-5][0-9])"
_CLOCK: Final = r"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])"
_TIME: Final = re.compile(
    rf"([0-9]{{2}}/[A-Z][a-z]{{2}}/[0-9]{{4}}):{_CLOCK} ([+-])([01][0-9]|2[0-3])([0-5][0-9])"
)
_ISO: Final = re.compile(
    rf"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})[T ]{_CLOCK}(?:[.,]([0-9]{{1,9}}))?(?:Z|{_OFFSET})"
)
_LOCAL: Final = re.compile(rf"([0-9]{{2}}/[A-Z][a-z]{{2}}/[0-9]{{4}}):{_CLOCK}\.([0-9]{{3}})")
_EPOCH: Final = re.compile(r"([0-9]{1,11})(?:\.([0-9]{1,9}))?")


def _midnight(date: str) -> int:
    """Seconds since the epoch of a date such as ``17/May/2015``, in UTC; ``ValueError`` if there is none."""
    day, month, year = date.split("/")
    return int(datetime(int(year), MONTHS.index(month) + 1, int(day), tzinfo=UTC).timestamp())


def milliseconds(time: str) -> int:
    """Milliseconds since the epoch of a time such as ``17/May/2015:10:05:03 +0000``.

    Raises ``ValueError`` if it has another format, does not exist, or is before 1970, where Kafka's
    timestamps start.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise ValueError(time)
    date, hour, minute, second, sign, offset_hours, offset_minutes = match.groups()
    seconds = _midnights[date] + _seconds(hour, minute, second)
    return _since_epoch(seconds - _offset(sign, offset_hours, offset_minutes), None)


def iso_milliseconds(time: str) -> int:
    """Milliseconds since the epoch of a time such as ``2015-05-17T10:05:03.123Z``, as ``milliseconds`` does.

    A time without an offset from UTC raises ``ValueError``, as its time zone is not known.
    """
    match = _ISO.fullmatch(time)
    if match is None:
        raise ValueError(time)
    date, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
    offset = 0 if sign is None else _offset(sign, offset_hours, offset_minutes)
    return _since_epoch(_iso_midnights[date] + _seconds(hour, minute, second) - offset, fraction)


def local_milliseconds(time: str) -> int:
    """Milliseconds since the epoch of HAProxy's ``17/May/2015:10:05:03.123``, read as UTC."""
    match = _LOCAL.fullmatch(time)
    if match is None:
        raise ValueError(time)
    date, hour, minute, second, fraction = match.groups()
    return _since_epoch(_midnights[date] + _seconds(hour, minute, second), fraction)


def epoch_milliseconds(time: str) -> int:
    """Milliseconds since the epoch of seconds since the epoch, such as ``1431857103.123``."""
    match = _EPOCH.fullmatch(time)
    if match is None:
        raise ValueError(time)
    return _since_epoch(int(match[1]), match[2])


def _iso_midnight(date: str) -> int:
    return int(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp())


def _seconds(hour: str, minute: str, second: str) -> int:
    return int(hour) * 3600 + int(minute) * 60 + int(second)


def _offset(sign: str, hours: str, minutes: str) -> int:
    seconds = int(hours) * 3600 + int(minutes) * 60
    return -seconds if sign == "-" else seconds


def _since_epoch(seconds: int, fraction: str | None) -> int:
    if seconds < 0:
        raise ValueError(seconds)
    return seconds * 1000 + (int(f"{fraction}00"[:3]) if fraction else 0)


# The last label of a host name begins with a letter, so a truncated address such as 49.9.216 is invalid.
_HOST: Final = re.compile(
    r"(?=.{1,254}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*"
    r"[A-Za-z_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?"
)
_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]++(?:%[0-9A-Za-z_.-]++)?)\](?::([0-9]{1,5}))?")
_ADDRESS: Final = re.compile(
    r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z_.-]+)?"
)
UNIX_SOCKET: Final = "unix:"
"""The client of a connection through a socket in the file system, as nginx writes it."""


def is_address(text: str) -> bool:
    """Whether this is an IPv4 or IPv6 address, without brackets or port."""
    if _ADDRESS.fullmatch(text) is None:
        return False
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def client(text: str) -> str:
    """The client as a server writes it: an address, also in brackets, or a host name.

    Anything else is refused: a name with a port is a virtual host, a text with a comma is a list of
    addresses.
    """
    if is_address(text) or text == UNIX_SOCKET or _HOST.fullmatch(text) is not None:
        return text
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed is None or bracketed[2] is not None or not is_address(bracketed[1]):
        raise ValueError(text)
    return bracketed[1]


def endpoint(text: str) -> str:
    """The address of an address with a port: ``192.0.2.1:80``, ``[::1]:80``."""
    bracketed = _BRACKETED.fullmatch(text)
    address, port = (bracketed[1], bracketed[2] or "") if bracketed else text.rpartition(":")[::2]
    if not is_address(address) or not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ValueError(text)
    return address


def address(text: str) -> str:
    """The address of an address with or without a port."""
    return text if is_address(text) else endpoint(text)


def first_forwarded(text: str) -> str:
    """The first address of an ``X-Forwarded-For`` list: the client, if the header is trusted."""
    return address(text.partition(",")[0].strip())


def user(text: str) -> str | None:
    """The user; ``None`` for ``-``.

    A name may contain spaces, but no word that is only a dash: then the line has more fields than the format,
    and its first field is not the client.
    """
    if text in {"-", ""}:
        return None
    if "\0" in text or (" " in text and "-" in text.split(" ")):
        raise ValueError(text)
    return text


_VIRTUAL_HOST: Final = re.compile(r"([A-Za-z0-9._~*-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_FIRST_EPHEMERAL_PORT: Final = 32_768


def virtual_host(text: str) -> bool:
    """Validate the server's name before the client, and return whether the client must be an address.

    A leading address may also be the client itself, or one that a proxy forwarded: it is only accepted as a
    server's with a server's port. Without a port, two names may be a client and its server.
    """
    match = _VIRTUAL_HOST.fullmatch(text)
    if match is None:
        raise ValueError(text)
    name, port = match.groups()
    if is_address(name.strip("[]")):
        if port is None or int(port) >= _FIRST_EPHEMERAL_PORT:
            raise ValueError(text)
        return True
    if name.replace(".", "").isdigit():
        raise ValueError(text)
    return port is None


_ESCAPED: Final = re.compile(r"\\(?:([\"\\])|x(22|5C))")
_ESCAPES: Final = {"22": '"', "5C": "\\"}


def plain(text: str) -> str:
    """The text with escaped quotes and backslashes decoded."""
    if "\0" in text:
        raise ValueError(text)
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda match: match[1] or _ESCAPES[match[2]], text)


def optional(text: str) -> str | None:
    """The text as the client sent it; ``None`` for ``-``."""
    return None if text == "-" else plain(text)


def percent_decoded(text: str) -> str | None:
    """A text that the server percent-encoded; ``None`` for ``-``."""
    return None if text == "-" else plain_text(unquote(text))


def plain_text(text: str) -> str:
    """A text without escapes."""
    if "\0" in text:
        raise ValueError(text)
    return text


_CRAWLERS: Final = ("bot", "crawl", "spider", "slurp", "scrapy", "scanner", "nutch", "archiver", "sleuth")
_READERS: Final = ("fetch", "feed", "rss", "reader", "preview", "externalhit", "validator")
_MONITORS: Final = ("monitor", "uptime", "pingdom", "headless", "phantomjs")
_LIBRARIES: Final = ("curl", "wget", "python", "ruby", "java/", "go-http-client", "libwww", "httpclient")
# Whom to complain to: programs say it, browsers do not.
_CONTACTS: Final = ("http://", "https://", "@")
_BOT_WORDS: Final = _CRAWLERS + _READERS + _MONITORS + _LIBRARIES + _CONTACTS


def is_bot(agent: str) -> bool:
    """Whether a user agent looks like a program's: crawler, feed reader, monitor, HTTP library.

    A heuristic on well-known words and on contact addresses, which programs give and browsers do not. A
    program that poses as a browser is not found, and neither is one that sends no agent at all.
    """
    # Cubot makes telephones. Looking for word after word is several times faster than one regex of them all.
    agent = agent.lower().replace("cubot", "")
    return any(word in agent for word in _BOT_WORDS)


def _agent(text: str) -> tuple[str | None, bool]:
    agent = optional(text)
    return agent, agent is not None and is_bot(agent)


# The target may hold blanks that a client did not encode: only a last word can be the protocol.
_REQUEST: Final = re.compile(
    r"([A-Z][A-Z_-]*+) ([^ ]++(?: (?![A-Z]++/[0-9.]++\Z)[^ ]*+)*+)(?: ([A-Z]++/[0-9.]++))?"
)


def request(text: str) -> tuple[str, str, str | None, str]:
    """Method, path, query and protocol; ``ValueError`` if there is nothing at all."""
    if not text or text.isspace():
        raise ValueError(text)
    return split_request(plain(text))


def split_request(text: str) -> tuple[str, str, str | None, str]:
    """As ``request``, of a text in which nothing is escaped."""
    match = _REQUEST.fullmatch(text)
    if match is None:
        return "-", text, None, "-"
    path, query = split_target(match[2])
    return match[1], path, query, match[3] or "HTTP/0.9"


def split_target(target: str) -> tuple[str, str | None]:
    """Path and query of a request's target."""
    path, mark, query = target.partition("?")
    return path, query if mark else None


_ORIGIN: Final = re.compile(r"[a-z]+://[^/?#]*")


def relative_request(text: str) -> tuple[str, str, str | None, str]:
    """As ``request``, where the server writes the target with the scheme and host that the client did not."""
    method, path, query, protocol = request(text)
    return method, relative_path(path), query, protocol


def relative_path(target: str) -> str:
    """The target without scheme and host."""
    match = _ORIGIN.match(target)
    return target if match is None else target[match.end() :] or "/"


STATUSES: Final = {str(status): (status, f"{status // 100}xx") for status in range(100, 600)}
"""What a status may be, with its class."""

# More than 18 digits may not fit into the 64 bits of a schema.
_SIZE: Final = re.compile(r"\+?([0-9]{1,18})")


def size(text: str) -> int:
    """A number of bytes; 0 for ``-``."""
    if text == "-":
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match[1])


# Logs repeat themselves: seconds, requests and agents are looked up far more often than they are computed.
# Hits then also share their texts, whose hashes are known by the time something is grouped by them.
_midnights: Final = Memo(_midnight, limit=1_024)
_iso_midnights: Final = Memo(_iso_midnight, limit=1_024)
times: Final = Memo(milliseconds)
iso_times: Final = Memo(iso_milliseconds)
clients: Final = Memo(client)
users: Final = Memo(user)
requests: Final = Memo(request)
referrers: Final = Memo(optional)
agents: Final = Memo(_agent)
