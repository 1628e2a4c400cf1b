"""The folder of a sink: checked before the worker joins, and written by its workers."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec

from streams.connectors.files.partition_folder import CONTROL, PartitionFolder, sync_folder, write_durably
from streams.connectors.writer_state import WriterState
from streams.errors import ConnectorError, SinkFenced, SinkOutcomeUnknown, SinkUnavailable
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from streams.connectors.sink import RefusedRow, SinkContext, SinkRows
    from streams.records import TopicPartition


@decodable
class Owner(msgspec.Struct, frozen=True):
    """Whose folder it is, recorded in it: positions are those of one sink of one application."""

    application: str
    sink: str
    format: str


class Encoder(Protocol):
    """Turns rows into the content of a file."""

    @property
    def suffix(self) -> str:
        """How names of files end, with the dot."""

    def encode(self, rows: SinkRows) -> tuple[Sequence[bytes], list[RefusedRow]]:
        """The content, empty if there is no row that can be written, and the rows that cannot."""


def check_folder(folder: Path, context: SinkContext, suffix: str) -> None:
    """Create the folder, and check that it is this sink's and can be written as the sink does."""
    try:
        folder.mkdir(exist_ok=True)
        control = folder / CONTROL
        control.mkdir(exist_ok=True)
        owner = Owner(context.application, context.name, suffix.removeprefix("."))
        known = _recorded(control, owner)
    except FileNotFoundError as error:
        raise ConnectorError(
            f"sink {context.name!r}: {folder.parent} is not a folder", hint="create it, or correct the path"
        ) from error
    except OSError as error:
        raise ConnectorError(f"sink {context.name!r}: {folder} cannot be written: {error}") from error
    if known != owner:
        raise ConnectorError(
            f"{folder} is the folder of sink {known.sink!r} of application {known.application!r} with files "
            f"in the format {known.format}, not of sink {owner.sink!r} of {owner.application!r} with "
            f"{owner.format}",
            hint="give each sink a folder of its own",
        )


def _recorded(control: Path, owner: Owner) -> Owner:
    """The owner in a folder's record, which is written if there is none; several workers may do so."""
    path = control / "sink.json"
    if not path.exists():
        temporary = control / f"sink-{uuid.uuid4().hex}"
        write_durably(temporary, [msgspec.json.encode(owner)])
        # As files are later: this fails on a file system without hard links.
        with suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
        sync_folder(control)
    return msgspec.json.decode(path.read_bytes(), type=Owner)


class FolderWriter:
    """A ``SinkWriter`` of files.

    The partitions of a transaction are committed one after the other, each with its own position: when that
    ends in the middle, its outcome is unknown, and the positions are read again.
    """

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self._folder = folder
        self._encoder = encoder
        self._claimed: dict[TopicPartition, PartitionFolder] = {}
        self._uncommitted: list[tuple[PartitionFolder, int, Path | None]] = []
        self._state = WriterState.CLAIMED

    def claim(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        assert self._state is WriterState.CLAIMED
        try:
            for partition, topic_id in partitions.items():
                if (before := self._claimed.pop(partition, None)) is not None:
                    before.close()
                self._claimed[partition] = PartitionFolder.claim(
                    self._folder, partition, topic_id, self._encoder.suffix
                )
        except OSError as error:
            self.close()
            raise SinkUnavailable(f"folder {self._folder}: claiming partitions: {error}") from error
        except BaseException:
            self.close()
            raise
        return {partition: self._claimed[partition].position for partition in partitions}

    def release(self, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            if (released := self._claimed.pop(partition, None)) is not None:
                released.close()

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        self._state = self._state.to(WriterState.WRITTEN)
        refused: list[RefusedRow] = []
        try:
            for part in rows:
                refused += self._prepare(part)
        except OSError as error:
            self.close()
            raise SinkUnavailable(f"folder {self._folder}: writing a file: {error}") from error
        except BaseException:
            self.close()
            raise
        return refused

    def _prepare(self, part: SinkRows) -> list[RefusedRow]:
        claimed = self._claimed[part.partition]
        if claimed.position != part.start or not claimed.still_owned():
            raise SinkFenced(
                f"folder {self._folder}: the position in {part.partition} is not offset {part.start}: "
                "another worker has moved it"
            )
        content, refused = self._encoder.encode(part)
        prepared = claimed.prepare(part.next_offset, content) if content else None
        self._uncommitted.append((claimed, part.next_offset, prepared))
        return refused

    def commit(self) -> None:
        following = self._state.to(WriterState.CLAIMED)
        committed = False
        try:
            for claimed, end, prepared in self._uncommitted:
                if prepared is None:
                    claimed.move(end)
                else:
                    claimed.publish(prepared)
                    committed = True
                    # A new owner has read the position in the name, and records it itself.
                    with suppress(SinkFenced):
                        claimed.move(end)
                committed = True
            self._uncommitted.clear()
        except (SinkFenced, OSError) as error:
            self.close()
            if isinstance(error, SinkFenced) and not committed:
                raise
            raise SinkOutcomeUnknown(f"folder {self._folder}: committing files: {error}") from error
        self._state = following

    def rollback(self) -> None:
        if self._state is WriterState.WRITTEN:
            self._discard()
            self._state = self._state.to(WriterState.CLAIMED)

    def close(self) -> None:
        if self._state is not WriterState.CLOSED:
            self._state = self._state.to(WriterState.CLOSED)
            self._uncommitted.clear()
            self.release(list(self._claimed))

    def _discard(self) -> None:
        for _, _, prepared in self._uncommitted:
            if prepared is not None:
                # Otherwise it is overwritten, or removed with its folder.
                with suppress(OSError):
                    prepared.unlink(missing_ok=True)
        self._uncommitted.clear()
