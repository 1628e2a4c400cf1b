"""A report as tables on a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.filesize import decimal
from rich.panel import Panel
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from apps.log_analysis.report import Report
    from apps.log_analysis.traffic import Traffic

ROWS = 6


def show(report: Report, console: Console) -> None:
    """Print the figures and the results of the checks."""
    console.print()
    console.print(Columns([_overview(report), _statuses(report), _dead_letters(report)], padding=(0, 3)))
    console.print(_busiest_minutes(report))
    console.print(Columns([_top_paths(report), _teams(report)], padding=(0, 3)))
    console.print(Columns([_visits(report), _alerts(report)], padding=(0, 3)))
    holds = report.claims
    text = "\n".join(f"{'✓' if held else '✗'} {claim}" for claim, held in holds.items())
    if all(holds.values()):
        console.print(Panel(text, title="Every line is accounted for", style="green", expand=False))
    else:
        console.print(Panel(text, title="Not every line is accounted for", style="bold red", expand=False))


def _overview(report: Report) -> Table:
    table = Table(title="The log", show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in (
        ("lines read", f"{report.lines:,}"),
        ("hits", f"{report.hits:,}"),
        ("clients", f"{len(report.times_by_client):,}"),
        ("bots", f"{_share(report.bots, report.hits)} of hits"),
        ("sent", decimal(report.sent)),
        ("from", clock(report.first)),
        ("to", clock(report.last)),
        ("processed in", f"{report.seconds:.1f} s, workers' start included"),
    ):
        table.add_row(name, value)
    return table


def _statuses(report: Report) -> Table:
    table = _table("Status classes", "class", "hits", "share")
    for status_class, count in sorted(report.statuses.items()):
        style = {"4": "yellow", "5": "red"}.get(status_class[0], "")
        table.add_row(status_class, f"{count:,}", _share(count, report.hits), style=style)
    return table


def _dead_letters(report: Report) -> Table:
    table = _table("Dead letters", "reason", "lines")
    for reason, count in report.reasons.most_common():
        table.add_row(reason[:40], f"{count:,}")
    return table


def _busiest_minutes(report: Report) -> Table:
    table = _table(
        "Traffic by path and minute: the busiest minute of the busiest paths",
        *("path", "minute", "hits", "sent", "errors", "p50", "p99"),
    )
    busiest: dict[str, Traffic] = {}
    for each in report.traffic:
        if each.path not in busiest or each.hits > busiest[each.path].hits:
            busiest[each.path] = each
    for path, _ in report.by_path("hits").most_common(ROWS):
        minute = busiest[path]
        table.add_row(
            path[:60],
            _minute(minute.start),
            f"{minute.hits:,}",
            decimal(minute.bytes),
            f"{minute.error_share:.1%}",
            decimal(round(minute.p50_bytes)),
            decimal(round(minute.p99_bytes)),
        )
    return table


def _top_paths(report: Report) -> Table:
    busiest = max(
        report.top_paths, key=lambda ranking: sum(place.hits for place in ranking.paths), default=None
    )
    minute = f", {_minute(busiest.start)}" if busiest else ""
    table = _table(f"Top paths{minute}", "path", "hits")
    for place in busiest.paths[:ROWS] if busiest else ():
        table.add_row(place.path[:40], f"{place.hits:,}")
    return table


def _teams(report: Report) -> Table:
    table = _table("Traffic by team", "team", "hits", "sent", "errors")
    sizes, errors = report.by_team("bytes"), report.by_team("errors")
    for team, count in report.by_team("hits").most_common():
        table.add_row(team, f"{count:,}", decimal(sizes[team]), f"{errors[team]:,}")
    return table


def _visits(report: Report) -> Table:
    table = _table(f"Visits: the longest of {len(report.visits):,}", "client", "hits", "lasted", "from", "to")
    for visit in sorted(report.visits, key=lambda visit: -visit.duration)[:ROWS]:
        minutes, seconds = divmod(visit.duration // 1000, 60)
        table.add_row(
            visit.client,
            f"{visit.hits:,}",
            f"{minutes}:{seconds:02}",
            visit.first_path[:24],
            visit.last_path[:24],
        )
    return table


def _alerts(report: Report) -> Table:
    table = _table("Alerts", "path", "state", "at", "errors")
    for alert in report.alerts[-ROWS:]:
        style = "red" if alert.state == "raised" else "green"
        table.add_row(
            alert.path[:24], alert.state, _minute(alert.time), f"{alert.error_share:.1%}", style=style
        )
    if not report.alerts:
        table.add_row("none", "", "", "", style="dim")
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(first, title=title, title_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _minute(milliseconds: int) -> str:
    return clock(milliseconds)[5:16]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def clock(milliseconds: int | None) -> str:
    """A time as people read it."""
    if milliseconds is None:
        return "none"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
