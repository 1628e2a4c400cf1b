"""The tree that a trace finds: a result at its root, input records at its leaves."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from streams.errors import error_text
from streams.lineage import HEADER
from streams.replay.plain_values import plain

if TYPE_CHECKING:
    from streams.records import Record
    from streams.topology.topic_format import TopicFormat

Kind: TypeAlias = Literal["result", "dead_letter", "entry", "path", "input", "gone", "candidate"]

SHOWN_CHARACTERS: Final = 400
"""Longest key or value in a tree for people."""


@dataclass
class TraceNode:
    """One record, entry or path of the tree, with what is known of it."""

    kind: Kind
    title: str
    record: dict[str, Any] = field(default_factory=dict)
    """Its coordinates and its decoded content, as plain data."""
    remarks: list[str] = field(default_factory=list)
    children: list[TraceNode] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """The node as plain data."""
        return {
            "kind": self.kind,
            "title": self.title,
            **self.record,
            **({"remarks": self.remarks} if self.remarks else {}),
            **({"from": [child.fields() for child in self.children]} if self.children else {}),
        }

    def lines(self) -> list[str]:
        """The node for people, without its children."""
        found = [self.title]
        found += [
            f"{name} {text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + '…'}"
            for name in ("key", "value", "headers")
            if name in self.record and (text := _text(self.record[name])) != "{}"
        ]
        return found + [f"! {remark}" for remark in self.remarks]


def record_fields(record: Record[bytes | None, bytes | None], form: TopicFormat) -> dict[str, Any]:
    """A record as plain data, decoded as far as that is possible."""
    headers = record.headers
    form = form.of(record.key, headers)
    errors: list[str] = []
    fields: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": None,
        "value": None,
    }
    key, value = record.key, record.value
    if key is not None:
        fields["key"] = _read(lambda: form.read_key(key, headers), key, "key", errors)
    if value is not None:
        fields["value"] = _read(lambda: form.read_value(value), value, "value", errors)
        if form.value is None and isinstance(fields["value"], str):
            with suppress(ValueError, RecursionError):
                fields["value"] = json.loads(fields["value"])
    others = {name: _readable(content) for name, content in headers or () if name != HEADER}
    if others:
        fields["headers"] = others
    if errors:
        fields["errors"] = errors
    return fields


def _read(decode: Any, payload: bytes, what: str, errors: list[str]) -> Any:
    try:
        return _readable(plain(decode()))
    except Exception as error:  # noqa: BLE001 - whatever a serde raises is shown with the record
        errors.append(f"its {what} cannot be decoded: {error_text(error)}")
        return _readable(payload)


def _readable(value: Any) -> Any:
    """The value without bytes: as text, or as hexadecimal digits."""
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return bytes(value).hex()
    if isinstance(value, dict):
        return {_readable(name): _readable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return value


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)
