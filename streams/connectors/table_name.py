"""Names of database tables."""

from __future__ import annotations

from typing import NamedTuple


class TableName(NamedTuple):
    """A table by its names, as they are: not quoted, not folded to lower case."""

    schema: str
    """Or the database, where that has no schemas."""
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """``schema.name``, or a name in the schema ``public``."""
        schema, dot, name = text.partition(".")
        return cls(schema, name) if dot else cls("public", text)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def quoted(self) -> str:
        """In standard SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"


def quoted(name: str) -> str:
    """An identifier in standard SQL."""
    return '"' + name.replace('"', '""') + '"'
