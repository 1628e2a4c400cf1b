"""The Redis sink as a program names it."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from streams.connectors.redis.connection import Connection, hash_tag
from streams.connectors.redis.server_address import client_options
from streams.connectors.redis.server_errors import CommandRefused, sink_error
from streams.connectors.redis.sink_positions import SinkPositions
from streams.connectors.redis.sink_targets import (
    HashTarget,
    ListTarget,
    StreamTarget,
    StringTarget,
    WrongType,
    require_type,
)
from streams.connectors.redis.sink_writer import RedisWriter
from streams.durations import to_milliseconds
from streams.errors import ConfigurationError, ConnectorError

if TYPE_CHECKING:
    from datetime import timedelta

    from streams.connectors.redis.sink_targets import SinkTarget
    from streams.connectors.sink import SinkContext


@dataclass(frozen=True, slots=True)
class RedisSink:
    """Writes records to Redis, each exactly once, with the positions in the same transaction.

    ``url`` is ``redis://user@host:6379/0``, with ``rediss`` for TLS. One of four says what is written:

    - ``stream``: an entry of this stream for each value. A value with fields (a mapping, Struct, dataclass,
      or a ``Change`` of these) has these, any other one the field ``field``. ``key_field`` adds the record's
      key. ``max_length`` trims the stream to about this length.
    - ``list``: each value is appended to this list, as text or JSON.
    - ``hashes``: each value sets the fields of the hash ``hashes`` + key, e.g. ``customer:7`` with
      ``hashes="customer:"``; fields that it does not have stay, null ones are deleted. A null value deletes
      the hash.
    - ``strings``: each value sets the string ``strings`` + key, as text or JSON, and is also published in the
      channel of that name with ``publish``. It is deleted by a null value, and ``expires`` after its last
      value.

    In streams and lists null values add nothing. The positions are in hashes whose names begin with
    ``positions``. A transaction has about ``max_rows`` records.
    """

    url: str = field(repr=False)
    _: KW_ONLY
    stream: str | None = None
    list: str | None = None
    hashes: str | None = None
    strings: str | None = None
    field: str = "value"
    key_field: str | None = None
    max_length: int | None = None
    expires: timedelta | None = None
    publish: bool = False
    positions: str = "streams:positions"
    max_rows: int = 5_000

    kind = "redis"

    @property
    def target(self) -> str:
        """What it writes to, a key or what all keys begin with, as a name that topics may have too."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self._key).strip("-")

    @property
    def _key(self) -> str:
        return self.stream or self.list or self._prefix or ""

    @property
    def _prefix(self) -> str | None:
        """What the keys begin with, where there is one for each key of a record."""
        return self.hashes or self.strings

    @property
    def takes_retries(self) -> bool:
        """Whether a record may be written again: by key that changes nothing."""
        return self._prefix is not None

    def __post_init__(self) -> None:
        client_options(self.url, "RedisSink")
        if sum(map(bool, (self.stream, self.list, self.hashes, self.strings))) != 1:
            raise ConfigurationError(
                "RedisSink writes to one of stream=, list=, hashes= and strings=", hint='e.g. stream="orders"'
            )
        if self.strings is None and (self.publish or self.expires is not None):
            option = "publish" if self.publish else "expires"
            raise ConfigurationError(f"RedisSink({self._key!r}): {option}= is for strings")
        if self.expires is not None:
            to_milliseconds(self.expires, f"RedisSink({self._key!r}): expires", least=1)
        for option in ("key_field", "max_length"):
            if getattr(self, option) is not None and self.stream is None:
                raise ConfigurationError(f"RedisSink({self._key!r}): {option}= is for streams")
        for option, number in (("max_length", self.max_length), ("max_rows", self.max_rows)):
            if number is not None and number < 1:
                raise ConfigurationError(f"RedisSink({self._key!r}): {option}={number}, needed is at least 1")

    def check(self, context: SinkContext) -> None:
        try:
            connection = self._connected(context)
            try:
                self._require(connection)
                self._require_type(connection)
            finally:
                connection.close()
        except (RedisError, CommandRefused) as error:
            raise sink_error(error, "checking the sink", starting=True) from error

    def open(self, context: SinkContext) -> RedisWriter:
        try:
            connection = self._connected(context)
        except (RedisError, CommandRefused) as error:
            raise sink_error(error, "opening the sink") from error
        return RedisWriter(connection, SinkPositions(self.positions, self._key, context), self._target())

    def _connected(self, context: SinkContext) -> Connection:
        name = f"streams {context.application} {context.name} {context.worker}"
        return Connection(self.url, what="RedisSink", name=name, key=self._key.encode())

    def _require(self, connection: Connection) -> None:
        """Refuse servers that could remove a position and keep the records."""
        policy = connection.information("memory").get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys"):
            raise ConnectorError(
                f"{connection.address}: its maxmemory-policy is {policy}, which may remove positions",
                hint="CONFIG SET maxmemory-policy noeviction, or one that begins with volatile",
            )
        if connection.information("replication").get("role") == "slave":
            raise ConnectorError(f"{connection.address} is a replica", hint="name the primary")
        prefix, kind = self._prefix, "hashes" if self.hashes else "strings"
        if prefix and hash_tag(prefix) == prefix and connection.is_cluster:
            raise ConnectorError(
                f"{connection.address} is a cluster, in which a transaction's keys must have one slot: "
                f"those that begin with {prefix!r} have many",
                hint=f'write a hash tag: {kind}="{{{prefix.rstrip(":")}}}:"',
            )

    def _require_type(self, connection: Connection) -> None:
        target = self._target()
        if self._prefix is None:
            try:
                require_type(connection, target.name.encode(), target.type_name)
            except WrongType as error:
                raise ConnectorError(
                    f"{connection.address}: {error}", hint="delete the key, or name another one"
                ) from error

    def _target(self) -> SinkTarget:
        if self.stream is not None:
            return StreamTarget(self.stream, self.field, self.key_field, self.max_length)
        if self.list is not None:
            return ListTarget(self.list)
        if self.hashes is not None:
            return HashTarget(self.hashes)
        assert self.strings is not None
        expires = None if self.expires is None else to_milliseconds(self.expires, "RedisSink: expires")
        return StringTarget(self.strings, expires, self.publish)
