"""``streams jobs schedules``: what each schedule of an app does next, and did last."""

from __future__ import annotations

from typing import Annotated, Any

import click
import typer
from rich.table import Table

from streams.app import queue_of, schedules_of
from streams.cli.apps import load_app
from streams.cli.letter_lines import iso_time
from streams.cli.options import AsJson, Servers, Target, into_environment
from streams.cli.output import out, print_line


def schedules(
    target: Target,
    *,
    count: Annotated[int, typer.Option("--next", min=1, max=100, help="Show so many instants to come.")] = 3,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """List the schedules of an app: their rules, next instants and last decisions.

    It reads the topic of occurrences and needs no workers. The log of all decisions is in that topic.
    """
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    queue_of(app)
    found = schedules_of(app, count=count)
    if as_json:
        for status in found:
            last: dict[str, Any] | None = None
            if status.last is not None:
                last = {
                    "instant": status.last.instant,
                    "decision": status.last.decision.value,
                    "decided": status.last.decided,
                    "reason": status.last.reason,
                    "job": status.last.job,
                }
            print_line(
                {
                    "name": status.name,
                    "job": status.job,
                    "rule": status.rule,
                    "missed": status.missed,
                    "overlap": status.overlap,
                    "next": list(status.next),
                    "last": last,
                }
            )
        return
    table = Table("schedule", "function", "rule", "missed, overlap", "next", "last")
    for status in found:
        decided = "nothing yet"
        if status.last is not None:
            job = "" if status.last.job is None else f" (job {status.last.job})"
            decided = f"{iso_time(status.last.instant)}: {status.last.decision.value}{job}"
        table.add_row(
            click.unstyle(status.name),
            click.unstyle(status.job),
            status.rule,
            f"{status.missed}, {status.overlap}",
            "\n".join(map(iso_time, status.next)),
            click.unstyle(decided),
        )
    out.print(table)
