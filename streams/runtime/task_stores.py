"""The stores of a task: their content, and the changes staged for a commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from streams.errors import StateError, StreamsError, error_text
from streams.operators.guard import preview
from streams.operators.keys import HeldKeys
from streams.records import Output, TopicPartition
from streams.runtime import commit_numbers
from streams.state.buffered import KeyValueState, WindowState
from streams.state.changelog import (
    Checkpoint,
    changelog_records,
    changelog_topic,
    encode_metadata,
    metadata_records,
)
from streams.state.committed import ClosedStore, CommittedStore
from streams.state.evolution import check, kept, migrated_entries, new_aggregates, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.eventtime.clock import StreamClock
    from streams.serde import Serde
    from streams.state.definition import StoreDefinition
    from streams.state.store import Changes, Database

State: TypeAlias = "KeyValueState[Any, Any] | WindowState[Any, Any]"


class BegunAggregates(NamedTuple):
    """Aggregates that were added to those of an existing store, and so start empty."""

    names: tuple[str, ...]
    since: int
    """Milliseconds since the epoch."""


class TaskStores:
    """The stores of the task named ``task``, on one partition, in a restored database.

    A commit is ``stage``, ``take_changelog`` and ``committed``. ``checkpoints`` are the offset in its
    changelog up to which each store is restored. If the program's schema of a store has changed, its entries
    are migrated with the first commit.
    """

    def __init__(
        self,
        task: str,
        partition: int,
        application: str,
        definitions: Sequence[StoreDefinition],
        database: Database | None,
        checkpoints: Mapping[str, Checkpoint],
        wall_clock: Callable[[], int],
    ) -> None:
        self._task = task
        self._partition = partition
        self._application = application
        self._database = database
        self._wall_clock = wall_clock
        self.checkpoints = dict(checkpoints)
        self._definitions = {store.name: store for store in definitions}
        if self._definitions and database is None:
            raise StreamsError(f"task {task} has stores but no database")
        self._staged: dict[str, Changes] | None = None
        self._migrations: dict[str, str] = {}
        """Stores with entries of an earlier schema, until a commit has rewritten them."""
        self.begun: dict[str, BegunAggregates] = {}
        """Aggregates that are new in existing stores, by store, until a commit has recorded them."""
        self._values: dict[str, Serde[Any]] = {}
        """The serdes that read values of stores with an earlier set of aggregates."""
        self.states: dict[str, State] = {name: self._open(store) for name, store in self._definitions.items()}
        self._migrate()

    @property
    def dirty(self) -> int:
        """How many entries the next commit would write."""
        return sum(state.dirty for state in self.states.values())

    @property
    def staged(self) -> bool:
        """Whether the commit being made changes stores."""
        return self._staged is not None

    def stage(self, keepers: Mapping[str, StreamClock]) -> None:
        """Encode the changes that the commit writes to stores, if there are any.

        ``keepers`` are the stores whose changelogs store the time of a clock.
        """
        for name, clock in keepers.items():
            self.checkpoints[name].time, self.checkpoints[name].observed = clock.time, clock.observed
        changes = {name: state.take() for name, state in self.states.items()}
        changed = any(item.entries or item.deleted for item in changes.values())
        if changed or any(checkpoint.unwritten() for checkpoint in self.checkpoints.values()):
            self._staged = changes

    def take_changelog(self) -> list[Output]:
        """Take the changelog records that ``stage`` has encoded."""
        outputs = []
        for name, changes in (self._staged or {}).items():
            definition = self._definitions[name]
            if definition.source_topic is not None:
                continue
            checkpoint = self.checkpoints[name]
            topic = changelog_topic(self._application, definition)
            entries = changelog_records(changes.entries)
            if entries[0] or checkpoint.unwritten():
                checkpoint.count()
            written = [entries, metadata_records(checkpoint)]
            for keys, values, headers in written:
                if keys:
                    now = [self._wall_clock()] * len(keys)
                    owner = ChangelogRows(definition.name, topic, self._task, keys, values)
                    outputs.append(
                        Output(topic, keys, values, now, headers, partition=self._partition, owner=owner)
                    )
            checkpoint.wrote(sum(len(keys) for keys, _, _ in written))
        return outputs

    @property
    def offset_metadata(self) -> str:
        """The metadata of the task's input offsets: its epoch, the numbers of its stores' last commits."""
        return commit_numbers.encode(
            {name: item.number or 0 for name, item in self.checkpoints.items()},
            max((item.epoch for item in self.checkpoints.values()), default=0),
        )

    def committed(self, positions: Mapping[TopicPartition, int]) -> None:
        """All that was taken is committed: write the changes and their checkpoints to the database."""
        if self._staged is None:
            return
        staged, self._staged = self._staged, None
        assert self._database is not None
        for name, definition in self._definitions.items():
            if definition.source_topic is not None:
                source = TopicPartition(definition.source_topic, self._partition)
                if source in positions:
                    self.checkpoints[name].offset = positions[source]
        for checkpoint in self.checkpoints.values():
            checkpoint.committed()
        self._database.write(
            {name: changes for name, changes in staged.items() if changes.entries or changes.deleted},
            encode_metadata(self.checkpoints, self._wall_clock()),
        )
        for state in self.states.values():
            state.committed()

    def entries(self, name: str) -> list[tuple[Any, Any]]:
        """The content of a store, with uncommitted changes; by start and key for a windowed one."""
        state, held = self.states[name], HeldKeys(self._definitions[name].key)
        if isinstance(state, KeyValueState):
            found = list(state.entries())
            return list(zip(held.shown(key for key, _ in found), (value for _, value in found), strict=True))
        entries = list(state.entries())
        keys = held.shown(key for (_, key), _ in entries)
        return [((start, key), value) for key, ((start, _), value) in zip(keys, entries, strict=True)]

    def committed_store(self, name: str) -> CommittedStore:
        """A store as of the last commit, readable from any thread. Raises ``StateError`` once closed."""
        assert self._database is not None
        definition = self._definitions[name]
        time = self.checkpoints[name].time_written
        oldest = 0 if definition.retention is None else max(0, time - definition.retention + 1)
        closed, kept_in = None, definition.kept
        if kept_in is not None:
            time = self.checkpoints[kept_in.store].time_written
            ends_from = max(0, time - kept_in.lasts + 1)
            closed = ClosedStore(self.committed_store(kept_in.store), kept_in.span, ends_from)
        return CommittedStore(self._database.store(name), definition, oldest, self._values[name], closed)

    def end_slice(self) -> None:
        """The open slice is complete."""
        for state in self.states.values():
            state.end_slice()

    def drop_slice(self) -> None:
        """Undo the changes of the open slice."""
        for state in self.states.values():
            state.drop_slice()

    def drop(self) -> None:
        """Undo the changes since the last commit."""
        self._staged = None
        for state in self.states.values():
            state.drop()
        for checkpoint in self.checkpoints.values():
            checkpoint.drop()
        self._migrate()

    def close(self) -> None:
        """Release the database."""
        if self._database is not None:
            self._database.close()

    def _open(self, store: StoreDefinition) -> State:
        assert self._database is not None
        checkpoint = self.checkpoints.setdefault(store.name, Checkpoint(store.schema))
        stored = checkpoint.schema_written
        if stored is not None and check(store, stored):
            self._migrations[store.name] = stored
        else:
            now = self._wall_clock()
            checkpoint.schema = kept(stored, store.schema, now)
            if stored is not None and (new := new_aggregates(stored, store.schema)):
                self.begun[store.name] = BegunAggregates(tuple(new), now)
        value = self._values[store.name] = reading(store, checkpoint.schema)
        committed = self._database.store(store.name)
        if store.retention is None:
            return KeyValueState(committed, store.held_key, value)
        return WindowState(
            committed,
            store.held_key,
            value,
            retention=store.retention,
            stream_time=checkpoint.time,
            expired_span=store.expired_span,
        )

    def _migrate(self) -> None:
        """Add migrated entries to the next commit, which also writes the new schema."""
        assert self._database is not None or not self._migrations
        for name, stored in self._migrations.items():
            if self.checkpoints[name].schema_written != stored:
                continue
            assert self._database is not None
            entries = migrated_entries(self._definitions[name], stored, self._database.store(name))
            state = self.states[name]
            if isinstance(state, KeyValueState):
                state.put_many(entries)
            else:
                for (start, key), value in entries:
                    if start >= state.expired:
                        state.put(start, key, value)
            state.end_slice()


class ChangelogRows:
    """The changes of one store; see ``RowOwner``. They have no policy: skipping one would lose state."""

    def __init__(
        self,
        store: str,
        topic: str,
        task: str,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
    ) -> None:
        self._store = store
        self._topic = topic
        self._task = task
        self._keys = keys
        self._values = values

    def place(self, row: int) -> None:  # noqa: ARG002 - always an error
        return None

    def refuse(self, row: int, error: Exception) -> None:
        key, value = self._keys[row], self._values[row]
        raise StateError(
            f"store {self._store!r}, task {self._task}: the entry of key {preview(key)} has a key of "
            f"{len(key or b'')} and a value of {len(value or b'')} bytes, which its changelog {self._topic} "
            f"rejects: {error_text(error)}",
            hint=f"store less in one entry (e.g. with a limit for collect), or raise max.message.bytes of "
            f"{self._topic}; nothing of this commit was written",
        ) from error
