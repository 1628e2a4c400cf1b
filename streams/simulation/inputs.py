"""Read the input of a simulation from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streams.errors import ConfigurationError
from streams.ingest.lines import STANDARD_INPUT, read_lines
from streams.jobs.record import JobRecord, partition_key
from streams.serde import Avro, Bytes
from streams.simulation.run import START, InputRecord
from streams.structs import decodable
from streams.topology.graph import matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.serde import Serde
    from streams.topology.graph import SourceTopic, Topology

SPACING_MILLISECONDS = 1
"""The distance between the timestamps of lines that have none."""


@decodable
class RecordLine(msgspec.Struct, forbid_unknown_fields=True):
    """A record as a line of JSON.

    ``key`` and ``value`` are encoded with the topic's serdes, or are text for ``Bytes``; ``key_base64`` and
    ``value_base64`` are bytes. ``timestamp`` is in milliseconds since the epoch, ``headers`` are text.
    ``topic``, ``offset`` and ``error``, which ``streams consume`` also prints, are ignored.
    """

    key: Any = None
    value: Any = None
    key_base64: bytes | None = None
    value_base64: bytes | None = None
    timestamp: int | None = None
    headers: dict[str, str | None] | None = None
    partition: int | None = None
    topic: str | None = None
    offset: int | None = None
    error: str | None = None


def read_inputs(
    topology: Topology, lines: Mapping[str, Path], records: Mapping[str, Path]
) -> dict[str, list[InputRecord]]:
    """Read the records of each topic, from files whose lines are values or records in JSON.

    Raises ``ConfigurationError`` for an input topic without a file, a file for a topic that the app does not
    read, and a line that is not a valid record.
    """
    wanted = _sources(topology)
    given = {**lines, **records}
    queues = [topic for topic, kind in topology.own_topics.items() if kind.purged]
    strangers = sorted(
        topic
        for topic in given
        if topic not in {*wanted, *queues} and not any(matches(item, topic) for item in wanted)
    )
    if strangers:
        raise ConfigurationError(
            f"the app does not read {', '.join(strangers)}", hint=f"it reads {_listed([*wanted, *queues])}"
        )
    # An app's queue and the commands for it may be empty.
    own = {*given, *queues, *topology.own_topics}
    missing = [topic for topic in wanted if isinstance(topic, str) and topic not in own]
    if missing or not given:
        first = next(iter([*missing, *queues]), "TOPIC")
        raise ConfigurationError(
            f"the simulation needs records of {_listed(missing or wanted or queues)}",
            hint=f"--input {first}=FILE, each line of which is a value, or --records {first}=FILE of JSON "
            'lines such as {"key": "a", "value": 1, "timestamp": 0}; the file may be empty',
        )
    inputs = {}
    for topic, path in lines.items():
        inputs[topic] = [InputRecord(None, line, _time(number - 1)) for number, line in read_lines(str(path))]
    for topic, path in records.items():
        key, value = _serdes(topology, topic)
        inputs[topic] = [
            _record(line, number - 1, key, value, f"{path}:{number}")
            for number, line in read_lines(str(path))
            if line.strip()
        ]
    for topic in queues:
        if topic in inputs:
            inputs[topic] = [_with_key(record) for record in inputs[topic]]
    return inputs


def _with_key(record: InputRecord) -> InputRecord:
    """A job as a program would enqueue it: its key decides the partition."""
    if record.key is not None or record.partition is not None:
        return record
    try:
        key = partition_key(msgspec.json.decode(record.value or b"", type=JobRecord))
    except msgspec.DecodeError:
        # It becomes a dead letter.
        return record
    return record if key is None else record._replace(key=key.encode())


def parse_files(given: Sequence[str]) -> dict[str, Path]:
    """Parse ``TOPIC=FILE`` arguments; FILE may be a pipe, a device or ``-`` for standard input.

    Raises ``ConfigurationError``.
    """
    files = {}
    for item in given:
        topic, equals, name = item.partition("=")
        if not (topic and equals and name):
            raise ConfigurationError(f"{item!r} does not name a topic and a file", hint="write TOPIC=FILE")
        if name not in STANDARD_INPUT and not Path(name).exists():
            raise ConfigurationError(f"file {name!r} does not exist")
        files[topic] = Path(name)
    return files


def _sources(topology: Topology) -> list[SourceTopic]:
    """The topics that the app reads and does not write itself."""
    own = {*topology.repartitions, *topology.output_topics}
    tables = [table.topic for table in topology.global_tables]
    return [topic for topic in (*topology.input_topics, *tables) if topic not in own]


def _listed(topics: Sequence[SourceTopic]) -> str:
    return ", ".join(topic if isinstance(topic, str) else f"/{topic.pattern}/" for topic in topics)


def _serdes(topology: Topology, topic: str) -> tuple[Serde[Any], Serde[Any]]:
    for table in topology.global_tables:
        if table.topic == topic:
            return table.key, table.value
    _, source = topology.source_of(topic)
    return source.key, source.value


def _time(row: int) -> int:
    return int(START * 1000) + row * SPACING_MILLISECONDS


def _record(line: bytes, row: int, key: Serde[Any], value: Serde[Any], where: str) -> InputRecord:
    try:
        read = msgspec.json.decode(line, type=RecordLine)
        headers = read.headers and [
            (name, None if text is None else text.encode()) for name, text in read.headers.items()
        ]
        return InputRecord(
            _bytes(key, read.key) if read.key_base64 is None else read.key_base64,
            _bytes(value, read.value) if read.value_base64 is None else read.value_base64,
            _time(row) if read.timestamp is None else read.timestamp,
            headers or None,
            read.partition,
        )
    except Exception as error:
        raise ConfigurationError(
            f"{where} is not a record: {type(error).__name__}: {error}",
            hint="a line has key, value (or key_base64, value_base64), timestamp, headers, partition, all "
            "of them optional; with --input, each line is a value",
        ) from error


def _bytes(serde: Serde[Any], value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(serde, Avro) and serde.record_type is not None:
        value = msgspec.convert(value, serde.record_type)
    elif isinstance(value, str) and isinstance(serde, Bytes):
        return value.encode()
    return next(iter(serde.serialize([value])))
