"""Figures that workers have in ``/metrics`` only: read when a page needs them, in the background."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from streams.monitoring.scrape import Scrape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console
    from streams.console.lookups import Lookup
    from streams.console.watched import Watched

KEEP_SECONDS: Final = 10.0
ASKED_AT_ONCE: Final = 8

WANTED: Final = (
    "streams_source_",
    "streams_jobs_",
    "streams_schedule_",
    "streams_state_bytes",
    "streams_muted",
    "streams_stopped_for_switch",
)
"""How the names of the series begin that are kept: a worker of many partitions has thousands of others."""


def worker_figures(console: Console, app: AppSnapshot) -> Lookup[Mapping[str, Scrape | None]]:
    """The figures of each worker that answers, by its name; ``None`` for one that did not answer this."""
    watched = console.collector.watched(app.name)
    addresses = dict(app.addresses)
    return console.lookups.get(
        ("figures", app.name), lambda: read_figures(watched, addresses), keep=KEEP_SECONDS
    )


def read_figures(watched: Watched, addresses: Mapping[str, str]) -> dict[str, Scrape | None]:
    """Ask the workers at these addresses, which are by their names."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        found = pool.map(lambda address: _scrape(watched.read(address, "/metrics")), addresses.values())
        return dict(zip(addresses, found, strict=True))


def _scrape(body: bytes | None) -> Scrape | None:
    if body is None:
        return None
    lines = body.decode(errors="replace").splitlines()
    try:
        return Scrape.parse(
            "\n".join(line for line in lines if line.startswith(WANTED)) + "\n", time.monotonic()
        )
    except ValueError:
        # Another program answers there now.
        return None
