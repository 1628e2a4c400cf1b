"""The settings of an app: from keyword arguments and from the environment, checked before anything starts."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from streams.errors import ConfigurationError
from streams.redaction import HIDDEN, is_secret, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "STREAMS_"

Seconds = Annotated[float, Meta(gt=0)]

CLIENT_SETTINGS = ("client", "consumer", "producer")
"""The settings that are librdkafka's own."""

# Read by other parts of this library, not settings of an app.
_ELSEWHERE = {"STREAMS_CACHE_DIR", "STREAMS_LOCAL_KAFKA_DIR", "STREAMS_SHARED_DATA"}
# Kubernetes announces services called "streams" or "streams-…" with variables like these.
_KUBERNETES = re.compile(r"STREAMS_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_\w+)?)")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an app runs, as opposed to what it computes. Durations are seconds, sizes records or bytes.

    Each may be given as a keyword argument of ``App`` or as the environment variable ``STREAMS_`` + its
    upper-case name; the environment wins, so that an operator need not touch the program. ``client``,
    ``consumer`` and ``producer`` are librdkafka's own settings (in the environment: a JSON object) and go to
    all clients, to consumers, to producers.
    """

    bootstrap_servers: str | None = None
    """Where to find the cluster; else ``KAFKA_BOOTSTRAP_SERVERS``, else a local Kafka that is running."""

    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"
    """Whether results and input offsets are committed in one transaction, or offsets after results."""

    group_protocol: Literal["auto", "consumer", "classic"] = "auto"
    """How the group is joined: ``consumer`` is KIP-848; ``auto`` takes it where the broker offers it."""

    group_instance_id: str | None = None
    """Static membership (KIP-345): a restart within the session moves nothing. Gets the worker's number."""

    offset_reset: Literal["earliest", "latest"] = "earliest"
    """Where a group begins in a topic of which it has committed nothing; ``latest`` is committed first."""

    out_of_range_reset: Literal["fail", "earliest", "latest"] = "fail"
    """What to do where the log no longer has a group's next offset: stop, or leave out what is between."""

    commit_interval: Seconds = 1.0
    """The longest time between commits while there is a backlog."""

    shortest_commit_interval: Seconds = 0.02
    """The shortest time between commits when the worker has caught up: latency against commits a second."""

    transaction_timeout: Seconds = 10.0
    """After this the broker aborts a transaction whose worker is gone, and its readers go on."""

    poll_deadline: Seconds = 300.0
    """A worker that does not poll for this long is evicted. One record's processing must stay below it."""

    session_timeout: Seconds = 45.0
    """Failover time of a killed worker with protocol ``classic``; with ``consumer`` the group sets it."""

    max_poll_records: Annotated[int, Meta(gt=0)] = 10_000
    """The largest batch of records taken from the client at once."""

    dead_letter_topic: str | None = None
    """Where dead letters go; ``<app>-dead-letters`` unless set. Created if it does not exist."""

    dead_letter_limit: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """The share of the last records that may become dead letters before the worker stops; 1 for any."""

    dead_letter_window: Annotated[int, Meta(gt=0)] = 1_000
    """Over how many records, at least, that share is taken."""

    create_topics: bool = False
    """Create missing output topics, with as many partitions as the largest input, kept for ever."""

    worker_id: str | None = None
    """Unique among the app's machines, stable over restarts; the host's name unless set. As above."""

    state_dir: str | None = None
    """Where a worker keeps what is its own; a folder in the user's cache unless set."""

    state_store: Literal["rocksdb", "memory"] = "rocksdb"
    """Where stores are kept: on disk under ``state_dir``, or in memory, restored at every start."""

    state_memory_mb: Annotated[int, Meta(ge=8)] = 96
    """Memory for all RocksDB stores of a worker together: caches and what is not flushed yet."""

    state_buffer_mb: Annotated[int, Meta(gt=0)] = 64
    """Commit early when the changes of stores since the last commit take about as much memory."""

    state_cleanup_delay: Seconds = 600.0
    """What a worker keeps of tasks that have gone elsewhere is deleted after this."""

    standby_replicas: Annotated[int, Meta(ge=0)] = 0
    """How many workers may be gone at once and their tasks go on from copies; the same for all workers."""

    http_host: str = "127.0.0.1"
    """Address of the port below."""

    http_advertised_host: str | None = None
    """Where other workers reach this one's port; ``http_host``, or if that is any address the host's name."""

    http_port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    """Serve ``/metrics``, ``/healthz``, ``/readyz`` here; further workers on the ports above. Else off."""

    http_token: Annotated[str, Meta(pattern=r"^[!-~]{8,}$")] | None = None
    """What metrics and state are asked with: ``Authorization: Bearer <token>``. The same for all workers."""

    http_tls_certificate: str | None = None
    """A file with the certificate of the HTTP port (PEM), which then speaks HTTPS; needs the next one too."""

    http_tls_key: str | None = None
    """A file with the certificate's private key (PEM)."""

    http_tls_ca: str | None = None
    """A file with the authorities (PEM) that check other workers' certificates; else the system's."""

    stall_timeout: Seconds = 60.0
    """A partition that has lag and makes no progress for this long is logged, and makes readiness bad."""

    stall_exit: bool = False
    """End the process then, with exit code 12, where a restart may help: for a supervisor to make one."""

    shutdown_timeout: Seconds = 10.0
    """How long a stop may take before the worker gives up what it is doing."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """Where the process is the worker's own (``streams run``): ``auto``, for people on a terminal, JSON
    lines otherwise. In another program, its own configuration of ``logging`` says how lines are written."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important level logged there."""

    client: dict[str, Any] = {}
    consumer: dict[str, Any] = {}
    producer: dict[str, Any] = {}

    def __repr__(self) -> str:
        """As they may be shown: without secrets."""
        shown = without_secrets({name: getattr(self, name) for name in self.__struct_fields__})
        shown |= {name: without_secrets(getattr(self, name)) for name in CLIENT_SETTINGS}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same, where the library ``rich`` shows objects, e.g. in a traceback with local variables."""
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
    create_topics: bool
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
    http_tls_certificate: str | None
    http_tls_key: str | None
    http_tls_ca: str | None
    stall_timeout: float
    stall_exit: bool
    shutdown_timeout: float
    log_format: Literal["auto", "console", "json"]
    log_level: Literal["debug", "info", "warning", "error"]
    client: dict[str, Any]
    consumer: dict[str, Any]
    producer: dict[str, Any]


def load_settings(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Settings from keyword arguments and the environment.

    Raises ``ConfigurationError`` for a name that is no setting and for a value of the wrong type or range.
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
                f"environment variable {variable} is no setting", hint=_closest(name, PREFIX)
            )
        values[name] = read_setting(name, text, f"environment variable {variable}")
    return Settings(**values)


def read_setting(name: str, text: str, source: str) -> Any:
    """The value of a setting that is given as text, in the environment or on a command line.

    ``source`` says where it was given, for errors. Raises ``ConfigurationError`` for a name that is no
    setting and for a value of the wrong type or range.
    """
    if name not in Settings.__struct_fields__:
        raise ConfigurationError(f"{source}: unknown setting {name!r}", hint=_closest(name))
    value: object = text
    if name in CLIENT_SETTINGS:
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigurationError(f"{source} is no JSON: {error}") from error
    return getattr(_convert({name: value}, lambda _: source, strict=False), name)


def _convert(values: Mapping[str, Any], source: Callable[[str], str], *, strict: bool) -> Settings:
    """The settings of these values; ``source`` says of a setting's name where its value was given."""
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
    """The values that a setting may have, if these can be listed."""
    allowed = get_type_hints(Settings).get(name)
    return f"one of: {', '.join(get_args(allowed))}" if get_origin(allowed) is Literal else None


def _closest(name: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(name, Settings.__struct_fields__, 1)
    if close:
        return f"did you mean {prefix + close[0].upper() if prefix else close[0]}?"
    return f"settings are: {', '.join(Settings.__struct_fields__)}"
