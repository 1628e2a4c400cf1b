"""The results as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from benchmarks.systems import JAVA, RAW_CLIENT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.measure import Result


class Failure(NamedTuple):
    """A system without a result for a workload, and the reason."""

    work: str
    system: str
    reason: str


def describe(result: Result) -> str:
    """The result as a short text."""
    if result.records_per_cpu_second is not None:
        return (
            f"{result.records_per_second:,.0f} records/s, "
            f"{result.records_per_cpu_second:,.0f} records per CPU-second, {result.peak_rss_mb:,.0f} MB"
        )
    return f"p50 {_number(result.p50_ms, '.1f')} ms, p99 {_number(result.p99_ms, '.1f')} ms"


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write a list of objects, with ``null`` for figures that do not apply."""
    rows = [
        {
            name: round(value, 2) if isinstance(value, float) and value < 1000 else _whole(value)
            for name, value in asdict(result).items()
        }
        for result in results
    ]
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _whole(value: object) -> object:
    return round(value) if isinstance(value, float) else value


def ratio(result: Result, results: Sequence[Result], system: str) -> float | None:
    """Records per CPU-second relative to another system on the same workload; ``None`` without it."""
    for other in results:
        if (other.work, other.system) == (result.work, system):
            if result.records_per_cpu_second is None or other.records_per_cpu_second is None:
                return None
            return result.records_per_cpu_second / other.records_per_cpu_second
    return None


def make_table(results: Sequence[Result], failures: Sequence[Failure]) -> Table:
    """The results in the order given, then the failures."""
    table = Table("work", "system")
    for heading in (
        "records",
        "records/s",
        "records per\nCPU-second",
        "to Kafka\nStreams",
        "to raw\nclient",
        "peak RSS\nMB",
        "on disk\nMB",
        "p50 ms",
        "p99 ms",
    ):
        table.add_column(heading, justify="right")
    work = None
    for result in results:
        if work not in {None, result.work}:
            table.add_section()
        work = result.work
        table.add_row(
            result.work,
            result.system,
            f"{result.records:,}",
            _number(result.records_per_second),
            _number(result.records_per_cpu_second),
            _number(ratio(result, results, JAVA), ".2f", "x"),
            _number(ratio(result, results, RAW_CLIENT), ".2f", "x"),
            _number(result.peak_rss_mb),
            _number(result.state_mb),
            _number(result.p50_ms, ".1f"),
            _number(result.p99_ms, ".1f"),
        )
    table.add_section()
    for work, system, _reason in failures:
        table.add_row(work, system, "[red]none[/]")
    return table


def _number(value: float | None, form: str = ",.0f", unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
