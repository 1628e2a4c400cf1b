r"""One request of a web server's access log, and the parser of its line.

The common log format and the combined one, which adds two quoted fields, as Apache and nginx write them::

    client identity user [time] "request" status size
    client identity user [time] "request" status size "referrer" "agent"

Inside quotes ``\"`` and ``\\`` stand for the quote and the backslash. Other escapes (``\xhh``, ``\n``) are
kept as the server wrote them: undone, they may be control characters or bytes that are no text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

V = TypeVar("V")

Reason: TypeAlias = Literal[
    "not the common or combined format",
    "line ends early",
    "bad time",
    "no request",
    "bad status",
    "bad size",
]
"""Why a line is malformed: few and fixed, so that malformed lines can be counted by reason."""


class MalformedLine(ValueError):
    """The line is no hit.

    ``reason`` says why, ``column`` (from 1) where, ``needed`` what belongs there and ``got`` what is there.
    """

    def __init__(self, reason: Reason, column: int, needed: str, got: str) -> None:
        # The arguments are kept as they are: this is what lets an exception be pickled.
        super().__init__(reason, column, needed, got)
        self.reason: Reason = reason
        self.column = column
        self.needed = needed
        self.got = got

    def __str__(self) -> str:
        got = f"{self.got[:40]!r}{' …' if len(self.got) > 40 else ''}" if self.got else "nothing"
        return f"{self.reason} at column {self.column}: needed {self.needed}, got {got}"


class Hit(msgspec.Struct, frozen=True, gc=False):
    """One request, as its access log line tells it; ``None`` where the line has ``-`` or no such field.

    A request that is not HTTP (a TLS handshake on a plain port, or none at all: ``-``, usual with status 408)
    has method and protocol ``-`` and the request's text as its path.
    """

    time: int
    """When the request was received: event time, milliseconds since the epoch, of whole seconds."""
    client: str
    """The client's IPv4 or IPv6 address or its host name."""
    user: str | None
    """The authenticated user."""
    method: str
    path: str
    """The request's target without its query string. May be an absolute URI, ``host:port`` or ``*``."""
    query: str | None
    """What follows the target's first ``?``; empty when nothing does."""
    protocol: str
    """E.g. ``HTTP/1.1``; ``HTTP/0.9`` for a request that names none."""
    status: int
    status_class: str
    """The status by its first digit, e.g. ``2xx``: what hits are grouped by."""
    bytes: int
    """The response body's size in bytes; 0 where the line has ``-``."""
    referrer: str | None
    agent: str | None
    bot: bool
    """Whether the agent looks like a program's rather than a person's browser: see ``is_bot``."""


class Memo(dict[str, V]):
    """Results of a function of a text, remembered: ``memo[text]`` computes at most once while remembered.

    Holds ``limit`` results and forgets all when one more comes: an order of use would cost on each look-up.
    Texts over ``longest`` characters are computed each time, which bounds the memory in bytes as well.
    """

    def __init__(self, function: Callable[[str], V], *, limit: int = 16_384, longest: int = 1_000) -> None:
        super().__init__()
        self.function = function
        self.limit = limit
        self.longest = longest

    def __missing__(self, text: str) -> V:
        result = self.function(text)
        if len(text) <= self.longest:
            if len(self) >= self.limit:
                self.clear()
            self[text] = result
        return result


MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TIME: Final = re.compile(
    r"([0-9]{2}/[A-Z][a-z]{2}/[0-9]{4}):([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])"
    r" ([+-])([01][0-9]|2[0-3])([0-5][0-9])"
)


def _midnight(date: str) -> int:
    """Seconds since the epoch of a date such as ``17/May/2015``, in UTC; ``ValueError`` if there is none."""
    day, month, year = date.split("/")
    return int(datetime(int(year), MONTHS.index(month) + 1, int(day), tzinfo=UTC).timestamp())


