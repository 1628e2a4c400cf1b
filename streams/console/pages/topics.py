"""Topics: which there are and who uses them; one's partitions, settings and records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from streams.console.page import Page
from streams.console.pages.topic_records import known_topic, record_routes
from streams.console.topic_reading import partition_bounds
from streams.console.topic_uses import is_internal, uses_of
from streams.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.console import Console
    from streams.console.topic_reading import PartitionBounds

SHOWN_TOPICS: Final = 200
SHOWN_PARTITIONS: Final = 200
KEEP_SECONDS: Final = 10.0


class TopicDetails(NamedTuple):
    """A topic's partitions and settings."""

    partitions: Sequence[PartitionBounds]
    own: Mapping[str, str]
    """Settings that were made for the topic itself."""
    others: Mapping[str, str]
    """Settings that it has by default."""
    problem: str
    """Why its settings could not be read; empty if they could."""

    @property
    def offsets(self) -> int:
        """Offsets between beginnings and ends: at most so many records."""
        return sum(
            item.end - item.beginning
            for item in self.partitions
            if item.beginning is not None and item.end is not None
        )

    @property
    def unknown(self) -> int:
        """Partitions whose offsets are not known."""
        return sum(item.end is None for item in self.partitions)


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def topics(request: Request) -> Response:
        query = request.query_params.get("q", "").strip()
        internal = request.query_params.get("internal") == "1"
        text = request.query_params.get("page", "1")
        number = max(1, int(text)) if text.isdecimal() and len(text) < 9 else 1
        cluster = console.cluster
        names = [name for name in sorted(cluster.topics) if query.lower() in name.lower()]
        if not internal:
            shown = [name for name in names if not is_internal(name, console.apps)]
            hidden, names = len(names) - len(shown), shown
        else:
            hidden = 0
        first = (number - 1) * SHOWN_TOPICS
        part = names[first : first + SHOWN_TOPICS]
        uses = uses_of(console.apps.values(), set(part))
        return console.render(
            request,
            "topics.html",
            page="topics",
            title="Topics",
            cluster=cluster,
            topics=[(cluster.topics[name], uses.get(name, ())) for name in part],
            total=len(names),
            hidden=hidden,
            query=query,
            internal=internal,
            number=number,
            size=SHOWN_TOPICS,
        )

    def partitions(request: Request) -> Response:
        topic = known_topic(console, request)
        text = request.query_params.get("page", "1")
        number = max(1, int(text)) if text.isdecimal() and len(text) < 9 else 1
        found = console.lookups.get(("topic", topic), lambda: _details(console, topic), keep=KEEP_SECONDS)
        return console.render(
            request,
            "topic.html",
            page="topics",
            title=topic,
            topic=topic,
            description=console.cluster.topics.get(topic),
            uses=uses_of(console.apps.values(), {topic}).get(topic, ()),
            found=found,
            details=found.value,
            number=number,
            size=SHOWN_PARTITIONS,
            tab="partitions",
        )

    return [
        console.get("/topics", topics),
        console.get("/topics/{topic}/partitions", partitions),
        *record_routes(console),
    ]


def _details(console: Console, topic: str) -> TopicDetails:
    admin = console.collector.broker.admin()
    try:
        partitions = partition_bounds(admin, topic, "read_uncommitted")
        try:
            every, own = admin.settings([topic])[topic], admin.own_settings([topic])[topic]
            problem = ""
        except BrokerError as error:
            # The client may lack the right to read them.
            every, own, problem = {}, {}, error.message
    finally:
        admin.close()
    others = {name: text for name, text in sorted(every.items()) if name not in own}
    return TopicDetails(partitions, dict(sorted(own.items())), others, problem)


TOPICS: Final = Page("topics", "Topics", of_app=False, routes=routes)
