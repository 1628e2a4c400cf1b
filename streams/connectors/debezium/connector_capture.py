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
    "mongodb": "io.debezium.connector.mongodb.MongoDbConnector",
    "mysql": "io.debezium.connector.mysql.MySqlConnector",
    "oracle": "io.debezium.connector.oracle.OracleConnector",
    "sqlserver": "io.debezium.connector.sqlserver.SqlServerConnector",
}
"""Debezium's connectors by its own names of the systems."""
_BINLOG: Final = frozenset({"mariadb", "mysql"})
DOCUMENTS: Final = "mongodb"
"""The system whose tables are collections of documents."""
_WITHOUT_SCHEMAS: Final = _BINLOG | {DOCUMENTS}
"""Where a database is what tables are in."""
_PASSING: Final = re.compile(
    r"Communications link failure|Unable to connect|Connection refused|Socket fail|timed? ?out|Unknown host",
    re.IGNORECASE,
)
_LASTING: Final = re.compile(
    r"denied|login failed|ORA-01017|authenticat|not authorized|privileges", re.IGNORECASE
)
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
_FOREIGN_OF_DOCUMENTS: Final = frozenset(
    {
        *("capture.start.op.time", "cursor.oversize.skip.threshold", "mongodb.allow.offset.invalidation"),
        *("collection.exclude.list", "database.exclude.list", "database.include.list"),
        *("cursor.pipeline", "cursor.pipeline.order"),
    }
)
_CHOICES: Final = {
    # Others give updates without the document, or leave out what is large.
    "capture.mode": ("change_streams_update_full", "change_streams_update_full_with_pre_image"),
    "cursor.oversize.handling.mode": ("fail", "split"),
}
"""Of properties of MongoDB, the values that lose nothing."""
_IN_URL: Final = re.compile(r"://[^:/@]*:([^/@]+)@")
"""The password in a connection string."""


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
        given = dict(self.given)
        return secrets_of(given) | {*_IN_URL.findall(given.get("mongodb.connection.string", ""))}

    @cached_property
    def database(self) -> str | None:
        """The database that the tables' schemas are in; ``None`` where it has none, and names its tables."""
        if self.system in _WITHOUT_SCHEMAS:
            return None
        given = dict(self.given)
        names = given.get("database.names") or given.get("database.pdb.name") or given.get("database.dbname")
        return names or ""

    @property
    def has_own_keys(self) -> bool:
        """Whether the program says which columns are the keys."""
        return any(name == "message.key.columns" for name, _ in self.given)

    @property
    def has_exact_documents(self) -> bool:
        """Whether the server keeps the document of each update, and it need not be looked up."""
        return dict(self.given).get("capture.mode.full.update.type", "").lower() == "post_image"

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
        if self.system == DOCUMENTS:
            return {
                **common(application, name),
                "connector.class": self._class,
                "collection.include.list": ",".join(map(str, self.tables)),
                # As a regular expression, the server would have to look at all changes of all databases.
                "filters.match.mode": "literal",
                "snapshot.mode": "initial",
                # The one that versions without this property have.
                "json.serialization.mode": "strict",
            }
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
        if self.system == DOCUMENTS:
            fixed |= _FOREIGN_OF_DOCUMENTS
        taken = sorted(name for name, _ in self.given if name in fixed or name.startswith(_FOREIGN_PREFIXES))
        if taken:
            raise ConfigurationError(
                f"the properties {', '.join(taken)} are set by the source: its position, or the form of "
                "values, depends on them",
                hint="leave them out",
            )
        if self.system == DOCUMENTS:
            self._require_documents()
        if self.database is not None and (not self.database or "," in self.database):
            raise ConfigurationError(
                f"Debezium.{self.system} needs one database, not {self.database!r}",
                hint="set the property database.names (sqlserver), or database.dbname and database.pdb.name "
                "(oracle); a second database needs a source of its own",
            )

    def _require_documents(self) -> None:
        """Check that changes of all documents arrive complete. Raises ``ConfigurationError``."""
        given = dict(self.given)
        for name, allowed in _CHOICES.items():
            if (value := given.get(name)) is not None and value.lower() not in allowed:
                raise ConfigurationError(
                    f"with {name}={value}, changes would lack documents",
                    hint=f"leave it out, or use {' or '.join(allowed)}",
                )
        if unclear := [str(table) for table in self.tables if "," in str(table)]:
            raise ConfigurationError(
                f"the names {', '.join(unclear)} have a comma, by which Debezium separates collections",
                hint="collections with such names cannot be captured",
            )
        scope, target = given.get("capture.scope", "").lower(), given.get("capture.target")
        covered = {
            "database": {table.schema for table in self.tables},
            "collection": {*map(str, self.tables)},
        }
        if scope in covered and covered[scope] != {target}:
            raise ConfigurationError(
                f"with capture.scope={scope} and capture.target={target}, only changes of the latter arrive, "
                f"and the source captures {', '.join(map(str, self.tables))}",
                hint="leave out both, or give each target a source of its own",
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
