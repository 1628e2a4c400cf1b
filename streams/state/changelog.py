"""What stands in a store's changelog topic besides its entries, and how far a database follows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.state.definition import StoreDefinition

RESERVED = b"\xff\xffstreams."
"""Begins the keys of records that say something about the store instead of being entries of it."""

TIME_KEY = RESERVED + b"stream-time"
SCHEMA_KEY = RESERVED + b"schema"


def changelog_topic(application: str, store: StoreDefinition) -> str:
    """The topic that has all changes of a store: its own, or for a table the one it is read from."""
    return store.source_topic or f"{application}-{store.name}-changelog"


@dataclass(slots=True)
class Checkpoint:
    """How far one store of one task is.

    ``offset`` is a changelog offset such that the database has everything before it, and maybe more: records
    are counted as they are written, while markers of transactions, which take offsets too, are not known of.
    Reading on from there is always right, as later records win. ``time`` is the stream time of the step that
    owns the store, ``observed`` the highest event time of its records, which is less where windows were
    closed as nothing came; ``schema`` is how the store's bytes are to be read.
    """

    schema: str
    offset: int = 0
    time: int = -1
    observed: int = -1
    schema_written: str | None = None
    """What the changelog says."""
    time_written: int = -1
    observed_written: int = -1
    _added: int = field(default=0)

    def unwritten(self) -> list[tuple[bytes, bytes]]:
        """What the changelog does not say yet."""
        records = []
        if (self.time, self.observed) != (self.time_written, self.observed_written):
            both = b"%d" if self.observed == self.time else b"%d %d"
            records.append((TIME_KEY, both % (self.time, self.observed)[: both.count(b"%")]))
        if self.schema != self.schema_written:
            records.append((SCHEMA_KEY, self.schema.encode()))
        return records

    def wrote(self, records: int) -> None:
        """So many records go to the changelog with the next commit."""
        self._added = records

    def committed(self) -> None:
        """What was written is permanent."""
        self.offset += self._added
        self._added = 0
        self.time_written, self.observed_written = self.time, self.observed
        self.schema_written = self.schema

    def drop(self) -> None:
        """What was written is given up."""
        self._added = 0
        self.time, self.observed = self.time_written, self.observed_written

    def follow(self, saved: SavedCheckpoint) -> None:
        """Go on from what a database was saved with."""
        self.offset, self.schema_written = saved.offset, saved.schema
        self.time = self.time_written = saved.time
        self.observed = self.observed_written = saved.time if saved.observed is None else saved.observed

    def read(self, key: bytes, value: bytes | None) -> None:
        """Take in one reserved record of the changelog."""
        if value is None:
            return
        if key == TIME_KEY:
            time, _, observed = value.partition(b" ")
            self.time = self.time_written = int(time)
            self.observed = self.observed_written = int(observed or time)
        elif key == SCHEMA_KEY:
            self.schema_written = value.decode()


class SavedCheckpoint(msgspec.Struct):
    """A checkpoint as a database's metadata has it; ``saved_at`` in milliseconds since the epoch."""

    offset: int
    time: int
    schema: str | None
    saved_at: int
    observed: int | None = None
    """``None`` where it was not kept: as the time."""


def encode_metadata(checkpoints: Mapping[str, Checkpoint], now: int) -> dict[str, bytes]:
    """The checkpoints, by store, as a database's metadata: what is written, not what is yet to be."""
    return {
        name: msgspec.json.encode(
            SavedCheckpoint(
                checkpoint.offset,
                checkpoint.time_written,
                checkpoint.schema_written,
                now,
                checkpoint.observed_written,
            )
        )
        for name, checkpoint in checkpoints.items()
    }


def decode_metadata(metadata: Mapping[str, bytes]) -> dict[str, SavedCheckpoint]:
    """The checkpoints that a database was saved with. Raises ``msgspec.DecodeError`` for anything else."""
    return {name: msgspec.json.decode(value, type=SavedCheckpoint) for name, value in metadata.items()}
