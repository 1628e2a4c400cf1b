"""The cluster on this machine that apps find by themselves: where it is noted, and whether it still runs.

``devstack`` starts it and writes this down; an app reads addresses and processes, and needs neither Java nor
a download for that. ``STREAMS_LOCAL_KAFKA_DIR`` names another folder for the note.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import LocalKafkaError
from streams.process.identity import ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Seat:
    """A node's number, from 1, and its ports on 127.0.0.1.

    They are for clients, for the controllers' quorum and, in a cluster with security, for its clients.
    """

    number: int
    port: int
    controller_port: int
    secured_port: int | None = None

    @property
    def address(self) -> str:
        """Where clients connect without security."""
        return f"{HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """What it takes to find a cluster's nodes again, as kept in the cluster's folder.

    A node without a process was stopped. ``heap_mb`` is for those who start it again.
    """

    folder: Path
    cluster_id: str
    heap_mb: int
    nodes: Mapping[Seat, ProcessIdentity | None]

    @classmethod
    def read(cls, folder: Path) -> ClusterRecord:
        """The record in a folder.

        :raises FileNotFoundError: there is none.
        :raises LocalKafkaError: what is there is no record.
        """
        path = folder / "cluster.json"
        try:
            facts = json.loads(path.read_bytes())
            nodes = {
                Seat(node["number"], node["port"], node["controller_port"], node.get("secured_port")): (
                    ProcessIdentity(node["pid"], node["started"]) if node["pid"] else None
                )
                for node in facts["nodes"]
            }
            return cls(folder, facts["cluster_id"], facts["heap_mb"], nodes)
        except (ValueError, KeyError, TypeError) as error:
            raise LocalKafkaError(
                f"{path} is no description of a cluster: {error!r}",
                hint="give another folder, or remove this one and its records",
            ) from error

    def write(self) -> None:
        """Replace the record in the folder."""
        nodes = [
            asdict(seat) | {"pid": process and process.pid, "started": process and process.started}
            for seat, process in self.nodes.items()
        ]
        facts = {"cluster_id": self.cluster_id, "heap_mb": self.heap_mb, "nodes": nodes}
        write_atomically(self.folder / "cluster.json", facts)

    @property
    def bootstrap_servers(self) -> str:
        """The nodes' addresses, for a client's ``bootstrap.servers``."""
        return ",".join(seat.address for seat in self.nodes)

    def runs(self) -> bool:
        """Whether a node's process has not ended."""
        return any(process is not None and process.status() is not None for process in self.nodes.values())


def running() -> ClusterRecord | None:
    """Find the user's detached cluster; ``None`` if none of its nodes runs.

    :raises LocalKafkaError: the note of where it is cannot be read.
    """
    try:
        note = note_file()
        record = ClusterRecord.read(Path(json.loads(note.read_bytes())["folder"]))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, LocalKafkaError):
        return None
    except OSError as error:
        raise LocalKafkaError(
            f"the note of which local Kafka runs cannot be read: {error}",
            hint="name a cluster (bootstrap_servers), or another folder (STREAMS_LOCAL_KAFKA_DIR)",
        ) from error
    if not record.runs():
        note.unlink(missing_ok=True)
        return None
    return record


def note_file() -> Path:
    """The file that names the folder of the user's detached cluster."""
    base = os.environ.get("XDG_STATE_HOME") or home() / ".local" / "state"
    return Path(os.environ.get("STREAMS_LOCAL_KAFKA_DIR") or Path(base) / "streams") / "local-kafka.json"


def write_note(folder: Path) -> None:
    """Note in which folder the user's detached cluster is."""
    write_atomically(note_file(), {"folder": str(folder)})


def home() -> Path:
    """The user's home folder. Raises ``LocalKafkaError`` where none is known."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise LocalKafkaError(
            f"no folder for the local Kafka is known: {error}",
            hint="set STREAMS_CACHE_DIR and STREAMS_LOCAL_KAFKA_DIR, or HOME",
        ) from error


def write_atomically(path: Path, content: object) -> None:
    """Write a JSON file that readers see either as it was or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
    draft.replace(path)
