"""Download Kafka's jars from a Maven repository into the cache folder, checked against pinned digests."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.devstack.kafka.folders import KAFKA_VERSION, require_space
from streams.errors import LocalKafkaError
from streams.local_cluster import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.devstack.kafka.report import Report

# Kafka's jars have a logging interface (SLF4J) but no implementation: slf4j-simple is the smallest one.
_COORDINATES = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")
_PINNED_JARS = Path(__file__).with_name("kafka_jars.sha256")
"""The files of the class path with their SHA-256, in ``sha256sum``'s format, relative to ``maven``."""


def intact_jars(home: Path) -> list[Path] | None:
    """Return the class path in order, or ``None`` if the manifest or a jar is missing or has another size.

    A manifest is only written for jars that were checked against the pinned digests whose hash it contains.
    """
    try:
        manifest: dict[str, Any] = json.loads((home / "manifest.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if manifest.get("pinned") != _digest(_PINNED_JARS):
        return None
    sizes: dict[str, int] = manifest["sizes"]
    jars = {home / "maven" / name: size for name, size in sizes.items()}
    damaged = [jar for jar, size in jars.items() if not jar.exists() or jar.stat().st_size != size]
    for jar in damaged:
        jar.unlink(missing_ok=True)
    return None if damaged else list(jars)


def download(home: Path, report: Report) -> list[Path]:
    """Download the jars into ``home`` and return the class path in order. Complete files are kept."""
    try:
        import jgo.config  # noqa: PLC0415  # an extra: only a local Kafka needs it
        import jgo.maven  # noqa: PLC0415
    except ImportError as error:
        raise LocalKafkaError(
            f"a local Kafka needs the package jgo, which downloads Kafka's jars: {error}",
            hint="pip install 'streams[broker]'",
        ) from error
    require_space(home)
    report(f"Downloading Apache Kafka {KAFKA_VERSION} (44 MB, about 30 s, once) …")
    begin = time.monotonic()
    repository = home / "maven"
    mirrors = jgo.config.GlobalSettings.load().repositories or None
    context = jgo.maven.MavenContext(repo_cache=repository, remote_repos=mirrors)
    problem: object = None
    for _ in range(3):
        # jgo writes in place, so an interrupted download leaves a partial file that it takes for complete.
        _drop_damaged(repository)
        try:
            jars = _resolve(context)
        except (OSError, RuntimeError) as error:
            problem = error
            continue
        problem = _unpinned(repository, jars)
        if problem is None:
            break
    else:
        raise LocalKafkaError(
            f"Apache Kafka {KAFKA_VERSION} could not be downloaded: {problem}",
            hint="check the network, which is needed once; complete files are kept. To use a "
            "mirror, set it under [repositories] in jgo's configuration file",
        )
    sizes = {str(jar.relative_to(repository)): jar.stat().st_size for jar in jars}
    write_atomically(home / "manifest.json", {"pinned": _digest(_PINNED_JARS), "sizes": sizes})
    report(f"Downloaded in {time.monotonic() - begin:.0f} s")
    return jars


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpinned(repository: Path, jars: Sequence[Path]) -> str | None:
    """Check the files of the class path against the pinned digests, delete a wrong one, and describe it."""
    pinned = {}
    for line in _PINNED_JARS.read_text(encoding="ascii").splitlines():
        digest, _, name = line.partition("  ")
        pinned[name] = digest
    found = {str(jar.relative_to(repository)): _digest(jar) for jar in jars}
    for name, digest in found.items():
        if digest != pinned.get(name, digest):
            (repository / name).unlink()
            return (
                f"{name} has the SHA-256 {digest}, {pinned[name]} is pinned: it is not the published file; "
                "a proxy may be answering instead of the repository"
            )
    if found.keys() != pinned.keys():
        return f"the files differ from those pinned: {', '.join(sorted(found.keys() ^ pinned.keys()))}"
    return None


def _drop_damaged(repository: Path) -> None:
    for jar in repository.rglob("*.jar"):
        if not zipfile.is_zipfile(jar):
            jar.unlink()
    for description in repository.rglob("*.pom"):
        if not description.read_bytes().rstrip().endswith(b"</project>"):
            description.unlink()


def _resolve(context: Any) -> list[Path]:
    """Return Kafka's jars and their dependencies, downloading missing ones. ``context`` is jgo's."""
    logger = logging.getLogger("jgo")
    level = logger.level
    # Its warnings (a missing checksum, …) are of no use to the user; it raises errors.
    logger.setLevel(logging.CRITICAL)
    try:
        inputs, others = context.resolver.resolve([context.create_dependency(name) for name in _COORDINATES])
        needed = [*inputs, *(other for other in others if other.scope in {"compile", "runtime"})]
        with ThreadPoolExecutor(max_workers=8) as pool:
            return list(pool.map(lambda dependency: Path(dependency.artifact.resolve()), needed))
    finally:
        logger.setLevel(level)
