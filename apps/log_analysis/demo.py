"""``make demo``: an access log through the app, on a real Kafka, to a report that accounts for every line."""

from __future__ import annotations

import argparse
import contextlib
import io
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

from apps.log_analysis.generate import closing_lines, generate_lines
from apps.log_analysis.hit import MalformedLine, parse
from apps.log_analysis.tables import clock, show
from apps.log_analysis.traffic import Owner
from streams import Text
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.development import development_broker
from streams.errors import StreamsError
from streams.ingest import ingest_lines
from streams.lag import measure_lag
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from apps.log_analysis.report import Report
    from streams import Topology

PARTITIONS = 4
WORKERS = 2
STALL_SECONDS = 120.0
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
"""Which sections the teams look after; the other ones have no owner."""

console = Console()


class DemoFailed(Exception):
    """The demonstration did not reach its end; the message says where and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 only if every line is accounted for."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("log", nargs="?", help="an access log; a generated one unless given")
    parser.add_argument("--lines", type=int, help="how many lines to generate")
    options = parser.parse_args(arguments)
    # What a client logs while a broker that has just started gets ready is no news.
    logging.getLogger("streams").addHandler(logging.NullHandler())
    # Ended by SIGTERM, it must still end its workers and its broker: turn that into an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = _run(_input(options.log, options.lines))
    except (StreamsError, DemoFailed) as error:
        console.print(f"[bold red]The demo failed:[/] {error}", highlight=False)
        return getattr(error, "exit_code", 1)
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
                f"{log} is no file: name an access log, e.g. make demo LOG=/var/log/nginx/access.log"
            )
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


def _real_log() -> Path:
    folder = os.environ.get("STREAMS_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data"
    return Path(folder) / "apache_access.log"


class _Times(NamedTuple):
    """When the log's first and last hits were received: milliseconds since the epoch."""

    first: int
    last: int

    @classmethod
    def of(cls, log: Path) -> _Times:
        times = []
        with log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(MalformedLine):
                    times.append(parse(line).time)
        return cls(min(times, default=0), max(times, default=0))

    @property
    def grace(self) -> int:
        """How far behind a line may come: all of the log, as its partitions are read side by side."""
        return (self.last - self.first) // MINUTE * MINUTE + 3 * MINUTE

    def closing(self, step: int) -> int:
        """When the closing lines of a step are dated: late enough to close what was before; whole minutes."""
        return (self.last // MINUTE + 1) * MINUTE + step * (self.grace + PAUSE + MINUTE)


def _run(log: Path) -> Report:
    times = _Times.of(log)
    with development_broker(_say) as servers:
        # A cluster of somebody's may hold an earlier run: every run has names of its own.
        prefix = f"demo-{uuid.uuid4().hex[:6]}-"
        os.environ |= {
            "LOG_ANALYSIS_PREFIX": prefix,
            "LOG_ANALYSIS_GRACE": str(times.grace // 1000),
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
        with _workers():
            _wait_until_consumed(broker, lines, "process")
            seconds = time.monotonic() - begun
            _let_time_go_on(broker, times)
        _say("Reading the results back …")
        return Report.read(broker, lines=lines, seconds=seconds, closing=times.closing(1))


def _topics(topology: Topology) -> list[NewTopic]:
    # Event times lie in the past, by which the broker would delete records, or, those of closing lines, in
    # the future, for which it would refuse them.
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
    with log.open("rb") as file:
        total = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    producer = broker.producer()
    with _progress() as progress, log.open("rb") as file:
        task = progress.add_task("ingest", total=total, note="")
        begun = time.monotonic()

        def advance(records: int, _size: int) -> None:
            progress.advance(task, records)
            rate = progress.tasks[task].completed / max(time.monotonic() - begun, 1e-9)
            progress.update(task, note=f"{rate:>9,.0f} records/s")

        count = ingest_lines(file, topic, producer, progress=advance)
        progress.update(task, total=count)
    producer.close()
    return count


@contextlib.contextmanager
def _workers() -> Iterator[None]:
    """The app as two worker processes; ended gracefully, and checked to have been able to."""
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
            yield
            code = process.poll()
            if code is not None:
                raise DemoFailed(f"the workers ended early, with exit code {code}: see {WORKERS_LOG}")
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait(60)
            shutil.rmtree(STATE, ignore_errors=True)
    if code != 0:
        raise DemoFailed(f"the workers stopped with exit code {code}: see {WORKERS_LOG}")


def _wait_until_consumed(broker: KafkaBroker, lines: int, description: str) -> None:
    """Wait until all lines, and all that came of them in the app's internal topics, are processed."""
    from apps.log_analysis.topology import LINES, app  # noqa: PLC0415 - as in _run

    admin = broker.admin()
    internal = app.topology.repartitions
    with _progress() as progress:
        task = progress.add_task(description, total=lines, note="")
        begun = moved = time.monotonic()
        left = -1
        while left:
            time.sleep(0.1)
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


def _let_time_go_on(broker: KafkaBroker, times: _Times) -> None:
    """Have all windows close, by lines that come later than all of the log.

    The first ones close the windows over hits. What those result in is counted again, in windows that close
    by the results of the first ones, for which it takes the second ones.
    """
    from apps.log_analysis.topology import LINES  # noqa: PLC0415 - as in _run

    _say(
        "The log is over, and its last windows wait for later lines. Sending a few, "
        f"dated {clock(times.closing(1))} and {clock(times.closing(2))}; the report leaves them out …"
    )
    producer = broker.producer()
    for step in (1, 2):
        lines = closing_lines(times.closing(step))
        count = ingest_lines(io.BytesIO("\n".join(lines).encode()), LINES, producer)
        _wait_until_consumed(broker, count, "close")
    producer.close()


if __name__ == "__main__":
    sys.exit(main())
