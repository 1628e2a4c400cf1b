"""What is captured of a database by one of Debezium's connectors, as its properties say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Final

from streams.connectors.debezium import jvm
from streams.connectors.debezium.settings import again, chosen, common, pattern, secrets_of
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable
from streams.redaction import scrub

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from streams.connectors.table_name import TableName

CLASSES: Final = {
    "mariadb": "io.debezium.connector.mariadb.MariaDbConnector",
    "mysql": "io.debezium.connector.mysql.MySqlConnector",
    "oracle": "io.debezium.connector.oracle.OracleConnector",
    "sqlserver": "io.debezium.connector.sqlserver.SqlServerConnector",
}
"""Debezium's connectors by its own names of the systems."""
_BINLOG: Final = frozenset({"mariadb", "mysql"})
"""Where a database is what tables are in, and has no schemas."""
_PASSING: Final = re.compile(
    r"Communications link failure|Unable to connect|Connection refused|Socket fail|timed? ?out|Unknown host",
    re.IGNORECASE,
)
_LASTING: Final = re.compile(r"denied|login failed|ORA-01017", re.IGNORECASE)
_PASSED_ON: Final = (
    *("column.", "database.", "driver.", "internal.", "signal.", "snapshot.select.statement.overrides."),
    "schema.history.internal.",
)
"""How properties begin that Debezium hands to something else, or that contain names of columns."""
_NAMING: Final = ("converters", "post.processors")
"""Properties with names that others begin with."""
_FOREIGN: Final = frozenset(
    {"offset.storage", "predicates", "schema.history.internal", "tasks.max", "transforms"}
)
_FOREIGN_PREFIXES: Final = (
    *("header.converter", "key.converter", "value.converter"),
    *("offset.storage.", "predicates.", "transforms."),
    *("schema.history.internal.file.", "schema.history.internal.kafka."),
)
"""Of properties that a program may not give, those that the source does not set either."""


@dataclass(frozen=True, kw_only=True)
class ConnectorCapture:
    """The tables of one database, and the properties of its connector."""

    system: str
    tables: tuple[TableName, ...]
    snapshot: str
    given: tuple[tuple[str, str], ...]
    jars: Path | None

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be in logs and errors."""
        return secrets_of(dict(self.given))

    @cached_property
    def database(self) -> str | None:
        """The database that the tables' schemas are in; ``None`` where it has none, and names its tables."""
        if self.system in _BINLOG:
            return None
        given = dict(self.given)
        names = given.get("database.names") or given.get("database.pdb.name") or given.get("database.dbname")
        return names or ""

    @property
    def has_own_keys(self) -> bool:
        """Whether the program says which columns are the keys."""
        return any(name == "message.key.columns" for name, _ in self.given)

    def described(self) -> str:
        return f"Debezium.{self.system}(…, tables=[{', '.join(map(str, self.tables))}])"

    def again(self, name: str) -> str:
        """What to do when changes were lost."""
        return again(name, self.snapshot)

    def check(self, application: str, name: str) -> None:
        """Have Debezium check the properties with the database.

        Raises ``ConnectorError``, or ``SourceUnavailable`` when the database does not answer.
        """
        jvm.start(self.jars)
        self._require_known()
        problems = jvm.validate(self._class, self.properties(application, name))
        if not problems:
            return
        text = scrub("; ".join(problems), self.secrets)
        if _PASSING.search(text) and not _LASTING.search(text):
            raise SourceUnavailable(f"{self.system} does not answer: {text}")
        raise ConnectorError(f"Debezium refuses the properties of {self.system}: {text}")

    def _require_known(self) -> None:
        """Check that Debezium knows the properties: it ignores others. Raises ``ConnectorError``."""
        given = dict(self.given)
        own = [
            f"{item.strip()}." for name in _NAMING if name in given for item in given[name].split(",") if item
        ]
        known = jvm.property_names(self._class)
        unknown = [name for name in given if name not in known and not name.startswith((*_PASSED_ON, *own))]
        if unknown:
            near = [match for name in unknown for match in get_close_matches(name, known, 1)]
            raise ConnectorError(
                f"Debezium's connector for {self.system} has no properties {', '.join(unknown)}",
                hint=f"did you mean {', '.join(near)}?" if near else "leave them out",
            )

    @property
    def _class(self) -> str:
        return CLASSES[self.system]

    def properties(self, application: str, name: str) -> dict[str, str]:
        """Debezium's properties."""
        return {**chosen(dict(self.given)), **self._fixed(application, name)}

    def _fixed(self, application: str, name: str) -> dict[str, str]:
        fixed = {
            **common(application, name),
            "connector.class": self._class,
            "table.include.list": ",".join(pattern(str(table)) for table in self.tables),
            # All rows are read only where there is no position yet.
            "snapshot.mode": "initial",
            # They tell that a table was dropped.
            "include.schema.changes": "true",
            # A table that is altered by copying it gets the columns of one that is not captured.
            "schema.history.internal.store.only.captured.tables.ddl": "false",
            "schema.history.internal.store.only.captured.databases.ddl": "true",
        }
        if self.system in _BINLOG:
            databases = sorted({table.schema for table in self.tables})
            fixed |= {
                "database.include.list": ",".join(map(pattern, databases)),
                # Its client would connect again by itself, and be sent a transaction that it read in part.
                "connect.keep.alive": "false",
                # A TIME of theirs may have 838 hours, and is in no other form.
                "time.precision.mode": "adaptive_time_microseconds",
                # Numbers above 2^63 would become negative.
                "bigint.unsigned.handling.mode": "precise",
            }
        return fixed

    def require_properties(self) -> None:
        """Check that the program gives no property that is not its own. Raises ``ConfigurationError``."""
        fixed = {*self._fixed("app", "source"), *_FOREIGN}
        taken = sorted(name for name, _ in self.given if name in fixed or name.startswith(_FOREIGN_PREFIXES))
        if taken:
            raise ConfigurationError(
                f"the properties {', '.join(taken)} are set by the source: its position, or the form of "
                "values, depends on them",
                hint="leave them out",
            )
        if self.database is not None and (not self.database or "," in self.database):
            raise ConfigurationError(
                f"Debezium.{self.system} needs one database, not {self.database!r}",
                hint="set the property database.names (sqlserver), or database.dbname and database.pdb.name "
                "(oracle); a second database needs a source of its own",
            )


def as_text(properties: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Properties as Debezium takes them, in order."""
    words = {True: "true", False: "false"}
    return tuple(
        sorted(
            (name, words[value] if isinstance(value, bool) else str(value))
            for name, value in properties.items()
        )
    )
