"""The topics an app needs: checked, and where they are the app's own created, before the group is joined."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from streams.broker import NewTopic
from streams.errors import TopicError
from streams.events import Event, get_logger
from streams.topology import matches

if TYPE_CHECKING:
    from streams.broker import Admin, TopicDescription
    from streams.topology import Topology

DEAD_LETTER_SETTINGS = {
    # Dead letters carry the input's event time, by which old input would be deleted on arrival: the topic
    # counts from the time of writing instead. The original time is in a header.
    "message.timestamp.type": "LogAppendTime",
    "retention.ms": str(30 * 24 * 3600 * 1000),
}


def prepare_topics(
    topology: Topology, admin: Admin, *, dead_letter_topic: str, create_outputs: bool
) -> dict[str, int]:
    """Check that all topics are there, create the app's own, and return the inputs with their partitions.

    Raises ``TopicError`` naming every topic that is missing, ``TopologyError`` for a topic that two sources
    would read, ``BrokerUnreachable``.
    """
    existing = admin.topics()
    missing = [topic for topic in topology.input_topics if isinstance(topic, str) and topic not in existing]
    if missing:
        raise TopicError(f"input topics do not exist: {', '.join(missing)}", hint=_creation_hint(missing))
    inputs = input_partitions(topology, existing)
    outputs = [topic for topic in topology.output_topics if topic not in existing]
    if outputs and not create_outputs:
        raise TopicError(
            f"output topics do not exist: {', '.join(outputs)}",
            hint=f"{_creation_hint(outputs)}\n        or let the app do it: create_topics=True",
        )
    partitions = max(inputs.values(), default=1)
    new = [NewTopic(name=topic, partitions=partitions, settings={"retention.ms": "-1"}) for topic in outputs]
    if topology.writes_dead_letters and dead_letter_topic not in existing:
        new.append(NewTopic(name=dead_letter_topic, partitions=partitions, settings=DEAD_LETTER_SETTINGS))
    for name in sorted(admin.create_topics(new) if new else ()):
        get_logger().info(Event.TOPIC_CREATED, topic=name, partitions=partitions)
    return inputs


def input_partitions(topology: Topology, existing: dict[str, TopicDescription]) -> dict[str, int]:
    """The topics there are for the topology's sources, patterns included, with their partition counts."""
    inputs = {
        name: description.partitions
        for name, description in existing.items()
        if any(_wanted(topic, name) for topic in topology.input_topics)
    }
    for name in inputs:
        topology.source_of(name)
    return inputs


def _wanted(topic: str | re.Pattern[str], name: str) -> bool:
    # Names that begin with __ are the broker's own; no pattern means them.
    return matches(topic, name) and not (isinstance(topic, re.Pattern) and name.startswith("__"))


def _creation_hint(names: list[str]) -> str:
    return f"create them, e.g. with: streams topics create {' '.join(names)} --partitions 4"
