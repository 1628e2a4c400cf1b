"""The demonstration's result, as people and programs read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from apps.email_jobs.accounts import Check

PERCENTILES = (50, 95, 99)


@dataclass(slots=True, kw_only=True)
class Report:
    """What was done, what was survived, how long it took, and whether every job is accounted for."""

    seed: int
    kinds: dict[str, int]
    """How many jobs there were of each kind."""
    endings: dict[str, int]
    mails: int
    """How many mails the server has taken."""
    repeated: int
    """How many of these it had taken before."""
    refused: int
    """How many attempts the server has refused, for now or for good, or lost the connection."""
    dead_letters: int
    seconds: dict[str, float]
    """By stage of the run."""
    waits: dict[str, list[float]]
    """Seconds from before a job was enqueued until the server was given its mail, by kind."""
    survived: list[str]
    checks: list[Check] = field(default_factory=list["Check"])

    @property
    def jobs(self) -> int:
        """All jobs."""
        return sum(self.kinds.values())

    @property
    def problems(self) -> list[str]:
        """What does not hold; empty if the run is a success."""
        return [f"not so: {check.claim}" for check in self.checks if not check.holds]

    def as_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "accounted": not self.problems,
            "problems": self.problems,
            "seed": self.seed,
            "jobs": self.jobs,
            "kinds": self.kinds,
            "endings": self.endings,
            "mails": self.mails,
            "repeated": self.repeated,
            "refused": self.refused,
            "dead_letters": self.dead_letters,
            "jobs_per_second": round(self.jobs / self.seconds["enqueue and execute"]),
            "seconds": {stage: round(seconds, 2) for stage, seconds in self.seconds.items()},
            "wait_seconds": {
                kind: {
                    **{f"p{share}": round(_percentile(values, share), 3) for share in PERCENTILES},
                    "max": round(max(values), 3),
                }
                for kind, values in self.waits.items()
                if values
            },
            "survived": self.survived,
            "checks": {check.claim: check.holds for check in self.checks},
            "wrong": [line for check in self.checks for line in check.wrong],
        }


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print()
    jobs = _table("Jobs", "jobs", *(f"wait p{share}" for share in PERCENTILES), "max")
    for kind, count in report.kinds.items():
        values = report.waits.get(kind, [])
        figures = [f"{_percentile(values, share):.2f} s" for share in PERCENTILES] if values else [""] * 3
        jobs.add_row(kind, f"{count:,}", *figures, f"{max(values):.2f} s" if values else "")
    console.print(jobs)

    ends = _table("Ended", "")
    for ending, count in report.endings.items():
        ends.add_row(ending, f"{count:,}")
    ends.add_row("dead letters", f"{report.dead_letters:,}")
    ends.add_row("mails that the server has taken", f"{report.mails:,}")
    ends.add_row("  of which it had before, with the same Message-ID", f"{report.repeated:,}")
    ends.add_row("attempts that it has refused", f"{report.refused:,}")
    ends.add_row("jobs a second", f"{report.jobs / report.seconds['enqueue and execute']:,.0f}")
    console.print(ends)

    stages = _table("Where the time went", "")
    for stage, seconds in report.seconds.items():
        stages.add_row(stage, f"{seconds:.1f} s")
    console.print(stages)

    console.print("[bold]Survived[/]")
    for event in report.survived:
        console.print(f"  {event}", highlight=False)
    console.print("[bold]Checks[/]")
    for check in report.checks:
        mark = "[green]yes[/]" if check.holds else "[bold red]NO[/] "
        console.print(f"  {mark} ", end="")
        console.print(check.claim, markup=False, highlight=False)
        for line in check.wrong:
            console.print(f"        {line}", markup=False, highlight=False)
    if report.problems:
        console.print(f"[bold red]{len(report.problems)} problems[/]")
    else:
        console.print("[bold green]Every job is accounted for.[/]")


def _table(title: str, *columns: str) -> Table:
    table = Table("", title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _percentile(values: list[float], share: int) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]
