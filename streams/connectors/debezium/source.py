"""The Debezium source connector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams.connectors.change import Change, topic_of
from streams.connectors.debezium import jvm
from streams.connectors.debezium.control import EventJson
from streams.connectors.debezium.reader import PostgresReader
from streams.connectors.debezium.rows import CapturedRows
from streams.connectors.debezium.settings import Capture
from streams.connectors.postgres.replication import Table, conninfo_values
from streams.errors import ConfigurationError, ConnectorError
from streams.redaction import HIDDEN
from streams.serde.basic import Bytes
from streams.serde.json_serde import Json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.connectors.source import SourceContext, SourceReader
    from streams.serde import Serde


@dataclass(frozen=True)
class Debezium:
    """The changes of a database's tables, each exactly once: first all rows, then every change.

    Make one with ``Debezium.postgres``. Its values are ``Change[dict]``, its keys the columns of the primary
    key as a dictionary. Needs the extras ``debezium`` and ``postgres``.
    """

    kind = "debezium"
    tasks = 1

    _capture: Capture = field(repr=False)
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
        properties: Mapping[str, str] | None = None,
    ) -> Debezium:
        """Capture tables of a Postgres database by logical replication.

        ``tables`` are names as they are in the catalog, with the schema unless it is ``public``. ``slot`` and
        ``publication`` are named after the application and the source unless given; the slot belongs to the
        source, which creates and drops it. A given publication is checked and never changed.

        Another ``snapshot`` than before, whatever its text, reads all rows again: what is gone is deleted
        downstream, and what is the same is not sent again. ``properties`` are Debezium's own, for how values
        are represented; those that keep the position are not changed by them.
        """
        if isinstance(tables, str) or not tables:
            raise ConfigurationError('tables= needs a list of names, e.g. ["public.customers"]')
        conninfo_values(url)
        names = tuple(dict.fromkeys(Table.parse(text) for text in tables))
        topics: dict[str, Table] = {}
        for name in names:
            other = topics.setdefault(topic_of("", *name), name)
            if other != name:
                raise ConfigurationError(
                    f"the tables {other} and {name} would have the same topic name, {topic_of('', *name)}",
                    hint="capture one of them with a source of its own",
                )
        return cls(
            Capture(
                conninfo=url,
                tables=names,
                slot=slot,
                publication=publication,
                snapshot=snapshot,
                properties_given=tuple(sorted((properties or {}).items())),
            )
        )

    def __repr__(self) -> str:
        tables = ", ".join(map(str, self._capture.tables))
        return f"Debezium.postgres({HIDDEN!r}, tables=[{tables}])"

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

    def check(self, application: str, name: str) -> None:  # noqa: ARG002 - of the contract
        """Check the server and the tables, and start the Java runtime in the thread of the caller."""
        replication = self._capture.replication
        replication.require_logical()
        replication.tables(self._capture.tables)
        if self._capture.publication is not None:
            replication.publication(self._capture.publication, self._capture.tables, own=False)
        jvm.start()

    def open(self, context: SourceContext) -> SourceReader:
        if context.task != 0:
            raise ConnectorError(f"a Debezium source has one task, and task {context.task} was asked for")
        return PostgresReader(self._capture, context)
