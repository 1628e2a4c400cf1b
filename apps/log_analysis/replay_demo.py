"""``make demo-replay``: a changed rule is tried on the log, switched to at exact offsets, and rolled back."""

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
import threading
import time
import uuid
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.table import Table

from apps.log_analysis.generate import generate_lines
from apps.log_analysis.hit import MalformedLine, configured_parser
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.broker.reading import find_partitions, read_to_end
from streams.devstack.development import development_broker
from streams.errors import StreamsError
from streams.monitoring.lag import measure_lag
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from streams import App

PARTITIONS = 4
LINES = 60_000
AT_ONCE = 100
LINES_A_SECOND = 1_000
LEAST_SECONDS = 30
"""How long lines arrive at least: both switches have to be made meanwhile."""
WAIT_SECONDS = 120.0
BUILD = Path("build")
STATE = BUILD / "demo-replay-state"
PAGE = BUILD / "demo-replay-shadow.html"
REPORT = BUILD / "demo-replay-report.json"
VERSIONS = "apps.log_analysis.versions"

console = Console()


class DemoFailed(Exception):
    """The demo failed; the message says where and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 only if each failure was reported once, by the right rule."""
    parser = argparse.ArgumentParser(prog="make demo-replay", description=__doc__)
    parser.add_argument("--lines", type=int, default=LINES, help="how many lines of a log to generate")
    options = parser.parse_args(arguments)
    logging.getLogger("streams").addHandler(logging.NullHandler())
    # SIGTERM becomes an exception, so that the workers and the broker are stopped too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    BUILD.mkdir(exist_ok=True)
    try:
        report = _run(options.lines)
    except (StreamsError, DemoFailed) as error:
        console.print("[bold red]The demo failed:[/] ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    finally:
        shutil.rmtree(STATE, ignore_errors=True)
    _show(report)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"The same figures as data: {REPORT}\nWhat the new rule changes: {PAGE}")
    return 1 if report["problems"] else 0


def _say(text: str) -> None:
    console.print(f"[dim]{text}[/]", highlight=False)


def _run(count: int) -> dict[str, Any]:
    lines = [line.encode() for line in generate_lines(count)]
    half = len(lines) // 2
    with development_broker(_say) as servers:
        os.environ |= {
            "LOG_ANALYSIS_PREFIX": f"demo-{uuid.uuid4().hex[:6]}-",
            "STREAMS_BOOTSTRAP_SERVERS": servers,
            "STREAMS_STATE_DIR": str(STATE),
        }
        # Its topics and apps are named after the environment.
        from apps.log_analysis.versions import LINES as TOPIC, changed, current  # noqa: PLC0415 - as above

        broker = KafkaBroker({"bootstrap.servers": servers})
        with contextlib.closing(broker.admin()) as admin:
            settings = {"retention.ms": "-1", "message.timestamp.after.max.ms": str(2**63 - 1)}
            admin.create_topics([NewTopic(name=TOPIC, partitions=PARTITIONS, settings=settings)])
        _say(f"Writing the first {half:,} lines of an access log …")
        _write(broker, TOPIC, lines[:half])
        with _workers("current"):
            _say("The app in production takes a status of 500 and above for a failure. It reads the log …")
            _wait(lambda: _lag(broker, current.name, TOPIC) == 0, "the app has not read the log")
            shadow = _shadow()
            versions = ((changed, "changed"), (current, "current"))
            with _writing(broker, TOPIC, lines[half:]) as writing, _workers("changed"):
                _say("The new version starts beside it, muted, while the rest of the log arrives …")
                _wait(lambda: _has_begun(broker, changed.name), "the new version has not begun")
                pauses = [_switch(broker, version, name, writing) for version, name in versions]
            _wait(lambda: _lag(broker, current.name, TOPIC) == 0, "the app has not read the log to its end")
        return _checked(broker, shadow, pauses, len(lines))


def _write(broker: KafkaBroker, topic: str, lines: Sequence[bytes]) -> None:
    with contextlib.closing(broker.producer()) as producer:
        keys: list[bytes | None] = [line.split(b" ", 1)[0] for line in lines]
        producer.produce(Output(topic, keys, list(lines), [-1] * len(lines)))
        producer.flush(60)


@contextlib.contextmanager
def _writing(
    broker: KafkaBroker, topic: str, lines: Sequence[bytes]
) -> Generator[threading.Thread, None, None]:
    """Write the lines at a steady rate in a thread, and in the end those that are left."""
    ended = threading.Event()

    rate = min(LINES_A_SECOND, len(lines) / LEAST_SECONDS)

    def write() -> None:
        for start in range(0, len(lines), AT_ONCE):
            _write(broker, topic, lines[start : start + AT_ONCE])
            # Without a rest once the switches are done.
            ended.wait(AT_ONCE / rate)

    thread = threading.Thread(target=write, name="lines")
    thread.start()
    try:
        yield thread
        ended.set()
        thread.join()
    finally:
        ended.set()


