"""Detects which of the known formats a line is in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from apps.log_analysis.formats.jsons import JSON_FORMATS, read_entry
from apps.log_analysis.formats.tabbed import CLOUDFRONT
from apps.log_analysis.formats.text import (
    ALB,
    COMBINED,
    COMMON,
    ELB,
    HAPROXY,
    LINE_END,
    MAIN,
    S3,
    TEXT_FORMATS,
    TRAEFIK,
    VHOST_COMBINED,
    VHOST_COMMON,
)
from apps.log_analysis.malformed import MalformedLine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apps.log_analysis.formats.fields import Fields


class Format(Protocol):
    """A format of lines."""

    name: str
    local: bool
    """Whether its times have no offset from UTC, and are read as if they were UTC."""

    def read(self, line: str) -> Fields | None:
        """The fields of a line, ``None`` where the line is of another format.

        Raises ``MalformedLine`` where the line is of this format, but not all of its fields are.
        """


FORMATS: Final[dict[str, Format]] = {each.name: each for each in (*TEXT_FORMATS, CLOUDFRONT, *JSON_FORMATS)}
"""All known formats, by name."""

# Grouped by the first field, so that formats of the wrong family are not tried.
_BY_TIME: Final = (ELB, ALB)
_BY_CLIENT: Final = (COMBINED, MAIN, COMMON, VHOST_COMBINED, VHOST_COMMON, TRAEFIK, HAPROXY, S3)

BYTE_ORDER_MARK: Final = "\ufeff"
# Syslog's prefix, as in RFC 3164 and RFC 5424 and as rsyslog writes it to files.
_STAMP: Final = (
    r"(?:[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]++(?:Z|[+-][0-9:]++))"
)
_SYSLOG: Final = re.compile(
    rf"(?:<[0-9]{{1,3}}>)?(?:{_STAMP} (?:[^ :]++ )?[^ :\[\]]++(?:\[[0-9]++\])?: ++"
    r"|1 [0-9T:.Z+-]++ [^ ]++ [^ ]++ [^ ]++ [^ ]++ (?:-|\[[^\]]*+\]) (?:\ufeff)?)"
)
_HEADER: Final = re.compile(rf"#(?:Version|Fields|Software|Date|Start-Date|End-Date|Remark): ?.*+{LINE_END}")


def detect(line: str) -> tuple[Fields, Format] | None:
    """The fields of a line and its format; ``None`` if it is in no known format.

    A syslog prefix and a byte order mark are ignored. Raises ``MalformedLine`` for a line that has the shape
    of a format, but not its fields.
    """
    start = 1 if line.startswith(BYTE_ORDER_MARK) else 0
    rest = line[start:] if start else line
    if _HEADER.fullmatch(rest) is not None:
        raise MalformedLine(
            "not a known format", start + 1, "a request; this line describes the file", rest.rstrip("\r\n")
        )
    syslog = _SYSLOG.match(rest)
    if syslog is not None:
        start += syslog.end()
        rest = rest[syslog.end() :]
    try:
        return _detect(rest)
    except MalformedLine as error:
        if not start:
            raise
        raise MalformedLine(error.reason, error.column + start, error.needed, error.got) from None


def _detect(line: str) -> tuple[Fields, Format] | None:
    if line.startswith("{"):
        return read_entry(line)
    if "\t" in line:
        read = CLOUDFRONT.read(line)
        if read is not None:
            return read, CLOUDFRONT
    return _first(line, _BY_TIME) or _first(line, _BY_CLIENT)


def _first(line: str, formats: Sequence[Format]) -> tuple[Fields, Format] | None:
    """The first of these formats that matches a line.

    Some have the same shape: one may refuse a line by its fields that the next accepts. If none accepts it,
    the first refusal is raised.
    """
    refusal = None
    for each in formats:
        try:
            read = each.read(line)
        except MalformedLine as error:
            refusal = refusal or error
            continue
        if read is not None:
            return read, each
    if refusal is not None:
        raise refusal
    return None
