"""``streams consume``: the records of a topic."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from streams.broker.reading import find_partitions, follow as follow_records, read_from
from streams.cli.apps import load_app
from streams.cli.options import Servers, connected_cluster, into_environment
from streams.cli.record_lines import RecordLines, parse_condition, parse_offset, parse_pattern, starts
from streams.errors import TopicError
from streams.process.stop_request import stop_request
from streams.registry_topics import connect_registry
from streams.topology.topic_format import TopicFormat, topic_format

if TYPE_CHECKING:
    from streams.broker import Broker, Isolation


def consume(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic.")],
    *,
    target: Annotated[
        str | None,
        typer.Option(
            "--app", metavar="MODULE:APP", help="Use the serdes of this app, and the cluster it is set to."
        ),
    ] = None,
    offset: Annotated[
        str,
        typer.Option(
            metavar="OFFSET",
            help="Where to start: earliest, latest, an offset, or -N for the last N of each partition.",
        ),
    ] = "earliest",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for new records at the end, until Ctrl-C.")
    ] = False,
    partitions: Annotated[
        list[int] | None, typer.Option("--partition", min=0, help="Read only this partition; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this number of records.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Only records with this value in a field, e.g. value.status=500 or key=a.",
        ),
    ] = None,
    grep: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Only records whose line of JSON matches.")
    ] = None,
    uncommitted: Annotated[
        bool, typer.Option("--uncommitted", help="Include records of open and aborted transactions.")
    ] = False,
    bootstrap_servers: Servers = None,
) -> None:
    """Print the records of a topic, one line of JSON each, without joining a consumer group.

    Stops at the offset that was the topic's end when the command started, unless --follow is given. Without
    --app, values that are JSON are printed as JSON, other text as text, and everything else in base64.
    """
    begin = parse_offset(offset)
    conditions = [parse_condition(item) for item in where or ()]
    pattern = None if grep is None else parse_pattern(grep)
    if target is None:
        broker: Broker = connected_cluster(bootstrap_servers)
        form = TopicFormat()
    else:
        if bootstrap_servers is not None:
            into_environment([f"bootstrap_servers={bootstrap_servers}"])
        app = load_app(target)
        topology = app.topology
        if app.settings.schema_registry_url is not None:
            topology = connect_registry(topology, app.settings).topology
        broker, form = app.broker(), topic_format(topology, app.name, topic)
    isolation: Isolation = "read_uncommitted" if uncommitted else "read_committed"
    places = find_partitions(broker, [topic])
    unknown = sorted(set(partitions or ()) - {place.partition for place in places})
    if unknown:
        raise TopicError(
            f"topic {topic} has no partition {unknown[0]}: it has {len(places)}, numbered from 0"
        )
    places = [place for place in places if not partitions or place.partition in partitions]
    admin = broker.admin()
    begins = starts(admin, places, begin, isolation)
    admin.close()
    lines = RecordLines(form, conditions, pattern)
    left = limit
    with stop_request() as stop:
        source = (
            follow_records(broker, begins, lambda: bool(stop), isolation=isolation)
            if follow
            else read_from(broker, begins, isolation=isolation)
        )
        with closing(source):
            for fetched in source:
                for line in lines.lines(fetched):
                    print(line, flush=follow)  # noqa: T201 - the output itself
                    left = None if left is None else left - 1
                    if left == 0:
                        return
                if stop:
                    break
    if stop.received is not None and not follow:
        raise typer.Exit(128 + stop.received)
