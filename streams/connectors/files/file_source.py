"""Files as sources: their lines or CSV records, from those that are written now or are complete."""

from __future__ import annotations

import builtins
import os
import threading
import time
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, overload

import msgspec

from streams.connectors.files.csv_serde import Csv
from streams.connectors.files.followed_file import FilePosition  # noqa: TC001 - read by msgspec
from streams.connectors.files.followed_files import FollowedFiles
from streams.connectors.files.record_cuts import CsvCutter, LineCutter
from streams.connectors.source import PlainSource, SourceBatch, SourceHealth
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable
from streams.records import FetchedLists
from streams.serde import Bytes, Json
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.files.record_cuts import Cutter
    from streams.connectors.source import SourceContext
    from streams.serde import Serde

V = TypeVar("V")
Type: TypeAlias = builtins.type[V]

LOOK_SECONDS: Final = 0.2
"""How often it is looked for more lines and new files while there are none."""


@decodable
class Positions(msgspec.Struct, frozen=True):
    """The position of a source: those of its files."""

    files: list[FilePosition]


@dataclass(frozen=True, slots=True)
class _FileSource(PlainSource, Generic[V]):
    """What sources of files have in common."""

    path: str
    value: Serde[V]
    follow: bool
    cutter: Cutter
    key: Serde[bytes] = field(default_factory=Bytes)

    @property
    def tasks(self) -> int:
        return 1

    def check(self, application: str, name: str) -> None:  # noqa: ARG002 - the protocol's
        """Check that the folder exists; files may be created later."""
        folder = Path(self.path).parent
        if not has_magic(str(folder)) and not folder.is_dir():
            raise ConnectorError(
                f"source {name!r}: {folder} is not a folder", hint="create it, or correct the path"
            )

    def open(self, context: SourceContext) -> FileReader:
        """Begin to read at the context's position."""
        return FileReader(self.path, self.cutter, follow=self.follow, position=context.position)


class JsonLinesSource(_FileSource[V]):
    """Lines of JSON, of files whose paths match a pattern, e.g. ``logs/*.jsonl``.

    With ``follow``, lines are read as they are written, also after the file was rotated; a line without its
    end is not read yet. Without it, the files that exist are read to their ends. Values are of ``type``, and
    a line that is none becomes a dead letter. Records have no key, and the number of the line as offset.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: JsonLinesSource[Any], path: str | os.PathLike[str], type: None = None, *, follow: bool = True
    ) -> None: ...

    @overload
    def __init__(self, path: str | os.PathLike[str], type: Type[V], *, follow: bool = True) -> None: ...

    def __init__(
        self,
        path: str | os.PathLike[str],
        type: Any = None,  # noqa: A002 - as of Json
        *,
        follow: bool = True,
    ) -> None:
        super().__init__(os.fspath(path), Json(type), follow, LineCutter())

    @property
    def kind(self) -> str:
        return "jsonl"


class CsvSource(_FileSource[V]):
    """Records of CSV files whose paths match a pattern; otherwise as ``JsonLinesSource``.

    The first line of each file has the names of the columns, unless they are given by ``columns``. Values are
    dictionaries of text, or converted into ``type``. Fields in double quotes may contain line ends.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: CsvSource[dict[str, str]],
        path: str | os.PathLike[str],
        type: None = None,
        *,
        follow: bool = True,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
    ) -> None: ...

    @overload
    def __init__(
        self,
        path: str | os.PathLike[str],
        type: Type[V],
        *,
        follow: bool = True,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
    ) -> None: ...

    def __init__(
        self,
        path: str | os.PathLike[str],
        type: Any = None,  # noqa: A002 - as of Json
        *,
        follow: bool = True,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
    ) -> None:
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ConfigurationError(f"delimiter is one character, got {delimiter!r:.80}")
        serde: Any = Csv(type, columns=columns, delimiter=delimiter)
        super().__init__(os.fspath(path), serde, follow, CsvCutter(has_header=columns is None))

    @property
    def kind(self) -> str:
        return "csv"


class FileReader:
    """A ``SourceReader`` of files."""

    def __init__(self, pattern: str, cutter: Cutter, *, follow: bool, position: bytes) -> None:
        self._pattern = pattern
        self._follow = follow
        self._files = FollowedFiles(pattern, cutter, follow=follow)
        self._closed = threading.Event()
        self._using_files = threading.Lock()
        known = msgspec.json.decode(position, type=Positions).files if position else []
        try:
            self._files.restore(known)
        except OSError as error:
            self.close()
            raise self._unavailable(error) from error
        except ConnectorError:
            self.close()
            raise

    def read(self, timeout: float) -> SourceBatch | None:
        deadline = time.monotonic() + timeout
        while not self._closed.is_set():
            with self._using_files:
                if (batch := self._next_batch()) is not None:
                    return batch
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._closed.wait(min(left, LOOK_SECONDS))
        return None

    def _next_batch(self) -> SourceBatch | None:
        if self._closed.is_set():
            return None
        try:
            found = self._files.read()
            if found is None and self._follow:
                self._files.scan()
                found = self._files.read()
        except OSError as error:
            raise self._unavailable(error) from error
        if found is None:
            return None
        file, (values, numbers) = found
        now = time.time_ns() // 1_000_000
        records = FetchedLists(file.path, 0, [None] * len(values), values, [now] * len(values), numbers)
        return SourceBatch(records, msgspec.json.encode(Positions(self._files.positions())))

    def confirm(self, position: bytes) -> None:
        """Nothing is kept for positions that are not committed."""

    def health(self) -> SourceHealth:
        files = [(file.path, file.offset) for file in self._files]
        unread = 0
        problem = "" if files else f"no file matches {self._pattern}"
        for path, offset in files:
            try:
                unread += max(0, Path(path).stat().st_size - offset)
            except OSError as error:
                problem = problem or f"{path}: {error.strerror}"
        return SourceHealth(problem, {"files": len(files), "lag_bytes": unread})

    def close(self) -> None:
        self._closed.set()
        with self._using_files:
            self._files.close()

    def _unavailable(self, error: OSError) -> SourceUnavailable:
        return SourceUnavailable(f"files {self._pattern} cannot be read: {error}")
