"""Two versions of a small app on an access log: what counts as a failure is a rule that changes.

``LOG_ANALYSIS_PREFIX`` is a prefix of the names of all topics and groups.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from apps.log_analysis.hit import Hit, configured_parser
from streams import App, Json, Text, Tumbling, dead_letter, seconds

if TYPE_CHECKING:
    from streams import Record

PREFIX = os.environ.get("LOG_ANALYSIS_PREFIX", "")
LINES = f"{PREFIX}access-lines"
FAILURES = f"{PREFIX}failures"
MINUTES = f"{PREFIX}failures-by-minute"
PAIR = f"{PREFIX}failures"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A request that failed. ``partition`` and ``offset`` are those of its line in the log's topic."""

    path: str
    status: int
    version: str
    partition: int
    offset: int


def version(name: str, lowest: int) -> App:
    """The app that takes this status, and those above, for a failure."""
    made = App(f"{PREFIX}{name}", blue_green=PAIR, create_topics=True)
    hits = made.stream(LINES, key=Text(), value=Text()).map(
        configured_parser(os.environ), timestamp=lambda hit: hit.time, name="parse", on_error=dead_letter
    )
    failed = hits.filter(lambda hit: hit.status >= lowest, name="failed")

    def failure(record: Record[str, Hit]) -> Record[str, Failure]:
        hit = record.value
        found = Failure(
            path=hit.path,
            status=hit.status,
            version=name,
            partition=record.partition,
            offset=record.offset,
        )
        return record.with_(value=found)

    failed.map_records(failure, keeps_key=True, name="failure").to(FAILURES, value=Json(Failure))
    minutes = failed.group_by(lambda hit: hit.path, store="by-path", value=Json(Hit)).window(
        Tumbling(minutes=1), grace=seconds(60)
    )
    minutes.count("failures-by-minute").final().to(MINUTES, value=Json())
    return made


current = version("failures-1", 500)
changed = version("failures-2", 400)
