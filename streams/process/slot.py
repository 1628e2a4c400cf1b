"""A worker's number among the workers of one app on this machine: stable over restarts, never shared."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from pathlib import Path
from typing import IO, TYPE_CHECKING

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

MOST_SLOTS = 4096

ADVICE = "set state_dir (or STREAMS_STATE_DIR) to a writable folder on a local disk"

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
"""The errors of ``flock`` for a lock that another process holds; all others are failures."""


def default_state_dir() -> Path:
    """The default of the setting ``state_dir``, the folder for workers' own files.

    Raises ``ConfigurationError`` if the user has no home folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache:
        try:
            cache = str(Path.home() / ".cache")
        except RuntimeError as error:
            raise ConfigurationError(f"there is no folder for the state: {error}", hint=ADVICE) from error
    return Path(cache) / "streams" / "state"


class Slot:
    """The lowest number that no running worker of the app has on this machine, held by a file lock.

    The kernel releases the lock when the process ends, for whatever reason, so a dead worker never holds a
    slot. ``worker_id`` is the host's name and the number, and so unique if host names are. Raises
    ``ConfigurationError`` if the folder cannot be written to, or its file system has no locks.
    """

    def __init__(self, application: str, state_dir: Path) -> None:
        folder = state_dir / re.sub(r"[^\w.-]", "_", application)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"state folder {folder} cannot be created: {error}", hint=ADVICE
            ) from error
        self.number, self._file = _claim(folder)
        self.folder = folder / str(self.number)
        """The folder for the worker's own files."""
        try:
            _require_writable(self.folder)
        except OSError as error:
            self.release()
            raise ConfigurationError(
                f"state folder {self.folder} cannot be used: {error}", hint=ADVICE
            ) from error
        self.worker_id = f"{socket.gethostname()}-{self.number}"

    def release(self) -> None:
        """Release the slot for another worker."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _claim(folder: Path) -> tuple[int, IO[str]]:
    for number in range(MOST_SLOTS):
        path = folder / f"{number}.slot"
        try:
            file = path.open("a")
        except OSError as error:
            raise ConfigurationError(
                f"file {path}, which gives a worker its number, cannot be opened: {error}",
                hint=f"check whether it belongs to another user, or {ADVICE}",
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in _HELD:
                continue
            raise ConfigurationError(
                f"file {path} cannot be locked, and without locks workers could share a slot: {error}",
                hint=f"some network file systems do not support locks: {ADVICE}",
            ) from error
        return number, file
    raise ConfigurationError(
        f"no slot is free in {folder}: all {MOST_SLOTS} are held by running workers of this app",
        hint="stop some of them, or use another state_dir (or STREAMS_STATE_DIR)",
    )


def _require_writable(folder: Path) -> None:
    """Raise ``OSError`` if files cannot be created in a folder, which is created if it is missing."""
    folder.mkdir(exist_ok=True)
    # Checking permissions is not enough: the file system may be mounted read-only.
    probe = folder / f".probe-{os.getpid()}"
    probe.touch()
    probe.unlink()
