"""SQLite, through the standard library."""

from streams.connectors.sqlite.comparable import SqliteTable

__all__ = ["SqliteTable"]
