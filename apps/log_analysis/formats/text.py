r"""Formats that are texts with a fixed order of fields, as regular expressions.

====================  ==============================================================================
common, combined      Apache, nginx: ``client identity user [time] "request" status size``, and then
                      ``"referrer" "agent"``
main                  nginx's packages: combined and ``"X-Forwarded-For"``
vhost_common,         Apache: ``host:port`` or ``host`` before common and combined
vhost_combined
traefik               Traefik: combined and ``requests "router" "server" 12ms``
haproxy               HAProxy's ``option httplog`` and ``httpslog``
alb, elb              AWS Application Load Balancer, Classic Load Balancer
s3                    AWS S3 server access log
====================  ==============================================================================
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from apps.log_analysis.formats import fields
from apps.log_analysis.formats.fields import Fields
from apps.log_analysis.malformed import MalformedLine, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Matches up to the first quote by one literal, which is several times faster than a set of characters;
# escapes are matched one by one only if a backslash precedes that quote. The patterns cannot backtrack
# excessively.
QUOTED_TEXT: Final = r'(?>[^"]*+(?<!\\)|[^"\\]*+(?:\\.[^"\\]*+)*+)'
QUOTED: Final = rf' "({QUOTED_TEXT})"'
# A user name may contain spaces: it ends at the bracket of the time.
USER: Final = r"[^ ]++(?: [^ \[][^ ]*+)*+"
TIME: Final = r" \[([^\]]*+)\]"
WORD: Final = r" ([^ ]++)"
SIZE: Final = r" ([0-9]{1,18}+|-)"
LINE_END: Final = r"[\r\n]*+"

NEEDED: Final[Mapping[str, tuple[Reason, str]]] = {
    "host": ("bad client", "a virtual host such as www.example.com:443"),
    "identity": ("bad client", "an identity such as -"),
    "client": ("bad client", "the address or name of a client"),
    "forwarded": ("bad client", "addresses, or -"),
    "user": ("bad user", "a user name, or -"),
    "time": ("bad time", "a time such as [17/May/2015:10:05:03 +0000]"),
    "request": ("no request", "a request such as GET / HTTP/1.1"),
    "method": ("no request", "a method such as GET"),
    "target": ("no request", "a path such as /index.html"),
    "query": ("no request", "a query, or -"),
    "protocol": ("no request", "a protocol such as HTTP/1.1"),
    "status": ("bad status", "a status from 100 to 599"),
    "size": ("bad size", "a number of bytes or -"),
    "referrer": ("bad text", "a referrer without NUL bytes"),
    "agent": ("bad text", "a user agent without NUL bytes"),
}
"""The expected text of each field, and the reason for a malformed line without it."""

READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "client": fields.clients.__getitem__,
    "forwarded": fields.optional,
    "user": fields.users.__getitem__,
    "time": fields.times.__getitem__,
    "request": fields.requests.__getitem__,
    "method": fields.plain,
    "target": fields.plain,
    "query": fields.plain,
    "protocol": fields.plain,
    "status": fields.STATUSES.__getitem__,
    "size": fields.size,
    "referrer": fields.referrers.__getitem__,
    "agent": fields.referrers.__getitem__,
}
"""The default parsers of fields."""


class TextFormat:
    """A format as a regular expression, whose named groups are fields.

    ``readers`` are parsers of fields with a special form in this format. ``check`` validates fields together:
    it is called with the parsed fields, by name, and raises ``BadField`` with the parts of a
    ``MalformedLine``. Times of ``local`` formats have no offset from UTC and are read as if they were UTC.
    """

    def __init__(
        self,
        name: str,
        pattern: str,
        *,
        readers: Mapping[str, Callable[[str], Any]] | None = None,
        check: Callable[[Mapping[str, Any]], str | None] | None = None,
        local: bool = False,
    ) -> None:
        self.name = name
        self.local = local
        self._pattern = re.compile(pattern, re.DOTALL)
        self._readers = {group: {**READERS, **(readers or {})}[group] for group in self._pattern.groupindex}
        self._check = check

    def read(self, line: str) -> Fields | None:
        """The fields of a line; ``None`` if it is in another format.

        Raises ``MalformedLine`` if it has the shape of this format, but not its fields.
        """
        match = self._pattern.fullmatch(line.rstrip("\r\n"))
        if match is None:
            return None
        values: dict[str, Any] = {}
        for name, reader in self._readers.items():
            text = match[name]
            if text is None:
                continue
            try:
                values[name] = reader(text)
            except (KeyError, ValueError):
                raise _bad(match, name) from None
        if self._check is not None and (bad := self._check(values)) is not None:
            raise _bad(match, bad)
        return Fields(
            values["time"],
            values.get("client", ""),
            values.get("user"),
            values["request"] if "request" in values else _request(match, values),
            values["status"],
            values.get("size", 0),
            values.get("referrer"),
            values.get("agent"),
            values.get("forwarded"),
        )


def _bad(match: re.Match[str], name: str) -> MalformedLine:
    reason, needed = NEEDED[name]
    return MalformedLine(reason, match.start(name) + 1, needed, match[name])


def _request(match: re.Match[str], values: Mapping[str, Any]) -> tuple[str, str, str | None, str]:
    """A request that is written as separate fields."""
    method, target = values["method"], values["target"]
    if not target:
        raise _bad(match, "target")
    path, query = fields.split_target(target)
    given: str | None = values.get("query")
    if given is not None and given not in {"", "-"}:
        query = given.removeprefix("?")
    return method or "-", path, query, values.get("protocol") or "-"


def named(name: str, pattern: str) -> str:
    """A pattern of one group, with a name for the group."""
    return pattern.replace("(", f"(?P<{name}>", 1)


def quoted(name: str) -> str:
    """A pattern of a space and a quoted text, as a group of this name."""
    return rf' "(?P<{name}>{QUOTED_TEXT})"'


_ANSWER: Final = named("time", TIME) + quoted("request") + r" (?P<status>[^ ]++)" + r" (?P<size>[^ ]++)"
_WHO: Final = rf"(?P<client>\S++) (?P<identity>[^ ]++) (?P<user>{USER})"
_HEADERS: Final = quoted("referrer") + quoted("agent")


_IDENTITY_WORD: Final = re.compile(r"[^-.:,\"\[\]\0][^.:,\"\[\]\0]*+")


def _no_address(identity: str) -> str:
    """The identity: an address or a host name there means that the line has an additional leading field."""
    if identity != "-" and _IDENTITY_WORD.fullmatch(identity) is None:
        raise ValueError(identity)
    return identity


def _lone_user(values: Mapping[str, Any]) -> str | None:
    """Only a user without an identity may contain spaces."""
    user = values.get("user")
    return "user" if values["identity"] != "-" and user is not None and " " in user else None


def _client_after_host(values: Mapping[str, Any]) -> str | None:
    if values["host"] and not fields.is_address(values["client"]):
        return "client"
    return _lone_user(values)


def _host(text: str) -> bool:
    return text != "-" and fields.virtual_host(text)


_IDENTITY: Final = {"identity": _no_address}
_HOST_IDENTITY: Final = {
    "identity": _no_address,
    "host": _host,
}

_ISO_TIME: Final = {"time": fields.iso_times.__getitem__}
_SHORT_ISO: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]++Z"
_SECONDS: Final = r"-?[0-9.]++"

_BALANCER_REQUEST: Final = {
    **_ISO_TIME,
    "client": fields.endpoint,
    "request": fields.relative_request,
}


def _haproxy_request(text: str) -> tuple[str, str, str | None, str]:
    """HAProxy combines the authority and path of HTTP/2 and HTTP/3 requests to an absolute target."""
    method, path, query, protocol = fields.requests[text]
    if protocol.startswith(("HTTP/2", "HTTP/3")):
        path = fields.relative_path(path)
    return method, path, query, protocol


COMMON: Final = TextFormat("common", _WHO + _ANSWER, readers=_IDENTITY, check=_lone_user)
COMBINED: Final = TextFormat("combined", _WHO + _ANSWER + _HEADERS, readers=_IDENTITY, check=_lone_user)
MAIN: Final = TextFormat(
    "main", _WHO + _ANSWER + _HEADERS + quoted("forwarded"), readers=_IDENTITY, check=_lone_user
)
VHOST_COMMON: Final = TextFormat(
    "vhost_common",
    r"(?P<host>\S++) " + _WHO + _ANSWER,
    readers=_HOST_IDENTITY,
    check=_client_after_host,
)
VHOST_COMBINED: Final = TextFormat(
    "vhost_combined",
    r"(?P<host>\S++) " + _WHO + _ANSWER + _HEADERS,
    readers=_HOST_IDENTITY,
    check=_client_after_host,
)
TRAEFIK: Final = TextFormat(
    "traefik",
    # Traefik escapes nothing: a client's quotes change the number of fields.
    _WHO.replace("(?P<identity>[^ ]++)", "-")
    + named("time", TIME)
    + r' "(?P<request>[^"]*+)" (?P<status>[^ ]++) (?P<size>[^ ]++)'
    + r' "(?P<referrer>[^"]*+)" "(?P<agent>[^"]*+)" (?:[0-9]++|-) "[^"]*+" "[^"]*+" [0-9]++ms',
    readers={
        "request": lambda text: fields.split_request(fields.plain_text(text)),
        "referrer": lambda text: None if text == "-" else fields.plain_text(text),
        "agent": lambda text: None if text == "-" else fields.plain_text(text),
    },
)
HAPROXY: Final = TextFormat(
    "haproxy",
    r"(?P<client>\S++) \[(?P<time>[^\]]*+)\] [^ ]++ [^ /]++/[^ ]++"
    r" (?:-?[0-9]++/){4}\+?-?[0-9]++ (?P<status>-?[0-9]++) (?P<size>\+?[0-9]++) [^ ]++ [^ ]++ [A-Za-z-]{4}"
    r" (?:[0-9]++/){4}\+?[0-9]++ [0-9]++/[0-9]++(?: \{[^{}\"]*+\}){0,2}"
    r' "(?P<request>[^"]*+)"(?: [0-9A-Fa-fx/-]++ [^ /]++/[^ /]++/[^ /]++)?',
    readers={"client": fields.endpoint, "time": fields.local_milliseconds, "request": _haproxy_request},
    local=True,
)
ALB: Final = TextFormat(
    "alb",
    rf"(?:https?|h2|grpcs?|wss?) (?P<time>{_SHORT_ISO}) [^ ]++ (?P<client>\S++) [^ ]++"
    rf" {_SECONDS} {_SECONDS} {_SECONDS} (?P<status>[^ ]++) (?:[0-9]{{1,3}}|-) [0-9-]++ (?P<size>[0-9-]++)"
    + quoted("request")
    + quoted("agent")
    + r" [^ ]++ [^ ]++ [^ ]++"
    + rf' "{QUOTED_TEXT}"' * 3
    + rf" [0-9-]++ {_SHORT_ISO}"
    + rf' "{QUOTED_TEXT}"' * 3
    # AWS appends fields from time to time. A line that is joined with the next one has more.
    + rf'(?: (?:"{QUOTED_TEXT}"|[^ "]++)){{0,12}}+ ?',
    readers=_BALANCER_REQUEST,
)
ELB: Final = TextFormat(
    "elb",
    rf"(?P<time>{_SHORT_ISO}) [^ ]++ (?P<client>\S++) [^ ]++ {_SECONDS} {_SECONDS} {_SECONDS}"
    r" (?P<status>[^ ]++) (?:[0-9]{1,3}|-) [0-9-]++ (?P<size>[0-9-]++)"
    + quoted("request")
    + quoted("agent")
    + r" (?:-|[A-Z][A-Z0-9_-]++) (?:-|(?:TLSv|SSLv)[0-9.]++)",
    readers=_BALANCER_REQUEST,
)
S3: Final = TextFormat(
    "s3",
    r"(?:[0-9a-f]{64}|-) [A-Za-z0-9._-]++"
    + named("time", TIME)
    + r" (?P<client>\S++) (?P<user>[^ ]++) [0-9A-Z]++ [A-Z0-9_.-]++ [^ ]++"
    + quoted("request")
    + r" (?P<status>[^ ]++) [A-Za-z-]++ (?P<size>[^ ]++) [0-9-]++ [0-9-]++ [0-9-]++"
    + _HEADERS
    + r" [^ ]++(?: [^ ]++){6,9}",
    readers={"client": lambda text: fields.client(text) if fields.is_address(text) else _refuse(text)},
)


def _refuse(text: str) -> str:
    raise ValueError(text)


TEXT_FORMATS: Final = (
    *(COMMON, COMBINED, MAIN, VHOST_COMMON, VHOST_COMBINED),
    *(TRAEFIK, HAPROXY, ALB, ELB, S3),
)
"""Each line matches at most one of them."""
