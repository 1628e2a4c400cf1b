"""The files that a source reads: those that its pattern matches, and the rotated rest of these."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.connectors.files.followed_file import FollowedFile, Replaced, Sample, Truncated
from streams.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streams.connectors.files.followed_file import FilePosition, FileRecords
    from streams.connectors.files.record_cuts import Cutter

MOST_FILES: Final = 1000
"""Each is part of every position."""

MOST_OPEN: Final = 64


class _Found(NamedTuple):
    """A regular file."""

    path: str
    device: int
    inode: int
    size: int
    modified: int


class FollowedFiles:
    """Files by their identity, whatever their names.

    A file that was renamed is read to its end under its new name, if that is in the same folder. Of one that
    was truncated, what was not read is read from its copy there, which has the same fingerprint.
    Every method may raise ``OSError``.
    """

    def __init__(self, pattern: str, cutter: Cutter, *, follow: bool) -> None:
        self._pattern = pattern
        self._cutter = cutter
        self._follow = follow
        self._files: list[FollowedFile] = []
        self._next = 0

    def __iter__(self) -> Iterator[FollowedFile]:
        return iter(self._files)

    def restore(self, positions: Iterable[FilePosition]) -> None:
        """Continue at the positions. Raises ``ConnectorError`` for a file that is gone and was not read."""
        for position in positions:
            found = self._recognised(position)
            if found is not None:
                self._files.append(FollowedFile.at(position, found.path, found.device, found.inode))
            elif position.offset and not position.ended:
                raise ConnectorError(
                    f"{position.path} was read up to byte {position.offset}, and what followed is gone: "
                    "neither the file nor a copy is in its folder",
                    hint="put the file back into the folder, or give the source another name to begin again",
                )
        self.scan()

    def scan(self) -> None:
        """Look for new files, new names and deleted files."""
        matched = {(found.device, found.inode): found for found in _matching(self._pattern)}
        known = {(file.device, file.inode): file for file in self._files}
        missing = known.keys() - matched.keys()
        if missing:
            folders = {Path(known[identity].path).parent for identity in missing}
            for found in (found for folder in folders for found in _in_folder(folder)):
                if (found.device, found.inode) in missing:
                    matched[found.device, found.inode] = found
        for identity, file in known.items():
            if identity in matched:
                file.path = matched[identity].path
        new = [found for identity, found in matched.items() if identity not in known]
        new.sort(key=lambda found: (found.modified, found.path))
        self._files += [FollowedFile(found.path, found.device, found.inode) for found in new]
        for file in [known[identity] for identity in missing - matched.keys()]:
            # Deleted: what was not read can be read as long as it is open.
            if file.exhausted or not file.is_open:
                self._drop(file)
        if len(self._files) > MOST_FILES:
            raise ConnectorError(
                f"{self._pattern} matches {len(self._files):,} files, at most {MOST_FILES:,} can be followed",
                hint="move those that were read to another folder",
            )

    def read(self) -> tuple[FollowedFile, FileRecords] | None:
        """The next records, of the files in turn; ``None`` if no file has any now."""
        for _ in range(len(self._files)):
            self._next = (self._next + 1) % len(self._files)
            file = self._files[self._next]
            try:
                records = file.read(self._cutter, rest=not self._follow)
            except Truncated:
                self._truncated(file)
                return self.read()
            except (FileNotFoundError, Replaced):
                # It was renamed since the last scan, which finds it.
                continue
            if records is not None:
                return file, records
        self._close_some()
        return None

    def positions(self) -> list[FilePosition]:
        """The positions of all files of which something was read."""
        return [file.position for file in self._files if file.offset]

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _truncated(self, file: FollowedFile) -> None:
        """Continue in the copy of a file that was truncated, and read the file from its beginning."""
        position = file.position
        copy = self._copy(position)
        self._drop(file)
        if copy is not None:
            self._files.append(FollowedFile.at(position, copy.path, copy.device, copy.inode))
        self._files.append(FollowedFile(file.path, file.device, file.inode))

    def _recognised(self, position: FilePosition) -> _Found | None:
        """The file of a position: itself, under any name, else a copy of it."""
        candidates = [*_matching(self._pattern), *_in_folder(Path(position.path).parent)]
        for found in candidates:
            if (found.device, found.inode) == (position.device, position.inode) and _has(found, position):
                return found
        return self._copy(position)

    def _copy(self, position: FilePosition) -> _Found | None:
        known = {(file.device, file.inode) for file in self._files}
        if not position.offset:
            return None
        for found in _in_folder(Path(position.path).parent):
            if (found.device, found.inode) not in known and _has(found, position):
                return found
        return None

    def _drop(self, file: FollowedFile) -> None:
        self._files.remove(file)
        self._next = 0
        file.close()

    def _close_some(self) -> None:
        opened = [file for file in self._files if file.is_open]
        for file in opened[: max(0, len(opened) - MOST_OPEN)]:
            file.close()


def _has(found: _Found, position: FilePosition) -> bool:
    """Whether a file has the content that was read up to a position."""
    if found.size < position.offset:
        return False
    with suppress(OSError):
        descriptor = os.open(found.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return Sample.of(descriptor, position.offset).fingerprint() == position.fingerprint
        finally:
            os.close(descriptor)
    return False


def _matching(pattern: str) -> Iterator[_Found]:
    # Path.glob takes no absolute pattern.
    paths = glob(pattern, recursive=True) if has_magic(pattern) else [pattern]  # noqa: PTH207
    for path in paths:
        if (found := _look(Path(path))) is not None:
            yield found


def _in_folder(folder: Path) -> Iterator[_Found]:
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if (found := _look(path)) is not None:
                yield found


def _look(path: Path) -> _Found | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            return _Found(str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return None
