"""Checks the topics that an app needs, and creates the app's own, before the worker joins the group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.broker import NewTopic
from streams.errors import TopicError
from streams.events import Event, get_logger
from streams.records import TopicPartition
from streams.runtime.unfinished_reset import check_group
from streams.state.changelog import changelog_topic
from streams.topology.graph import SinkNode, matches

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.broker import Admin, TopicDescription
    from streams.topology.graph import OwnTopic, Topology

DEAD_LETTER_SETTINGS = {
    # Dead letters carry the input's event time, by which old input would be deleted on arrival: the topic
    # uses the time of writing instead. The original time is in a header.
    "message.timestamp.type": "LogAppendTime",
    "retention.ms": str(30 * 24 * 3600 * 1000),
}


ANY_TIME = {
    # Kafka 4 refuses event times more than an hour ahead; Kafka before 3.6 does not know the setting.
    "message.timestamp.after.max.ms": str(2**63 - 1),
}

ANY_RECORD = {
    # What was read must be writable, also where its producer compressed it and this one does not.
    "max.message.bytes": str(64 * 1024 * 1024),
}
"""For the app's own topics. Some clusters allow no more than a few megabytes."""

COMPRESSED = {"compression.type": "zstd"}
"""Compression by the broker: the client's setting would compress all of an app's output."""

CHANGELOG_SETTINGS = {
    # Deletion by age counts from the time of writing, as event times may be long past.
    "message.timestamp.type": "LogAppendTime",
    # A worker that was away for less than this has not missed a tombstone.
    "delete.retention.ms": str(2 * 24 * 3600 * 1000),
}

COMPACTED = {
    "cleanup.policy": "compact",
    # A sink that was away for less than this has not missed a tombstone.
    "delete.retention.ms": str(7 * 24 * 3600 * 1000),
}
"""For internal topics from which a table's target can be filled again."""

WINDOW_MARGIN = 7 * 24 * 3600 * 1000
"""Added to a windowed store's retention for its changelog (milliseconds), for streams that pause."""


def prepare_topics(
    topology: Topology, admin: Admin, *, application: str, dead_letter_topic: str, create_outputs: bool
) -> dict[str, int]:
    """Check that all topics exist, create the app's own, and return the inputs with their partition counts.

    The app's own are its changelog and repartition topics, and the dead-letter topic. Raises ``TopicError``
    naming every topic that is missing or whose partition count is wrong, ``NotAuthorized`` naming every right
    that the app lacks on its topics, ``TopologyError`` for a topic that two sources would read,
    ``BrokerUnreachable``, ``StateError`` while a reset of the app is not finished.
    """
    existing = admin.topics()
    admin.require_rights(
        needed_rights(topology, existing, application=application, dead_letter_topic=dead_letter_topic)
    )
    repartitions = topology.repartitions
    tables = {
        topic: sink.tables for sink in topology.sinks if sink.tables is not None for topic in sink.topics
    }
    to_create = tables.keys() - existing.keys() if create_outputs else set()
    missing = [
        topic
        for topic in (*topology.input_topics, *(table.topic for table in topology.global_tables))
        if isinstance(topic, str)
        and topic not in existing
        and topic not in repartitions
        and topic not in topology.source_topics
        and topic not in topology.own_topics
        and topic not in to_create
    ]
    if missing:
        raise TopicError(f"input topics do not exist: {', '.join(missing)}", hint=_creation_hint(missing))
    inputs = input_partitions(topology, existing)
    _note_own_topics(topology, existing)
    inputs |= _source_task_counts(topology, existing)
    own = topology.own_topics
    inputs |= {
        topic: own[topic].partitions
        for topic in topology.input_topics
        if isinstance(topic, str) and topic in own and topic not in existing
    }
    inputs |= {topic: tables[topic].partitions for topic in to_create if topic in topology.input_topics}
    inputs |= _repartition_counts(topology, inputs, existing)
    places = [
        TopicPartition(topic, number)
        for topic, count in inputs.items()
        if topic in existing
        for number in range(count)
    ]
    check_group(admin, application, places)
    check_copartitions(topology, inputs)
    _require_inputs_of_stores(topology, inputs)
    outputs = [
        topic
        for topic in topology.output_topics
        if topic not in existing and topic not in repartitions and topic not in own
    ]
    if outputs and not create_outputs:
        raise TopicError(
            f"output topics do not exist: {', '.join(outputs)}",
            hint=f"{_creation_hint(outputs)}\n        or let the app do it: create_topics=True",
        )
    partitions = max(inputs.values(), default=1)
    new = [
        NewTopic(name=topic, partitions=partitions, settings={"retention.ms": "-1"}, wished=ANY_TIME)
        for topic in outputs
        if topic not in tables
    ]
    new += [
        NewTopic(
            name=topic,
            partitions=tables[topic].partitions,
            settings=COMPACTED,
            wished=ANY_TIME | ANY_RECORD,
        )
        for topic in outputs
        if topic in tables
    ]
    if topology.writes_dead_letters and dead_letter_topic not in existing:
        new.append(
            NewTopic(
                name=dead_letter_topic,
                partitions=partitions,
                settings=DEAD_LETTER_SETTINGS,
                wished=ANY_RECORD | COMPRESSED,
            )
        )
    new += [
        NewTopic(
            name=topic,
            partitions=inputs[topic],
            settings=COMPACTED if kind.compacted else {"retention.ms": "-1"},
            wished=ANY_TIME | ANY_RECORD,
        )
        for topic, kind in repartitions.items()
        if topic not in existing
    ]
    new += own_new_topics(own, existing)
    new += [
        NewTopic(name=topic, partitions=inputs[topic])
        for topic in topology.source_topics
        if topic not in existing
    ]
    changelogs = missing_changelogs(topology, inputs, existing, application)
    new += changelogs
    _check_compaction(topology, admin, existing, application)
    counts = {topic.name: topic.partitions for topic in new}
    # Read first: a broker that has just created hundreds of partitions may not answer for a while.
    begun = bool(changelogs) and any(admin.committed_offsets(application).values())
    for name in sorted(admin.create_topics(new) if new else ()):
        get_logger().info(Event.TOPIC_CREATED, topic=name, partitions=counts[name])
    if begun:
        # Expected for a store that is new in the program, but data loss if its topic was deleted.
        for topic in changelogs:
            get_logger().warning(
                Event.STORE_BEGINS_EMPTY,
                changelog=topic.name,
                hint="it lacks the input that was processed before: expected for a new store; if the "
                "topic was deleted, give the store another name and replay the input to rebuild it",
            )
    return inputs


