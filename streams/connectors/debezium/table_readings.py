"""Which tables are read beside the changes of all, and how far that has got: all of it is in the position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streams.connectors.debezium.position import TableReading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.connectors.debezium.position import Position


def first_position(committed: Position, tables: Mapping[str, str], labels: Mapping[str, str]) -> Position:
    """The position at which a reader continues the stream of changes, with the tables that it has to read.

    ``tables`` are the captured ones with their identities; ``labels`` are the texts that the program gives.
    Tables that are new are read, those with another text are read again, and what was begun continues.
    """
    reading: dict[str, TableReading] = {}
    for table in tables:
        begun = committed.reading.get(table)
        label = labels.get(table)
        if begun is not None and label in {None, begun.label}:
            reading[table] = begun
        elif (
            begun is not None
            or table not in committed.tables
            or label not in {None, committed.labels.get(table, "")}
        ):
            reading[table] = TableReading(label=label or "")
    return msgspec.structs.replace(
        committed,
        # One that is read again may be another one than before.
        tables={
            table: identity
            if table in reading and not reading[table].begun
            else committed.tables.get(table, identity)
            for table, identity in tables.items()
        },
        labels={table: text for table, text in committed.labels.items() if table in tables},
        reading=reading,
    )


def not_begun(position: Position) -> list[str]:
    """The tables that are to be read and whose changes are not told apart yet from those before."""
    return [table for table, reading in position.reading.items() if not reading.begun]


def begun(position: Position) -> Position:
    """The position from which on changes of the tables count as later than what will be read of them."""
    return msgspec.structs.replace(
        position,
        reading={
            table: msgspec.structs.replace(reading, begun=True) for table, reading in position.reading.items()
        },
    )


def read_to(position: Position, table: str, key: list[str] | None, rows: int) -> Position:
    """The position after more rows of a table; ``key`` is the last one of a chunk that is complete."""
    reading = position.reading[table]
    reading = msgspec.structs.replace(reading, after=key or reading.after, rows=reading.rows + rows)
    return msgspec.structs.replace(position, reading={**position.reading, table: reading})


def moved(position: Position, table: str) -> Position:
    """The position after a row of the table got a key that may have been read, from one that was not yet."""
    reading = msgspec.structs.replace(position.reading[table], moved=True)
    return msgspec.structs.replace(position, reading={**position.reading, table: reading})


def read_to_end(position: Position, table: str) -> Position:
    """The position after the last row of a table: it is complete, or to be read a second time."""
    reading = position.reading[table]
    if reading.second or not reading.moved:
        return complete(position, table)
    reading = TableReading(label=reading.label, second=True)
    return msgspec.structs.replace(position, reading={**position.reading, table: reading})


def complete(position: Position, table: str) -> Position:
    """The position after a table is read completely."""
    labels = {**position.labels, table: position.reading[table].label}
    return msgspec.structs.replace(
        position,
        labels={name: label for name, label in labels.items() if label},
        reading={name: reading for name, reading in position.reading.items() if name != table},
    )
