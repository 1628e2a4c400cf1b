"""A worker's place among the workers of one app on this machine: stable over restarts, never shared."""

from __future__ import annotations

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


def default_state_dir() -> Path:
    """The folder for workers' own files, unless the setting ``state_dir`` names another."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "streams" / "state"


class Slot:
    """The lowest number that no living worker of the app holds on this machine.

    The kernel drops the lock with its process, however that ends, so a slot is never held by a worker that is
    gone. ``worker_id`` is unique among machines of different names: the host's name and the number.
    """

    def __init__(self, application: str, state_dir: Path) -> None:
        folder = state_dir / re.sub(r"[^\w.-]", "_", application)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"state folder {folder} cannot be made: {error}", hint="set state_dir to a writable folder"
            ) from error
        self.number, self._file = _claim(folder)
        self.folder = folder / str(self.number)
        """For the worker's own files."""
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
        file = (folder / f"{number}.slot").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        return number, file
    raise ConfigurationError(
        f"{MOST_SLOTS} workers of this app run on this machine: no slot is free in {folder}"
    )
