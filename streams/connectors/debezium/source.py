"""The Debezium source connector."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.connectors.change import Change, topic_of
from streams.connectors.debezium.connector_capture import DOCUMENTS, ConnectorCapture, as_text
from streams.connectors.debezium.connector_reader import ConnectorReader
from streams.connectors.debezium.control import EventJson
from streams.connectors.debezium.document_reader import DocumentReader
from streams.connectors.debezium.rows import CapturedRows
from streams.connectors.table_name import TableName
from streams.errors import ConfigurationError, ConnectorError
from streams.serde.basic import Bytes
from streams.serde.json_serde import Json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.connectors.debezium.settings import Capture
    from streams.connectors.source import SourceContext, SourceReader
    from streams.serde import Serde


@dataclass(frozen=True)
class Debezium:
    """The changes of a database's tables, each exactly once: first all rows, then every change.

    Make one with ``Debezium.postgres``, ``mysql``, ``mariadb``, ``sqlserver``, ``oracle`` or ``mongodb``. Its
    values are ``Change[dict]``, its keys the columns of the primary key as a dictionary. Needs the extra
    ``debezium``, for Postgres also ``postgres``.
    """

    kind = "debezium"
    tasks = 1

    _capture: Capture = field(repr=False)
    _reader: Callable[[Any, SourceContext], SourceReader] = field(repr=False)
    _key: Json[dict[str, Any]] = field(
        default_factory=lambda: Json(dict[str, Any]), repr=False, compare=False
    )
    _value: EventJson = field(default_factory=EventJson, repr=False, compare=False)

    @classmethod
    def postgres(
        cls,
        url: str,
        tables: Sequence[str],
        *,
        slot: str | None = None,
        publication: str | None = None,
        snapshot: str = "",
        table_snapshots: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> Debezium:
        """Capture tables of a Postgres database by logical replication.

        ``tables`` are names as they are in the catalog, with the schema unless it is ``public``. ``slot`` and
        ``publication`` are named after the application and the source unless given; the slot belongs to the
        source, which creates and drops it. A given publication is checked and never changed.

        Another ``snapshot`` than before, whatever its text, reads all rows again: what is gone is deleted
        downstream, and what is the same is not sent again. ``table_snapshots`` does so for single tables,
        with a text for each, while the changes of all tables flow on: ``{"public.orders": "2026-11-30"}``.
        Tables that are added to the list later are read in the same way. ``properties`` are Debezium's own,
        for how values are represented; those that keep the position are not changed by them.

        Raises ``ConfigurationError`` for names that cannot be captured together, a text for another table,
        and a connection string that cannot be read.
        """
        # Its packages are an extra of their own.
        from streams.connectors.debezium.postgres_capture import PostgresCapture  # noqa: PLC0415
        from streams.connectors.debezium.postgres_reader import PostgresReader  # noqa: PLC0415
        from streams.connectors.postgres.replication import conninfo_values  # noqa: PLC0415

        names = _names(tables, "public.customers")
        texts = tuple((TableName.parse(table), text) for table, text in (table_snapshots or {}).items())
        if unknown := [str(table) for table, _ in texts if table not in names]:
            raise ConfigurationError(
                f"table_snapshots= names {', '.join(unknown)}, which tables= does not have",
                hint=f"it has {', '.join(map(str, names))}",
            )
        conninfo_values(url)
        capture = PostgresCapture(
            conninfo=url,
            tables=names,
            slot=slot,
            publication=publication,
            snapshot=snapshot,
            table_snapshots=texts,
            properties_given=as_text(properties or {}),
        )
        return cls(capture, PostgresReader)

    @classmethod
    def mysql(
        cls,
        properties: Mapping[str, object],
        tables: Sequence[str],
        *,
        snapshot: str = "",
        jars: str | Path | None = None,
        table_snapshots: Mapping[str, str] | None = None,
    ) -> Debezium:
        """Capture tables of a MySQL server from its binary log.

        ``properties`` are those of Debezium's connector: ``database.hostname``, ``database.user``, …; without
        those that say what is captured and where it continues, which are the source's. ``tables`` are
        ``database.table``. ``snapshot`` as for Postgres. ``jars`` is a folder with all of Debezium's and
        Log4j's jars, to be used instead of those of the extra. ``table_snapshots`` is refused: single tables
        are read again in Postgres alone.

        Raises ``ConfigurationError`` for properties that are not the program's, and names without a database.
        Properties that Debezium does not know are refused when the worker starts.
        """
        return cls._of("mysql", properties, tables, snapshot, jars, table_snapshots)

    @classmethod
    def mariadb(
        cls,
        properties: Mapping[str, object],
        tables: Sequence[str],
        *,
        snapshot: str = "",
        jars: str | Path | None = None,
        table_snapshots: Mapping[str, str] | None = None,
    ) -> Debezium:
        """Capture tables of a MariaDB server, as ``mysql``. ``jars`` is needed: the extra has none for it."""
        return cls._of("mariadb", properties, tables, snapshot, jars, table_snapshots)

    @classmethod
    def sqlserver(
        cls,
        properties: Mapping[str, object],
        tables: Sequence[str],
        *,
        snapshot: str = "",
        jars: str | Path | None = None,
        table_snapshots: Mapping[str, str] | None = None,
    ) -> Debezium:
        """Capture tables of one database of a SQL Server, as ``mysql``. ``tables`` are ``schema.table``."""
        return cls._of("sqlserver", properties, tables, snapshot, jars, table_snapshots)

    @classmethod
    def oracle(
        cls,
        properties: Mapping[str, object],
        tables: Sequence[str],
        *,
        snapshot: str = "",
        jars: str | Path | None = None,
        table_snapshots: Mapping[str, str] | None = None,
    ) -> Debezium:
        """Capture tables of an Oracle database, as ``mysql``. ``tables`` are ``SCHEMA.TABLE``."""
        return cls._of("oracle", properties, tables, snapshot, jars, table_snapshots)

    @classmethod
    def mongodb(
        cls,
        properties: Mapping[str, object],
        collections: Sequence[str],
        *,
        snapshot: str = "",
        jars: str | Path | None = None,
        table_snapshots: Mapping[str, str] | None = None,
    ) -> Debezium:
        """Capture collections of a MongoDB replica set or sharded cluster from its change streams.

        ``properties`` are those of Debezium's connector: ``mongodb.connection.string``, ``mongodb.user``, …
        ``collections`` are ``database.collection`` and have to exist. Rows are documents in the relaxed form
        of MongoDB's Extended JSON, keys are ``{"_id": …}`` in the same form. ``before`` is the document with
        ``capture.mode=change_streams_update_full_with_pre_image``; without, that of a deletion is the key.
        ``after`` of an update is the document as the server finds it when the change is read, maybe with
        later changes in it, unless ``capture.mode.full.update.type=post_image``. ``snapshot`` and ``jars`` as
        for ``mysql``.

        Raises ``ConfigurationError`` for properties that are not the program's, values with which changes
        would lack documents, and names without a database.
        """
        return cls._of(DOCUMENTS, properties, collections, snapshot, jars, table_snapshots)

    @classmethod
    def _of(
        cls,
        system: str,
        properties: Mapping[str, object],
        tables: Sequence[str],
        snapshot: str,
        jars: str | Path | None,
        table_snapshots: Mapping[str, str] | None,
    ) -> Debezium:
        if table_snapshots:
            raise ConfigurationError(
                f"table_snapshots= names {', '.join(table_snapshots)}, and Debezium.{system} cannot read "
                "single tables again beside their changes: that needs Postgres",
                hint=f"leave it out; another snapshot= than {snapshot!r} reads all of the source again",
            )
        example = "shop.customers" if system in {"mysql", "mariadb", DOCUMENTS} else "dbo.customers"
        if bare := [table for table in tables if "." not in table] if not isinstance(tables, str) else []:
            raise ConfigurationError(
                f"the tables {', '.join(bare)} need the name of what they are in, e.g. {example}"
            )
        if system == "mariadb" and jars is None:
            raise ConfigurationError(
                "Debezium.mariadb needs jars=: the extra debezium has no connector for it",
                hint="give a folder with all of Debezium's jars, as the documentation of data sync says",
            )
        capture = ConnectorCapture(
            system=system,
            tables=_names(tables, example),
            snapshot=snapshot,
            given=as_text(properties),
            jars=None if jars is None else Path(jars).absolute(),
        )
        capture.require_properties()
        return cls(capture, DocumentReader if system == DOCUMENTS else ConnectorReader)

    def __repr__(self) -> str:
        return self._capture.described()

    @property
    def key(self) -> Serde[dict[str, Any]]:
        return self._key

    @property
    def value(self) -> Serde[Change[dict[str, Any]]]:
        return self._value

    @property
    def process(self) -> Callable[[], Any]:
        return CapturedRows

    @property
    def stores(self) -> Mapping[str, tuple[Serde[Any], Serde[Any]]]:
        return {"rows": (Bytes(), Bytes())}

    def change_topics(self, prefix: str) -> list[str]:
        return [topic_of(prefix, *table) for table in self._capture.tables]

    def check(self, application: str, name: str) -> None:
        """Check the server and the tables, and start the Java runtime in the thread of the caller."""
        self._capture.check(application, name)

    def open(self, context: SourceContext) -> SourceReader:
        if context.task != 0:
            raise ConnectorError(f"a Debezium source has one task, and task {context.task} was asked for")
        return self._reader(self._capture, context)


def _names(tables: Sequence[str], example: str) -> tuple[TableName, ...]:
    """The names of tables. Raises ``ConfigurationError`` if two of them have the same topic."""
    if isinstance(tables, str) or not tables:
        raise ConfigurationError(f'tables= needs a list of names, e.g. ["{example}"]')
    names = tuple(dict.fromkeys(TableName.parse(text) for text in tables))
    topics: dict[str, TableName] = {}
    for name in names:
        other = topics.setdefault(topic_of("", *name), name)
        if other != name:
            raise ConfigurationError(
                f"the tables {other} and {name} would have the same topic name, {topic_of('', *name)}",
                hint="capture one of them with a source of its own",
            )
    return names
