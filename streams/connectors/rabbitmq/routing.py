"""Which routing key each row gets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from streams.connectors.rabbitmq.declarations import Header, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.connectors.sink import SinkRows

RoutingKey: TypeAlias = "str | Key | Header | Callable[[Any], str]"
"""A text, the record's key, one of its headers, or a function of its value."""


def routing_keys(rule: RoutingKey, rows: SinkRows) -> tuple[list[bytes], dict[int, Exception]]:
    """The routing key of each row, and the errors of rows that have none."""
    if isinstance(rule, str):
        return [rule.encode()] * len(rows), {}
    found: list[bytes] = []
    errors: dict[int, Exception] = {}
    column: Sequence[Any]
    take: Callable[[Any], bytes]
    if isinstance(rule, Key):
        column, take = rows.keys, _of_key
    elif isinstance(rule, Header):
        column, take = rows.headers, partial(_of_headers, rule.name)
    else:
        column, take = rows.values, partial(_called, rule)
    for row, item in enumerate(column):
        try:
            found.append(take(item))
        except Exception as error:  # noqa: BLE001 - the row's, which is refused
            errors[row] = error
            found.append(b"")
    return found, errors


def _of_key(key: Any) -> bytes:
    if key is None:
        raise ValueError("the routing key is the record's key, which is null")
    if isinstance(key, int) and not isinstance(key, bool):
        return b"%d" % key
    return _text(key, "the record's key")


def _of_headers(name: str, headers: Any) -> bytes:
    for header, value in reversed(headers or ()):
        if header == name and value is not None:
            return bytes(value)
    raise ValueError(f"the routing key is the header {name!r}, which the record does not have")


def _called(rule: Callable[[Any], str], value: Any) -> bytes:
    return _text(rule(value), "what the function routing_key= returns")


def _text(value: Any, what: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"a routing key is text, and {what} is {type(value).__name__}: {value!r:.80}")
