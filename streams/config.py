"""The settings of an app, from keyword arguments and the environment; checked before anything starts."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from streams.errors import ConfigurationError
from streams.redaction import HIDDEN, is_secret, without_secrets
from streams.serde.schemas.subject_options import CompatibilityLevel, SubjectStrategy  # noqa: TC001 - msgspec reads the annotations
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "STREAMS_"

Seconds = Annotated[float, Meta(gt=0)]

CLIENT_SETTINGS = ("client", "consumer", "producer", "schema_registry")
"""The settings whose values are a client's own settings."""

# Environment variables of other parts of this library; they are not settings of an app.
_ELSEWHERE = {"STREAMS_CACHE_DIR", "STREAMS_LOCAL_KAFKA_DIR", "STREAMS_SHARED_DATA"}
# Kubernetes sets such variables for services called "streams" or "streams-…".
_KUBERNETES = re.compile(r"STREAMS_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_\w+)?)")


@decodable
class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an app runs, as opposed to what it computes. Durations are seconds, sizes records or bytes.

    Each setting is a keyword argument of ``App``, or the environment variable ``STREAMS_`` + its upper-case
    name. The environment overrides the argument, so that an operator need not change the program. ``client``,
    ``consumer`` and ``producer`` are librdkafka's own settings (in the environment: a JSON object), for all
    clients, for consumers and for producers; ``schema_registry`` are those of the registry's client.
    """

    bootstrap_servers: str | None = None
    """The cluster; default: ``KAFKA_BOOTSTRAP_SERVERS``, else a local Kafka that is running."""

    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"
    """Commit results and input offsets in one transaction, or commit offsets after results."""

    group_protocol: Literal["auto", "consumer", "classic"] = "auto"
    """The group protocol: ``consumer`` is KIP-848; ``auto`` uses it if the broker supports it."""

    group_instance_id: str | None = None
    """Static membership (KIP-345): a restart within the session moves no partitions.

    The worker's number is appended."""

    offset_reset: Literal["earliest", "latest"] = "earliest"
    """Where a group starts in a topic without committed offsets; with ``latest`` it commits them first."""

    out_of_range_reset: Literal["fail", "earliest", "latest"] = "fail"
    """What to do if the log no longer has a group's next offset: stop, or skip to one of its ends."""

    commit_interval: Seconds = 1.0
    """The longest time between commits while there is a backlog."""

    shortest_commit_interval: Seconds = 0.02
    """The shortest time between commits when the worker has caught up: lower latency or fewer commits."""

    transaction_timeout: Seconds = 10.0
    """After this time the broker aborts the transaction of a worker that died; readers wait until then."""

    poll_deadline: Seconds = 300.0
    """A worker that does not poll for this long is evicted. Processing one record must take less."""

    session_timeout: Seconds = 45.0
    """Failover time of a killed worker with protocol ``classic``; with ``consumer`` the broker sets it."""

    max_poll_records: Annotated[int, Meta(gt=0)] = 10_000
    """The maximum number of records per poll."""

    dead_letter_topic: str | None = None
    """The topic for dead letters; default: ``<app>-dead-letters``. Created if it does not exist."""

    dead_letter_limit: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """The share of the last records that may become dead letters before the worker stops; 1 is no limit."""

    dead_letter_window: Annotated[int, Meta(gt=0)] = 1_000
    """The minimum number of records over which that share is measured."""

    blue_green: str | None = None
    """The blue/green pair to which this version of the app belongs, see ``streams replay switch``.

    Of the apps of a pair, which have different names and the same input, one emits; the others are muted."""

    create_topics: bool = False
    """Create missing output topics, with the largest input's number of partitions and no retention limit."""

    lineage: bool = False
    """Name in each result the input records that made it, in a header, for ``streams trace``."""

    tracing: bool = False
    """Make OpenTelemetry spans, and propagate their contexts in the headers of records.

    Needs the extra ``tracing``. Spans go to the program's tracer provider."""

    job_concurrency: Annotated[int, Meta(gt=0)] = 16
    """How many jobs a worker executes at once, in threads or processes, and as many async ones."""

    job_partitions: Annotated[int, Meta(gt=0)] = 12
    """Partitions of the queue's topic when it is created; the number of workers that can share it."""

    worker_id: str | None = None
    """Unique among the app's machines, stable over restarts; default: the host's name.

    The worker's number is appended."""

    state_dir: str | None = None
    """The folder for a worker's own files; default: a folder in the user's cache."""

    state_store: Literal["rocksdb", "memory"] = "rocksdb"
    """Keep stores on disk under ``state_dir``, or in memory, where they are restored at every start."""

    state_memory_mb: Annotated[int, Meta(ge=8)] = 96
    """Memory for all RocksDB stores of a worker together: block cache and write buffers."""

    state_buffer_mb: Annotated[int, Meta(gt=0)] = 64
    """Commit early when the uncommitted changes of stores take about this much memory."""

    state_cleanup_delay: Seconds = 600.0
    """Delete the stores of tasks that moved to other workers after this time."""

    standby_replicas: Annotated[int, Meta(ge=0)] = 0
    """Standby replicas of each task: this many workers may fail at once. The same for all workers."""

    http_host: str = "127.0.0.1"
    """The address on which ``http_port`` is opened."""

    http_advertised_host: str | None = None
    """The host under which other workers reach this one's port.

    Default: ``http_host``, or the host's name if that is a wildcard address."""

    http_port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    """Serve ``/metrics``, ``/healthz``, ``/readyz`` and stores on this port; further workers use the next
    ports. Off by default."""

    http_token: Annotated[str, Meta(pattern=r"^[!-~]{8,}$")] | None = None
    """Required for metrics and state: ``Authorization: Bearer <token>``. The same for all workers."""

    http_console: Literal["off", "read_only", "full"] = "off"
    """Whether the HTTP port serves the console under ``/console``, and whether it may change anything."""

    http_tls_certificate: str | None = None
    """A file (PEM) with the certificate of the HTTP port, which then uses HTTPS; needs ``http_tls_key``."""

    http_tls_key: str | None = None
    """A file (PEM) with the certificate's private key."""

    http_tls_ca: str | None = None
    """A file (PEM) with the authorities that sign other workers' certificates; default: the system's."""

    stall_timeout: Seconds = 60.0
    """A partition with lag and without progress for this long is logged, and readiness fails."""

    waiting_goal: Seconds = 30.0
    """How long a record may wait until it is processed: a worker whose records wait longer is behind."""

    show_keys: bool = True
    """Whether what is said to hold an app back may name keys of records, e.g. one that most records have."""

    alerts_file: str | None = None
    """A file (TOML) with the app's alerts, instead of those of the program; it may change while it runs."""

    stall_exit: bool = False
    """Exit on a stall that a restart may fix, with code 12, so that a supervisor restarts the worker."""

    shutdown_timeout: Seconds = 10.0
    """The maximum duration of a stop; after it the process exits without finishing its work."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """The log format of ``streams run``: ``auto`` is ``console`` on a terminal, and JSON lines otherwise.

    In any other program, its own configuration of ``logging`` applies."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that ``streams run`` logs."""

    schema_registry_url: str | None = None
    """The schema registry (several URLs separated by commas); default: the schema folder serves."""

    schema_registry: dict[str, Any] = {}
    """Settings of the schema registry's client: TLS (``ssl.…``) and authentication."""

    schema_subjects: SubjectStrategy = "topic"
    """The subject of a topic's schema: ``<topic>-value``, the record's name, or both."""

    register_schemas: bool = True
    """Register the schemas of output topics at the start; without it, they must be registered."""

    schema_compatibility: Literal["registry", CompatibilityLevel] = "registry"
    """The level that a new schema is checked at, in addition to the registry's own check."""

    client: dict[str, Any] = {}
    consumer: dict[str, Any] = {}
    producer: dict[str, Any] = {}

    def __repr__(self) -> str:
        """The settings without secrets."""
        view = without_secrets({name: getattr(self, name) for name in self.__struct_fields__})
        view |= {name: without_secrets(getattr(self, name)) for name in CLIENT_SETTINGS}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in view.items())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for the library ``rich``, e.g. in a traceback with local variables."""
        return [("", repr(self))]


class SettingsArguments(TypedDict, total=False):
    """The fields of ``Settings`` as keyword arguments, for type checkers and editors."""

    bootstrap_servers: str | None
    guarantee: Literal["exactly_once", "at_least_once"]
    group_protocol: Literal["auto", "consumer", "classic"]
    group_instance_id: str | None
    offset_reset: Literal["earliest", "latest"]
    out_of_range_reset: Literal["fail", "earliest", "latest"]
    commit_interval: float
    shortest_commit_interval: float
    transaction_timeout: float
    poll_deadline: float
    session_timeout: float
    max_poll_records: int
    dead_letter_topic: str | None
    dead_letter_limit: float
    dead_letter_window: int
    blue_green: str | None
    create_topics: bool
    lineage: bool
    tracing: bool
    job_concurrency: int
    job_partitions: int
    worker_id: str | None
    state_dir: str | None
    state_store: Literal["rocksdb", "memory"]
    state_memory_mb: int
    state_buffer_mb: int
    state_cleanup_delay: float
    standby_replicas: int
    http_host: str
    http_advertised_host: str | None
    http_port: int | None
    http_token: str | None
    http_console: Literal["off", "read_only", "full"]
    http_tls_certificate: str | None
    http_tls_key: str | None
    http_tls_ca: str | None
    stall_timeout: float
    waiting_goal: float
    show_keys: bool
    alerts_file: str | None
    stall_exit: bool
    shutdown_timeout: float
    log_format: Literal["auto", "console", "json"]
    log_level: Literal["debug", "info", "warning", "error"]
    schema_registry_url: str | None
    schema_registry: dict[str, Any]
    schema_subjects: SubjectStrategy
    register_schemas: bool
    schema_compatibility: Literal["registry", CompatibilityLevel]
    client: dict[str, Any]
    consumer: dict[str, Any]
    producer: dict[str, Any]


def load_settings(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Load settings from keyword arguments and the environment.

    Raises ``ConfigurationError`` for an unknown name and for a value of the wrong type or range.
    """
    for name in arguments:
        if name not in Settings.__struct_fields__:
            raise ConfigurationError(f"unknown setting {name!r}", hint=_closest(name))
    chosen = _convert(arguments, lambda name: f"setting {name}", strict=True)
    values = {name: getattr(chosen, name) for name in arguments}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in _ELSEWHERE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in Settings.__struct_fields__:
            if _KUBERNETES.fullmatch(variable):
                continue
            raise ConfigurationError(
                f"environment variable {variable} is not a setting", hint=_closest(name, PREFIX)
            )
        values[name] = read_setting(name, text, f"environment variable {variable}")
    return Settings(**values)


