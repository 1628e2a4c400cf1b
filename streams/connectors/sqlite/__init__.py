"""Rows of a table in SQLite, with the positions of their input in the same transaction."""

from streams.connectors.sqlite.comparable import SqliteTable
from streams.connectors.sqlite.connector import SqliteSink

__all__ = ["SqliteSink", "SqliteTable"]
