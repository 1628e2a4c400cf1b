"""The compared systems, and how each is started."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.java import KAFKA_STREAMS, kafka_streams_command

if TYPE_CHECKING:
    from collections.abc import Callable

PEERS = Path(__file__).parent / "peers"
_QUIX_REQUIREMENTS = Path(__file__).parent / "quix-requirements.txt"

THIS_RUNTIME = "streams"
WITH_LINEAGE = "streams with lineage"
WITH_TRACING = "streams with tracing"
RAW_CLIENT = "raw client"
JAVA = f"Kafka Streams {KAFKA_STREAMS}"
QUIX = "Quix Streams 3.28"
ALL = (THIS_RUNTIME, RAW_CLIENT, JAVA, QUIX)


class Missing(Exception):
    """A system is not available here; the message says why."""


@dataclass(frozen=True, slots=True)
class System:
    """A system; ``command`` starts it, with arguments: job, guarantee, servers, topics, group, interval.

    The job is ``copy`` or one of ``benchmarks.jobs``, the guarantee is named as in ``streams.config``. The
    topics are those of input and output. The interval is the time between commits in seconds, followed by the
    topic of the table, if there is one. State is kept in ``state`` below the working folder. The process runs
    until SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    warms_up: bool = False
    """Whether it also gets the warm-up part of the input: Java compiles hot code only while it runs."""


def find_systems(folder: Path, report: Callable[[str], None]) -> tuple[list[System], dict[str, str]]:
    """The available systems, in the order in which they run, and the reasons why others are missing.

    Their environments are created in ``folder``, and in the user's cache folder.
    """
    makers: dict[str, Callable[[], System]] = {
        THIS_RUNTIME: lambda: System(THIS_RUNTIME, (sys.executable, str(PEERS / "streams_app.py"))),
        WITH_LINEAGE: lambda: System(WITH_LINEAGE, (sys.executable, str(PEERS / "lineage_app.py"))),
        WITH_TRACING: lambda: System(WITH_TRACING, (sys.executable, str(PEERS / "tracing_app.py"))),
        RAW_CLIENT: lambda: System(RAW_CLIENT, (sys.executable, str(PEERS / "raw_client.py"))),
        JAVA: lambda: _kafka_streams(folder, report),
        QUIX: lambda: _quix(folder, report),
    }
    found, missing = [], {}
    for name, make in makers.items():
        try:
            found.append(make())
        except Missing as reason:
            missing[name] = str(reason)
            report(f"{name} is missing: {reason}")
    return found, missing


def _kafka_streams(folder: Path, report: Callable[[str], None]) -> System:
    try:
        command = kafka_streams_command(folder / "kafka-streams", report)
    except Exception as error:
        # The resolver raises errors of many types; none of them may prevent the other systems from running.
        raise Missing(f"{type(error).__name__}: {error}") from error
    return System(JAVA, tuple(command), warms_up=True)


def _quix(folder: Path, report: Callable[[str], None]) -> System:
    home = folder / "quix"
    python = home / "bin" / "python"
    stamp = home / "requirements.sha256"
    wanted = hashlib.sha256(sys.version.encode() + _QUIX_REQUIREMENTS.read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == wanted):
        report(f"Setting up a virtual environment for {QUIX} (once; about half a minute) …")
        try:
            venv.create(home, clear=True, with_pip=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run(
                [*install, "--require-hashes", "-r", str(_QUIX_REQUIREMENTS)],
                capture_output=True,
                text=True,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            said = str(error.stderr or error.output).strip().splitlines()
            raise Missing("\n".join(["pip could not install it:", *said[-3:]])) from error
        except OSError as error:
            raise Missing(f"its virtual environment could not be made: {error}") from error
        stamp.write_text(wanted)
    return System(QUIX, (str(python), str(PEERS / "quix_app.py")))