def own_new_topics(own: Mapping[str, OwnTopic], existing: Collection[str]) -> list[NewTopic]:
    """Those of an app's own topics that do not exist, to be created."""
    return [
        NewTopic(
            name=topic, partitions=kind.partitions, settings=dict(kind.settings), wished=ANY_TIME | ANY_RECORD
        )
        for topic, kind in own.items()
        if topic not in existing
    ]


def needed_rights(
    topology: Topology, existing: Collection[str], *, application: str, dead_letter_topic: str
) -> dict[str, list[str]]:
    """The rights that an app needs: operations as named in Kafka's access control lists, by topic.

    The app's own topics may still have to be created. Topics that a function chooses for each record are not
    known in advance.
    """
    internal = topology.repartitions
    rights: dict[str, list[str]] = {}

    def need(topic: str, *operations: str) -> None:
        known = rights.setdefault(topic, [])
        known += [operation for operation in operations if operation not in known]

    created = topology.own_topics
    for source in topology.input_topics:
        if (
            isinstance(source, str)
            and source not in internal
            and source not in topology.source_topics
            and source not in created
        ):
            need(source, "READ")
        elif not isinstance(source, str):
            for name in existing:
                if matches(source, name):
                    need(name, "READ")
    for table in topology.global_tables:
        need(table.topic, "READ")
    for topic in topology.output_topics:
        if topic not in internal and topic not in created:
            need(topic, "WRITE")
    own: dict[str, list[str]] = {topic: ["READ", "WRITE", "DELETE"] for topic in internal}
    own |= {topic: ["READ"] for topic in topology.source_topics}
    own |= {topic: ["READ", "WRITE", *(["DELETE"] if kind.purged else [])] for topic, kind in created.items()}
    if topology.writes_dead_letters:
        own[dead_letter_topic] = ["WRITE"]
    for subtopology in topology.subtopologies:
        for store in subtopology.stores:
            topic = changelog_topic(application, store)
            if store.source_topic is None:
                own[topic] = ["READ", "WRITE", "DESCRIBE_CONFIGS"]
            elif topic in internal:
                own[topic].append("DESCRIBE_CONFIGS")
            else:
                need(topic, "READ", "DESCRIBE_CONFIGS")
    for topic, operations in own.items():
        # An existing topic does not need CREATE.
        need(topic, *([] if topic in existing else ["CREATE"]), *operations)
    return rights