def milliseconds(time: str) -> int:
    """Milliseconds since the epoch of a time such as ``17/May/2015:10:05:03 +0000``.

    Raises ``ValueError`` if it is written otherwise, does not exist, or lies before 1970: Kafka's timestamps
    start there.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise ValueError(time)
    date, hour, minute, second, sign, offset_hours, offset_minutes = match.groups()
    offset = int(offset_hours) * 3600 + int(offset_minutes) * 60
    seconds = _midnights[date] + int(hour) * 3600 + int(minute) * 60 + int(second)
    seconds += offset if sign == "-" else -offset
    if seconds < 0:
        raise ValueError(time)
    return seconds * 1000


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


def _plain(text: str) -> str:
    """The text with its escaped quotes and backslashes undone."""
    return re.sub(r'\\(["\\])', r"\1", text) if "\\" in text else text


def _agent(text: str) -> tuple[str | None, bool]:
    if text == "-":
        return None, False
    agent = _plain(text)
    return agent, is_bot(agent)


# The target may hold blanks that a client did not encode: only a last word can be the protocol.
_REQUEST: Final = re.compile(
    r"([A-Z][A-Z_-]*+) ([^ ]++(?: (?![A-Z]++/[0-9.]++\Z)[^ ]*+)*+)(?: ([A-Z]++/[0-9.]++))?"
)


def _request(text: str) -> tuple[str, str, str | None, str]:
    """Method, path, query and protocol; ``ValueError`` if there is nothing at all."""
    if not text or text.isspace():
        raise ValueError(text)
    plain = _plain(text)
    match = _REQUEST.fullmatch(plain)
    if match is None:
        return "-", plain, None, "-"
    path, mark, query = match[2].partition("?")
    return match[1], path, query if mark else None, match[3] or "HTTP/0.9"


# Logs repeat themselves: seconds, requests and agents are looked up far more often than they are computed.
# Hits then also share their texts, whose hashes are known by the time something is grouped by them.
_midnights: Final = Memo(_midnight, limit=1_024)
times: Final = Memo(milliseconds)
requests: Final = Memo(_request)
agents: Final = Memo(_agent)

_STATUSES: Final = {str(status): (status, f"{status // 100}xx") for status in range(100, 600)}

# A user name may hold blanks: it goes on to the bracket of the time.
_WHO: Final = r"(\S++) [^ ]++ ([^ ]++(?: [^ \[][^ ]*+)*+)"
_TIME_FIELD: Final = r" \[([^\]]*+)\]"
# Up to the first quote by one literal, which is several times faster than a set of characters; only where a
# backslash precedes that quote, escape by escape. Nothing in these patterns can backtrack for long.
_QUOTED: Final = r' "((?>[^"]*+(?<!\\)|[^"\\]*+(?:\\.[^"\\]*+)*+))"'
_WORD: Final = r" ([^ ]++)"
# More than 18 digits may not fit into the 64 bits of a schema.
_SIZE: Final = r" ([0-9]{1,18}+|-)"
_LINE_END: Final = r"[\r\n]*+"

_LINE: Final = re.compile(
    f"{_WHO}{_TIME_FIELD}{_QUOTED}{_WORD}{_SIZE}(?:{_QUOTED}{_QUOTED})?{_LINE_END}", re.DOTALL
)


def parse(line: str) -> Hit:
    """The hit that a line in the common or combined format tells. Raises ``MalformedLine``.

    Line breaks at the end are no part of it. A time before 1970 is malformed, a time in the future is not.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise _malformed(line)
    client, user, time, request, status, size, referrer, agent = match.groups("-")
    try:
        method, path, query, protocol = requests[request]
        code, status_class = _STATUSES[status]
        known_agent, bot = agents[agent]
        # By position: with keywords the constructor takes a quarter longer.
        return Hit(
            times[time],
            client,
            None if user == "-" else user,
            method,
            path,
            query,
            protocol,
            code,
            status_class,
            0 if size == "-" else int(size),
            None if referrer == "-" else _plain(referrer),
            known_agent,
            bot,
        )
    except (KeyError, ValueError):
        raise _malformed(line) from None


# As much of a line as is in the format: each part is optional, and comes only after those before it.
_PROGRESS: Final = re.compile(
    f"(?:{_WHO}(?:{_TIME_FIELD}(?:{_QUOTED}(?:{_WORD}(?:{_WORD}(?:{_QUOTED}(?:{_QUOTED})?)?)?)?)?)?)?",
    re.DOTALL,
)
# What follows that when the line just stops: nothing, or a bracket or quote that is never closed.
_UNFINISHED: Final = re.compile(r"(?: (?:\[[^\]]*+|\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\\?)?)?", re.DOTALL)
_NEEDED: Final = {
    0: "client, identity and user",
    2: "a time such as [17/May/2015:10:05:03 +0000]",
    3: "a quoted request",
    4: "a status from 100 to 599",
    5: "a number of bytes or -",
    6: "a quoted referrer",
    7: "a quoted user agent",
    8: "the end of the line",
}
"""What comes after that many fields."""


def _malformed(line: str) -> MalformedLine:
    """Why and where ``line``, which is no hit, leaves the format."""
    line = line.rstrip("\r\n")
    match = _PROGRESS.match(line)
    assert match is not None  # every part is optional
    checks: tuple[tuple[int, Reason, Callable[[str], bool]], ...] = (
        (2, "bad time", _is_time),
        (3, "no request", lambda request: bool(request.strip())),
        (4, "bad status", _STATUSES.__contains__),
        (5, "bad size", lambda size: re.fullmatch(_SIZE, f" {size}") is not None),
    )
    fields = match.groups()
    for position, reason, holds in checks:
        field = fields[position]
        if field is not None and not holds(field):
            return MalformedLine(reason, match.start(position + 1) + 1, _NEEDED[position], field)
    known = sum(field is not None for field in fields)
    at = match.end()
    # Any few words look like a client, an identity and a user: it takes a time to tell a log line.
    is_log_line = known > 2 or line.startswith(" [", at)
    stops = is_log_line and _UNFINISHED.fullmatch(line, at) is not None
    return MalformedLine(
        "line ends early" if stops else "not the common or combined format", at + 1, _NEEDED[known], line[at:]
    )


def _is_time(text: str) -> bool:
    try:
        milliseconds(text)
    except ValueError:
        return False
    return True
