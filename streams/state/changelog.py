"""The records of a store's changelog topic, and the position of a database in it.

An entry is a record with the entry's key and value, readable by any tool. In addition there are two records
of metadata, stream time and the schema, with keys that begin with ``RESERVED``. As compaction only considers
keys, an entry whose own key begins with ``RESERVED`` is written with another key, ``ENTRY_PREFIX`` and its
own key; the header ``KIND`` distinguishes such entries from metadata.

Each commit that changes a store has a number, one more than the previous one, in the header ``COMMIT`` of the
record of stream time, which comes last and is written with each such commit. The metadata of the offsets that
the commit moves has the same number: by it a restore notices that it has not read everything.

Earlier versions wrote every entry with its own key, and no header. Without the header, a record with a
reserved key is an entry, unless the key is exactly that of stream time or of the schema; then it is metadata,
or an entry if its value cannot be metadata.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.records import Headers
    from streams.state.definition import StoreDefinition

RESERVED = b"\xff\xffstreams."
"""The prefix of keys that are not an entry's own key."""

TIME_KEY = RESERVED + b"stream-time"
SCHEMA_KEY = RESERVED + b"schema"
ENTRY_PREFIX = RESERVED + b"entry:"

KIND = "__streams.changelog"
"""The header of records with reserved keys."""

COMMIT = "__streams.commit"
"""The header with the number of the commit."""

METADATA: tuple[str, bytes | None] = (KIND, b"metadata")
ENTRY: tuple[str, bytes | None] = (KIND, b"entry")

Columns: TypeAlias = "tuple[list[bytes | None], list[bytes | None], list[Headers | None] | None]"
"""Keys, values and headers of records; ``None`` for headers if no record has any."""

_NUMBER = re.compile(rb"[0-9]{1,19}")
_TIMES = re.compile(rb"-?[0-9]{1,19}( -?[0-9]{1,19})?")


def changelog_topic(application: str, store: StoreDefinition) -> str:
    """The changelog topic of a store: its own, or the source topic of a table."""
    return store.source_topic or f"{application}-{store.name}-changelog"


def changelog_records(entries: Mapping[bytes, bytes | None]) -> Columns:
    """The keys, values and headers of the records for entries; the value ``None`` deletes."""
    keys: list[bytes | None] = list(entries)
    values = list(entries.values())
    # Text and window starts are all lower than reserved keys: usually max, in C, is the only check.
    if not entries or max(entries) < RESERVED:
        return keys, values, None
    headers: list[Headers | None] = [None] * len(keys)
    for row, (key, value) in enumerate(entries.items()):
        if not key.startswith(RESERVED):
            continue
        keys[row], headers[row] = ENTRY_PREFIX + key, [ENTRY]
        if value is None and key not in (TIME_KEY, SCHEMA_KEY) and not key.startswith(ENTRY_PREFIX):
            # An earlier version may have written the entry with its own key: without a tombstone there, a
            # restore would bring it back.
            keys.append(key)
            values.append(None)
            headers.append(None)
    return keys, values, headers


def entry_key(key: bytes, headers: Headers | None) -> bytes | None:
    """The entry's own key in a record with a reserved key; ``None`` for metadata."""
    kind = next((value for name, value in headers or () if name == KIND), None)
    if kind == ENTRY[1]:
        return key.removeprefix(ENTRY_PREFIX)
    if kind is not None or key in (TIME_KEY, SCHEMA_KEY):
        return None
    return key


@decodable
class _Schema(msgspec.Struct):
    """The structure of every stored schema."""

    purpose: str
    key: msgspec.Raw
    value: msgspec.Raw
    earlier: list[msgspec.Raw] = []
    began: dict[str, msgspec.Raw] = {}