def input_partitions(topology: Topology, existing: dict[str, TopicDescription]) -> dict[str, int]:
    """The existing topics of the topology's sources, patterns included, with their partition counts."""
    inputs = {
        name: description.partitions
        for name, description in existing.items()
        if any(matches(topic, name) for topic in topology.input_topics)
    }
    for name in inputs:
        topology.source_of(name)
    return inputs


def more_partitions(topic: str, known: int) -> TopicError:
    """The error for a topic that had ``known`` partitions: its keys are in others now than their state."""
    return TopicError(
        f"{topic} had {known} partitions when this worker began and has more now, so that keys are in other "
        "partitions than their state",
        hint="stop all workers; give the stores other names and replay the input to rebuild them",
    )


def most_tasks_with_stores(topology: Topology, partitions: Mapping[str, int]) -> int:
    """The number of tasks with stores in all, which a single worker would own.

    ``partitions`` are the input topics with their partition counts.
    """
    return sum(
        max((count for topic, count in partitions.items() if subtopology.reads(topic)), default=0)
        for subtopology in topology.subtopologies
        if subtopology.stores
    )


def _require_inputs_of_stores(topology: Topology, inputs: Collection[str]) -> None:
    """Check that the partition counts of stores are known. Raises ``TopicError``."""
    for subtopology in topology.subtopologies:
        if subtopology.stores and not any(map(subtopology.reads, inputs)):
            patterns = [
                f"/{topic.pattern}/"
                for source in subtopology.sources
                for topic in source.topics
                if not isinstance(topic, str)
            ]
            raise TopicError(
                f"no topic is matched by {', '.join(patterns)}, so the partition count of store "
                f"{subtopology.stores[0].name!r} is not known",
                hint="create the first topic that the pattern is to match, then restart",
            )


def _note_own_topics(topology: Topology, existing: Collection[str]) -> None:
    """Log the topics that patterns match but do not read, as they are the app's own."""
    left_out = sorted(
        name for name in existing if any(pattern.matches_own(name) for pattern in topology.patterns)
    )
    if left_out:
        get_logger().info(
            Event.OWN_TOPICS_LEFT_OUT,
            topics=left_out,
            hint="patterns do not read topics that the app writes itself; to read one, give its name",
        )


def _source_task_counts(topology: Topology, existing: Mapping[str, TopicDescription]) -> dict[str, int]:
    """The internal topics of source connectors, with the numbers of their tasks. Raises ``TopicError``."""
    counts = {}
    for topic, source in topology.source_topics.items():
        assert source.connector is not None
        counts[topic] = source.connector.tasks
        if topic in existing and existing[topic].partitions != source.connector.tasks:
            raise TopicError(
                f"source {source.name!r}: {topic} has {existing[topic].partitions} partitions, but the "
                f"connector has {source.connector.tasks} tasks",
                hint="their positions belong to the old number of tasks: give the source another store=",
            )
    return counts


def known_partitions(
    topology: Topology, existing: Mapping[str, TopicDescription], *, application: str
) -> dict[str, int]:
    """The partition counts of all input topics, of internal ones as they are or would be created.

    Raises ``TopicError`` for input topics that do not exist, and for counts that do not fit together.
    """
    inputs = input_partitions(topology, dict(existing)) | _source_task_counts(topology, existing)
    missing = [
        topic
        for topic in (*topology.input_topics, *(table.topic for table in topology.global_tables))
        if isinstance(topic, str)
        and topic not in existing
        and topic not in topology.repartitions
        and topic not in topology.source_topics
        and topic not in topology.own_topics
    ]
    if missing:
        raise TopicError(
            f"input topics of {application} do not exist: {', '.join(missing)}", hint=_creation_hint(missing)
        )
    inputs |= _repartition_counts(topology, inputs, existing)
    check_copartitions(topology, inputs)
    return inputs


def check_copartitions(topology: Topology, inputs: Mapping[str, int]) -> None:
    """Check that topics which a step joins have the same number of partitions. Raises ``TopicError``."""
    for step, wanted in topology.copartitions:
        counts = {
            topic: count for topic, count in inputs.items() if any(matches(item, topic) for item in wanted)
        }
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{topic} has {count}" for topic, count in counts.items())
            raise TopicError(
                f"step {step!r} reads topics together that must have the same number of partitions: {listed}",
                hint="equal keys must be in equal partitions: use the same partition counts, or add "
                ".repartition(name) to the stream of one of them",
            )


