"""CloudFront's access log: W3C extended log file format, fields separated by tabs, after ``#`` header lines.

CloudFront's default (standard logging): 33 fields in a fixed order.
Times are UTC, referrer and agent are percent-encoded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from apps.log_analysis.formats import fields
from apps.log_analysis.formats.fields import Fields
from apps.log_analysis.formats.text import NEEDED
from apps.log_analysis.malformed import MalformedLine

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS: Final = 33
_METHOD: Final = re.compile(r"[A-Z][A-Z_-]*+")
_PROTOCOL: Final = re.compile(r"HTTP/[0-9.]{1,8}")
_READERS: Final[tuple[tuple[int, str, Callable[[str], Any]], ...]] = (
    (3, "size", fields.size),
    (4, "client", lambda text: text if fields.is_address(text) else _refuse(text)),
    (5, "method", lambda text: text if _METHOD.fullmatch(text) else _refuse(text)),
    (7, "target", lambda text: fields.plain_text(text) or _refuse(text)),
    (8, "status", fields.STATUSES.__getitem__),
    (9, "referrer", fields.percent_decoded),
    (10, "agent", fields.percent_decoded),
    (11, "query", lambda text: None if text == "-" else fields.plain_text(text)),
    (19, "forwarded", fields.percent_decoded),
    (23, "protocol", lambda text: text if _PROTOCOL.fullmatch(text) else _refuse(text)),
)


class CloudFront:
    """See the module."""

    name = "cloudfront"
    local = False

    def read(self, line: str) -> Fields | None:
        """The fields of a line; ``None`` where it is of another format, see ``TextFormat.read``."""
        parts = line.rstrip("\r\n").split("\t")
        if len(parts) != FIELDS:
            return None
        try:
            time = fields.iso_times[f"{parts[0]}T{parts[1]}Z"]
        except ValueError:
            raise MalformedLine("bad time", 1, "a date and a time", f"{parts[0]}\t{parts[1]}") from None
        values: dict[str, Any] = {}
        for position, name, reader in _READERS:
            try:
                values[name] = reader(parts[position])
            except (KeyError, ValueError):
                column = sum(map(len, parts[:position])) + position + 1
                raise MalformedLine(NEEDED[name][0], column, NEEDED[name][1], parts[position]) from None
        return Fields(
            time,
            values["client"],
            None,
            (values["method"], values["target"], values["query"], values["protocol"]),
            values["status"],
            values["size"],
            values["referrer"],
            values["agent"],
            values["forwarded"],
        )


def _refuse(text: str) -> str:
    raise ValueError(text)


CLOUDFRONT: Final = CloudFront()
