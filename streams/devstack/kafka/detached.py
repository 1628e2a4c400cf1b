"""The user's detached cluster, which keeps running after the program that started it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from streams.devstack.kafka.cluster import LocalKafka, start_planned
from streams.devstack.kafka.folders import cache_folder, explained, locked
from streams.devstack.kafka.plan import Plan
from streams.devstack.kafka.report import silent
from streams.local_cluster import note_file, running as running_record, write_note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.devstack.kafka.report import Report


def start_detached(
    folder: str | Path | None = None,
    *,
    nodes: int = 1,
    heap_mb: int = 512,
    port: int | None = None,
    properties: Mapping[str, object] | None = None,
    report: Report = silent,
    timeout: float = 60.0,
) -> LocalKafka:
    """Start the user's detached cluster, which keeps running after this process ends, until :func:`stop`.

    A cluster that is already running is returned unchanged, and ``report`` says so. The arguments and errors
    are those of ``LocalKafka.start``; without ``folder`` the data is kept in the cache folder.
    """
    busy = "Waiting for another process that is starting Kafka …"
    with explained(), locked(note_file().with_suffix(".lock"), report, busy):
        cluster = running()
        if cluster is not None:
            report(f"Kafka already runs at {cluster.bootstrap_servers}; its data is in {cluster.folder}")
            return cluster
        path = Path(folder).absolute() if folder is not None else cache_folder() / f"data-{nodes}-nodes"
        # The note is also written before the start, so that the nodes can be found if this process is killed.
        write_note(path)
        plan = Plan(path, nodes, heap_mb, port, properties or {}, timeout, detached=True)
        cluster = start_planned(plan, report)
        write_note(path)
        return cluster


def running() -> LocalKafka | None:
    """Find the user's detached cluster; ``None`` if none of its nodes is running."""
    record = running_record()
    return None if record is None else LocalKafka.found(record)


def stop(*, report: Report = silent) -> bool:
    """Stop the user's detached cluster and keep its data. Returns whether one was running."""
    cluster = running()
    if cluster is None:
        report("No local Kafka is running")
        return False
    cluster.stop()
    note_file().unlink(missing_ok=True)
    report(f"Stopped Kafka; its data is kept in {cluster.folder}")
    return True


def clean(*, report: Report = silent) -> None:
    """Stop the user's detached cluster, then delete the downloaded Kafka and the data in the cache folder.

    Data in a folder that the user chose is kept. Stop clusters of other programs first: they use the
    download.
    """
    stop()
    home = cache_folder()
    if home.exists():
        shutil.rmtree(home)
        report(f"Removed {home}")
