"""A worker's place among the workers of one app on this machine: stable over restarts, never shared."""

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
"""What ``flock`` reports for a lock that another process has; anything else is no answer."""


def default_state_dir() -> Path:
    """The folder for workers' own files, unless the setting ``state_dir`` names another.

    Raises ``ConfigurationError`` where the user has no home folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache:
        try:
            cache = str(Path.home() / ".cache")
        except RuntimeError as error:
            raise ConfigurationError(f"no folder for the state is known: {error}", hint=ADVICE) from error
    return Path(cache) / "streams" / "state"


class Slot:
    """The lowest number that no living worker of the app holds on this machine.

    The kernel drops the lock with its process, however that ends, so a slot is never held by a worker that is
    gone. ``worker_id`` is unique among machines of different names: the host's name and the number. Raises
    ``ConfigurationError`` where the folder cannot be written to, or its file system has no locks.
    """

    def __init__(self, application: str, state_dir: Path) -> None:
        folder = state_dir / re.sub(r"[^\w.-]", "_", application)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"state folder {folder} cannot be made: {error}", hint=ADVICE) from error
        self.number, self._file = _claim(folder)
        self.folder = folder / str(self.number)
        """For the worker's own files."""
        try:
            _require_writable(self.folder)
        except OSError as error:
            self.release()
            raise ConfigurationError(
                f"state folder {self.folder} cannot be used: {error}", hint=ADVICE
            ) from error
        self.worker_id = f"{socket.gethostname()}-{self.number}"

    def release(self) -> None:
        """Let another worker have it."""
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
                hint=f"is it another user's? {ADVICE}",
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in _HELD:
                continue
            raise ConfigurationError(
                f"file {path} cannot be locked, so workers could take each other's state: {error}",
                hint=f"some network file systems have no locks: {ADVICE}",
            ) from error
        return number, file
    raise ConfigurationError(
        f"{MOST_SLOTS} workers of this app run on this machine: no slot is free in {folder}"
    )


def _require_writable(folder: Path) -> None:
    """Raise ``OSError`` where files cannot be made in a folder, which is made if it is missing."""
    folder.mkdir(exist_ok=True)
    # Asking for the rights is not enough: a disk may be mounted to be read only.
    probe = folder / f".probe-{os.getpid()}"
    probe.touch()
    probe.unlink()
