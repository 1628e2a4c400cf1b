"""``make demo``: an access log through the app, on a real Kafka, to a report that accounts for every line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console
from rich.filesize import decimal
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from apps.log_analysis.generate import generate_lines
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.development import development_broker
from streams.errors import StreamsError
from streams.ingest import ingest_lines
from streams.lag import measure_lag
from streams.reading import read_to_end

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PARTITIONS = 4
WORKERS = 2
STALL_SECONDS = 120.0
BUILD = Path("build")

console = Console()


class DemoFailed(Exception):
    """The demonstration did not reach its end; the message says where and why."""


@dataclass(slots=True)
class Report:
    """The figures, each read back from the topics that the app wrote."""

    lines: int
    seconds: float
    hits: int = 0
    errors: int = 0
    dead_letters: int = 0
    bytes_sent: int = 0
    bots: int = 0
    first: int | None = None
    last: int | None = None
    clients: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    path_bytes: Counter[str] = field(default_factory=Counter)
    error_paths: Counter[tuple[str, int]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    server_errors_among_hits: int = 0
    dead_letter_origins: set[tuple[bytes, bytes]] = field(default_factory=set)

    @property
    def filtered(self) -> int:
        """Hits that the errors topic leaves out by design: those below status 500."""
        return self.hits - self.server_errors_among_hits

    @property
    def problems(self) -> list[str]:
        """What does not add up; empty when every line is accounted for exactly once."""
        found = []
        if self.hits + self.dead_letters != self.lines:
            found.append(
                f"hits {self.hits} + dead letters {self.dead_letters} are not the {self.lines} lines read"
            )
        if self.errors + self.filtered + self.dead_letters != self.lines:
            found.append(
                f"errors {self.errors} + filtered {self.filtered} + dead letters {self.dead_letters} "
                f"are not the {self.lines} lines read"
            )
        if len(self.dead_letter_origins) != self.dead_letters:
            found.append("dead letters repeat a line")
        return found

    def as_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "lines": self.lines,
            "hits": self.hits,
            "errors": self.errors,
            "filtered": self.filtered,
            "dead_letters": self.dead_letters,
            "accounted_for": not self.problems,
            "problems": self.problems,
            "seconds": round(self.seconds, 3),
            "records_per_second": round(self.lines / self.seconds),
            "bytes": self.bytes_sent,
            "bots": self.bots,
            "clients": len(self.clients),
            "first_hit": self.first,
            "last_hit": self.last,
            "statuses": dict(sorted(self.statuses.items())),
            "top_paths": [
                {"path": path, "hits": count, "bytes": self.path_bytes[path]}
                for path, count in self.paths.most_common(10)
            ],
            "top_errors": [
                {"path": path, "status": status, "errors": count}
                for (path, status), count in self.error_paths.most_common(10)
            ],
            "dead_letter_reasons": dict(self.reasons.most_common()),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 only if every line is accounted for."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("log", nargs="?", help="an access log; a generated one unless given")
    parser.add_argument("--lines", type=int, default=200_000, help="how many lines to generate")
    options = parser.parse_args(arguments)
    # Ended by SIGTERM, it must still end its workers and its broker: turn that into an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        log = _input(options.log, options.lines)
        report = _run(log)
    except (StreamsError, DemoFailed) as error:
        console.print(f"[bold red]The demo failed:[/] {error}", highlight=False)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    _show(report)
    path = BUILD / "demo-report.json"
    path.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    console.print(f"The same figures as data: {path}")
    return 1 if report.problems else 0


def _say(text: str) -> None:
    console.print(f"[dim]{text}[/]", highlight=False)


def _input(log: str | None, lines: int) -> Path:
    BUILD.mkdir(exist_ok=True)
    if log:
        if not Path(log).is_file():
            raise DemoFailed(
                f"{log} is no file: name an access log, e.g. make demo LOG=/var/log/nginx/access.log"
            )
        return Path(log)
    path = BUILD / "access.log"
    _say(f"Generating {lines:,} lines of an access log, 0.5 % of them malformed, into {path} …")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in generate_lines(lines))
    return path


def _run(log: Path) -> Report:
    with development_broker(_say) as servers:
        # A cluster of somebody's may hold an earlier run: every run has names of its own.
        prefix = f"demo-{uuid.uuid4().hex[:6]}-"
        environment = os.environ | {"LOG_ANALYSIS_PREFIX": prefix, "STREAMS_BOOTSTRAP_SERVERS": servers}
        broker = KafkaBroker({"bootstrap.servers": servers})
        topics = [
            f"{prefix}{name}" for name in ("access-lines", "hits", "errors", "log-analysis-dead-letters")
        ]
        broker.admin().create_topics(
            [
                # The events' times lie in the past, by which the broker would delete them.
                NewTopic(name=topic, partitions=PARTITIONS, settings={"retention.ms": "-1"})
                for topic in topics
            ]
        )
        lines = _ingest(broker, log, topics[0])
        begun = time.monotonic()
        with _workers(environment):
            _wait_until_consumed(broker, f"{prefix}log-analysis", topics[0], lines)
            seconds = time.monotonic() - begun
        return _read_back(broker, topics, Report(lines, seconds))


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
def _workers(environment: dict[str, str]) -> Iterator[None]:
    """The app as two worker processes; ended gracefully, and checked to have been able to."""
    log_path = BUILD / "demo-workers.log"
    command = [
        sys.executable,
        "-m",
        "streams",
        "run",
        "apps.log_analysis.topology:app",
        "--workers",
        str(WORKERS),
    ]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        try:
            yield
            code = process.poll()
            if code is not None:
                raise DemoFailed(f"the workers ended early, with exit code {code}: see {log_path}")
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait(60)
    if code != 0:
        raise DemoFailed(f"the workers stopped with exit code {code}: see {log_path}")


def _wait_until_consumed(broker: KafkaBroker, group: str, topic: str, lines: int) -> None:
    admin = broker.admin()
    with _progress() as progress:
        task = progress.add_task("process", total=lines, note="")
        begun = moved = time.monotonic()
        done = 0
        while done < lines:
            time.sleep(0.1)
            lag = sum(item.lag for item in measure_lag(admin, group, [topic]))
            now = time.monotonic()
            if lines - lag > done:
                done, moved = lines - lag, now
            elif now - moved > STALL_SECONDS:
                raise DemoFailed(f"no progress for {STALL_SECONDS:.0f} s: see {BUILD / 'demo-workers.log'}")
            progress.update(
                task,
                completed=done,
                note=f"{done / (now - begun):>9,.0f} records/s  lag {lag:>9,}",
            )


def _read_back(broker: KafkaBroker, topics: Sequence[str], report: Report) -> Report:
    # Imported late: the module names its topics when it is imported, which the workers' environment decides.
    from apps.log_analysis.topology import hit_serde  # noqa: PLC0415 - as above

    _say("Reading the results back …")
    _, hits, errors, dead_letters = topics
    for fetched in read_to_end(broker, [hits]):
        for hit in hit_serde.deserialize([value for value in fetched.values() if value is not None]):
            report.hits += 1
            report.bytes_sent += hit.bytes
            report.bots += hit.bot
            report.clients.add(hit.client)
            report.statuses[hit.status_class] += 1
            report.paths[hit.path] += 1
            report.path_bytes[hit.path] += hit.bytes
            report.server_errors_among_hits += hit.status >= 500
            report.first = hit.time if report.first is None else min(report.first, hit.time)
            report.last = hit.time if report.last is None else max(report.last, hit.time)
    for fetched in read_to_end(broker, [errors]):
        for hit in hit_serde.deserialize([value for value in fetched.values() if value is not None]):
            report.errors += 1
            report.error_paths[hit.path, hit.status] += 1
    for fetched in read_to_end(broker, [dead_letters]):
        for headers in fetched.headers() or ():
            fields = dict(headers or ())
            report.dead_letters += 1
            message = (fields["__streams.errors.message"] or b"").decode()
            report.reasons[message.partition(" at column")[0]] += 1
            report.dead_letter_origins.add(
                (
                    fields["__streams.errors.partition"] or b"",
                    fields["__streams.errors.offset"] or b"",
                )
            )
    return report


def _show(report: Report) -> None:
    traffic = Table(title="Traffic", show_header=False, title_justify="left")
    traffic.add_column(style="dim")
    traffic.add_column(justify="right")
    for name, value in (
        ("lines read", f"{report.lines:,}"),
        ("hits", f"{report.hits:,}"),
        ("visitors", f"{len(report.clients):,}"),
        ("bots", f"{_share(report.bots, report.hits)} of hits"),
        ("sent", decimal(report.bytes_sent)),
        ("from", _clock(report.first)),
        ("to", _clock(report.last)),
        ("processed in", f"{report.seconds:.1f} s, workers' start included"),
    ):
        traffic.add_row(name, value)

    statuses = Table("class", "hits", "share", title="Status classes", title_justify="left")
    for status_class, count in sorted(report.statuses.items()):
        style = {"4": "yellow", "5": "red"}.get(status_class[0], "")
        statuses.add_row(status_class, f"{count:,}", _share(count, report.hits), style=style)

    paths = Table("path", "hits", "share", "sent", title="Top paths", title_justify="left")
    for path, count in report.paths.most_common(10):
        paths.add_row(path[:40], f"{count:,}", _share(count, report.hits), decimal(report.path_bytes[path]))

    errors = Table("path", "status", "errors", title="Server errors", title_justify="left")
    for (path, status), count in report.error_paths.most_common(8):
        errors.add_row(path[:40], str(status), f"{count:,}", style="red")

    letters = Table("reason", "lines", title="Dead letters", title_justify="left")
    for reason, count in report.reasons.most_common():
        letters.add_row(reason[:40], f"{count:,}")

    for table in (statuses, paths, errors, letters):
        for column in table.columns[1:]:
            column.justify = "right"
    console.print()
    console.print(Columns([traffic, statuses, letters], padding=(0, 3)))
    console.print(Columns([paths, errors], padding=(0, 3)))
    if report.problems:
        text = "\n".join(f"✗ {problem}" for problem in report.problems)
        console.print(Panel(text, title="Not every line is accounted for", style="bold red", expand=False))
        return
    text = (
        f"✓ {report.hits:,} hits + {report.dead_letters:,} dead letters = {report.lines:,} lines read\n"
        f"✓ {report.errors:,} errors + {report.filtered:,} filtered + {report.dead_letters:,} dead letters "
        f"= {report.lines:,} lines read"
    )
    console.print(Panel(text, title="Every line is accounted for", style="green", expand=False))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _clock(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "none"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


if __name__ == "__main__":
    sys.exit(main())
