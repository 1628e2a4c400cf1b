"""``make demo``: an access log through the app, on a real Kafka, to a report that accounts for every line."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from apps.log_analysis.formats.detection import FORMATS
from apps.log_analysis.generate import closing_lines, generate_lines
from apps.log_analysis.hit import MalformedLine, configured_parser
from apps.log_analysis.tables import clock, show
from apps.log_analysis.traffic import Owner
from streams import Text
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.development import development_broker
from streams.errors import DeadLetterLimitExceeded, StreamsError
from streams.ingest import Ingestion
from streams.ingest.line_records import LineRecords
from streams.ingest.lines import LineReader
from streams.monitoring.lag import measure_lag
from streams.process.stop_request import StopRequest
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from apps.log_analysis.report import Report
    from streams import Topology

PARTITIONS = 4
WORKERS = 2
STALL_SECONDS = 120.0
SAMPLE = 1_000
"""The number of lines that decide whether a file is an access log at all."""
DEAD_LETTER_LIMIT = 0.5
"""The share of malformed lines at which a worker stops: the default of ``dead_letter_limit``."""
FLUSH_SECONDS = 60.0
BUILD = Path("build")
WORKERS_LOG = BUILD / "demo-workers.log"
STATE = BUILD / "demo-state"

MINUTE = 60_000
PAUSE = 30 * MINUTE

OWNERS = {
    "catalogue": ["/products", "/search", "/images"],
    "checkout": ["/api", "/login"],
    "platform": ["/assets", "/health", "/favicon.ico", "/robots.txt", "/files"],
    "editors": ["/", "/blog", "/articles", "/presentations", "/projects"],
}
"""The sections that the teams own; others have no owner."""

console = Console()


class DemoFailed(Exception):
    """The demo failed; the message says where and why."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 only if every line is accounted for."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("log", nargs="?", help="an access log; a generated one unless given")
    parser.add_argument("--lines", type=int, help="how many lines to generate")
    options = parser.parse_args(arguments)
    # Hide the client's messages about a broker that is still starting.
    logging.getLogger("streams").addHandler(logging.NullHandler())
    # SIGTERM becomes an exception, so that the workers and the broker are stopped too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    try:
        report = _run(_input(options.log, options.lines))
    except (StreamsError, DemoFailed) as error:
        console.print("[bold red]The demo failed:[/] ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    show(report, console)
    path = BUILD / "demo-report.json"
    path.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    console.print(f"The same figures as data: {path}")
    return 1 if report.problems else 0


def _say(text: str) -> None:
    console.print(f"[dim]{text}[/]", highlight=False)


def _input(log: str | None, lines: int | None) -> Path:
    BUILD.mkdir(exist_ok=True)
    if log:
        if not Path(log).is_file():
            raise DemoFailed(
                f"{log} is not a file: give an access log, e.g. make demo LOG=/var/log/nginx/access.log"
            )
        _require_access_log(Path(log))
        return Path(log)
    real = _real_log()
    if lines is None and real.is_file():
        _say(f"Reading a real access log: {real}")
        return real
    path = BUILD / "access.log"
    count = 200_000 if lines is None else lines
    _say(f"Generating {count:,} lines of an access log, 0.5 % of them malformed, into {path} …")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in generate_lines(count))
    return path


def _require_access_log(log: Path) -> None:
    """Raise ``DemoFailed`` if the workers would exceed ``dead_letter_limit``."""
    parse = configured_parser(os.environ)
    seen, refused = 0, 0
    example = ""
    for number, line in _log_lines(log):
        seen += 1
        try:
            parse(line)
        except MalformedLine as error:
            refused += 1
            example = example or f"line {number}, {_shown(line)}: {error}"
        if seen >= SAMPLE:
            break
    if refused > seen * DEAD_LETTER_LIMIT:
        first = "" if seen < SAMPLE else "first "
        raise DemoFailed(
            f"{log} is not an access log: {refused:,} of its {first}{seen:,} lines are malformed.\n"
            f"  e.g. {example}\n{_expected()}",
            DeadLetterLimitExceeded.exit_code,
        )


def _expected() -> str:
    chosen = os.environ.get("LOG_ANALYSIS_FORMAT")
    if chosen:
        return f"  expected: LOG_ANALYSIS_FORMAT={chosen}"
    return (
        f"  expected: {', '.join(FORMATS)};\n"
        "  or set LOG_ANALYSIS_FORMAT to one of these, nginx's log_format or Apache's LogFormat; "
        "compressed files: zcat them first"
    )


