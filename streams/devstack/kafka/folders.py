"""Where the download and the data are, locks on them, and what may be wrong with them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import LocalKafkaError
from streams.local_cluster import home as home_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.devstack.kafka.report import Report

KAFKA_VERSION = "4.3.0"

_SPACE_MB = 1024


def cache_folder() -> Path:
    """Where this version of Kafka is kept, and the data of clusters that were started without a folder."""
    base = os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache"
    return Path(os.environ.get("STREAMS_CACHE_DIR") or Path(base) / "streams") / f"kafka-{KAFKA_VERSION}"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what the system refuses in the block into ``LocalKafkaError``."""
    try:
        yield
    except OSError as error:
        raise LocalKafkaError(
            f"a file or a program could not be used: {error}",
            hint="look whether its folder can be written to and its disk has space; STREAMS_CACHE_DIR and "
            "STREAMS_LOCAL_KAFKA_DIR choose other folders",
        ) from error


@contextlib.contextmanager
def locked(path: Path, report: Report, waiting: str) -> Iterator[None]:
    """Hold the lock file for the block. A process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_space(folder: Path) -> None:
    """Raise ``LocalKafkaError`` where the folder's disk has no room for a Kafka."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_mb = shutil.disk_usage(existing).free // 1024**2
    if free_mb < _SPACE_MB:
        raise LocalKafkaError(
            f"a local Kafka needs {_SPACE_MB} MB of free disk; where {existing} is, {free_mb} are free",
            hint="free some space, or choose a folder on another disk (STREAMS_CACHE_DIR for the downloads)",
        )


def last_lines(text: str) -> str:
    """As much of a log as belongs into an error."""
    return "\n".join(text.splitlines()[-20:])
