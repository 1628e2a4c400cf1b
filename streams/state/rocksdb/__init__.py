"""Stores on disk, in RocksDB."""

from __future__ import annotations

from streams.state.rocksdb.database import RocksDatabases

__all__ = ["RocksDatabases"]
