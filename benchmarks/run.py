"""``make bench``: all systems on the same works, one after another, on one broker.

``python -m benchmarks.run [NAME]`` runs the works whose name starts with NAME; ``RECORDS`` in the environment
is how many records are measured, a million unless set.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks.data import CHUNK_RECORDS
from benchmarks.measure import MeasurementFailed, Result
from benchmarks.processes import PeerFailed
from benchmarks.report import make_table, write_results
from benchmarks.systems import find_systems
from benchmarks.works import WORKS, Bench, Work
from streams.errors import StreamsError
from streams.localkafka import LocalKafka

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path("build/bench").absolute()
RESULTS = Path("build/bench.json")

console = Console()
if not console.is_terminal:
    # A file or a pipe has no width of its own, and 80 columns are too few for the table.
    console = Console(width=120)


def main(arguments: Sequence[str]) -> int:
    """Run the works; the exit code is 0 only if every system did each of them, and did it right."""
    # Ended by SIGTERM, it must still end what it started: turn that into an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    works = choose_works(" ".join(arguments))
    if not works:
        console.print(f"No work's name starts so; there are: {', '.join(work.name for work in WORKS)}")
        return 2
    try:
        records = count_records(os.environ.get("RECORDS", "1000000"))
        FOLDER.mkdir(parents=True, exist_ok=True)
        # What the harness's own clients warn of while the broker starts is not for the terminal.
        logging.basicConfig(filename=FOLDER / "harness.log", filemode="w")
        with ExitStack() as stack:
            results, failures = _run(stack, works, records)
    except (ValueError, StreamsError) as error:
        console.print(f"[bold red]The benchmark failed:[/] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    console.print(make_table(results, failures))
    for work, system, reason in failures:
        console.print(f"[bold red]{work}, {system}:[/] {reason}", highlight=False)
    write_results(RESULTS, results)
    console.print(f"The same figures as data: {RESULTS}")
    return 1 if failures else 0


def choose_works(start: str) -> list[Work]:
    """The works whose name starts so."""
    return [work for work in WORKS if work.name.startswith(start)]


def count_records(text: str) -> int:
    """How many records to measure: the number, rounded up to whole chunks of the generator."""
    records = int(text)
    if records <= 0:
        raise ValueError(f"RECORDS={text} leaves nothing to measure")
    return -(-records // CHUNK_RECORDS) * CHUNK_RECORDS


def _say(text: str) -> None:
    console.print(f"[dim]{text}[/]", highlight=False)


def _run(
    stack: ExitStack, works: Sequence[Work], records: int
) -> tuple[list[Result], list[tuple[str, str, str]]]:
    systems, missing = find_systems(FOLDER, _say)
    bench = Bench(_servers(stack), FOLDER, records, _say)
    stack.callback(bench.close)
    results: list[Result] = []
    failures = [
        (work.name, system, f"missing: {reason}") for work in works for system, reason in missing.items()
    ]
    for work in works:
        for system in systems:
            _say(f"{work.name}: {system.name} …")
            try:
                result = work.measure(bench, system)
            except (MeasurementFailed, PeerFailed, StreamsError) as error:
                failures.append((work.name, system.name, str(error)))
                console.print(f"[bold red]{work.name}, {system.name}:[/] {error}", highlight=False)
            else:
                if result is not None:
                    results.append(result)
    return results, failures


def _servers(stack: ExitStack) -> str:
    """The cluster that ``KAFKA_BOOTSTRAP_SERVERS`` names, else a local one, which is removed at the end."""
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if named:
        _say(f"Using the Kafka that KAFKA_BOOTSTRAP_SERVERS names: {named}")
        return named
    folder = FOLDER / "kafka"
    kafka = LocalKafka.start(folder, heap_mb=1024, report=_say)
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    stack.callback(kafka.stop)
    return kafka.bootstrap_servers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