@dataclass(slots=True)
class Checkpoint:
    """The position of a task's store in its changelog.

    ``offset`` is a changelog offset such that the database has everything before it, and maybe more: written
    records are counted, but not transaction markers, which also take offsets. Reading from there is always
    correct, as later records win. ``time`` is the stream time of the step that owns the store; ``observed``
    is the highest event time of its records, which is lower if idle windows were closed. ``schema`` is the
    encoding of the store's bytes.
    """

    schema: str
    offset: int = 0
    time: int = -1
    observed: int = -1
    schema_written: str | None = None
    """The schema in the changelog."""
    time_written: int = -1
    observed_written: int = -1
    number: int | None = 0
    """Of the last commit that changed the store; ``None`` where the version that made it did not count."""
    number_written: int | None = 0
    epoch: int = 0
    """Of the committed offsets to which the store belongs; see ``streams.runtime.commit_numbers``."""
    _added: int = field(default=0)

    def unwritten(self) -> list[tuple[bytes, bytes]]:
        """The metadata that the changelog does not have yet."""
        records = []
        if (self.time, self.observed, self.number) != (
            self.time_written,
            self.observed_written,
            self.number_written,
        ):
            both = b"%d" if self.observed == self.time else b"%d %d"
            records.append((TIME_KEY, both % (self.time, self.observed)[: both.count(b"%")]))
        if self.schema != self.schema_written:
            records.append((SCHEMA_KEY, self.schema.encode()))
        return records

    def count(self) -> None:
        """The next commit changes the store."""
        self.number = (self.number_written or 0) + 1

    def wrote(self, records: int) -> None:
        """Note the number of records that go to the changelog with the next commit."""
        self._added = records

    def committed(self) -> None:
        """The commit succeeded: advance past the written records."""
        self.offset += self._added
        self._added = 0
        self.time_written, self.observed_written = self.time, self.observed
        self.schema_written = self.schema
        self.number_written = self.number

    def drop(self) -> None:
        """The commit failed: discard what was written."""
        self._added = 0
        self.time, self.observed = self.time_written, self.observed_written
        self.number = self.number_written

    def follow(self, saved: SavedCheckpoint) -> None:
        """Continue from a database's saved checkpoint."""
        self.offset, self.schema_written = saved.offset, saved.schema
        self.time = self.time_written = saved.time
        self.observed = self.observed_written = saved.time if saved.observed is None else saved.observed
        self.number = self.number_written = saved.number
        self.epoch = saved.epoch

    def read(self, key: bytes, value: bytes | None, headers: Headers | None = None) -> None:
        """Apply a record of metadata. Raises ``ValueError`` if its value is invalid.

        Metadata of later versions, with unknown keys, is ignored.
        """
        if value is None:
            return
        if key == TIME_KEY:
            if not _TIMES.fullmatch(value):
                raise ValueError(f"needs one or two integers as stream time, got {value!r:.80}")
            number = next((number for name, number in headers or () if name == COMMIT), None)
            if number is not None and not _NUMBER.fullmatch(number):
                raise ValueError(f"needs an integer in its header {COMMIT}, got {number!r:.80}")
            self.number = self.number_written = None if number is None else int(number)
            time, _, observed = value.partition(b" ")
            self.time = self.time_written = int(time)
            self.observed = self.observed_written = int(observed or time)
        elif key == SCHEMA_KEY:
            try:
                msgspec.json.decode(value, type=_Schema)
                self.schema_written = value.decode()
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f"needs a schema as JSON, got {value!r:.80}: {error}") from error


def metadata_records(checkpoint: Checkpoint) -> Columns:
    """The keys, values and headers of the records for metadata that the changelog does not have yet."""
    # The record with the number comes last: a reader of it has read the complete commit.
    records = checkpoint.unwritten()[::-1]
    number = (COMMIT, b"%d" % (checkpoint.number or 0))
    headers: list[Headers | None] = [
        [METADATA, number] if key == TIME_KEY else [METADATA] for key, _ in records
    ]
    return [key for key, _ in records], [value for _, value in records], headers


@decodable
class SavedCheckpoint(msgspec.Struct):
    """A checkpoint in a database's metadata; ``saved_at`` is in milliseconds since the epoch."""

    offset: int
    time: int
    schema: str | None
    saved_at: int
    observed: int | None = None
    """``None`` in databases of earlier versions: the same as ``time``."""
    number: int | None = None
    epoch: int = 0


def encode_metadata(checkpoints: Mapping[str, Checkpoint], now: int) -> dict[str, bytes]:
    """Encode the committed parts of checkpoints, by store, as a database's metadata."""
    return {
        name: msgspec.json.encode(
            SavedCheckpoint(
                checkpoint.offset,
                checkpoint.time_written,
                checkpoint.schema_written,
                now,
                checkpoint.observed_written,
                checkpoint.number_written,
                checkpoint.epoch,
            )
        )
        for name, checkpoint in checkpoints.items()
    }


def decode_metadata(metadata: Mapping[str, bytes]) -> dict[str, SavedCheckpoint]:
    """Decode the checkpoints in a database's metadata. Raises ``msgspec.DecodeError`` if they are invalid."""
    return {name: msgspec.json.decode(value, type=SavedCheckpoint) for name, value in metadata.items()}
