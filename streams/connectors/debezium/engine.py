"""One Debezium engine: batches of events, handed over with back-pressure and confirmed later."""

from __future__ import annotations

import enum
import logging
import queue
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.connectors.debezium import jvm
from streams.connectors.debezium.values import Column

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOG: Final = logging.getLogger("streams.debezium")
QUEUED_BATCHES: Final = 2
_METRICS: Final = ("Connected", "MilliSecondsBehindSource")
CLOSE_SECONDS: Final = 10.0
"""After this time an engine that does not end is left alone: its connection is dead."""


class _State(enum.Enum):
    """The life of an engine.

    ::

        RUNNING ──(Debezium ends)──> ENDED ──close──> CLOSED
           └──────────────close──────────────────────────^
    """

    RUNNING = "running"
    ENDED = "ended"
    CLOSED = "closed"


_NEXT: Final = {
    _State.RUNNING: {_State.ENDED, _State.CLOSED},
    _State.ENDED: {_State.ENDED, _State.CLOSED},
    _State.CLOSED: {_State.CLOSED},
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """The events of one batch as columns, and what Debezium has to be told when they are committed."""

    keys: list[bytes | None]
    values: list[bytes]
    headers: dict[int, list[tuple[str, bytes | None]]]
    """By row, of the few events that have some."""
    schemas: list[int]
    """Of each event, the number of its schema, to be looked up with ``Engine.columns``."""
    partition: Mapping[str, Any]
    """Debezium's own name of what it captures."""
    offset: Mapping[str, Any]
    """Debezium's own offset after the last event."""
    history: bytes | None
    """Debezium's history of the tables' columns up to here, if it is another one than before."""
    receipt: Any
    """Of the last event; to be given to ``Engine.confirm``."""

    def followed_by(self, next_one: Delivery) -> Delivery:
        """Both as one."""
        count = len(self.values)
        return replace(
            next_one,
            keys=self.keys + next_one.keys,
            values=self.values + next_one.values,
            headers=self.headers | {count + row: found for row, found in next_one.headers.items()},
            schemas=self.schemas + next_one.schemas,
            history=self.history if next_one.history is None else next_one.history,
        )


LOST: Final = "an element of an array cannot be captured, maybe as the array has several dimensions"


class Engine:
    """Runs Debezium in threads of its own from when it is made until ``close``.

    ``offset`` and ``partition`` are where Debezium continues; without them it begins as its properties say.
    ``history`` is what it knows of the tables' columns as of then, for systems whose log does not tell.
    ``jars`` is a folder, see ``jvm.start``.
    """

    def __init__(
        self,
        properties: Mapping[str, str],
        offset: Mapping[str, Any] | None,
        *,
        partition: Mapping[str, Any] | None = None,
        history: bytes = b"",
        jars: Path | None = None,
    ) -> None:
        jvm.start(jars)
        self._lock = threading.Lock()
        self._server = properties["topic.prefix"]
        self._state = _State.RUNNING
        self._ending = threading.Event()
        self._problem = ""
        self._deliveries: queue.Queue[Delivery] = queue.Queue(QUEUED_BATCHES)
        self._columns: dict[int, dict[str, Column]] = {}
        # Debezium reads its offset from a file and writes the confirmed one there; only the first matters.
        self._folder = Path(tempfile.mkdtemp(prefix="streams-debezium-"))
        file = self._folder / "offsets"
        self._history = self._folder / "history"
        self._history.write_bytes(history)
        self._history_bytes = len(history)
        if offset is not None:
            _write_offset(
                file, properties["name"], partition or {"server": properties["topic.prefix"]}, offset
            )
        settings = jvm.java_class("java.util.Properties")()
        for name, value in {
            **properties,
            "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
            "offset.storage.file.filename": str(file),
            "offset.flush.interval.ms": "0",
            "schema.history.internal": "io.debezium.storage.file.history.FileSchemaHistory",
            "schema.history.internal.file.filename": str(self._history),
        }.items():
            settings.setProperty(name, value)
        consumer = jvm.implement(
            "io.debezium.engine.DebeziumEngine$ChangeConsumer",
            handleBatch=self._receive,
            supportsTombstoneEvents=lambda: False,
        )
        done = jvm.implement("io.debezium.engine.DebeziumEngine$CompletionCallback", handle=self._ended)
        form = jvm.java_class("io.debezium.engine.format.Json")
        self._engine = (
            jvm.java_class("io.debezium.engine.DebeziumEngine")
            .create(form, form, form)
            .using(settings)
            .notifying(consumer)
            .using(done)
            .build()
        )
        self._thread = threading.Thread(target=self._run, name="debezium", daemon=True)
        self._receipts: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._confirming = threading.Thread(target=self._confirm, name="debezium-confirm", daemon=True)
        jvm.opened(self)
        self._thread.start()
        self._confirming.start()

    @property
    def problem(self) -> str:
        """Why Debezium ended by itself; empty while it runs."""
        return self._problem

    def poll(self, timeout: float) -> Delivery | None:
        """The next batch; ``None`` when there is none in time, or when the engine has ended."""
        try:
            return self._deliveries.get(timeout=timeout)
        except queue.Empty:
            return None

    def columns(self, schema: int) -> dict[str, Column]:
        """The columns of the rows in events with that schema."""
        return self._columns[schema]

    def metrics(self, server: str, tags: str) -> dict[str, float]:
        """Debezium's figures of its reading the log; none before it reads.

        ``server`` and ``tags`` are its properties ``topic.prefix`` and ``custom.metric.tags``.
        """
        beans = jvm.java_class("java.lang.management.ManagementFactory").getPlatformMBeanServer()
        name = jvm.java_class("javax.management.ObjectName")(
            f"debezium.*:type=connector-metrics,context=streaming,server={server},{tags},*"
        )
        found = list(beans.queryNames(name, None))
        if not found:
            return {}
        return {each: float(beans.getAttribute(found[0], each)) for each in _METRICS}

    def element_lost(self, thread: str, message: str) -> None:
        """End, if a thread of this engine could not convert an element: its event is not handed over."""
        # The threads of a snapshot have no names of their own: it may be another engine's.
        if f"-{self._server}-" in thread or not thread.startswith("debezium-"):
            self._ended(False, f"{LOST}: {message}", None)

    def confirm(self, receipt: Any) -> None:
        """Everything up to this event is committed. Returns at once."""
        self._receipts.put(receipt)

    def close(self) -> None:
        """Stop Debezium. Never raises; may be called twice."""
        with self._lock:
            if self._state is _State.CLOSED:
                return
            self._enter(_State.CLOSED)
        self._ending.set()
        self._receipts.put(None)
        deadline = time.monotonic() + CLOSE_SECONDS
        closing = threading.Thread(target=self._stop, name="debezium-close", daemon=True)
        closing.start()
        for thread in (closing, self._confirming, self._thread):
            thread.join(max(0.0, deadline - time.monotonic()))
        if not self._thread.is_alive():
            jvm.closed(self)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _enter(self, state: _State) -> None:
        assert state in _NEXT[self._state], f"{self._state} cannot become {state}"
        self._state = state

    def _run(self) -> None:
        try:
            self._engine.run()
        except Exception as error:  # noqa: BLE001 - whatever ends Debezium is the source's problem
            self._ended(False, str(error), None)
        else:
            self._ended(True, "", None)

    def _stop(self) -> None:
        while self._thread.is_alive():
            try:
                self._engine.close()
            except Exception as error:  # noqa: BLE001 - it has ended already, or is about to
                # Debezium refuses to stop while it starts, and would then go on reading the slot.
                _LOG.debug("Debezium cannot be closed now: %s", error)
                self._thread.join(0.1)
            else:
                return

    def _ended(self, success: bool, message: Any, error: Any) -> None:
        with self._lock:
            if self._state is _State.RUNNING:
                self._enter(_State.ENDED)
                causes = [] if success else [str(message or "")]
                while error is not None and len(causes) < 8:
                    causes.append(str(error.getMessage() or error.getClass().getSimpleName()))
                    error = error.getCause()
                self._problem = ": ".join(dict.fromkeys(filter(None, causes))) or "Debezium ended by itself"
        self._ending.set()

    def _receive(self, records: Any, committer: Any) -> None:
        """Called by Debezium; its events wait in its own bounded queue until this returns."""
        count = records.size()
        if not count or self._ending.is_set():
            return
        last = records.get(count - 1)
        partition = _plain(last.sourceRecord().sourcePartition())
        offset = _plain(last.sourceRecord().sourceOffset())
        schemas = list(map(int, _column(records, "schema")))
        for number in set(schemas) - self._columns.keys():
            self._columns[number] = _columns(records.get(schemas.index(number)).sourceRecord().valueSchema())
        delivery = Delivery(
            schemas=schemas,
            keys=[None if key == b"null" else key for key in _column(records, "key")],
            values=_column(records, "value"),
            headers=_headers(records),
            partition=partition,
            offset=offset,
            history=self._new_history(),
            receipt=(last, committer),
        )
        while not self._ending.is_set():
            try:
                self._deliveries.put(delivery, timeout=0.2)
            except queue.Full:
                continue
            return

    def _new_history(self) -> bytes | None:
        """The history if it has grown: Debezium writes it before the events that need it."""
        if self._history.stat().st_size == self._history_bytes:
            return None
        written = self._history.read_bytes()
        # The next line may be being written.
        complete = written[: written.rfind(b"\n") + 1]
        self._history_bytes = len(complete)
        return complete

    def _confirm(self) -> None:
        while (receipt := self._receipts.get()) is not None:
            # Only the last one counts: an offset includes all before it.
            latest = receipt
            while not self._receipts.empty():
                receipt = self._receipts.get()
                if receipt is None:
                    break
                latest = receipt
            record, committer = latest
            try:
                committer.markProcessed(record)
                committer.markBatchFinished()
            except Exception as error:  # noqa: BLE001 - reported as the source's problem
                self._ended(False, f"the position cannot be confirmed: {error}", None)
                return
            if receipt is None:
                return


def _write_offset(file: Path, name: str, partition: Mapping[str, Any], offset: Mapping[str, Any]) -> None:
    """The file that Kafka Connect's ``FileOffsetBackingStore`` reads: one serialized map."""
    entries = jvm.java_class("java.util.HashMap")()
    key = msgspec.json.encode([name, partition])
    entries.put(_java_bytes(key), _java_bytes(msgspec.json.encode(offset)))
    stream = jvm.java_class("java.io.ObjectOutputStream")(
        jvm.java_class("java.io.FileOutputStream")(str(file))
    )
    stream.writeObject(entries)
    stream.close()


def _java_bytes(data: bytes) -> Any:
    return jvm.java_class("java.lang.String")(data.decode()).getBytes("UTF-8")


def _plain(values: Any) -> dict[str, Any]:
    """A Java map of plain values as a dictionary, through JSON."""
    text = jvm.java_class("com.fasterxml.jackson.databind.ObjectMapper")().writeValueAsString(values)
    decoded: dict[str, Any] = msgspec.json.decode(str(text))
    return decoded


@cache
def _functions() -> dict[str, Any]:
    """Java functions of an event's fields.

    A call from Python for each event and field would cost more than all else here: a column crosses as one
    text, made by Java's streams, whose lines are the fields. JSON has no line breaks in it.
    """
    java = jvm.java_class
    handles = java("java.lang.invoke.MethodHandles").publicLookup()
    kind, proxies = java("java.lang.invoke.MethodType"), java("java.lang.invoke.MethodHandleProxies")
    function, thing, text = (
        java("java.util.function.Function"),
        java("java.lang.Object"),
        java("java.lang.String"),
    )
    event = java("io.debezium.engine.ChangeEvent")
    as_text = proxies.asInterfaceInstance(
        function, handles.findStatic(text.class_, "valueOf", kind.methodType(text.class_, thing.class_))
    )

    def method(owner: Any, name: str, result: Any) -> Any:
        handle = handles.findVirtual(owner.class_, name, kind.methodType(result.class_))
        return proxies.asInterfaceInstance(function, handle)

    # A table has another schema object whenever its columns change, and the same one otherwise.
    identity = handles.findStatic(
        java("java.lang.System").class_,
        "identityHashCode",
        kind.methodType(java("java.lang.Integer").TYPE, thing.class_),
    )
    record, schema = (
        java("org.apache.kafka.connect.source.SourceRecord"),
        java("org.apache.kafka.connect.data.Schema"),
    )
    made = java("io.debezium.embedded.EmbeddedEngineChangeEvent")
    return {
        "key": method(event, "key", thing).andThen(as_text),
        "value": method(event, "value", thing).andThen(as_text),
        "headers": method(event, "headers", java("java.util.List")).andThen(as_text),
        "schema": method(made, "sourceRecord", record)
        .andThen(method(record, "valueSchema", schema))
        .andThen(proxies.asInterfaceInstance(function, identity))
        .andThen(as_text),
    }


def _column(records: Any, field: str) -> list[bytes]:
    lines = jvm.java_class("java.util.stream.Collectors").joining("\n")
    text = records.stream().map(_functions()[field]).collect(lines)
    return bytes(text.getBytes("UTF-8")).split(b"\n")


def _columns(schema: Any) -> dict[str, Column]:
    """The columns of a table by the schema of its events; none for a document and other events."""
    after = None if schema is None else schema.field("after")
    if after is None or str(after.schema().type()) != "STRUCT":
        return {}
    columns = {}
    for field in after.schema().fields():
        parameters = field.schema().parameters() or {}
        scale = parameters.get("__debezium.source.column.scale")
        stored = field.schema()
        if str(stored.type()) == "ARRAY":
            stored = stored.valueSchema()
        columns[str(field.name())] = Column(
            str(parameters.get("__debezium.source.column.type") or ""),
            int(str(parameters.get("__debezium.source.column.length") or 0)),
            None if scale is None else int(str(scale)),
            str(stored.type()),
            str(stored.name() or ""),
        )
    return columns


def _headers(records: Any) -> dict[int, list[tuple[str, bytes | None]]]:
    found = _column(records, "headers")
    return {
        row: [(str(header.getKey()), _bytes(header.getValue())) for header in records.get(row).headers()]
        for row, text in enumerate(found)
        if text != b"[]"
    }


def _bytes(value: Any) -> bytes | None:
    return None if value is None else str(value).encode()