def read_setting(name: str, text: str, source: str) -> Any:
    """Parse the text of a setting from the environment or the command line.

    ``source`` is where the text came from, for errors. Raises ``ConfigurationError`` for an unknown name and
    for a value of the wrong type or range.
    """
    if name not in Settings.__struct_fields__:
        raise ConfigurationError(f"{source}: unknown setting {name!r}", hint=_closest(name))
    value: object = text
    if name in CLIENT_SETTINGS:
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"{source} is not JSON: {error}", hint='write a JSON object, e.g. {"linger.ms": 5}'
            ) from error
    return getattr(_convert({name: value}, lambda _: source, strict=False), name)


def _convert(values: Mapping[str, Any], source: Callable[[str], str], *, strict: bool) -> Settings:
    """Convert values to settings; ``source`` returns where a setting's value came from, for errors."""
    try:
        return msgspec.convert(dict(values), Settings, strict=strict)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        name = where.strip("`$.").partition("[")[0] or "?"
        value = HIDDEN if is_secret(name) or name in CLIENT_SETTINGS else repr(values.get(name))
        raise ConfigurationError(
            f"{source(name)}={value}: {what[0].lower()}{what[1:]}", hint=_choices(name)
        ) from None


def _choices(name: str) -> str | None:
    """A hint with the allowed values of a setting, if they can be listed."""
    allowed = get_type_hints(Settings).get(name)
    return f"one of: {', '.join(get_args(allowed))}" if get_origin(allowed) is Literal else None


def _closest(name: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(name, Settings.__struct_fields__, 1)
    if close:
        return f"did you mean {prefix + close[0].upper() if prefix else close[0]}?"
    return f"settings are: {', '.join(Settings.__struct_fields__)}"