@contextlib.contextmanager
def _workers(name: str) -> Generator[None, None, None]:
    """Two worker processes of one version."""
    log = BUILD / f"demo-replay-{name}.log"
    command = [sys.executable, "-m", "streams", "run", f"{VERSIONS}:{name}", "--workers", "2"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            yield
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait(60)
    if code != 0:
        raise DemoFailed(f"the workers of {name} stopped with exit code {code}: see {log}")


def _command(*arguments: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Run the command, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "streams", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode not in codes:
        raise DemoFailed(f"streams {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _shadow() -> dict[str, Any]:
    _say("What would change if a status of 400 were a failure? Both versions process the log again …")
    found = _command(
        *("replay", "shadow", f"{VERSIONS}:changed", "--against", f"{VERSIONS}:current"),
        *("--from", "earliest", "--workers", "2", "--ignore", "version", "--report", str(PAGE)),
        codes=(1,),
    )
    for topic in found["topics"]:
        _say(
            f"  {topic['topic']}: {topic['equal']:,} equal, {topic['added']:,} added, "
            f"{topic['changed']:,} changed, {topic['missing']:,} missing"
        )
    return found


def _switch(broker: KafkaBroker, version: App, name: str, writing: threading.Thread) -> float:
    """Switch to a version, and wait for its first results; return the seconds without results.

    On a slow machine the log may have ended before: then no failure is left to wait for.
    """
    from apps.log_analysis.versions import FAILURES, LINES as TOPIC  # noqa: PLC0415 - as in _run

    done = _command("replay", "switch", f"{VERSIONS}:{name}")
    pause = float(done["pause"])
    _say(f"Switched to {name}: {pause:.2f} s without results.")
    places = find_partitions(broker, [FAILURES])
    with contextlib.closing(broker.admin()) as admin:
        before = admin.end_offsets(places)
        _wait(
            lambda: (
                admin.end_offsets(places) != before
                or (not writing.is_alive() and _lag(broker, version.name, TOPIC) == 0)
            ),
            f"{name} has reported no failure",
        )
    return pause


def _lag(broker: KafkaBroker, group: str, topic: str) -> int:
    with contextlib.closing(broker.admin()) as admin:
        return sum(item.lag for item in measure_lag(admin, group, [topic], "read_uncommitted"))


def _has_begun(broker: KafkaBroker, group: str) -> bool:
    with contextlib.closing(broker.admin()) as admin:
        return bool(admin.committed_offsets(group))


def _wait(condition: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"{problem} within {WAIT_SECONDS:.0f} s: see {BUILD}/demo-replay-*.log")
        time.sleep(0.2)


def _checked(broker: KafkaBroker, shadow: dict[str, Any], pauses: list[float], lines: int) -> dict[str, Any]:
    """Compare the reported failures with the log itself."""
    from apps.log_analysis.versions import (  # noqa: PLC0415 - as in _run
        FAILURES,
        LINES as TOPIC,
        PREFIX,
        Failure,
        changed,
    )

    _say("Comparing the reported failures with the log …")
    failures = [
        failure
        for fetched in read_to_end(broker, [FAILURES])
        for failure in (msgspec.json.decode(value or b"", type=Failure) for value in fetched.values())
    ]
    # By the partition of the line: who reported it, at which offset, in the order of the reports.
    by_partition: dict[int, list[Failure]] = {}
    for failure in sorted(failures, key=lambda each: (each.partition, each.offset)):
        by_partition.setdefault(failure.partition, []).append(failure)
    statuses = _statuses(broker, TOPIC)
    problems: list[str] = []
    for partition, found in sorted(by_partition.items()):
        doubled = sum(one.offset == two.offset for one, two in pairwise(found))
        changes = [two.offset for one, two in pairwise(found) if one.version != two.version]
        if doubled:
            problems.append(f"partition {partition}: {doubled} failures were reported twice")
        # Between two switches there may be no failure.
        if len(changes) > len(pauses):
            problems.append(f"partition {partition}: the version changed {len(changes)} times, at {changes}")
        reported = {failure.offset for failure in found}
        by_changed = [
            failure.offset for failure in found if failure.version == changed.name.removeprefix(PREFIX)
        ]
        for offset, status in statuses[partition].items():
            # Between two reports of the changed version, that version was in charge.
            lowest = 400 if by_changed and by_changed[0] <= offset <= by_changed[-1] else 500
            if status >= lowest and offset not in reported:
                problems.append(f"partition {partition}: the failure at offset {offset} was not reported")
        if wrong := [item.offset for item in found if item.status < 500 and item.offset not in by_changed]:
            problems.append(f"partition {partition}: by the old rule no failures: offsets {wrong[:5]}")
    return {
        "lines": lines,
        "failures": len(failures),
        "by_version": {
            name: sum(failure.version == name for failure in failures)
            for name in sorted({failure.version for failure in failures})
        },
        "pause_seconds": pauses,
        "shadow": {
            topic["topic"]: {kind: topic[kind] for kind in ("equal", "added", "changed", "missing")}
            for topic in shadow["topics"]
        },
        "problems": problems,
    }


def _statuses(broker: KafkaBroker, topic: str) -> dict[int, dict[int, int]]:
    """The statuses of the well-formed lines, by partition and offset."""
    parse = configured_parser(os.environ)
    found: dict[int, dict[int, int]] = {number: {} for number in range(PARTITIONS)}
    for fetched in read_to_end(broker, [topic]):
        for offset, value in zip(fetched.offsets(), fetched.values(), strict=True):
            with contextlib.suppress(MalformedLine):
                found[fetched.partition][offset] = parse((value or b"").decode()).status
    return found


def _show(report: dict[str, Any]) -> None:
    table = Table("", "", title="Replay", title_justify="left", show_header=False)
    table.add_row("lines", f"{report['lines']:,}")
    table.add_row("failures, each reported once", f"{report['failures']:,}")
    for name, count in report["by_version"].items():
        table.add_row(f"  by {name}", f"{count:,}")
    forth, back = report["pause_seconds"]
    table.add_row("without results at the switch, and at the rollback", f"{forth:.2f} s, {back:.2f} s")
    console.print(table)
    for problem in report["problems"][:10]:
        console.print(f"[bold red]{problem}[/]", highlight=False)
    if not report["problems"]:
        console.print("[bold green]Each failure was reported once, whichever version was in charge.[/]")


if __name__ == "__main__":
    sys.exit(main())
