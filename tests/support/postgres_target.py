"""A database that sinks write to, and sinks that are fed with records of one partition."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from streams.connectors.postgres import PostgresSink
from streams.connectors.sink import SinkContext, SinkRows
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PARTITION = TopicPartition("changes", 0)


class Feed:
    """A sink of its own name, and the position of its partition."""

    def __init__(self, sink: PostgresSink, name: str, *, lock_timeout: float = 10.0) -> None:
        self.sink = sink
        self.context = SinkContext(application="app", name=name, worker="w", lock_timeout=lock_timeout)
        sink.check(self.context)
        self.open()

    def open(self) -> None:
        """Open the sink, and continue at its position."""
        self.writer = self.sink.open(self.context)
        self.claim()

    def claim(self) -> int:
        self.position = self.writer.claim({PARTITION: "id"})[PARTITION]
        return self.position

    def write(self, records: Sequence[tuple[Any, Any]]) -> dict[int, Exception]:
        """Write keys and values, without a commit; the errors of refused rows, by place."""
        count = len(records)
        refused = self.writer.write(
            [
                SinkRows(
                    partition=PARTITION,
                    start=self.position,
                    next_offset=self.position + count,
                    keys=[key for key, _ in records],
                    values=[value for _, value in records],
                    timestamps=[0] * count,
                    headers=[None] * count,
                    offsets=range(self.position, self.position + count),
                )
            ]
        )
        self._next = self.position + count
        return {item.row: item.error for item in refused}

    def commit(self) -> None:
        self.writer.commit()
        self.position = self._next

    def put(self, *records: tuple[Any, Any]) -> dict[int, Exception]:
        """Write and commit."""
        refused = self.write(records)
        self.commit()
        return refused

    def close(self) -> None:
        self.writer.close()


class PostgresTarget:
    """A database, in which each test has its own schema."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn = f"{dsn} options='-c search_path={schema}'"
        self.connection = psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None)
        self.sql(f"create schema {schema}")
        self._feeds: list[Feed] = []

    def sql(self, statement: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Execute, and return the rows if there are any."""
        done = self.connection.execute(statement.encode(), parameters)
        return done.fetchall() if done.description else []

    def feed(self, table: str = "t", *, name: str = "", lock_timeout: float = 10.0, **options: Any) -> Feed:
        """Check and open a sink for a table."""
        dsn = options.pop("dsn", self.dsn)
        feed = Feed(
            PostgresSink(dsn, table, **options),
            name or f"sink {len(self._feeds)}",
            lock_timeout=lock_timeout,
        )
        self._feeds.append(feed)
        return feed

    @contextmanager
    def closing(self) -> Iterator[PostgresTarget]:
        try:
            yield self
        finally:
            for feed in self._feeds:
                feed.close()
            self.connection.close()
