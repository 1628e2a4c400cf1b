"""The contract of a table that can be compared with a table of another database.

Both databases must give each value the same text, and order keys alike. Which text, and which order, is
agreed for each pair of columns (a ``ComparedColumn``), as the same value may have different types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind: TypeAlias = Literal[
    "any",
    "boolean",
    "bytes",
    "date",
    "decimal",
    "double",
    "double_bits",
    "integer",
    "json",
    "jsonb",
    "other",
    "padded",
    "single",
    "single_bits",
    "text",
    "timestamp",
    "timestamptz",
    "uuid",
]
"""How a column's values become text. ``any`` is a column of a database without fixed types, which takes the
kind of the other side; ``padded`` is text whose trailing blanks have no meaning. Floats are compared by
their bits with such a database.
"""

Order: TypeAlias = Literal["number", "date", "timestamp", "timestamptz", "boolean", "text"]
"""How keys are ordered: as the values are, or bytewise by their text."""

Key: TypeAlias = tuple[str, ...]
"""The texts of the key columns."""

SHOWN_CHARACTERS = 200
"""Of a longer value, this much is read, and its hash."""


class ColumnType(NamedTuple):
    """What a database says of a column. ``order`` is the one in which it can read a range of keys itself."""

    kind: Kind
    order: Order
    name: str
    """The type as the database calls it."""


@dataclass(frozen=True, slots=True)
class ComparedColumn:
    """A column and what is agreed about it. ``order`` matters for key columns only."""

    name: str
    kind: Kind
    order: Order


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a comparison, key columns first.

    Numbers are compared by value, unless ``exact``: then 1.10 is not 1.1, and -0 is not 0.
    """

    key: tuple[ComparedColumn, ...]
    others: tuple[ComparedColumn, ...]
    exact: bool

    @property
    def columns(self) -> tuple[ComparedColumn, ...]:
        return self.key + self.others


class KeyRange(NamedTuple):
    """The keys greater than ``after``, up to and including ``upto``; ``None`` is no bound.

    A bound may be the beginning of keys: all keys that begin with it are then equal to it.
    """

    after: Key | None
    upto: Key | None


class Checksum(NamedTuple):
    """The number of rows, and the sums of both halves of their hashes.

    Sums and not XOR: two equal rows would cancel each other. The order of the rows does not matter.
    """

    rows: int
    high: int
    low: int


class Value(NamedTuple):
    """The beginning of a value's text, and if there is more of it, the hash of all."""

    text: str
    digest: str | None


class Row(NamedTuple):
    """What a table has under a key.

    ``version`` changes whenever the row is written, also if it is written unchanged; empty where the database
    cannot tell. ``values``, in the order of the layout, are those of the row if there is only one.
    """

    checksum: Checksum
    version: str
    values: tuple[Value | None, ...]


class TableReader(Protocol):
    """A table that is open for comparing; used by one thread at a time.

    Every call is a short read-only transaction of its own, so that neither locks nor old row versions are
    kept. Each may raise ``ConnectorUnavailable`` or ``ConnectorError``.
    """

    @property
    def name(self) -> str:
        """The table and its database, without secrets."""

    @property
    def indexed(self) -> int:
        """How many of the first key columns an index has, in the order of the layout."""

    def columns(self) -> Mapping[str, ColumnType]:
        """The table's columns, in their order, and the expressions that stand for columns."""

    def begin(self, layout: Layout) -> None:
        """Set what the following calls read. Refuses a key with null values."""

    def boundary(self, part: KeyRange, rows: int, width: int) -> Key | None:
        """The key of the range's row of that number, counted from 1, ``None`` if it has fewer.

        Rows are ordered by the first ``width`` key columns, which are returned.
        """

    def cuts(self, part: KeyRange, step: int) -> list[Key]:
        """Every ``step``-th key of the range."""

    def checksum(self, part: KeyRange) -> Checksum:
        """The checksum of the range's rows."""

    def checksums(self, part: KeyRange) -> dict[Key, Checksum]:
        """The checksum of each key of the range."""

    def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        """The rows under these keys; keys without a row are left out."""

    def position(self) -> int | None:
        """A position in the database's log that is not before any row read until now, if it has one."""

    def close(self) -> None:
        """Disconnect. Never raises."""


class ComparableTable(Protocol):
    """A table as the program names it: a frozen value."""

    def open(self) -> TableReader:
        """Connect. Raises ``ConnectorUnavailable`` or ``ConnectorError``."""
