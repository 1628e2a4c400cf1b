"""A stream as a source: read alone from the committed position, or shared by a consumer group."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, get_args, overload

from streams.connectors.redis.open_source import check_source
from streams.connectors.redis.server_address import client_options
from streams.connectors.redis.stream_entries import EntryColumns, EntryFields
from streams.connectors.redis.stream_group_reader import StreamGroupReader
from streams.connectors.redis.stream_reader import StreamReader
from streams.connectors.source import PlainSource
from streams.durations import seconds, to_milliseconds
from streams.errors import ConfigurationError
from streams.serde import Json, Text

if TYPE_CHECKING:
    from datetime import timedelta

    from streams.connectors.source import SourceContext, SourceReader
    from streams.serde import Serde

V = TypeVar("V")
Type: TypeAlias = builtins.type[V]
Begin: TypeAlias = Literal["earliest", "latest"]
OutOfRange: TypeAlias = Literal["fail", "earliest"]

ONE_MINUTE = seconds(60)


@dataclass(frozen=True, slots=True)
class _StreamSource(PlainSource, Generic[V]):
    """The options of a stream."""

    url: str = field(repr=False)
    stream: str
    value: Serde[V]
    field: str | None
    key_field: str | None
    group: str | None
    tasks: int
    begin: Begin
    out_of_range: OutOfRange
    claim_after: timedelta
    max_records: int

    def __post_init__(self) -> None:
        client_options(self.url, "RedisStream")
        what = f"RedisStream({self.stream!r})"
        if not self.stream:
            raise ConfigurationError("RedisStream needs the name of a stream")
        for option, value, allowed in (
            ("begin", self.begin, get_args(Begin)),
            ("out_of_range", self.out_of_range, get_args(OutOfRange)),
        ):
            if value not in allowed:
                raise ConfigurationError(f"{what}: {option}={value!r} is none of {', '.join(allowed)}")
        for option, number in (("tasks", self.tasks), ("max_records", self.max_records)):
            if number < 1:
                raise ConfigurationError(f"{what}: {option}={number}, needed is at least 1")
        if self.tasks > 1 and self.group is None:
            raise ConfigurationError(
                f"{what}: only a group can be read by {self.tasks} tasks", hint='name it, e.g. group="bridge"'
            )
        if self.group is not None and self.out_of_range != "fail":
            raise ConfigurationError(f"{what}: out_of_range= is not for groups, which have no position")
        to_milliseconds(self.claim_after, f"{what}: claim_after", least=1)


class RedisStream(_StreamSource[V]):
    """The entries of a stream, each exactly once.

    Values have all fields of an entry: dictionaries of text, or converted into ``type`` from their text. With
    ``field`` they are that field alone: text, JSON of ``type``, or what the serde ``value`` reads. The key
    is the field ``key_field``, as text. The event time is that of the entry's id.

    Without ``group`` the stream is read in its order and nothing is changed in the server. If it was trimmed
    before all was read, or created again, the source stops, unless ``out_of_range="earliest"``. ``begin``
    says where the first start begins.

    With ``group`` entries are shared with the other consumers of that group, read by ``tasks`` tasks, and
    acknowledged when they are committed. What other programs leave unacknowledged for ``claim_after`` is
    taken over. A batch has up to ``max_records`` entries. ``url`` is ``redis://user@host:6379/0``, with
    ``rediss`` for TLS.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: RedisStream[dict[str, str]],
        url: str,
        stream: str,
        type: None = None,
        *,
        key_field: str | None = None,
        group: str | None = None,
        tasks: int = 1,
        begin: Begin = "earliest",
        out_of_range: OutOfRange = "fail",
        claim_after: timedelta = ONE_MINUTE,
        max_records: int = 2_000,
    ) -> None: ...

    @overload
    def __init__(
        self,
        url: str,
        stream: str,
        type: Type[V],
        *,
        field: str | None = None,
        key_field: str | None = None,
        group: str | None = None,
        tasks: int = 1,
        begin: Begin = "earliest",
        out_of_range: OutOfRange = "fail",
        claim_after: timedelta = ONE_MINUTE,
        max_records: int = 2_000,
    ) -> None: ...

    @overload
    def __init__(
        self,
        url: str,
        stream: str,
        *,
        value: Serde[V],
        field: str | None = None,
        key_field: str | None = None,
        group: str | None = None,
        tasks: int = 1,
        begin: Begin = "earliest",
        out_of_range: OutOfRange = "fail",
        claim_after: timedelta = ONE_MINUTE,
        max_records: int = 2_000,
    ) -> None: ...

    @overload
    def __init__(
        self: RedisStream[str],
        url: str,
        stream: str,
        *,
        field: str,
        key_field: str | None = None,
        group: str | None = None,
        tasks: int = 1,
        begin: Begin = "earliest",
        out_of_range: OutOfRange = "fail",
        claim_after: timedelta = ONE_MINUTE,
        max_records: int = 2_000,
    ) -> None: ...

    def __init__(
        self,
        url: str,
        stream: str,
        type: Any = None,  # noqa: A002 - as of Json
        *,
        value: Any = None,
        field: str | None = None,
        key_field: str | None = None,
        group: str | None = None,
        tasks: int = 1,
        begin: Begin = "earliest",
        out_of_range: OutOfRange = "fail",
        claim_after: timedelta = ONE_MINUTE,
        max_records: int = 2_000,
    ) -> None:
        if value is not None and type is not None:
            raise ConfigurationError(f"RedisStream({stream!r}): give a type or value=, not both")
        if value is None:
            value = EntryFields(type) if field is None else Text() if type is None else Json(type)
        super().__init__(
            url, stream, value, field, key_field, group, tasks, begin, out_of_range, claim_after, max_records
        )

    @property
    def kind(self) -> str:
        """The system."""
        return "redis"

    @property
    def key(self) -> Serde[str]:
        return Text()

    def check(self, application: str, name: str) -> None:
        """Check that the server can be read, and that the key is a stream, if it exists."""
        check_source(
            self.url,
            what=f"source {name!r}",
            name=f"streams {application} {name}",
            key=self.stream,
            key_type="stream",
        )

    def open(self, context: SourceContext) -> SourceReader:
        """Connect, and continue at the context's position."""
        columns = EntryColumns(
            None if self.field is None else self.field.encode(),
            None if self.key_field is None else self.key_field.encode(),
        )
        if self.group is None:
            return StreamReader(self, columns, context)
        return StreamGroupReader(self, columns, context)
