"""Keeps what is known of every live row: to complete changes, and to delete the rows that are gone."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from streams.connectors.change import Change, ChangeSource
from streams.connectors.debezium.control import Control
from streams.connectors.debezium.left_out import completed, filled, left_out, may_leave_out
from streams.connectors.debezium.values import POSTGRES, Row, Shape, fixed, fixes
from streams.connectors.table_row import table_row
from streams.errors import StateError
from streams.records import Record
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.debezium.processing import Context, Store
    from streams.connectors.table_row import TableColumns
    from streams.records import Batch

SWEEP_ROWS: Final = 2_000
"""How many entries are looked at in one go: a large table takes many, between its changes."""
SWEEP_EVERY: Final = timedelta(milliseconds=50)
LARGE: Final = 256
"""A row whose JSON is shorter has no value that the server stores apart (TOAST) and may leave out."""

NEW_KEY: Final = "__debezium.newkey"
"""The header of the deletion that an update of the key begins with."""
_STATE: Final = b"\x00"
_ROWS: Final = b"\x01"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


_GONE: Final = b"\x00" * 8
_INCOMPLETE: Final = b"\xff" * 8


class Entry(NamedTuple):
    """What is stored of a live row; while its table is read again, also of one that is gone."""

    generation: int
    digest: bytes
    """Of the row's values, to recognise in a new snapshot what has not changed."""
    values: bytes
    """The row's JSON if an update may leave out some of it, else empty."""

    @property
    def gone(self) -> bool:
        """Whether the row was deleted: what a snapshot read of it before is old."""
        return self.digest == _GONE

    @property
    def incomplete(self) -> bool:
        """Whether values are missing that an update left out, and that the snapshot has still to bring."""
        return self.digest == _INCOMPLETE

    @classmethod
    def unpack(cls, data: bytes) -> Entry:
        return cls(int.from_bytes(data[:4], "big"), data[4:12], data[12:])

    def pack(self) -> bytes:
        return self.generation.to_bytes(4, "big") + self.digest + self.values


class Sweep(msgspec.Struct, frozen=True):
    """Rows of a table that are gone: those of an earlier generation.

    They are deleted piece by piece. One that is written before its turn is deleted first.
    """

    prefix: bytes
    generation: int
    source: ChangeSource

    def covers(self, key: bytes, entry: Entry) -> bool:
        return entry.generation < self.generation and key.startswith(self.prefix)


@decodable
class _State(msgspec.Struct, frozen=True):
    snapshot: int = 0
    generation: int = 0
    """Increases with each snapshot and each TRUNCATE."""
    sweeps: tuple[Sweep, ...] = ()
    cursor: bytes | None = None
    """Where the first sweep continues."""
    shapes: dict[str, Shape] = {}
    """By schema and table."""
    reading: dict[str, int] = {}
    """The tables that are read again beside their changes, with the generation since when."""


