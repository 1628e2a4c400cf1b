"""The folders of the download and the data: their locks, free space and errors."""

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
    """The folder for this version of Kafka, and for the data of clusters started without a folder."""
    base = os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache"
    return Path(os.environ.get("STREAMS_CACHE_DIR") or Path(base) / "streams") / f"kafka-{KAFKA_VERSION}"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn an ``OSError`` in the block into a ``LocalKafkaError`` with a hint."""
    try:
        yield
    except OSError as error:
        raise LocalKafkaError(
            f"a file or a program could not be used: {error}",
            hint="check that its folder is writable and that there is free disk space; STREAMS_CACHE_DIR and "
            "STREAMS_LOCAL_KAFKA_DIR set other folders",
        ) from error


@contextlib.contextmanager
def locked(path: Path, report: Report, waiting: str) -> Iterator[None]:
    """Hold a lock on the file in the block. The kernel releases the lock of a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_space(folder: Path) -> None:
    """Raise ``LocalKafkaError`` if the folder's disk has too little free space for Kafka."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_mb = shutil.disk_usage(existing).free // 1024**2
    if free_mb < _SPACE_MB:
        raise LocalKafkaError(
            f"a local Kafka needs {_SPACE_MB} MB of free disk; the disk of {existing} has {free_mb} MB",
            hint="free some space, or use a folder on another disk (STREAMS_CACHE_DIR for the downloads)",
        )


def last_lines(text: str) -> str:
    """The last lines of a log, for an error."""
    return "\n".join(text.splitlines()[-20:])