def _repartition_counts(
    topology: Topology, inputs: Mapping[str, int], existing: Mapping[str, TopicDescription]
) -> dict[str, int]:
    """Partition counts of the internal topics between subtopologies."""
    wanted = topology.repartitions
    known = {topic: item.partitions for topic, item in wanted.items() if item.partitions is not None}
    known |= {topic: existing[topic].partitions for topic in wanted if topic in existing}
    for topic, item in wanted.items():
        if topic in existing and item.partitions not in (None, existing[topic].partitions):
            raise TopicError(
                f"{topic} has {existing[topic].partitions} partitions, the program needs {item.partitions}",
                hint="the state downstream has the same number of partitions: give the step another name to "
                "begin with a new topic",
            )
    while len(known) < len(wanted):
        before = len(known)
        for topic in wanted:
            if topic not in known and (count := _derived_count(topology, topic, dict(inputs) | known)):
                known[topic] = count
        if len(known) == before:
            raise TopicError(
                f"the partition counts of {', '.join(sorted(wanted.keys() - known.keys()))} cannot be "
                "determined: these topics feed each other",
                hint="give one: .repartition(name, partitions=…)",
            )
    return known


def _derived_count(topology: Topology, topic: str, counts: Mapping[str, int]) -> int | None:
    """The partition count of the topics that it is joined with, else of the largest topic that feeds it."""
    together = [
        count
        for _, wanted in topology.copartitions
        if any(matches(item, topic) for item in wanted)
        for name, count in counts.items()
        if any(matches(item, name) for item in wanted)
    ]
    if together:
        return max(together)
    feeding = next(
        subtopology
        for subtopology in topology.subtopologies
        if any(isinstance(node, SinkNode) and node.topic == topic for node in subtopology.nodes)
    )
    internal = [source for source in topology.repartitions if feeding.reads(source)]
    if any(source not in counts for source in internal):
        return None
    return max((count for name, count in counts.items() if feeding.reads(name)), default=None)


def missing_changelogs(
    topology: Topology,
    inputs: Mapping[str, int],
    existing: Mapping[str, TopicDescription],
    application: str,
) -> list[NewTopic]:
    """The changelog topics that do not exist. Raises ``TopicError`` for one with another partition count."""
    new = []
    for subtopology in topology.subtopologies:
        partitions = max((count for topic, count in inputs.items() if subtopology.reads(topic)), default=1)
        for store in subtopology.stores:
            if store.source_topic is not None:
                continue
            topic = changelog_topic(application, store)
            if topic not in existing:
                settings = CHANGELOG_SETTINGS | {"cleanup.policy": "compact"}
                if store.changelog_retention is not None:
                    retention = store.changelog_retention + WINDOW_MARGIN
                    settings |= {"cleanup.policy": "compact,delete", "retention.ms": str(retention)}
                new.append(NewTopic(name=topic, partitions=partitions, settings=settings, wished=ANY_RECORD))
            elif existing[topic].partitions != partitions:
                raise TopicError(
                    f"store {store.name!r}: {topic} has {existing[topic].partitions} partitions, but its "
                    f"input has {partitions} now, so that keys are in other partitions than their state",
                    hint="give the store another name and replay the input to rebuild it, or restore the "
                    "input's partition count",
                )
    return new


def _check_compaction(
    topology: Topology, admin: Admin, existing: Mapping[str, TopicDescription], application: str
) -> None:
    """Check that topics from which state is restored are compacted. Raises ``TopicError``."""
    stores = {
        topic: store
        for subtopology in topology.subtopologies
        for store in subtopology.stores
        if (topic := changelog_topic(application, store)) in existing
    }
    for topic, settings in admin.settings(list(stores)).items():
        if "compact" in settings.get("cleanup.policy", "delete"):
            needed = stores[topic].changelog_retention
            retention = int(settings.get("retention.ms", "-1"))
            if needed is not None and "delete" in settings["cleanup.policy"] and 0 <= retention < needed:
                get_logger().warning(
                    Event.CHANGELOG_KEPT_TOO_SHORT,
                    topic=topic,
                    store=stores[topic].name,
                    retention=needed + WINDOW_MARGIN,
                )
            continue
        if stores[topic].source_topic is None:
            raise TopicError(
                f"{topic} is the changelog of store {stores[topic].name!r} and is not compacted: "
                f"cleanup.policy={settings.get('cleanup.policy', 'delete')}",
                hint="a restore would lack the records that it deletes by age: set cleanup.policy=compact"
                + (",delete" if stores[topic].changelog_retention is not None else ""),
            )
        if settings.get("retention.ms", "604800000") != "-1" or settings.get("retention.bytes", "-1") != "-1":
            get_logger().warning(Event.TABLE_NOT_COMPACTED, topic=topic, store=stores[topic].name)


def _creation_hint(names: list[str]) -> str:
    return f"create them, e.g. with: streams topics create {' '.join(names)} --partitions 4"
