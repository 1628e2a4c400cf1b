"""The demonstration's result, as people and programs read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from apps.data_sync.equality import Check

PERCENTILES = (50, 95, 99)


@dataclass(slots=True, kw_only=True)
class Report:
    """What was done, what was survived, how long it took, and whether everything is equal."""

    seed: int
    operations: int
    transactions: int
    rows: dict[str, int]
    """Rows by table of the warehouse, at the end."""
    changes: int
    """Change events in the topics, tombstones left out."""
    dead_letters: int
    seconds: dict[str, float]
    """By stage of the run."""
    latencies: dict[str, list[float]]
    survived: list[str]
    checks: list[Check] = field(default_factory=list["Check"])
    differences: list[str] = field(default_factory=list[str])

    @property
    def problems(self) -> list[str]:
        """What does not hold; empty if the run is a success."""
        failed = [f"not so: {check.claim}" for check in self.checks if not check.holds]
        if self.dead_letters:
            failed.append(f"{self.dead_letters:,} dead letters")
        return failed

    @property
    def synchronised(self) -> float:
        """Seconds from the first transaction until the targets were equal."""
        return self.seconds["write"] + self.seconds["catch up"]

    def as_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "equal": not self.problems,
            "problems": self.problems,
            "differences": self.differences,
            "seed": self.seed,
            "operations": self.operations,
            "transactions": self.transactions,
            "rows": self.rows,
            "changes": self.changes,
            "changes_per_second": round(self.changes / self.synchronised),
            "dead_letters": self.dead_letters,
            "seconds": {stage: round(seconds, 2) for stage, seconds in self.seconds.items()},
            "latency_seconds": {
                phase: {
                    "samples": len(values),
                    **{f"p{share}": round(_percentile(values, share), 3) for share in PERCENTILES},
                    "max": round(max(values), 3),
                }
                for phase, values in self.latencies.items()
                if values
            },
            "survived": self.survived,
            "checks": {check.claim: check.holds for check in self.checks},
        }


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print()
    figures = _table("Synchronised", "")
    figures.add_row("inserts, updates and deletes", f"{report.operations:,}")
    figures.add_row("transactions", f"{report.transactions:,}")
    figures.add_row("change events, with those of foreign keys", f"{report.changes:,}")
    figures.add_row("change events a second", f"{report.changes / report.synchronised:,.0f}")
    for table, rows in report.rows.items():
        figures.add_row(f"rows in {table}", f"{rows:,}")
    figures.add_row("dead letters", f"{report.dead_letters:,}")
    console.print(figures)

    latencies = _table(
        "From COMMIT to the row in the warehouse", *(f"p{share}" for share in PERCENTILES), "max"
    )
    for phase, values in report.latencies.items():
        if values:
            shown = [f"{_percentile(values, share):.3f} s" for share in PERCENTILES]
            latencies.add_row(f"{phase} ({len(values)} samples)", *shown, f"{max(values):.3f} s")
    console.print(latencies)

    stages = _table("Where the time went", "")
    for stage, seconds in report.seconds.items():
        stages.add_row(stage, f"{seconds:.1f} s")
    console.print(stages)

    console.print("[bold]Survived[/]")
    for event in report.survived:
        console.print(f"  {event}", highlight=False)
    console.print("[bold]Equal[/]")
    for check in report.checks:
        mark = "[green]yes[/]" if check.holds else "[bold red]NO[/] "
        console.print(f"  {mark} ", end="")
        console.print(check.claim, markup=False, highlight=False)
    for difference in report.differences:
        console.print(f"      {difference}", markup=False, highlight=False)
    if report.problems:
        console.print(f"[bold red]{len(report.problems)} problems[/]")
    else:
        console.print("[bold green]Source and targets are equal, row by row.[/]")


def _table(title: str, *columns: str) -> Table:
    table = Table("", title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _percentile(values: list[float], share: int) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]