class CapturedRows:
    """The processor of a source's task. Its store ``rows`` has an entry for each live row.

    * A snapshot that is taken again forwards only what differs, and deletes what is gone.
    * Of a table that is read again beside its changes, a row that changed since then is left to the changes:
      the snapshot may have read it before. Deletions leave an entry until the snapshot is complete.
    * TRUNCATE becomes the deletion of each row, as it has no key; so does DROP TABLE, where the log has it.
    * A large value that an update leaves out is filled in. Where the update changes the key, its deletion
      names the new key, under which the values are kept for the creation that follows.
    * ``before`` has the columns that the server sent, and no others.

    All that it remembers is in its store, and read from there again when the store was rolled back: changes
    of an aborted transaction are processed again, and the processor is not notified.
    """

    def open(self, context: Context) -> None:
        self._store: Store = context.store("rows")
        self._context = context
        self._state = _State()
        self._stored: bytes | None = None
        """What the store has of the state."""
        self._tables: dict[tuple[str, ...], TableColumns] = {}
        self._take(_State())
        self._follow_store()
        context.schedule(SWEEP_EVERY, self._continue, on="wall_clock")

    def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:  # noqa: ARG002 - of the protocol
        """Forward the changes, in their order."""
        self._follow_store()
        values: Sequence[Any] = batch.values
        keys = batch.fetched.keys(batch.rows)
        start = 0
        for row, value in enumerate(values):
            if type(value) is Control or value.op == "t":
                self._changes(batch, keys, range(start, row))
                start = row + 1
                if type(value) is Control:
                    self._told(value)
                else:
                    self._emptied(value.source)
        self._changes(batch, keys, range(start, len(values)))
        for _ in self._state.sweeps:
            if self._state.cursor is not None:
                break
            self._sweep(next(iter(batch.select([0]).records())))

    def _changes(self, batch: Batch[Any, Any], keys: Sequence[bytes | None], rows: range) -> None:
        if not rows:
            return
        values = batch.values
        ids = [_id(values[row].source, keys[row] or b"") for row in rows]
        known: dict[bytes, bytes | None] = dict(zip(ids, self._store.get_many(ids), strict=True))
        payloads = batch.fetched.values(batch.rows)
        own = [payloads[row] for row in rows]
        marked = may_leave_out(own)
        nested = any(_NESTED in payload for payload in own if payload)
        headers = batch.headers
        forwarded: list[tuple[int, Row, Change[Row]]] = []
        changed: dict[bytes, bytes | None] = {}
        sweeps, generation, reading = self._state.sweeps, self._state.generation, self._state.reading
        of_generation, names = Entry(generation, b"", b"").pack(), batch.keys
        for row, identity in zip(rows, ids, strict=True):
            change, key = self._in_shape(values[row], names[row])
            stored = known[identity]
            entry = None if stored is None else Entry.unpack(stored)
            since = reading.get(_name(change.source)) if reading else None
            if since is not None and change.op == "r" and entry is not None and entry.generation >= since:
                if not entry.incomplete:
                    continue
                assert change.after is not None, "a row that was read has values"
                change = msgspec.structs.replace(change, after=completed(_decode(entry.values), change.after))
            if entry is not None and (entry.gone or (entry.incomplete and change.op == "r")):
                # There is no row downstream.
                entry = None
            if entry is not None and sweeps and any(sweep.covers(identity, entry) for sweep in sweeps):
                forwarded.append((row, key, _deletion(change.source, key)))
                entry = None
            if change.op == "d":
                gone = None if since is None else Entry(generation, _GONE, b"").pack()
                known[identity] = changed[identity] = gone
                if headers is not None and entry is not None and entry.values:
                    new_key = dict(headers[row] or ()).get(NEW_KEY)
                    if new_key is not None:
                        moved = _id(change.source, new_key)
                        known[moved] = changed[moved] = entry._replace(generation=generation).pack()
                forwarded.append((row, key, change))
                continue
            after = change.after
            assert after is not None, "only a deletion has no row"
            if nested and change.source.connector == POSTGRES:
                _require_flat(change.source, after)
            if marked and left_out(after):
                after = filled(after, {} if entry is None or not entry.values else _decode(entry.values))
                if missing := left_out(after):
                    if since is None:
                        raise _unknown(change.source, key, missing)
                    # The snapshot brings them, and then the row is forwarded.
                    fresh = Entry(generation, _INCOMPLETE, _encode(after)).pack()
                    known[identity] = changed[identity] = fresh
                    continue
                change = msgspec.structs.replace(change, after=after)
            encoded = _encode(after)
            digest = blake2b(encoded, digest_size=8).digest()
            fresh = of_generation + digest + (encoded if len(encoded) >= LARGE else b"")
            known[identity] = changed[identity] = fresh
            if change.op == "r" and entry is not None:
                if entry.digest == digest:
                    continue
                change = msgspec.structs.replace(change, op="u")
            forwarded.append((row, key, change))
        self._store.put_many(changed)
        if forwarded:
            at, own_keys, changes = zip(*(self._with_table(*each) for each in forwarded), strict=True)
            self._context.forward(batch.select(at).with_keys(own_keys).with_values(changes))

    def _with_table(self, at: int, key: Row, change: Change[Row]) -> tuple[int, Row, Change[Row]]:
        """The same, where the key and the rows have the table's columns with them."""
        source = change.source
        name = _name(source)
        identity = (name, *key)
        table = self._tables.get(identity)
        if table is None:
            shape = self._state.shapes.get(name)
            if shape is None or not shape.columns:
                # Documents have none.
                return at, key, change
            table = self._tables[identity] = shape.table(source, tuple(key))
        before, after = change.before, change.after
        change = msgspec.structs.replace(
            change,
            before=None if before is None else table_row(before, table),
            after=None if after is None else table_row(after, table),
        )
        return at, table_row(key, table), change

    def _in_shape(self, change: Change[Row], key: Row) -> tuple[Change[Row], Row]:
        """The change and its key with values as Postgres writes them, ``before`` as the server sent it."""
        table = _name(change.source)
        different = self._fixes.get(table)
        before, after = change.before, change.after
        if before is not None and table not in self._full:
            # Columns that the server did not send are null in it.
            before = {name: value for name, value in before.items() if value is not None or name in key}
        if different:
            before, after = before and fixed(before, different), after and fixed(after, different)
            key = fixed(key, different)
        elif before is change.before:
            return change, key
        return msgspec.structs.replace(change, before=before, after=after), key

    def _told(self, control: Control) -> None:
        state = self._state
        if control.control == "table":
            assert control.shape is not None, "a table's events have a shape"
            table = _name(control.source)
            if state.shapes.get(table) != control.shape:
                self._remember(msgspec.structs.replace(state, shapes={**state.shapes, table: control.shape}))
        elif control.control == "reading":
            generation = state.generation + 1
            reading = {**state.reading, **{_name(source): generation for source in control.tables}}
            self._remember(msgspec.structs.replace(state, generation=generation, reading=reading))
        elif control.control == "complete":
            sweeps = [
                Sweep(_id(source, b""), state.reading.get(_name(source), state.generation), source)
                for source in control.tables
            ]
            complete = {_name(source) for source in control.tables}
            reading = {table: since for table, since in state.reading.items() if table not in complete}
            self._remember(msgspec.structs.replace(state, sweeps=(*state.sweeps, *sweeps), reading=reading))
        elif control.control == "dropped":
            self._emptied(control.source)
        elif control.snapshot != state.snapshot:
            self._remember(
                msgspec.structs.replace(
                    state, snapshot=control.snapshot, generation=state.generation + 1, reading={}
                )
            )

    def _emptied(self, source: ChangeSource) -> None:
        state = self._state
        generation = state.generation + 1
        sweep = Sweep(_id(source, b""), generation, source)
        self._remember(msgspec.structs.replace(state, generation=generation, sweeps=(*state.sweeps, sweep)))

    def _follow_store(self) -> None:
        """Take the state that the store has, unless it is the one that was put last."""
        stored = self._store.get(_STATE)
        if stored != self._stored:
            self._stored = stored
            self._take(_State() if stored is None else msgspec.json.decode(stored, type=_State))

    def _take(self, state: _State) -> None:
        before, self._state = self._state, state
        self._fixes = {table: fixes(shape) for table, shape in state.shapes.items()}
        # A table's rows have the same columns with them until it changes.
        self._tables = {
            identity: table
            for identity, table in self._tables.items()
            if state.shapes.get(identity[0]) == before.shapes.get(identity[0])
        }
        self._full = {table for table, shape in state.shapes.items() if shape.full_identity}

    def _remember(self, state: _State) -> None:
        self._take(state)
        self._stored = msgspec.json.encode(state)
        self._store.put(_STATE, self._stored)

    def _continue(self, _: int) -> None:
        self._follow_store()
        if self._state.sweeps:
            self._sweep(None)

    def _key_of(self, sweep: Sweep, identity: bytes) -> Row:
        """The key of an entry, in the form that the row's changes have."""
        key: Row = _decode(identity[len(sweep.prefix) :])
        return fixed(key, self._fixes.get(_name(sweep.source)) or {})

    def _sweep(self, record: Record[Any, Any] | None) -> None:
        """Look at the next entries of the first sweep, and delete the rows that are gone."""
        sweep = self._state.sweeps[0]
        begin = self._state.cursor or sweep.prefix
        since = self._state.reading.get(_name(sweep.source))
        gone: dict[bytes, None] = {}
        forgotten: dict[bytes, None] = {}
        looked = 0
        last = begin
        for key, data in self._store.scan(begin, sweep.prefix[:-1] + bytes([sweep.prefix[-1] + 1])):
            last = key
            looked += 1
            entry = Entry.unpack(data)
            if entry.gone:
                if since is None or entry.generation < since:
                    forgotten[key] = None
            elif sweep.covers(key, entry):
                gone[key] = None
            elif entry.incomplete and since is None:
                raise _unknown(sweep.source, self._key_of(sweep, key), left_out(_decode(entry.values)))
            if looked >= SWEEP_ROWS:
                break
        self._store.put_many(gone | forgotten)
        for key in gone:
            names = self._key_of(sweep, key)
            _, names, change = self._with_table(0, names, _deletion(sweep.source, names))
            if record is None:
                self._context.forward(Record(names, change, sweep.source.ts_ms or 0))
            else:
                self._context.forward(record.with_(key=names, value=change, headers=None))
        done = looked < SWEEP_ROWS
        self._remember(
            msgspec.structs.replace(
                self._state,
                sweeps=self._state.sweeps[1:] if done else self._state.sweeps,
                cursor=None if done else last + b"\x00",
            )
        )


