"""Find the local Kafka cluster that apps use by default, and check whether it is running.

``devstack`` starts the cluster and writes these files. An app only reads addresses and process ids from them,
which needs neither Java nor a download. ``STREAMS_LOCAL_KAFKA_DIR`` sets another folder for the note.
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
    """A node's number, counted from 1, and its ports on 127.0.0.1.

    ``port`` is for clients without security, ``controller_port`` for the controllers' quorum, and
    ``secured_port`` for clients with security, if the cluster has it.
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
    """The nodes of a cluster and their processes, stored in the cluster's folder.

    A node without a process was stopped. ``heap_mb`` is the heap size with which nodes are started again.
    """

    folder: Path
    cluster_id: str
    heap_mb: int
    nodes: Mapping[Seat, ProcessIdentity | None]

    @classmethod
    def read(cls, folder: Path) -> ClusterRecord:
        """Read the record in a folder.

        :raises FileNotFoundError: there is none.
        :raises LocalKafkaError: the file is not a valid record.
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
                f"{path} does not describe a cluster: {error!r}",
                hint="use another folder, or delete this one together with its data",
            ) from error

    def write(self) -> None:
        """Write the record to its folder, atomically."""
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
        """Whether the process of at least one node is running."""
        return any(process is not None and process.status() is not None for process in self.nodes.values())


def running() -> ClusterRecord | None:
    """Find the user's detached cluster; ``None`` if none of its nodes is running.

    :raises LocalKafkaError: the note with the cluster's folder cannot be read.
    """
    try:
        note = note_file()
        record = ClusterRecord.read(Path(json.loads(note.read_bytes())["folder"]))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, LocalKafkaError):
        return None
    except OSError as error:
        raise LocalKafkaError(
            f"the note with the local Kafka's folder cannot be read: {error}",
            hint="set bootstrap_servers to a cluster, or STREAMS_LOCAL_KAFKA_DIR to another folder",
        ) from error
    if not record.runs():
        note.unlink(missing_ok=True)
        return None
    return record


def note_file() -> Path:
    """The path of the note, a file with the folder of the user's detached cluster."""
    base = os.environ.get("XDG_STATE_HOME") or home() / ".local" / "state"
    return Path(os.environ.get("STREAMS_LOCAL_KAFKA_DIR") or Path(base) / "streams") / "local-kafka.json"


def write_note(folder: Path) -> None:
    """Write the folder of the user's detached cluster into the note."""
    write_atomically(note_file(), {"folder": str(folder)})


def home() -> Path:
    """The user's home folder. Raises ``LocalKafkaError`` if it is not known."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise LocalKafkaError(
            f"there is no folder for the local Kafka: {error}",
            hint="set STREAMS_CACHE_DIR and STREAMS_LOCAL_KAFKA_DIR, or HOME",
        ) from error


def write_atomically(path: Path, content: object) -> None:
    """Replace a JSON file atomically: readers see the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
    draft.replace(path)
