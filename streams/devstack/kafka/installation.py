"""Java, Kafka's jars, and the files for fast starts: prepared once, in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from streams.devstack.kafka.download import download, intact_jars
from streams.devstack.kafka.folders import cache_folder, explained, last_lines, locked, require_space
from streams.devstack.kafka.java import find_java, java_command, java_environment
from streams.devstack.kafka.properties import new_id, server_properties, write_properties
from streams.errors import LocalKafkaError
from streams.local_cluster import Seat

if TYPE_CHECKING:
    from streams.devstack.kafka.report import Report


@dataclass(frozen=True, slots=True)
class Installation:
    """The paths of Java and Kafka. ``start_cache`` is ``None`` if Java could not create one."""

    java: Path
    class_path: str
    checkpoint: Path
    start_cache: Path | None


RunOnce: TypeAlias = Callable[[Installation, Path, str], None]
"""A function that starts a server in a folder with an additional Java option, and stops it."""


def make_installation(run_once: RunOnce, report: Report) -> Installation:
    """Complete the installation; ``run_once`` starts and stops a server, to record a start."""
    java, java_version = find_java()
    home = cache_folder()
    with explained(), locked(home / "lock", report, "Waiting for another process that prepares Kafka …"):
        for abandoned in home.glob("temporary-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        jars = intact_jars(home) or download(home, report)
        class_path = os.pathsep.join(map(str, jars))
        checkpoint = home / "bootstrap.checkpoint"
        if not checkpoint.exists():
            make_checkpoint(java, class_path, checkpoint)
        # Java accepts a start cache only with the same files, including their modification times.
        files = [java.parent.parent / "lib" / "modules", *jars]
        stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        digest = hashlib.sha256(json.dumps([java_version, stamps]).encode()).hexdigest()[:16]
        start_cache = home / f"start-{digest}.aot"
        if not start_cache.exists():
            _make_start_cache(Installation(java, class_path, checkpoint, None), start_cache, run_once, report)
        os.utime(start_cache)
        # Each virtual environment has its own Java and so its own start cache of 65 MB: keep the latest
        # three.
        for unused in sorted(home.glob("start-*.aot"), key=lambda file: file.stat().st_mtime)[:-3]:
            unused.unlink()
    # An empty file means that Java could not create a start cache.
    return Installation(java, class_path, checkpoint, start_cache if start_cache.stat().st_size else None)


def make_checkpoint(java: Path, class_path: str, checkpoint: Path, *arguments: str) -> None:
    """Format a folder once with Kafka's storage tool, and keep the file that is the same in every folder.

    ``arguments`` are further arguments of the tool, e.g. for users.
    """
    with tempfile.TemporaryDirectory(dir=checkpoint.parent, prefix="temporary-") as folder:
        write_properties(Path(folder) / "server.properties", *server_properties([Seat(1, 1, 2)], {}))
        tool = ["kafka.tools.StorageTool", "format", "-t", new_id(), "-c", "server.properties", *arguments]
        command = java_command(java, class_path, 128, "-XX:TieredStopAtLevel=1", *tool)
        done = subprocess.run(
            command, cwd=folder, env=java_environment(), capture_output=True, text=True, check=False
        )
        formatted = Path(folder) / "data" / checkpoint.name
        if not formatted.exists():
            raise LocalKafkaError(
                f"Kafka's storage tool failed:\n{last_lines(done.stdout + done.stderr)}",
                hint=f"delete the folder {checkpoint.parent} and try again",
            )
        formatted.replace(checkpoint)


def _make_start_cache(
    installation: Installation, start_cache: Path, run_once: RunOnce, report: Report
) -> None:
    """Record a start of Kafka (Java's AOT cache), so that later starts need not load and link its classes."""
    require_space(start_cache.parent)
    report("Preparing fast starts of Kafka (about 10 s, once) …")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=start_cache.parent, prefix="temporary-") as folder:
        recorded = Path(folder) / start_cache.name
        # Java writes the file when it exits.
        run_once(installation, Path(folder), f"-XX:AOTCacheOutput={recorded}")
        if recorded.exists():
            recorded.replace(start_cache)
            report(f"Prepared in {time.monotonic() - begin:.0f} s")
        else:
            start_cache.touch()
            report("Java could not record a start: each start of Kafka will take some seconds longer")
