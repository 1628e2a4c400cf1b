"""``streams lag``: how far a group is behind its input."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.table import Table

from streams.cli.apps import load_app
from streams.cli.options import AsJson, Servers, connected_cluster, into_environment
from streams.cli.output import out, print_line
from streams.errors import TopicError
from streams.monitoring.lag import PartitionLag, measure_lag, with_jobs
from streams.runtime.topics import input_partitions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.broker import Broker


def lag(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP|GROUP", help="An app, or a group's id.")],
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a group is behind its input.

    For an app's queue of jobs, it is the number of jobs that have not ended and could run: neither delayed
    ones nor those that wait for their next attempt or are paused.
    """
    broker: Broker
    if ":" in target:
        if bootstrap_servers is not None:
            into_environment([f"bootstrap_servers={bootstrap_servers}"])
        app = load_app(target)
        broker, group = app.broker(), app.name
        admin = broker.admin()
        topics = list(input_partitions(app.topology, admin.topics()))
    else:
        broker, group = connected_cluster(bootstrap_servers), target
        admin, topics = broker.admin(), None

    def measured() -> list[PartitionLag]:
        return with_jobs(broker, group, measure_lag(admin, group, topics), time.time_ns() // 1_000_000)

    lags = measured()
    if not lags:
        raise TopicError(
            f"group {group!r} has no committed offsets",
            hint="check the name: an app's group has the name of the app",
        )
    if as_json:
        while True:
            for item in lags:
                print_line(
                    {
                        "topic": item.partition.topic,
                        "partition": item.partition.partition,
                        "committed": item.committed,
                        "end": item.end,
                        "lag": item.lag,
                    }
                )
            if not watch:
                return
            time.sleep(1)
            lags = measured()
    if not watch:
        out.print(_lag_table(lags))
        return
    with Live(_lag_table(lags), console=out) as live:
        while True:
            time.sleep(1)
            live.update(_lag_table(measured()))


def _lag_table(lags: Sequence[PartitionLag]) -> Table:
    table = Table("topic", "partition", "committed", "end", "lag")
    for item in lags:
        committed = "none" if item.committed is None else f"{item.committed:,}"
        table.add_row(
            item.partition.topic, str(item.partition.partition), committed, f"{item.end:,}", f"{item.lag:,}"
        )
    table.add_section()
    table.add_row("total", "", "", "", f"{sum(item.lag for item in lags):,}")
    return table
