"""A stand-in for a MongoDB replica set: as much of its protocol as Debezium's connector uses.

It is no server: what a change stream gives, and when, is what this file says. Documents are kept as JSON of
the driver in the Java runtime, which must be running.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from streams.connectors.debezium import jvm
from streams.local_cluster import HOST

if TYPE_CHECKING:
    from types import TracebackType

_QUERY, _REPLY, _MESSAGE = 2004, 1, 2013
_WAIT_SECONDS = 0.1


class StandInMongoDB:
    """Listens on the loopback address. Collections are ``database.collection``.

    Documents are JSON in MongoDB's extended form; ``_id`` is their first field.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.RLock()
        self._collections: dict[str, dict[str, str]] = {}
        self._identifiers: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        self._first = 0
        """Of the events, the oldest that can be continued after."""
        self._cursors: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._connections: list[socket.socket] = []
        self._before_find: list[Any] = []
        self._too_large = False
        threading.Thread(target=self._accept, daemon=True).start()

    # --- what a test does

    def create(self, name: str) -> None:
        with self._lock:
            self._collections[name] = {}
            self._identifiers[name] = str(uuid4())

    def drop(self, name: str) -> None:
        """Without an event: Debezium's connector asks for none."""
        with self._lock:
            del self._collections[name], self._identifiers[name]

    def put(self, name: str, document: str, *, kept: bool = True, **event: Any) -> None:
        """Insert a document, or replace it by an update; ``kept``: the event will have it."""
        key = _id_of(document)
        with self._lock:
            known = self._collections[name].get(key)
            self._collections[name][key] = document
            self._event(
                name, "insert" if known is None else "update", key, document if kept else None, **event
            )

    def delete(self, name: str, key: str, *, before: bool = False) -> None:
        with self._lock:
            gone = self._collections[name].pop(key)
            extra = {"fullDocumentBeforeChange": json.loads(gone)} if before else {}
            self._event(name, "delete", key, None, **extra)

    def when_read(self, call: Any) -> None:
        """Have this done once, between the beginning of a snapshot and its reading of a collection."""
        self._before_find.append(call)

    def exceed(self) -> None:
        """Have the change streams fail as they do with a change that is too large for a message."""
        self._too_large = True

    def forget(self) -> None:
        """Remove all events, as the oplog does with old ones."""
        with self._lock:
            self._first = len(self._events)

    def _event(self, name: str, kind: str, key: str, document: str | None, **extra: Any) -> None:
        database, _, collection = name.partition(".")
        number = len(self._events) + 1
        event = {
            "_id": {"_data": f"{number:08x}"},
            "operationType": kind,
            "clusterTime": {"$timestamp": {"t": 1_800_000_000 + number, "i": 1}},
            "wallTime": {"$date": {"$numberLong": str((1_800_000_000 + number) * 1000)}},
            "ns": {"db": database, "coll": collection},
            "documentKey": {"_id": json.loads(key)},
            **extra,
        }
        if document is not None:
            event["fullDocument"] = json.loads(document)
        if kind == "update":
            event["updateDescription"] = {"updatedFields": {}, "removedFields": []}
        self._events.append(event)

    # --- its commands

    def _answer(self, command: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(command))
        database = command.get("$db", "admin")
        match name:
            case "hello" | "isMaster" | "ismaster":
                return self._hello()
            case "listDatabases":
                names = {each.partition(".")[0] for each in self._collections}
                return {"databases": [{"name": each, "empty": False} for each in sorted(names)]}
            case "listCollections":
                return _cursor(f"{database}.$cmd.listCollections", self._listed(database))
            case "find":
                found = f"{database}.{command['find']}"
                for call in self._before_find:
                    call()
                self._before_find.clear()
                with self._lock:
                    return _cursor(found, [json.loads(each) for each in self._collections[found].values()])
            case "aggregate":
                return self._watch(command["pipeline"][0]["$changeStream"])
            case "getMore":
                return self._more(command["getMore"])
        return {}

    def _hello(self) -> dict[str, Any]:
        me = f"{HOST}:{self.port}"
        return {
            "helloOk": True,
            "isWritablePrimary": True,
            "ismaster": True,
            "setName": "rs0",
            "setVersion": 1,
            "hosts": [me],
            "me": me,
            "primary": me,
            "maxBsonObjectSize": 16 << 20,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "minWireVersion": 0,
            "maxWireVersion": 21,
            "logicalSessionTimeoutMinutes": 30,
            "operationTime": {"$timestamp": {"t": 1_800_000_000, "i": 1}},
        }

    def _listed(self, database: str) -> list[dict[str, Any]]:
        with self._lock:
            return [
                {
                    "name": name.removeprefix(f"{database}."),
                    "type": "collection",
                    "info": {"readOnly": False, "uuid": {"$uuid": identifier}},
                }
                for name, identifier in self._identifiers.items()
                if name.startswith(f"{database}.")
            ]

    def _watch(self, stage: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            after = stage.get("resumeAfter")
            position = len(self._events) if after is None else int(after["_data"], 16)
            if position < self._first:
                return _refused(
                    286,
                    "ChangeStreamHistoryLost",
                    "Resume of change stream was not possible, as the point may no longer be in the oplog.",
                )
            number = next(self._numbers)
            self._cursors[number] = position
            return {
                "cursor": {
                    "id": {"$numberLong": str(number)},
                    "ns": "admin.$cmd.aggregate",
                    "firstBatch": [],
                    "postBatchResumeToken": {"_data": f"{position:08x}"},
                }
            }

    def _more(self, number: int) -> dict[str, Any]:
        if self._too_large:
            return _refused(10334, "BSONObjectTooLarge", "BSONObj size: 17000000 (0x1036640) is invalid.")
        deadline = time.monotonic() + _WAIT_SECONDS
        while len(self._events) <= self._cursors[number] and time.monotonic() < deadline:
            time.sleep(0.005)
        with self._lock:
            position = self._cursors[number]
            batch = self._events[position:]
            self._cursors[number] = end = len(self._events)
        return {
            "cursor": {
                "id": {"$numberLong": str(number)},
                "ns": "admin.$cmd.aggregate",
                "nextBatch": batch,
                "postBatchResumeToken": {"_data": f"{end:08x}"},
            }
        }

    # --- its messages

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while header := stream.read(16):
                    length, request, _, code = struct.unpack("<iiii", header)
                    reply = self._reply(code, stream.read(length - 16))
                    kind = _REPLY if code == _QUERY else _MESSAGE
                    connection.sendall(struct.pack("<iiii", len(reply) + 16, 0, request, kind) + reply)
            except (OSError, struct.error):
                return

    def _reply(self, code: int, body: bytes) -> bytes:
        if code == _QUERY:
            # A greeting: flags, the collection's name, two numbers, the command.
            start = body.index(b"\x00", 4) + 9
            answer = _to_bson({"ok": 1, **self._answer(_from_bson(body[start:]))})
            return struct.pack("<iqii", 8, 0, 0, 1) + answer
        assert code == _MESSAGE, f"a message of the kind {code}"
        answer = _to_bson({"ok": 1, **self._answer(_from_bson(body[5:]))})
        return struct.pack("<ib", 0, 0) + answer

    def properties(self) -> dict[str, object]:
        """Debezium's properties of a connection to it."""
        return {
            "mongodb.connection.string": f"mongodb://{HOST}:{self.port}/?replicaSet=rs0",
            "mongodb.server.selection.timeout.ms": 2000,
        }

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections:
            # Its stream would keep it open.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refused(code: int, name: str, message: str) -> dict[str, Any]:
    return {"ok": 0, "code": code, "codeName": name, "errmsg": message}


def _cursor(name: str, documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {"cursor": {"id": {"$numberLong": "0"}, "ns": name, "firstBatch": documents}}


def _id_of(document: str) -> str:
    return json.dumps(json.loads(document)["_id"])


def _to_bson(document: dict[str, Any]) -> bytes:
    made = jvm.java_class("org.bson.RawBsonDocument").parse(json.dumps(document))
    buffer = made.getByteBuffer()
    return bytes(buffer.array()[buffer.position() : buffer.position() + buffer.remaining()])


def _from_bson(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<i", data)
    decoded: dict[str, Any] = json.loads(
        str(jvm.java_class("org.bson.RawBsonDocument")(data[:length]).toJson())
    )
    return decoded
