"""How Debezium is configured for every database: what its events look like, and its names."""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from streams.connectors.table_name import TableName

UNAVAILABLE: Final = "__streams_unavailable_value_4c1b7e"
"""Debezium's text for a value that the server did not send: unlikely to be anybody's own."""
HEARTBEAT_MS: Final = 5_000

_ENGINES: Final = count(1)
_NAME: Final = re.compile(r"[^a-z0-9_]+")


class Capture(Protocol):
    """The tables of one database, and how they are captured."""

    @property
    def tables(self) -> tuple[TableName, ...]:
        """What is captured."""

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be in logs and errors."""

    def check(self, application: str, name: str) -> None:
        """Check what can be checked, and start the Java runtime in the thread of the caller.

        Raises ``ConnectorError``.
        """

    def described(self) -> str:
        """The source without its secrets, for errors and notebooks."""


def chosen(given: Mapping[str, str]) -> dict[str, str]:
    """The properties that a program may give, with their defaults: how often, and how values look."""
    return {
        "poll.interval.ms": "20",
        "heartbeat.interval.ms": str(HEARTBEAT_MS),
        **given,
    }


def common(application: str, name: str) -> dict[str, str]:
    """The properties of every source that a program may not give: others would lose or change something."""
    return {
        "name": server_name(application, name),
        "topic.prefix": server_name(application, name),
        # Engines of one process, also one that is still ending, register their metrics apart.
        "custom.metric.tags": f"engine={next(_ENGINES)}",
        # A failed engine is opened again at the committed position: Debezium would continue at its own.
        "errors.max.retries": "0",
        # Bytes become base64 in JSON; told to make base64 itself, Debezium gives null for a large value.
        "binary.handling.mode": "bytes",
        "time.precision.mode": "isostring",
        "decimal.handling.mode": "string",
        "column.propagate.source.type": ".*",
        # A value that cannot be converted would arrive as null, with a warning.
        "event.converting.failure.handling.mode": "fail",
        "skipped.operations": "none",
        "tombstones.on.delete": "false",
        "unavailable.value.placeholder": UNAVAILABLE,
        "extended.headers.enabled": "false",
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
        "header.converter.schemas.enable": "false",
        # Otherwise NULL in a column that has a default arrives as the default.
        "key.converter.replace.null.with.default": "false",
        "value.converter.replace.null.with.default": "false",
    }


def again(name: str, snapshot: str) -> str:
    """What to do when changes were lost. ``snapshot`` is the present one."""
    return f"take a new snapshot: give the source {name} another snapshot= than {snapshot!r}; {_RESULT}"


def table_again(name: str, tables: Iterable[str]) -> str:
    """What to do when changes of some tables were lost."""
    texts = ", ".join(f"{table!r}: …" for table in tables)
    return (
        f"read again what changed: give the source {name} table_snapshots={{{texts}}} with another text than "
        f"before; with another primary key, another snapshot=. {_RESULT[0].upper()}{_RESULT[1:]}"
    )


_RESULT: Final = (
    "rows that are gone are then deleted downstream, and rows that are the same are not sent again"
)


def secrets_of(values: Mapping[str, Any]) -> frozenset[str]:
    """What must not be in logs and errors."""
    return frozenset(str(value) for name, value in values.items() if "password" in name and value)


def server_name(application: str, name: str) -> str:
    """The name of a source's slot and publication: what a slot may be called, in 63 characters.

    Another source never has the same one: it would drop this one's slot.
    """
    text = f"{application}_{name}"
    allowed = _NAME.sub("_", text.lower())[:63]
    if allowed == text and application.count("_") + name.count("_") == 0:
        return text
    return f"{allowed[:54]}_{blake2b(repr((application, name)).encode(), digest_size=4).hexdigest()}"


def pattern(name: str) -> str:
    """A regular expression of Java that matches this name only, without a comma."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in name)