def _id(source: ChangeSource, key: bytes) -> bytes:
    """The store's key of a row: all rows of a table are together."""
    return _table(source.db, source.schema, source.table)[0] + key


def _name(source: ChangeSource) -> str:
    return _table(source.db, source.schema, source.table)[1]


@lru_cache(1_000)
def _table(db: str, schema: str | None, table: str | None) -> tuple[bytes, str]:
    """How the store's keys of a table's rows begin, and its name."""
    namespace = db if schema is None else schema
    prefix = b"%s%s\x00%s\x00" % (_ROWS, namespace.encode(), (table or "").encode())
    return prefix, f"{namespace}.{table}"


def _deletion(source: ChangeSource, key: Row) -> Change[Row]:
    return Change(op="d", before=key, source=source)


def _unknown(source: ChangeSource, key: Row, missing: list[str]) -> StateError:
    return StateError(
        f"an update of {source.namespace}.{source.table} with the key {key} leaves out the large value "
        f"of {', '.join(missing)}, which is not known",
        hint=(
            f'ALTER TABLE "{source.schema}"."{source.table}" REPLICA IDENTITY FULL, or read the table again '
            "(another text for it in table_snapshots= of the source)"
            if source.connector == POSTGRES
            else "take a new snapshot (another snapshot= of the source)"
        ),
    )


def _require_flat(source: ChangeSource, row: Row) -> None:
    """Check that no element of an array is an array, for which Debezium gives Java's name of an object."""
    for name, value in row.items():
        if isinstance(value, list) and any(isinstance(item, str) and _OBJECT(item) for item in value):
            raise StateError(
                f"the array {name} of a row of {source.namespace}.{source.table} has several "
                "dimensions, which cannot be captured",
                hint=f"exclude them: CHECK (array_ndims({name}) = 1); or store text",
            )


_NESTED: Final = b'"[L'
_OBJECT: Final = re.compile(r"\[L[\w.$]+;@[0-9a-f]+").fullmatch
