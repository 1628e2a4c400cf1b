"""Writes the results of a bounded run to topics of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from streams.broker import NewTopic
from streams.errors import BrokerError, ConfigurationError, TopicError
from streams.partitioning import partition_for
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from streams.broker import Admin, Broker
    from streams.replay.bounded.log import RunRecord
    from streams.replay.bounded.rows import SpooledRows
    from streams.replay.bounded.spool import Spool
    from streams.topology.graph import Topology

FLUSH_SECONDS: Final = 60.0
DELETE_SECONDS: Final = 30.0
FLUSH_ROWS: Final = 100_000

KEPT_SETTINGS: Final = ("cleanup.policy", "max.message.bytes", "compression.type")
"""What the topic of results has of the app's topic. Retention is not: the records' times may be long past."""


def result_topic(topic: str, run: str) -> str:
    """The topic with a run's results for a topic of the app."""
    return f"{topic}-{run}"


def require_unread(topology: Topology, topics: Collection[str], run: str) -> None:
    """Check that the app would not read the results. Raises ``ConfigurationError``."""
    names = [result_topic(topic, run) for topic in topics]
    for pattern in topology.patterns:
        if read := list(filter(pattern.fullmatch, names)):
            raise ConfigurationError(
                f"the app would read the results of the replay: its pattern /{pattern.pattern}/ matches "
                f"{', '.join(sorted(read))}",
                hint="choose a name (--as) that the pattern does not match, or narrow the pattern",
            )


def check_free(admin: Admin, topics: Collection[str], run: str, earlier: RunRecord | None) -> None:
    """Check that results may be written. Raises ``TopicError`` for topics that no run of the name made."""
    names = [result_topic(topic, run) for topic in topics]
    own = {} if earlier is None else earlier.results
    found = admin.topic_ids(names)
    foreign = [name for name in found if name not in own or not own[name].is_it(found[name])]
    if foreign:
        raise TopicError(
            f"topics for the results exist, and no replay of the name {run!r} made them: "
            f"{', '.join(sorted(foreign))}",
            hint="choose another name (--as)",
        )


def delete_results(admin: Admin, record: RunRecord) -> list[str]:
    """Delete the topics that a run made; return their names."""
    found = admin.topic_ids(record.results)
    names = [name for name, identifier in found.items() if record.results[name].is_it(identifier)]
    admin.delete_topics(names)
    deadline = time.monotonic() + DELETE_SECONDS
    while any(name in admin.topics() for name in names):
        if time.monotonic() > deadline:
            raise BrokerError(f"the broker has not deleted {', '.join(names)} within {DELETE_SECONDS:.0f} s")
        time.sleep(0.1)
    return names


def create_results(admin: Admin, topics: Mapping[str, int], run: str) -> dict[str, str]:
    """Create the topics for results, with these partition counts; return their ids by name."""
    settings = admin.settings([topic for topic in topics if topic in admin.topics()])
    new = [
        NewTopic(
            name=result_topic(topic, run),
            partitions=count,
            settings={
                "retention.ms": "-1",
                "message.timestamp.type": "CreateTime",
                **{name: value for name, value in settings.get(topic, {}).items() if name in KEPT_SETTINGS},
            },
            wished={"message.timestamp.after.max.ms": str(2**63 - 1)},
        )
        for topic, count in topics.items()
    ]
    admin.create_topics(new)
    return admin.topic_ids([topic.name for topic in new])


def write_results(
    broker: Broker,
    spool: Spool,
    topics: Mapping[str, int],
    run: str,
    progress: Callable[[int], None],
) -> dict[str, int]:
    """Write what the run has for these topics, of which the partition counts are given.

    In each partition the rows of all tasks come by event time, so that it has the same records in the same
    order whenever the run is repeated. ``progress`` gets the number written so far. Returns the numbers of
    records by topic.
    """
    written = dict.fromkeys(topics, 0)
    producer = broker.producer()
    try:
        for topic, count in topics.items():
            since = 0
            for only, pieces in spool.read_apart(topic):
                for rows in pieces:
                    producer.produce(_output(rows, result_topic(topic, run), count, only))
                    written[topic] += len(rows)
                    since += len(rows)
                    progress(sum(written.values()))
                    if since >= FLUSH_ROWS:
                        producer.flush(FLUSH_SECONDS)
                        since = 0
            producer.flush(FLUSH_SECONDS)
    finally:
        producer.close()
    return written


def _output(rows: SpooledRows, topic: str, count: int, only: int | None) -> Output:
    """Rows for a topic with so many partitions, of which they all are for ``only`` one, if it is given."""
    partitions = rows.partitions if only is None else None
    return Output(
        topic,
        rows.keys,
        rows.values,
        rows.timestamps,
        rows.headers,
        partition=only,
        partitions=None
        if partitions is None
        else [
            partition_for(key or b"", count) if chosen is None else chosen
            for key, chosen in zip(rows.keys, partitions, strict=True)
        ],
    )
