"""Records of a topic: the newest, from an offset or a time on, those that a search finds; and one of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from streams.console.moments import parse_moment
from streams.console.programs import Programs, programs_of
from streams.console.record_parts import Search, hex_lines
from streams.console.topic_reading import (
    LISTED_PARTITIONS,
    FoundPage,
    FoundRecord,
    PartitionBounds,
    Wanted,
    parse_places,
    places_text,
    read_page,
    read_record,
    shown,
)
from streams.console.topic_uses import uses_of
from streams.errors import ConfigurationError
from streams.records import TopicPartition
from streams.topology.topic_format import TopicFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.console import Console
    from streams.console.lookups import Lookup

KEEP_SECONDS: Final = 60.0
LONGEST: Final = 200_000
"""Characters of a value on the page of one record."""

WITHOUT_SERDES: Final = "none"


class RecordsFound(NamedTuple):
    """A page of records, and the app whose serdes have read them; empty if none has."""

    page: FoundPage
    app: str
    problem: str


class RecordFound(NamedTuple):
    """One record, or ``None`` if the log does not have it."""

    record: FoundRecord | None
    bounds: PartitionBounds
    app: str
    problem: str
    key_bytes: str = ""
    value_bytes: str = ""


def record_routes(console: Console) -> Sequence[Route]:
    """The routes of records."""
    programs = Programs()

    def form(topic: str, app: str) -> tuple[str, TopicFormat, str]:
        """The app whose serdes read the topic, the form, and why there is none. For lookups."""
        if app == WITHOUT_SERDES:
            return "", TopicFormat(), ""
        known = [each for each in programs_of(console.apps.values()) if app in ("", each.name)]
        try:
            return *programs.topic_form(known, topic), ""
        except Exception as error:  # noqa: BLE001 - the records are shown all the same
            return "", TopicFormat(), str(error)

    def look(wanted: Wanted, app: str) -> Lookup[RecordsFound]:
        def run() -> RecordsFound:
            of, known, why = form(wanted.topic, app)
            return RecordsFound(read_page(console.collector.broker, known, console.values, wanted), of, why)

        return console.lookups.get(("topic records", wanted.topic, wanted, app), run, keep=KEEP_SECONDS)

    def records(request: Request) -> Response:
        topic = known_topic(console, request)
        if "again" in request.query_params:
            console.lookups.forget("topic records", topic)
            rest = {name: text for name, text in request.query_params.items() if name != "again"}
            return RedirectResponse(console.url(request, f"/topics/{topic}", **rest), 303)
        query = {name: text.strip() for name, text in request.query_params.items()}
        wanted = found = None
        problem = ""
        try:
            wanted = _wanted(console, topic, query)
            found = look(wanted, query.get("app", ""))
        except (ConfigurationError, ValueError) as error:
            problem = str(error)
        page = None if found is None or found.value is None else found.value.page
        description = console.cluster.topics.get(topic)
        return console.render(
            request,
            "topic_records.html",
            page="topics",
            title=topic,
            # Records that somebody reads do not move: a page that is complete is not refreshed.
            live=found is not None and found.pending,
            topic=topic,
            tab="records",
            uses=uses_of(console.apps.values(), {topic}).get(topic, ()),
            apps=[each.name for each in programs_of(console.apps.values())],
            query=query,
            wanted=wanted,
            found=found,
            records=page,
            following="" if page is None or len(page.next) > LISTED_PARTITIONS else places_text(page.next),
            rest={name: text for name, text in query.items() if text and name not in ("before", "after")},
            problem=problem,
            partitions=None if description is None else description.partitions,
            masks=sorted(console.values.names),
        )

    def record(request: Request) -> Response:
        topic = known_topic(console, request)
        partition, offset = request.path_params["partition"], request.path_params["offset"]
        if partition >= 2**31 or offset >= 2**63:
            raise HTTPException(404, "there is no such offset")
        app = request.query_params.get("app", "")

        def run() -> RecordFound:
            row, bounds = read_record(console.collector.broker, TopicPartition(topic, partition), offset)
            of, known, why = form(topic, app)
            if row is None:
                return RecordFound(None, bounds, of, why)
            made = shown(console.values, known, row)
            return RecordFound(
                made,
                bounds,
                of,
                why,
                "" if made.key.payload is None else hex_lines(made.key.payload),
                "" if made.value.payload is None else hex_lines(made.value.payload),
            )

        found = console.lookups.get(("topic record", topic, partition, offset, app), run, keep=KEEP_SECONDS)
        return console.render(
            request,
            "topic_record.html",
            page="topics",
            title=f"{topic}-{partition} offset {offset}",
            live=found.pending,
            topic=topic,
            partition=partition,
            offset=offset,
            apps=[each.name for each in programs_of(console.apps.values())],
            chosen=app,
            found=found,
            longest=LONGEST,
        )

    return [
        console.get("/topics/{topic}", records),
        console.get("/topics/{topic}/{partition:int}/{offset:int}", record),
    ]


def known_topic(console: Console, request: Request) -> str:
    """The topic that an address names. Raises ``HTTPException`` 404 if the cluster was read without it."""
    topic = str(request.path_params["topic"])
    if console.cluster.time is not None and topic not in console.cluster.topics:
        raise HTTPException(404, f"the cluster has no topic {topic!r} that this console may see")
    return topic


def _wanted(console: Console, topic: str, query: dict[str, str]) -> Wanted:
    """What the form asks for. Raises ``ConfigurationError`` and ``ValueError``."""
    search = Search(
        key=query.get("key", ""),
        key_whole=query.get("key_is", "whole") != "part",
        value=query.get("value", ""),
        header=query.get("header", ""),
        header_value=query.get("header_value", ""),
        path=query.get("path", ""),
        equals=query.get("equals", ""),
    )
    if search.path and console.values.hides(tuple(search.path.removeprefix("$.").split("."))):
        raise ConfigurationError(f"the field {search.path} is masked: it cannot be searched")
    if search.header in console.values.names and search.header_value:
        raise ConfigurationError(f"the header {search.header} is masked: its value cannot be searched")
    order = query.get("from", "newest")
    offset, moment = query.get("offset", ""), query.get("time", "")
    if order == "time":
        if not moment:
            raise ConfigurationError("say from which time on", hint="write 2026-05-01T10:00 (UTC), or 2h")
        parse_moment(moment, time.time_ns() // 1_000_000)
    if order == "offset" and not offset.isdecimal():
        raise ConfigurationError("say from which offset on: a number")
    partition = query.get("partition", "")
    if partition and not partition.isdecimal():
        raise ConfigurationError(f"{partition!r} is not a partition")
    newest = order not in ("time", "offset", "oldest")
    return Wanted(
        topic,
        int(partition[:9]) if partition else None,
        newest,
        parse_places(query.get("before" if newest else "after", "")),
        min(int(offset[:19]), 2**62) if order == "offset" else None,
        moment if order == "time" else "",
        "read_uncommitted" if query.get("uncommitted") == "1" else "read_committed",
        search._replace(path=search.path.removeprefix("$.")),
    )
