"""Debezium as a source: the changes of a database's tables, each exactly once.

Needs the extras ``debezium`` and ``postgres``. The Java runtime starts with the first source that is checked
or opened, not when this is imported.
"""

from streams.connectors.debezium.source import Debezium

__all__ = ["Debezium"]
