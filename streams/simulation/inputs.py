"""What a simulation reads: files as the records of topics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streams.errors import ConfigurationError
from streams.ingest.lines import STANDARD_INPUT, read_lines
from streams.serde import Avro, Bytes
from streams.simulation.run import START, InputRecord
from streams.topology.graph import matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.serde import Serde
    from streams.topology.graph import SourceTopic, Topology

SPACING_MILLISECONDS = 1
"""Lines without a time of their own follow each other at this distance."""


class RecordLine(msgspec.Struct, forbid_unknown_fields=True):
    """A record as a line of JSON.

    ``key`` and ``value`` are what the topic's serdes write, or text as it is; ``key_base64`` and
    ``value_base64`` are bytes. ``timestamp`` is in milliseconds since the epoch, ``headers`` are texts.
    ``topic``, ``offset`` and ``error``, which ``streams consume`` shows too, say nothing here.
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
    """The records of each topic: files whose lines are values, and files whose lines are whole records.

    Raises ``ConfigurationError`` for an input topic without a file, a file without an input topic, and a line
    that is no record.
    """
    wanted = _sources(topology)
    given = {**lines, **records}
    strangers = sorted(
        topic for topic in given if topic not in wanted and not any(matches(item, topic) for item in wanted)
    )
    if strangers:
        raise ConfigurationError(
            f"the app does not read {', '.join(strangers)}", hint=f"it reads {_listed(wanted)}"
        )
    missing = [topic for topic in wanted if isinstance(topic, str) and topic not in given]
    if missing or not given:
        first = next(iter(missing), "TOPIC")
        raise ConfigurationError(
            f"the simulation needs records of {_listed(missing or wanted)}",
            hint=f"--input {first}=FILE, each line of which is a value, or --records {first}=FILE of JSON "
            'lines such as {"key": "a", "value": 1, "timestamp": 0}; an empty file will do',
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
    return inputs


def parse_files(given: Sequence[str]) -> dict[str, Path]:
    """``TOPIC=FILE`` each, also pipes, devices and ``-`` (standard input). Raises ``ConfigurationError``."""
    files = {}
    for item in given:
        topic, equals, name = item.partition("=")
        if not (topic and equals and name):
            raise ConfigurationError(f"{item!r} names no file of records", hint="write TOPIC=FILE")
        if name not in STANDARD_INPUT and not Path(name).exists():
            raise ConfigurationError(f"file {name!r} does not exist")
        files[topic] = Path(name)
    return files


def _sources(topology: Topology) -> list[SourceTopic]:
    """The topics that somebody else writes."""
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
            f"{where} is no record: {type(error).__name__}: {error}",
            hint="a line has key, value (or key_base64, value_base64), timestamp, headers, partition, all "
            "of them optional; --input takes lines as they are",
        ) from error


def _bytes(serde: Serde[Any], value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(serde, Avro) and serde.record_type is not None:
        value = msgspec.convert(value, serde.record_type)
    elif isinstance(value, str) and isinstance(serde, Bytes):
        return value.encode()
    return next(iter(serde.serialize([value])))
