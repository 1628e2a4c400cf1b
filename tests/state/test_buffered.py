"""Typed stores with uncommitted changes, compared with plain dictionaries."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams import Json, Text
from streams.state.buffered import KeyValueState, WindowState, prefix_stop
from streams.state.memory import MemoryDatabases
from streams.state.rocksdb import RocksDatabases

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.state.store import Database, Databases

BUDGET = 8 * 1024 * 1024
RETENTION = 10


def make(kind: str, folder: Path) -> Databases:
    return MemoryDatabases() if kind == "memory" else RocksDatabases(folder, BUDGET)


@pytest.fixture(params=["memory", "rocksdb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    databases = make(request.param, tmp_path)
    yield databases.open(["plain", "windows"], 0)
    databases.close()


def plain(database: Database) -> KeyValueState[str, Any]:
    return KeyValueState(database.store("plain"), Text(), Json())


def windows(database: Database, stream_time: int = -1) -> WindowState[str, Any]:
    return WindowState(
        database.store("windows"), Text(), Json(), retention=RETENTION, stream_time=stream_time
    )


def commit(database: Database, state: KeyValueState[str, Any] | WindowState[str, Any]) -> None:
    state.end_slice()
    database.write({state.name: state.take()}, {})
    state.committed()


def test_a_store_has_no_uncommitted_changes(database):
    state = plain(database)
    state.put("a", 1)
    state.end_slice()
    assert state.get("a") == 1
    assert state.committed_many(["a"]) == [None]
    assert list(database.store("plain").scan()) == []
    commit(database, state)
    assert state.committed_many(["a"]) == [1]
    assert list(database.store("plain").scan()) == [(b"a", b"1")]


def test_a_change_is_encoded_once_a_commit(database):
    state = plain(database)
    for number in range(5):
        state.put("a", number)
        state.end_slice()
    assert state.dirty == 1
    assert state.take().entries == {b"a": b"4"}


def test_keys_that_begin_alike_are_found_in_order_by_prefix(database):
    state = plain(database)
    for key in ("a", "ab", "b", "aa\uffff"):
        state.put(key, key)
    commit(database, state)
    state.put("ac", "ac")
    state.delete("ab")
    assert [key for key, _ in state.prefix(b"a")] == ["a", "aa\uffff", "ac"]


def test_what_changed_between_two_scans_is_in_the_second(database):
    state = plain(database)
    state.put("a", 1)
    assert list(state.prefix(b"")) == [("a", 1)]
    state.put("b", 2)
    assert list(state.prefix(b"")) == [("a", 1), ("b", 2)]
    state.put_many({"a": None, "c": 3})
    assert list(state.prefix(b"")) == [("b", 2), ("c", 3)]
    state.mark()
    state.put("d", 4)
    assert len(list(state.entries())) == 3
    state.rollback()
    assert list(state.entries()) == [("b", 2), ("c", 3)]
    state.drop_slice()
    assert list(state.entries()) == []


def test_changes_forwarded_at_commits_are_visible_once_forwarded(database):
    state = plain(database)
    state.defer()
    state.put("a", 1)
    commit(database, state)
    state.put("a", 2)
    state.end_slice()
    assert state.forwarded_many(["a"]) == [1]
    state.begin_forwarding({"a": 1})
    assert state.forwarded_many(["a", "b"]) == [2, None]
    assert state.forwarded_many(["a", "b"], before=True) == [1, None]
    state.end_forwarding()
    assert state.forwarded_many(["a"], before=True) == [2]
    state.drop_slice()
    assert state.forwarded_many(["a"]) == [1]
    state.begin_forwarding({})
    commit(database, state)
    state.put("a", 3)
    assert state.forwarded_many(["a"]) == [2]


@pytest.mark.parametrize(
    ("prefix", "stop"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", None), (b"", None), (b"a\x00", b"a\x01")],
)
def test_the_first_key_after_a_prefix(prefix, stop):
    assert prefix_stop(prefix) == stop


def test_a_scan_stands_still_while_the_store_is_changed(database):
    state = plain(database)
    for key in "abc":
        state.put(key, key)
    commit(database, state)
    state.put("d", "d")
    seen = []
    for key, _ in state.scan():
        seen.append(key)
        state.delete(key)
        state.put(f"{key}0", "more")
    assert seen == ["a", "b", "c", "d"]


def test_windows_that_are_over_go_as_a_range(database):
    state = windows(database)
    for start in range(5):
        state.put(start, "k", start)
    commit(database, state)
    state.expire(RETENTION + 2)
    assert state.get(2, "k") is None
    changes = state.take()
    assert changes.entries == {}
    assert changes.deleted == [((0).to_bytes(8, "big"), (3).to_bytes(8, "big"))]
    commit(database, state)
    assert [start for (start, _), _ in state.entries()] == [3, 4]
    assert state.take().deleted == []


def test_windows_that_are_over_may_be_deleted_in_larger_steps(database):
    state: WindowState[str, int] = WindowState(
        database.store("windows"), Text(), Json(), retention=RETENTION, expired_span=100
    )
    ranges: list[tuple[bytes, bytes]] = []
    for start in range(250):
        state.put(start, "k", start)
        state.expire(start)
        state.end_slice()
        changes = state.take()
        ranges += changes.deleted
        database.write({"windows": changes}, {})
        state.committed()
        assert [place for place, _ in state.entries()] == [
            (kept, "k") for kept in range(max(0, start - RETENTION + 1), start + 1)
        ]
        assert state.get(max(0, start - RETENTION), "k") == (0 if start < RETENTION else None)
    # What has expired goes in ranges that follow each other, also when the store was opened again.
    assert [(int.from_bytes(low, "big"), int.from_bytes(high, "big")) for low, high in ranges] == [
        (0, 101),
        (101, 202),
    ]
    again: WindowState[str, int] = WindowState(
        database.store("windows"), Text(), Json(), retention=RETENTION, stream_time=400, expired_span=100
    )
    assert list(again.entries()) == []
    assert again.take().deleted == [((202).to_bytes(8, "big"), (391).to_bytes(8, "big"))]


def test_expired_windows_come_back_when_the_slice_is_abandoned(database):
    state = windows(database)
    state.put(2, "k", 1)
    state.end_slice()
    state.expire(RETENTION + 5)
    assert state.get(2, "k") is None
    state.drop_slice()
    assert state.get(2, "k") == 1
    commit(database, state)
    assert len(list(database.store("windows").scan())) == 1


def test_windows_that_were_over_when_the_store_was_opened_stay_so_after_an_abort(database):
    state = windows(database)
    for start in range(5):
        state.put(start, "k", start)
    commit(database, state)
    restored = windows(database, stream_time=RETENTION + 2)
    assert restored.expired == 3
    restored.put(20, "k", 20)
    restored.expire(RETENTION + 20)
    restored.drop()
    assert restored.expired == 3
    assert [start for (start, _), _ in restored.entries()] == [3, 4]
    commit(database, restored)
    assert len(list(database.store("windows").scan())) == 2


def test_changes_of_windows_since_a_mark_are_taken_back(database):
    state = windows(database)
    state.put(1, "a", 1)
    state.mark()
    state.put_many(1, {"a": 2, "b": 2})
    state.put(1, "a", 3)
    state.put(2, "a", 4)
    state.rollback()
    assert list(state.entries()) == [((1, "a"), 1)]
    state.mark()
    state.put(1, "a", None)
    state.keep()
    assert list(state.entries()) == []


def test_what_was_deleted_by_itself_is_deleted_in_the_changelog_though_it_expired_too(database):
    state = windows(database)
    state.put(1, "a", 1)
    state.put(1, "b", 2)
    commit(database, state)
    state.put(1, "a", None)
    state.expire(RETENTION + 1)
    state.end_slice()
    state.expire(RETENTION + 5)
    state.end_slice()
    assert state.take().entries == {(1).to_bytes(8, "big") + b"a": None}
    commit(database, state)
    assert list(database.store("windows").scan()) == []


KEYS = st.sampled_from(["", "a", "aa", "ab", "b", "é", "z\uffff"])
VALUES = st.none() | st.integers(0, 9)
BOUNDS = st.none() | KEYS


def encoded(key: str) -> bytes:
    return key.encode()


class PlainMachine(RuleBasedStateMachine):
    """A plain store compared with one dictionary per layer."""

    kind = "memory"

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.databases = make(self.kind, self.folder)
        self.stored: dict[str, int] = {}
        self.whole: dict[str, int] = {}
        self.open: dict[str, int] = {}
        self.marked: dict[str, int] | None = None
        self._open_state()

    def _open_state(self) -> None:
        self.database = self.databases.open(["plain"], 0)
        self.state = KeyValueState[str, Any](self.database.store("plain"), Text(), Json())

    def _set(self, key: str, value: int | None) -> None:
        if value is None:
            self.open.pop(key, None)
        else:
            self.open[key] = value

    @rule(key=KEYS.filter(bool), value=VALUES)
    def put(self, key: str, value: int | None) -> None:
        self.state.put(key, value)
        self._set(key, value)

    @rule(entries=st.dictionaries(KEYS.filter(bool), VALUES), pairs=st.booleans())
    def put_many(self, entries: dict[str, int | None], pairs: bool) -> None:
        self.state.put_many(entries.items() if pairs else entries)
        for key, value in entries.items():
            self._set(key, value)

    @rule(key=KEYS.filter(bool))
    def delete(self, key: str) -> None:
        self.state.delete(key)
        self._set(key, None)

    @rule(keys=st.lists(KEYS.filter(bool)))
    def read(self, keys: list[str]) -> None:
        assert self.state.get_many(keys) == [self.open.get(key) for key in keys]
        assert [self.state.get(key) for key in keys] == [self.open.get(key) for key in keys]
        assert self.state.committed_many(keys) == [self.stored.get(key) for key in keys]

    @rule(start=BOUNDS, stop=BOUNDS, reverse=st.booleans())
    def scan(self, start: str | None, stop: str | None, reverse: bool) -> None:
        expected = [
            (key, value)
            for key, value in sorted(self.open.items(), key=lambda item: encoded(item[0]), reverse=reverse)
            if (start is None or encoded(key) >= encoded(start))
            and (stop is None or encoded(key) < encoded(stop))
        ]
        assert list(self.state.scan(start, stop, reverse=reverse)) == expected

    @precondition(lambda self: self.marked is None)
    @rule()
    def mark(self) -> None:
        self.state.mark()
        self.marked = dict(self.open)

    @precondition(lambda self: self.marked is not None)
    @rule(keep=st.booleans())
    def keep_or_roll_back(self, keep: bool) -> None:
        if keep:
            self.state.keep()
        else:
            self.state.rollback()
            assert self.marked is not None
            self.open = self.marked
        self.marked = None

    @precondition(lambda self: self.marked is None)
    @rule()
    def end_slice(self) -> None:
        self.state.end_slice()
        self.whole = dict(self.open)

    @rule()
    def drop_slice(self) -> None:
        self.state.drop_slice()
        self.open, self.marked = dict(self.whole), None

    @rule()
    def drop(self) -> None:
        self.state.drop()
        self.open, self.whole, self.marked = dict(self.stored), dict(self.stored), None

    @precondition(lambda self: self.marked is None)
    @rule()
    def commit(self) -> None:
        self.end_slice()
        self.database.write({"plain": self.state.take()}, {})
        self.state.committed()
        self.stored = dict(self.whole)

    @rule()
    def reopen(self) -> None:
        self.database.close()
        self._open_state()
        self.drop()

    @invariant()
    def the_store_has_what_was_committed(self) -> None:
        if hasattr(self, "state"):
            content = {key.decode(): int(value) for key, value in self.database.store("plain").scan()}
            assert content == self.stored

    def teardown(self) -> None:
        if hasattr(self, "databases"):
            self.databases.close()
            shutil.rmtree(self.folder)


class PlainMachineOnDisk(PlainMachine):
    kind = "rocksdb"


Entries = dict[tuple[int, str], int]


class WindowMachine(RuleBasedStateMachine):
    """A windowed store compared with dictionaries while stream time advances."""

    kind = "memory"

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.databases = make(self.kind, self.folder)
        self.stored: Entries = {}
        self.whole: Entries = {}
        self.open: Entries = {}
        self.expired = self.expired_whole = self.expired_stored = 0
        self.time = -1
        self._open_state()

    def _open_state(self) -> None:
        self.database = self.databases.open(["windows"], 0)
        time = self.expired_stored + RETENTION - 1 if self.expired_stored else -1
        self.state = windows(self.database, time)

    @rule(behind=st.integers(0, RETENTION - 1), entries=st.dictionaries(KEYS, VALUES), pairs=st.booleans())
    def put(self, behind: int, entries: dict[str, int | None], pairs: bool) -> None:
        # No window is written that is over: its records are late.
        start = max(self.expired, self.expired + RETENTION - 1 - behind)
        self.state.put_many(start, entries.items() if pairs else entries)
        for key, value in entries.items():
            if value is None:
                self.open.pop((start, key), None)
            else:
                self.open[start, key] = value

    @rule(start=st.integers(0, 40), keys=st.lists(KEYS))
    def read(self, start: int, keys: list[str]) -> None:
        expected = [self.open.get((start, key)) for key in keys]
        assert self.state.get_many(start, keys) == expected
        assert [self.state.get(start, key) for key in keys] == expected

    @rule(low=st.integers(0, 40), size=st.integers(0, 20))
    def scan(self, low: int, size: int) -> None:
        expected: dict[int, list[tuple[str, int]]] = {}
        for (start, key), value in sorted(
            self.open.items(), key=lambda item: (item[0][0], encoded(item[0][1]))
        ):
            if low <= start < low + size:
                expected.setdefault(start, []).append((key, value))
        assert list(self.state.windows(low, low + size)) == list(expected.items())

    @rule(on=st.integers(1, 6))
    def expire(self, on: int) -> None:
        self.expired += on
        self.state.expire(self.expired + RETENTION - 1)
        self.open = {place: value for place, value in self.open.items() if place[0] >= self.expired}
        assert self.state.expired == self.expired

    @rule()
    def end_slice(self) -> None:
        self.state.end_slice()
        self.whole, self.expired_whole = dict(self.open), self.expired

    @rule(behind=st.integers(0, RETENTION - 1), entries=st.dictionaries(KEYS, VALUES), keep=st.booleans())
    def put_and_take_back(self, behind: int, entries: dict[str, int | None], keep: bool) -> None:
        before = dict(self.open)
        self.state.mark()
        self.put(behind, entries, pairs=False)
        if keep:
            self.state.keep()
        else:
            self.state.rollback()
            self.open = before

    @rule()
    def drop_slice(self) -> None:
        self.state.drop_slice()
        self.open, self.expired = dict(self.whole), self.expired_whole

    @rule()
    def drop(self) -> None:
        self.state.drop()
        self.open, self.whole = dict(self.stored), dict(self.stored)
        self.expired = self.expired_whole = self.expired_stored

    @rule()
    def commit(self) -> None:
        self.end_slice()
        self.database.write({"windows": self.state.take()}, {})
        self.state.committed()
        self.stored, self.expired_stored = dict(self.whole), self.expired

    @rule()
    def reopen(self) -> None:
        self.database.close()
        self._open_state()
        self.drop()

    @invariant()
    def the_store_has_what_was_committed(self) -> None:
        if hasattr(self, "state"):
            content = {
                (int.from_bytes(key[:8], "big"), key[8:].decode()): int(value)
                for key, value in self.database.store("windows").scan()
            }
            assert content == self.stored

    @invariant()
    def all_entries_are_there_in_order(self) -> None:
        if hasattr(self, "state"):
            places = [place for place, _ in self.state.entries()]
            assert dict(self.state.entries()) == self.open
            assert places == sorted(places, key=lambda place: (place[0], encoded(place[1])))

    def teardown(self) -> None:
        if hasattr(self, "databases"):
            self.databases.close()
            shutil.rmtree(self.folder)


class WindowMachineOnDisk(WindowMachine):
    kind = "rocksdb"


TestPlainInMemory = PlainMachine.TestCase
TestPlainOnDisk = PlainMachineOnDisk.TestCase
TestWindowsInMemory = WindowMachine.TestCase
TestWindowsOnDisk = WindowMachineOnDisk.TestCase

TestPlainInMemory.settings = TestWindowsInMemory.settings = settings(max_examples=60, stateful_step_count=40)
TestPlainOnDisk.settings = TestWindowsOnDisk.settings = settings(max_examples=15, stateful_step_count=40)
