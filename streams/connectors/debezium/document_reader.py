"""Reads the changes of documents in collections of MongoDB, at the resume tokens that Debezium gives."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from streams.connectors.debezium import jvm
from streams.connectors.debezium.connector_reader import INSPECT_SECONDS, ConnectorReader
from streams.connectors.debezium.documents import as_rows
from streams.connectors.debezium.values import Shape
from streams.errors import ConnectorError, SourceUnavailable
from streams.redaction import scrub

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from streams.connectors.debezium.connector_capture import ConnectorCapture
    from streams.connectors.debezium.control import Control
    from streams.connectors.debezium.engine import Delivery
    from streams.connectors.debezium.reader import EventSource, Head
    from streams.connectors.source import SourceBatch, SourceContext
    from streams.connectors.table_name import TableName

_UNKNOWN: Final = "unknown"
"""The identifier of a collection on a server that gives none."""


class DocumentReader(ConnectorReader):
    """As its base, where what is captured has no columns, and its key is always ``_id``.

    Debezium does not tell that a collection was dropped or renamed, which deletes its documents. The server
    gives each collection an identifier: the source ends when it is another one than that of the snapshot.
    """

    def __init__(self, capture: ConnectorCapture, context: SourceContext) -> None:
        jvm.start(capture.jars)
        self._collections = Collections(capture.properties(context.application, context.name), capture)
        self._compared = time.monotonic()
        try:
            found = self._collections.identifiers()
            super().__init__(capture, context)
        except BaseException:
            self._collections.close()
            raise
        try:
            self._require_same(found)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        super().close()
        self._collections.close()

    def _batch(self, delivery: Delivery) -> SourceBatch | None:
        self._compare()
        return super()._batch(
            as_rows(delivery, self._position.tables, exact=self._capture.has_exact_documents)
        )

    def _before_snapshot_ends(self, delivery: Delivery, heads: list[Head]) -> None:
        """Nothing: there are no columns to learn of."""

    def _streaming(self) -> None:
        self._compare(at_once=True)
        super()._streaming()

    def _unread(
        self,
        delivery: Delivery,  # noqa: ARG002 - of the contract
        heads: list[Head],  # noqa: ARG002 - of the contract
        rows: list[int],
    ) -> Iterator[int | Control]:
        return iter(rows)

    def _shape(self, source: EventSource, schema: int) -> Shape:  # noqa: ARG002 - of the contract
        return Shape({}, full_identity=True, connector=self._connector)

    def _inspect(self) -> None:
        self._compare()
        super()._inspect()

    def _failure(self, problem: str) -> ConnectorError | SourceUnavailable:
        if "BSONObjectTooLarge" in problem:
            return ConnectorError(
                f"a change is too large for MongoDB's change streams: {problem}",
                hint="set the property cursor.oversize.handling.mode=split (MongoDB 6.0.9 or later)",
            )
        return super()._failure(problem)

    def _compare(self, *, at_once: bool = False) -> None:
        """Compare the collections with those of the snapshot, every few seconds."""
        now = time.monotonic()
        if at_once or now - self._compared >= INSPECT_SECONDS:
            self._compared = now
            self._require_same(self._collections.identifiers())

    def _require_same(self, found: Mapping[str, str]) -> None:
        for name, known in self._position.tables.items():
            identifier = found.get(name)
            if identifier is None:
                raise ConnectorError(
                    f"there is no collection {name} (dropped, renamed, a view, or not visible to this user)",
                    hint="create it, e.g. with db.createCollection; "
                    f"if it was captured before, {self._capture.again(self._name)}",
                )
            if known and known != identifier:
                raise ConnectorError(
                    f"the collection {name} was dropped or renamed, and created again",
                    hint=self._capture.again(self._name),
                )
            if not known:
                self._set_key(name, identifier)


class Collections:
    """Asks the server for the captured collections, as Debezium's connector connects to it."""

    def __init__(self, properties: Mapping[str, str], capture: ConnectorCapture) -> None:
        self._tables: Collection[TableName] = capture.tables
        self._secrets = capture.secrets
        java = jvm.java_class
        configuration = java("io.debezium.config.Configuration").from_
        context = java("io.debezium.connector.mongodb.connection.MongoDbConnectionContext")
        self._client = context(configuration(jvm.java_map(properties))).getMongoClient()
        self._failure: Any = java("com.mongodb.MongoException")
        self._list: Any = java("java.util.ArrayList")
        self._document: Any = java("org.bson.BsonDocument").class_

    def identifiers(self) -> dict[str, str]:
        """The identifiers of those collections that exist, by their names.

        Raises ``SourceUnavailable`` when the server does not answer.
        """
        found = {}
        names = {str(table) for table in self._tables}
        try:
            for database in sorted({table.schema for table in self._tables}):
                listed = self._client.getDatabase(database).listCollections(self._document)
                for collection in listed.into(self._list()):
                    name = f"{database}.{collection.getString('name').getValue()}"
                    if name in names and str(collection.getString("type").getValue()) == "collection":
                        info = collection.get("info")
                        uuid = None if info is None else info.asDocument().get("uuid")
                        found[name] = _UNKNOWN if uuid is None else str(uuid.asBinary().asUuid())
        except self._failure as error:
            raise SourceUnavailable(
                f"mongodb does not answer: {scrub(str(error.getMessage()), self._secrets)}"
            ) from error
        return found

    def close(self) -> None:
        self._client.close()
