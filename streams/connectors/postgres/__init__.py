"""Postgres as a sink of data: upserts and deletes by key, or rows that are only appended, exactly once.

A table can also be compared with its copy (``PostgresTable``).

Needs the extra ``postgres``.
"""

from streams.errors import ConfigurationError

try:
    import psycopg  # noqa: F401 - a missing extra is reported here, by its name
except ImportError as error:
    raise ConfigurationError(
        f"the Postgres connector needs the package psycopg: {error}", hint="pip install 'streams[postgres]'"
    ) from error

from streams.connectors.postgres.column_types import postgres_types
from streams.connectors.postgres.comparable import PostgresTable
from streams.connectors.postgres.sink import PostgresSink

__all__ = ["PostgresSink", "PostgresTable", "postgres_types"]
