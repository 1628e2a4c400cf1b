"""Jobs as lines of JSON and as rows of tables, and the options that select them."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from streams.cli.letter_lines import parse_time
from streams.jobs.selection import STATES, JobSelection, require_states

JobPlace = Annotated[str, typer.Argument(metavar="ID", help="The job's id, e.g. 3-1024.")]
OfFunction = Annotated[str | None, typer.Option("--function", help="Only jobs of the function of this name.")]
States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help=f"Only jobs in this state; repeatable. One of {', '.join(STATES)}.",
    ),
]
OfKey = Annotated[str | None, typer.Option("--key", help="Only jobs with this key.")]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only jobs enqueued at or after this time (ISO 8601, or an age: 2h)."),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only jobs enqueued before this time.")]


def select(
    *,
    function: str | None = None,
    states: list[str] | None = None,
    key: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> JobSelection:
    """The selection of these options. Raises ``ConfigurationError``."""
    require_states(states or ())
    now = time.time()
    return JobSelection(
        function,
        states or (),
        key,
        None if since is None else parse_time(since, now),
        None if until is None else parse_time(until, now),
    )
