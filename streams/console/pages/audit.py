"""Audit: what was done in consoles of this cluster, the newest first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from streams.broker.range_reader import RangeReader
from streams.console.audit import TOPIC, Action
from streams.console.page import Page
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.broker import Broker
    from streams.console.console import Console

SHOWN: Final = 200
"""Records of one page: each action has two, one before it is done and one after."""

READ_SECONDS: Final = 10.0
KEEP_SECONDS: Final = 5.0


class Entries(NamedTuple):
    """Actions, the newest first, and the offset before which there are more."""

    actions: Sequence[tuple[int, Action]]
    """With their offsets."""
    before: int | None


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def audit(request: Request) -> Response:
        text = request.query_params.get("before", "")
        before = int(text) if text.isdecimal() and len(text) < 19 else None
        found = console.lookups.get(
            ("audit", before), lambda: _read(console.collector.broker, before), keep=KEEP_SECONDS
        )
        return console.render(
            request, "audit.html", page="audit", title="Audit", topic=TOPIC, found=found, entries=found.value
        )

    return [console.get("/audit", audit)]


def _read(broker: Broker, before: int | None) -> Entries:
    place = TopicPartition(TOPIC, 0)
    admin = broker.admin()
    try:
        if TOPIC not in admin.topics():
            return Entries((), None)
        begin, end = admin.beginning_offsets([place])[place], admin.end_offsets([place])[place]
    finally:
        admin.close()
    stop = end if before is None else max(begin, min(before, end))
    start = max(begin, stop - SHOWN)
    found: list[tuple[int, Action]] = []
    with RangeReader(broker) as reader:
        for fetched in reader.read({place: (start, stop)}, time.monotonic() + READ_SECONDS):
            for offset, value in zip(fetched.offsets(), fetched.values(), strict=True):
                try:
                    found.append((offset, msgspec.json.decode(value or b"", type=Action)))
                except msgspec.MsgspecError:
                    # Another program has written it, or another version.
                    continue
    found.reverse()
    return Entries(found, start if start > begin else None)


AUDIT: Final = Page("audit", "Audit", of_app=False, routes=routes)
