"""The demonstration's result, as people and programs read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from apps.bridges.promise import Account


@dataclass(slots=True, kw_only=True)
class Report:
    """What was sent and what arrived, bridge by bridge."""

    accounts: list[Account]
    without: dict[str, str]
    """The systems that were left out, with the reason."""
    survived: list[str]
    seconds: dict[str, float]
    """By stage of the run."""

    @property
    def problems(self) -> list[str]:
        """Where a promise is broken; empty if the run is a success."""
        return [
            f"{account.bridge.words}: {problem}" for account in self.accounts for problem in account.problems
        ]

    def as_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "promises_kept": not self.problems,
            "problems": self.problems,
            "bridges": {
                account.bridge.name: {
                    "guarantee": account.bridge.guarantee.value,
                    "sent": account.sent,
                    "arrived": account.arrived,
                    "doubled": account.doubled,
                    "lost": account.lost,
                    "as_promised": not account.problems,
                }
                for account in self.accounts
            },
            "without": self.without,
            "survived": self.survived,
            "seconds": {stage: round(seconds, 2) for stage, seconds in self.seconds.items()},
        }


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print()
    table = Table("bridge", "promised", title="Messages", title_justify="left")
    for name in ("sent", "arrived", "doubled", "lost", "as promised"):
        table.add_column(name, justify="right")
    for account in report.accounts:
        kept = "[green]yes[/]" if not account.problems else "[bold red]NO[/]"
        figures = (account.sent, account.arrived, account.doubled, account.lost)
        table.add_row(
            account.bridge.words, account.bridge.guarantee, *(f"{figure:,}" for figure in figures), kept
        )
    for system, reason in report.without.items():
        table.add_row(system, f"[yellow]{reason}[/]", *["-"] * 5)
    console.print(table)
    console.print("[bold]Survived[/]")
    for event in report.survived:
        console.print(f"  {event}", highlight=False)
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items())
    console.print(f"[dim]{stages}[/]", highlight=False)
    for problem in report.problems:
        console.print(f"[bold red]NO[/] {problem}", highlight=False)
    if not report.problems:
        console.print("[bold green]Every bridge has kept its promise.[/]")
