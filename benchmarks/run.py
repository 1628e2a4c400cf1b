"""``make bench``: all systems on the same workloads, one after another, on one broker.

``python -m benchmarks.run [NAME]`` runs the workloads whose name starts with NAME; the environment variable
``RECORDS`` is the number of measured records, by default a million, and the number of keys of the workload
with many. ``sync``, ``sync-sink``, ``sync-snapshot``, ``replay``, ``jobs`` and ``bridges`` are benchmarks of
their own.
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
from rich.markup import escape

from benchmarks.data import CHUNK_RECORDS
from benchmarks.measure import MeasurementFailed, Result, middle
from benchmarks.processes import PeerFailed
from benchmarks.report import Failure, describe, make_table, write_results
from benchmarks.systems import RAW_CLIENT, System, find_systems
from benchmarks.works import WORKS, Bench, Work
from streams.devstack.kafka import LocalKafka
from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FOLDER = Path("build/bench").absolute()
RESULTS = Path("build/bench.json")

console = Console()
if not console.is_terminal:
    # Files and pipes have no width, and 80 columns are too few for the table.
    console = Console(width=130)


def main(arguments: Sequence[str]) -> int:
    """Run the workloads; the exit code is 0 only if every system completed all of its workloads correctly."""
    # SIGTERM becomes an exception, so that all started processes are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The first two need Postgres and Debezium, which the other workloads do not.
    if list(arguments) == ["sync"]:
        from benchmarks.data_sync import main as sync  # noqa: PLC0415 - as above

        return sync()
    if list(arguments) == ["sync-sink"]:
        from benchmarks.postgres_sink import main as sync_sink  # noqa: PLC0415 - as above

        return sync_sink()
    if list(arguments) == ["sync-snapshot"]:
        from benchmarks.sync_snapshot import main as sync_snapshot  # noqa: PLC0415 - as above

        return sync_snapshot()
    if list(arguments) == ["replay"]:
        from benchmarks.replay import main as replay  # noqa: PLC0415 - as above

        return replay()
    if list(arguments) == ["jobs"]:
        from benchmarks.task_queue import main as task_queue  # noqa: PLC0415 - as above

        return task_queue()
    if list(arguments) == ["bridges"]:
        from benchmarks.bridges import main as bridges  # noqa: PLC0415 - the clients of Redis and others

        return bridges()
    works = choose_works(" ".join(arguments))
    if not works:
        console.print(
            f"No workload's name starts like this; there are: {', '.join(work.name for work in WORKS)}"
        )
        return 2
    try:
        records = count_records(os.environ.get("RECORDS", "1000000"))
        FOLDER.mkdir(parents=True, exist_ok=True)
        # Hide warnings of the harness's own clients while the broker starts.
        logging.basicConfig(filename=FOLDER / "harness.log", filemode="w")
        with ExitStack() as stack:
            results, failures = _run(stack, works, records)
    except (ValueError, StreamsError) as error:
        console.print(f"[bold red]The benchmark failed:[/] {escape(str(error))}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    console.print(make_table(results, failures))
    for failure in failures:
        _complain(*failure)
    write_results(RESULTS, results)
    console.print(f"The same figures as data: {RESULTS}")
    return 1 if failures else 0


def choose_works(start: str) -> list[Work]:
    """The workloads whose name starts with ``name``."""
    return [work for work in WORKS if work.name.startswith(start)]


def count_records(text: str) -> int:
    """The number of records to measure, rounded up to complete chunks of the generator."""
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"RECORDS={text} is not a positive number")
    return -(-int(text) // CHUNK_RECORDS) * CHUNK_RECORDS


def _say(text: str) -> None:
    console.print(f"[dim]{escape(text)}[/]", highlight=False)


def _complain(work: str, system: str, reason: str) -> None:
    console.print(f"[bold red]{work}, {system}:[/] {escape(reason)}", highlight=False)


def _run(stack: ExitStack, works: Sequence[Work], records: int) -> tuple[list[Result], list[Failure]]:
    systems, missing = find_systems(FOLDER, _say)
    bench = Bench(_servers(stack), FOLDER, records, _say)
    stack.callback(bench.close)
    results: list[Result] = []
    failures = [
        Failure(work.name, system, reason)
        for work in works
        for system, reason in missing.items()
        if system in work.systems
    ]
    for work in works:
        found, failed = _do(work, bench, systems)
        results += found
        failures += failed
    return results, failures


def _do(work: Work, bench: Bench, systems: Sequence[System]) -> tuple[list[Result], list[Failure]]:
    """Run the systems in turns, so that a busy minute of the machine affects each of them."""
    results: dict[str, list[Result]] = {system.name: [] for system in systems}
    failures: dict[str, Failure] = {}

    def attempt(turn: str, system: System, do: Callable[[Bench, System], Result | None]) -> None:
        if system.name in failures:
            return
        try:
            result = do(bench, system)
        except (MeasurementFailed, PeerFailed, StreamsError) as error:
            failures[system.name] = Failure(work.name, system.name, str(error))
            _complain(*failures[system.name])
            return
        if result is not None:
            results[system.name].append(result)
            _say(f"{work.name}, {turn}, {system.name}: {describe(result)}")

    _say(f"{work.name}: warming up the broker …")
    attempt("", next(system for system in systems if system.name == RAW_CLIENT), work.warm_up)
    for number in range(1, work.rounds + 1):
        for system in systems:
            if system.name in work.systems:
                attempt(f"round {number} of {work.rounds}", system, work.measure)
    good = [middle(found) for name, found in results.items() if found and name not in failures]
    return good, [*failures.values()]


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
