"""Whether two runs are of the same program and range, so that one may continue the other."""

from __future__ import annotations

import sys
import sysconfig
from functools import cache
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from streams.app import App

_SETTINGS: Final = (
    "dead_letter_topic",
    "dead_letter_limit",
    "dead_letter_window",
    "lineage",
    "schema_registry_url",
    "schema_subjects",
)
"""The settings that results depend on."""

_LIBRARY: Final = Path(__file__).parents[2]


def run_identity(app: App, request: Iterable[object], topics: Mapping[str, object]) -> str:
    """A text that is equal for runs which have equal results, as far as this can be known.

    It covers the program (its topology, the source files of its modules and of their folders, this library,
    and the versions of all installed packages), ``request`` and ``topics``. Not what the program reads by
    itself, such as files and environment variables.
    """
    found = sha256()
    for part in (
        sys.version,
        app.topology.describe("json"),
        *(f"{name}={getattr(app.settings, name)}" for name in _SETTINGS),
        *map(repr, request),
        *(f"{topic}={value}" for topic, value in sorted(topics.items())),
        *_installed(),
        *(f"{path}:{sha256(path.read_bytes()).hexdigest()}" for path in sorted(_sources())),
    ):
        found.update(part.encode(errors="replace") + b"\0")
    return found.hexdigest()


@cache
def _installed() -> tuple[str, ...]:
    """The versions of all installed packages, and this library's files.

    Once for each process, which keeps what it has imported: the metadata of all packages takes 0.1 s to read.
    """
    return (
        *sorted(f"{package.name}=={package.version}" for package in distributions()),
        *(f"{path}:{_state(path)}" for path in sorted(_LIBRARY.rglob("*.py"))),
    )


def _sources() -> set[Path]:
    """The source files of the program: those beside its modules too, which it may import later."""
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = {
        _folder(file)
        # By their dictionaries, as an attribute of a lazy module may import something.
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__dict__", {}).get("__file__")) and not name.startswith("_")
    }
    return {
        path
        for folder in folders
        if not any(folder.is_relative_to(place) for place in (*installed, _LIBRARY))
        for path in folder.glob("*.py")
        if path.is_file()
    }


@cache
def _folder(file: str) -> Path:
    """The folder of a module's file, with links followed: a process has a thousand modules and more."""
    return Path(file).resolve().parent


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
