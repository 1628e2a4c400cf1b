"""``streams ingest``: write the lines of files into a topic."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from streams.broker import NewTopic
from streams.cli.options import AsJson, Servers, connected_cluster
from streams.cli.output import err, out, print_line, warn
from streams.ingest import Ingestion
from streams.ingest.line_records import LineRecords, parse_headers, part
from streams.ingest.lines import LineReader
from streams.process.stop_request import stop_request
from streams.runtime.topics import ANY_TIME

if TYPE_CHECKING:
    from collections.abc import Iterator


class OnRefused(Enum):
    """What to do with lines that the broker rejects."""

    FAIL = "fail"
    SKIP = "skip"


def ingest(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Files, pipes and devices; - for standard input.")
    ],
    *,
    topic: Annotated[str, typer.Option(help="The topic to write to.")],
    partitions: Annotated[
        int, typer.Option(min=1, help="Number of partitions, if the topic has to be created.")
    ] = 4,
    key: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Take the key from a field of JSON lines, e.g. user.id."),
    ] = None,
    key_pattern: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Take the key from the first group of a regular expression."),
    ] = None,
    timestamp: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Take the event time from a field of JSON lines: milliseconds since the epoch or ISO 8601.",
        ),
    ] = None,
    timestamp_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="Take the event time from the first group of a regular expression."
        ),
    ] = None,
    headers: Annotated[
        list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="Add a header to every record.")
    ] = None,
    on_refused: Annotated[
        OnRefused, typer.Option(help="Stop at a line that the broker rejects, or skip and count it.")
    ] = OnRefused.FAIL,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Write each line of files into a topic; a missing topic is created with unlimited retention.

    Lines are written as they arrive. Their event time is the time of reading, unless an option takes it from
    the line. A line that lacks the requested key or time is written without it. SIGTERM, SIGINT and SIGHUP
    stop the command after everything read is acknowledged: with exit code 0 for pipes, and with 128 + the
    signal's number in the middle of a file.
    """
    shape = LineRecords(
        topic,
        key=part("key", key, key_pattern),
        timestamp=part("timestamp", timestamp, timestamp_pattern),
        headers=parse_headers(headers or ()),
    )
    begun = time.monotonic()
    with stop_request() as stop, ExitStack() as stack:
        sources = [stack.enter_context(LineReader.open(name)) for name in files]
        cluster = connected_cluster(bootstrap_servers)
        cluster.admin().create_topics(
            [NewTopic(name=topic, partitions=partitions, settings={"retention.ms": "-1"}, wished=ANY_TIME)]
        )
        writer = cluster.writer(topic)
        stack.callback(writer.close)
        known = [source.size for source in sources if source.size is not None]
        total = sum(known) if len(known) == len(sources) else None
        ingestion = Ingestion(writer, shape, stop, warn, skip_refused=on_refused is OnRefused.SKIP)
        try:
            with _progress_bar("ingest", total, quiet=as_json) as advance:
                ingestion.progress = advance
                for source in sources:
                    if not stop:
                        ingestion.read(source)
                    elif source.is_file:
                        ingestion.unfinished = ingestion.unfinished or f"{source.name} before line 1"
        finally:
            _show_ingestion(ingestion, time.monotonic() - begun, as_json=as_json)
    if ingestion.stopped_by is not None and ingestion.unfinished is not None:
        raise typer.Exit(128 + ingestion.stopped_by)


def _show_ingestion(ingestion: Ingestion, seconds: float, *, as_json: bool) -> None:
    """Print what was written. If standard output is closed by then, the exit code stays the same."""
    shape, count, stopped = ingestion.shape, ingestion.records, ingestion.stopped_by
    notes = {
        "refused": ingestion.refused,
        "without_key": shape.without_key,
        "without_timestamp": shape.without_timestamp,
    }
    try:
        if as_json:
            print_line(
                {"topic": shape.topic, "records": count, "seconds": round(seconds, 3)}
                | {name: number for name, number in notes.items() if number}
                | ({"stopped_by": stopped.name} if stopped is not None else {})
            )
            return
        if stopped is not None:
            warn(f"stopped by {stopped.name}" + (f", {ingestion.unfinished}" if ingestion.unfinished else ""))
        if ingestion.half_line:
            warn("the last record is an incomplete line: it had no line end yet")
        for name, number in notes.items():
            if number:
                warn(f"{number:,} lines {name.replace('_', ' ')}")
        rate = count / max(seconds, 1e-9)
        out.print(f"{count:,} records into {shape.topic} in {seconds:.1f} s ({rate:,.0f} a second)")
        out.file.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _progress_bar(title: str, total: int | None, *, quiet: bool) -> Iterator[Any]:
    """Show a progress bar of bytes and records; yields ``advance(records, bytes)``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[records]:,} records, {task.fields[rate]:,.0f} a second"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task(title, total=total, records=0, rate=0.0)
        begun, records = time.monotonic(), 0

        def advance(more: int, size: int) -> None:
            nonlocal records
            records += more
            rate = records / max(time.monotonic() - begun, 1e-9)
            progress.update(task, advance=size, records=records, rate=rate)

        yield advance