def _shown(line: str) -> str:
    return f"{line[:80]!r}{' …' if len(line) > 80 else ''}"


def _log_lines(log: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not too long, with their numbers."""
    with LineReader.open(str(log)) as reader:
        while (lines := reader.read(0)) is not None:
            for number, line in enumerate(lines.values, lines.first):
                yield number, line.decode(errors="replace")


def _real_log() -> Path:
    folder = os.environ.get("STREAMS_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data"
    return Path(folder) / "apache_access.log"


class _Times(NamedTuple):
    """When the log's first and last hits were received: milliseconds since the epoch."""

    first: int
    last: int

    @classmethod
    def of(cls, log: Path) -> _Times:
        parse = configured_parser(os.environ)
        times: list[int] = []
        for _, line in _log_lines(log):
            with contextlib.suppress(MalformedLine):
                times.append(parse(line).time)
        return cls(min(times, default=0), max(times, default=0))

    @property
    def grace(self) -> int:
        """The grace for late lines: the duration of the log, as its partitions are read concurrently."""
        return (self.last - self.first) // MINUTE * MINUTE + 3 * MINUTE

    def closing(self, step: int) -> int:
        """The time of a step's closing lines: late enough to close earlier windows; in whole minutes."""
        return (self.last // MINUTE + 1) * MINUTE + step * (self.grace + PAUSE + MINUTE)


def _run(log: Path) -> Report:
    times = _Times.of(log)
    with development_broker(_say) as servers:
        # The user's cluster may contain an earlier run, so every run has its own names.
        prefix = f"demo-{uuid.uuid4().hex[:6]}-"
        os.environ |= {
            "LOG_ANALYSIS_PREFIX": prefix,
            "LOG_ANALYSIS_GRACE": str(times.grace // 1000),
            # The window of the closing lines.
            "LOG_ANALYSIS_ALSO": "combined",
            "STREAMS_BOOTSTRAP_SERVERS": servers,
            "STREAMS_STATE_DIR": str(STATE),
        }
        # Imported late: the modules name their topics when they are imported, which the environment decides.
        from apps.log_analysis import topology  # noqa: PLC0415 - as above
        from apps.log_analysis.report import Report  # noqa: PLC0415 - as above

        broker = KafkaBroker({"bootstrap.servers": servers})
        broker.admin().create_topics(_topics(topology.app.topology))
        _write_owners(broker)
        lines = _ingest(broker, log, topology.LINES)
        begun = time.monotonic()
        with _workers() as workers:
            _wait_until_consumed(broker, lines, "process", workers)
            seconds = time.monotonic() - begun
            _let_time_go_on(broker, times, workers)
        _say("Reading the results back …")
        return Report.read(broker, lines=lines, seconds=seconds, closing=times.closing(1))


def _topics(topology: Topology) -> list[NewTopic]:
    # Event times are in the past, for which the broker would delete records, or, for closing lines, in the
    # future, for which it would refuse them.
    settings = {"retention.ms": "-1", "message.timestamp.after.max.ms": str(2**63 - 1)}
    names = {name for name in (*topology.input_topics, *topology.output_topics) if isinstance(name, str)}
    counts = {name: item.partitions for name, item in topology.repartitions.items()}
    tables = {store.source_topic for part in topology.subtopologies for store in part.stores}
    return [
        NewTopic(
            name=name,
            partitions=counts.get(name) or PARTITIONS,
            settings=settings | ({"cleanup.policy": "compact"} if name in tables else {}),
        )
        for name in names
    ]


def _write_owners(broker: KafkaBroker) -> None:
    from apps.log_analysis.topology import PATH_OWNERS, avro  # noqa: PLC0415 - as in _run

    owners = {section: Owner(team, since=0) for team, sections in OWNERS.items() for section in sections}
    producer = broker.producer()
    keys: list[bytes | None] = [*Text().serialize(list(owners))]
    values: list[bytes | None] = [*avro(Owner).serialize(list(owners.values()))]
    producer.produce(Output(PATH_OWNERS, keys, values, [-1] * len(owners)))
    producer.flush(FLUSH_SECONDS)
    producer.close()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:>9,}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    )


def _ingest(broker: KafkaBroker, log: Path, topic: str) -> int:
    writer = broker.writer(topic)
    with _progress() as progress, LineReader.open(str(log)) as source:
        task = progress.add_task("ingest", total=None, note="")
        begun = time.monotonic()

        def advance(records: int, _size: int) -> None:
            progress.advance(task, records)
            rate = progress.tasks[task].completed / max(time.monotonic() - begun, 1e-9)
            progress.update(task, note=f"{rate:>9,.0f} records/s")

        ingestion = Ingestion(writer, LineRecords(topic), StopRequest(), _say, advance, skip_refused=True)
        ingestion.read(source)
        count = ingestion.records
        progress.update(task, total=count)
    writer.close()
    if ingestion.refused:
        _say(f"{ingestion.refused:,} lines are too long for a record: the figures exclude them")
    return count


@contextlib.contextmanager
def _workers() -> Generator[subprocess.Popen[bytes], None, None]:
    """Run the app as two worker processes, and check that they stop gracefully."""
    command = [
        sys.executable,
        "-m",
        "streams",
        "run",
        "apps.log_analysis.topology:app",
        "--workers",
        str(WORKERS),
    ]
    with WORKERS_LOG.open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait(60)
            shutil.rmtree(STATE, ignore_errors=True)
    if code != 0:
        raise DemoFailed(f"the workers stopped with exit code {code}: see {WORKERS_LOG}")


def _require_workers(workers: subprocess.Popen[bytes]) -> None:
    """Raise ``DemoFailed`` with the workers' exit code and reason if they have ended by themselves."""
    code = workers.poll()
    if code is None:
        return
    log = WORKERS_LOG.read_text(encoding="utf-8", errors="replace").splitlines()
    at = max((number for number, line in enumerate(log) if line.startswith("error:")), default=len(log))
    reason = [line for number, line in enumerate(log[at:]) if number == 0 or line.startswith("  ")]
    expected = f"\n{_expected()}" if code == DeadLetterLimitExceeded.exit_code else ""
    raise DemoFailed(
        f"the workers ended early, with exit code {code}: see {WORKERS_LOG}\n" + "\n".join(reason) + expected,
        # An end without an error is too early as well, as no stop was requested.
        code or 1,
    )


def _wait_until_consumed(
    broker: KafkaBroker, lines: int, description: str, workers: subprocess.Popen[bytes]
) -> None:
    """Wait until all lines, and their records in the app's internal topics, are processed."""
    from apps.log_analysis.topology import LINES, app  # noqa: PLC0415 - as in _run

    admin = broker.admin()
    internal = app.topology.repartitions
    with _progress() as progress:
        task = progress.add_task(description, total=lines, note="")
        begun = moved = time.monotonic()
        left = -1
        while left:
            time.sleep(0.1)
            _require_workers(workers)
            lags = measure_lag(admin, app.name, [LINES, *internal], "read_uncommitted")
            now, before, left = time.monotonic(), left, sum(item.lag for item in lags)
            if left != before:
                moved = now
            elif now - moved > STALL_SECONDS:
                raise DemoFailed(f"no progress for {STALL_SECONDS:.0f} s: see {WORKERS_LOG}")
            done = lines - sum(item.lag for item in lags if item.partition.topic == LINES)
            progress.update(
                task,
                completed=done,
                note=f"{done / (now - begun):>9,.0f} records/s  lag {left:>9,}",
            )
    admin.close()


def _let_time_go_on(broker: KafkaBroker, times: _Times, workers: subprocess.Popen[bytes]) -> None:
    """Close all windows by lines that are later than the log.

    The first ones close the windows over hits. Their results are aggregated in further windows, which the
    results of the second ones close.
    """
    from apps.log_analysis.topology import LINES  # noqa: PLC0415 - as in _run

    _say(
        "The log has ended, and its last windows wait for later lines. Sending a few, "
        f"dated {clock(times.closing(1))} and {clock(times.closing(2))}; the report excludes them …"
    )
    producer = broker.producer()
    for step in (1, 2):
        lines: list[bytes | None] = [line.encode() for line in closing_lines(times.closing(step))]
        producer.produce(Output(LINES, [None] * len(lines), lines, [-1] * len(lines)))
        producer.flush(FLUSH_SECONDS)
        _wait_until_consumed(broker, len(lines), "close", workers)
    producer.close()


if __name__ == "__main__":
    sys.exit(main())
