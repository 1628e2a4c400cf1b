"""Change events: what happened to one row of a table, in Debezium's envelope."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

Operation: TypeAlias = Literal["c", "u", "d", "r", "t"]
"""Created, updated, deleted, read by a snapshot, truncated (which has neither key nor row)."""


class TransactionBlock(msgspec.Struct, frozen=True, kw_only=True):
    """The transaction of a change, and the change's place in it.

    ``total_order`` counts from 1 over all captured tables, ``data_collection_order`` over the change's table.
    """

    id: str
    total_order: int
    data_collection_order: int


class ChangeSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a change comes from. Fields that a database does not have are ``None``."""

    db: str = ""
    schema: str | None = None
    table: str | None = None
    connector: str | None = None
    name: str | None = None
    version: str | None = None
    ts_ms: int | None = None
    """When the transaction was committed, in milliseconds since the epoch."""
    snapshot: str | bool | None = None
    sequence: str | None = None
    txId: int | None = None  # noqa: N815 - the name in the envelope
    lsn: int | None = None

    @property
    def namespace(self) -> str:
        """What the table's name is in: its schema, or its database where that has no schemas."""
        return self.db if self.schema is None else self.schema


class Change(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A change of one row: ``before`` where the database sends it, ``after`` unless it was deleted.

    The JSON form is that of Debezium without the schema part; unknown fields are left out.
    """

    op: Operation
    before: T | None = None
    after: T | None = None
    source: ChangeSource
    transaction: TransactionBlock | None = None
    ts_ms: int | None = None
    """When the connector saw the change, in milliseconds since the epoch."""

    @property
    def row(self) -> T | None:
        """The row as it is afterwards; ``None`` when it was deleted."""
        return self.after


AnyChange: TypeAlias = Change[Any]


class Tombstone(Change[Any], frozen=True, kw_only=True):
    """Follows a deletion: written as a null value, with which a compacted topic forgets the key."""


def with_tombstones(change: Change[T]) -> list[Change[T]]:
    """The change, and a tombstone after it if it is a deletion: for ``flat_map`` before a topic."""
    if change.op != "d":
        return [change]
    return [change, Tombstone(op="d", source=change.source, ts_ms=change.ts_ms)]


_NOT_IN_TOPICS = re.compile(r"[^a-zA-Z0-9._-]")


def topic_of(prefix: str, namespace: str, table: str | None) -> str:
    """The topic of a table as Debezium names it: characters that a topic cannot have become ``_``."""
    return ".".join(_NOT_IN_TOPICS.sub("_", part) for part in (prefix, namespace, table) if part)


def change_topic(prefix: str) -> Callable[[Change[Any]], str]:
    """A function that returns the topic of a change: ``<prefix>.<schema>.<table>``.

    Where a database has no schemas, its name takes their place.
    """
    topics: dict[tuple[str, str | None], str] = {}

    def topic(change: Change[Any]) -> str:
        source = change.source
        table = (source.namespace, source.table)
        found = topics.get(table)
        if found is None:
            found = topics[table] = topic_of(prefix, *table)
        return found

    return topic
