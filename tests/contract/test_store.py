"""The contract of every store, in memory and on disk."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.errors import StateError
from streams.state.memory import MemoryDatabases
from streams.state.rocksdb import RocksDatabases
from streams.state.store import Changes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streams.state.store import Database, Databases, Entry, Store

BUDGET = 8 * 1024 * 1024


def make(kind: str, folder: Path) -> Databases:
    return MemoryDatabases() if kind == "memory" else RocksDatabases(folder, BUDGET)


@pytest.fixture(params=["memory", "rocksdb"])
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Databases]:
    databases = make(request.param, tmp_path)
    yield databases
    databases.close()


@pytest.fixture
def database(databases: Databases) -> Database:
    return databases.open(["first", "second"], 0)


@pytest.fixture
def store(database: Database) -> Store:
    return database.store("first")


def put(database: Database, name: str, entries: dict[bytes, bytes | None]) -> None:
    """Write entries of one store; ``None`` deletes."""
    database.write({name: Changes(entries)}, {})


def fill(database: Database, name: str, *keys: bytes) -> None:
    put(database, name, {key: b"of " + key for key in keys})


def keys(entries: Iterator[Entry]) -> list[bytes]:
    return [key for key, _ in entries]


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def test_a_store_has_its_name(database):
    assert database.store("first").name == "first"


def test_an_entry_is_found_until_it_is_deleted(database, store):
    put(database, "first", {b"key": b"value"})
    assert store.get(b"key") == b"value"
    put(database, "first", {b"key": b"other"})
    assert store.get(b"key") == b"other"
    put(database, "first", {b"key": None})
    assert store.get(b"key") is None


def test_deleting_a_missing_entry_is_allowed(database, store):
    put(database, "first", {b"key": None})
    assert store.get(b"key") is None


def test_an_empty_value_is_a_value(database, store):
    put(database, "first", {b"key": b""})
    assert store.get(b"key") == b""
    assert store.get_many([b"key"]) == [b""]
    assert list(store.scan()) == [(b"key", b"")]


def test_get_many_keeps_the_order_of_the_keys_and_repeats_duplicates(database, store):
    fill(database, "first", b"a", b"b")
    assert store.get_many([b"b", b"x", b"a", b"b"]) == [b"of b", None, b"of a", b"of b"]
    assert store.get_many((b"b", b"x")) == [b"of b", None]
    assert store.get_many([]) == []


def test_keys_compare_as_unsigned_bytes_and_a_prefix_comes_first(database, store):
    ordered = [
        b"\x00",
        b"\x00\x00",
        b"\x00\xff",
        b"\x7f",
        b"\x80",
        b"a" * 300,
        b"\xff",
        b"\xff\x00",
        b"\xff\xff",
    ]
    ordered.sort()
    fill(database, "first", *reversed(ordered))
    assert keys(store.scan()) == ordered
    assert keys(store.scan(reverse=True)) == ordered[::-1]


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (None, None, b"bdf"),
        (b"b", None, b"bdf"),
        (b"c", None, b"df"),
        (None, b"d", b"b"),
        (b"b", b"f", b"bd"),
        (b"c", b"e", b"d"),
        (b"d", b"d", b""),
        (b"f", b"b", b""),
        (b"g", None, b""),
        (None, b"a", b""),
    ],
)
def test_a_scan_includes_its_start_and_not_its_stop_in_both_directions(
    database, store, start, stop, expected
):
    fill(database, "first", b"b", b"d", b"f")
    wanted = [bytes([letter]) for letter in expected]
    assert keys(store.scan(start, stop)) == wanted
    assert keys(store.scan(start, stop, reverse=True)) == wanted[::-1]


@pytest.mark.parametrize("count", [999, 1000, 1001, 2000, 3500])
def test_a_long_scan_has_every_entry_once(database, count):
    database.write({"first": Changes({number(value): b"" for value in range(count)})}, {})
    store = database.store("first")
    assert keys(store.scan()) == [number(value) for value in range(count)]
    assert keys(store.scan(reverse=True)) == [number(value) for value in reversed(range(count))]


def test_entries_may_be_deleted_and_put_while_they_are_scanned(database):
    store = database.store("first")
    database.write({"first": Changes({number(value): b"" for value in range(0, 5000, 2)})}, {})
    seen = []
    for key, _ in store.scan():
        seen.append(key)
        put(database, "first", {key: None})
        put(database, "first", {key[:-1] + bytes([key[-1] | 1]): b"new"})
    assert set(seen) >= {number(value) for value in range(0, 5000, 2)}
    assert seen == sorted(set(seen))


def test_stores_of_one_database_are_apart(database):
    put(database, "first", {b"key": b"one"})
    put(database, "second", {b"key": b"two"})
    assert database.store("first").get(b"key") == b"one"
    assert database.store("second").get(b"key") == b"two"


def test_the_store_of_a_name_is_always_the_same_object(database):
    assert database.store("first") is database.store("first")
    database.drop("first")
    assert database.store("first") is database.store("first")


def test_a_store_that_was_not_named_at_opening_is_made(database):
    assert database.store("third").get(b"key") is None
    put(database, "third", {b"key": b"value"})
    database.write({"fourth": Changes({b"key": b"value"})}, {})
    assert database.store("third").get(b"key") == b"value"
    assert database.store("fourth").get(b"key") == b"value"


@pytest.mark.parametrize("name", ["default", "metadata", "A.b-c_9"])
def test_every_legal_name_is_a_store_of_its_own(databases, name):
    database = databases.open([name], 0)
    database.write({name: Changes({b"key": b"value"})}, {"key": b"metadata"})
    assert list(database.store(name).scan()) == [(b"key", b"value")]
    assert database.metadata() == {"key": b"metadata"}
    database.drop(name)
    assert list(database.store(name).scan()) == []
    assert database.metadata() == {"key": b"metadata"}


def test_a_write_changes_several_stores_and_metadata(database):
    fill(database, "first", b"gone", b"kept")
    changes = {"first": Changes({b"gone": None, b"new": b"1"}), "second": Changes({b"new": b"2"})}
    database.write(changes, {"offset": b"7"})
    assert database.store("first").get_many([b"gone", b"kept", b"new"]) == [None, b"of kept", b"1"]
    assert database.store("second").get(b"new") == b"2"
    assert database.metadata() == {"offset": b"7"}


def test_metadata_is_kept_by_key(database):
    assert database.metadata() == {}
    database.write({}, {"a": b"1", "ü": b""})
    database.write({}, {"a": b"2"})
    assert database.metadata() == {"a": b"2", "ü": b""}


def test_a_deleted_range_has_its_start_and_not_its_stop(database):
    store = database.store("first")
    fill(database, "first", b"a", b"b", b"c", b"d")
    database.write({"first": Changes({}, [(b"b", b"d")])}, {})
    assert keys(store.scan()) == [b"a", b"d"]
    assert store.get_many([b"a", b"b", b"c", b"d"]) == [b"of a", None, None, b"of d"]


def test_entries_win_over_the_deleted_ranges_of_the_same_write(database):
    store = database.store("first")
    fill(database, "first", b"a", b"b", b"c")
    database.write({"first": Changes({b"b": b"new"}, [(b"a", b"z"), (b"a", b"b")])}, {})
    assert list(store.scan()) == [(b"b", b"new")]


@pytest.mark.parametrize("deleted", [(b"c", b"a"), (b"b", b"b")])
def test_a_range_without_keys_deletes_nothing_and_later_writes_succeed(database, deleted):
    store = database.store("first")
    fill(database, "first", b"a", b"b", b"c")
    database.write({"first": Changes({b"d": b"of d"}, [deleted])}, {})
    put(database, "first", {b"e": b"of e"})
    assert keys(store.scan()) == [b"a", b"b", b"c", b"d", b"e"]


def test_a_dropped_store_is_empty_and_takes_entries_again(database):
    store = database.store("first")
    fill(database, "first", b"a", b"b")
    fill(database, "second", b"a")
    database.drop("first")
    assert list(store.scan()) == []
    assert store.get(b"a") is None
    assert keys(database.store("second").scan()) == [b"a"]
    database.write({"first": Changes({b"c": b"1"})}, {})
    assert list(store.scan()) == [(b"c", b"1")]


def test_the_count_is_about_right(database):
    store = database.store("first")
    assert store.approximate_count() == 0
    database.write({"first": Changes({number(value): b"" for value in range(2000)})}, {})
    assert 1000 <= store.approximate_count() <= 4000


def test_a_closed_database_can_be_opened_again(databases):
    database = databases.open(["first"], 3)
    database.write({"first": Changes({b"key": b"value"})}, {"offset": b"7"})
    database.close()
    database = databases.open(["first"], 3)
    assert database.store("first").get(b"key") == b"value"
    assert database.metadata() == {"offset": b"7"}


def test_a_dropped_store_is_still_empty_after_reopening(databases):
    database = databases.open(["first", "second"], 0)
    for name in ("first", "second"):
        fill(database, name, b"key")
    database.drop("first")
    database.close()
    database = databases.open(["first", "second"], 0)
    assert database.store("first").get(b"key") is None
    assert database.store("second").get(b"key") == b"of key"


def test_partitions_are_apart(databases):
    fill(databases.open(["first"], 0), "first", b"key")
    assert databases.open(["first"], 1).store("first").get(b"key") is None


@pytest.mark.parametrize(
    "later", [["second", "first"], ["new", "first", "second"], ["first"], ["first", "second", "new"]]
)
def test_adding_removing_or_reordering_stores_loses_none(databases, later):
    earlier = databases.open(["first", "second"], 0)
    earlier.write({"first": Changes({b"key": b"1"}), "second": Changes({b"key": b"2"})}, {"offset": b"7"})
    earlier.close()
    database = databases.open(later, 0)
    assert database.store("first").get(b"key") == b"1"
    assert database.metadata() == {"offset": b"7"}
    database.close()
    # A store that was not used for a while still has its entries.
    database = databases.open(["first", "second"], 0)
    assert database.store("second").get(b"key") == b"2"


def test_a_destroyed_database_is_gone(databases):
    database = databases.open(["first", "second"], 0)
    database.write({"first": Changes({b"key": b"value"})}, {"offset": b"7"})
    database.close()
    fill(databases.open(["first", "second"], 1), "first", b"other")
    databases.destroy(["second", "first"], 0)
    database = databases.open(["first", "second"], 0)
    assert database.store("first").get(b"key") is None
    assert database.metadata() == {}


def test_unused_databases_are_deleted_and_open_ones_kept(databases):
    made = [databases.open(["one"], number) for number in range(3)]
    for database in made:
        database.write({"one": Changes({b"key": b"value"})}, {})
    for database in made[1:]:
        database.close()
    assert databases.delete_unused(3600) == []
    assert databases.delete_unused(0) == [("one", 1), ("one", 2)]
    assert databases.delete_unused(0) == []
    assert made[0].store("one").get(b"key") == b"value"
    assert databases.open(["one"], 1).store("one").get(b"key") is None


def test_an_open_database_can_be_destroyed_and_so_can_nothing(databases):
    databases.destroy(["first"], 0)
    fill(databases.open(["first"], 0), "first", b"key")
    databases.destroy(["first"], 0)
    assert databases.open(["first"], 0).store("first").get(b"key") is None


def test_destroying_leaves_nothing_that_another_order_of_stores_would_find(databases):
    for name in ("first", "second"):
        database = databases.open([name], 0)
        fill(database, name, b"key")
        database.close()
    databases.destroy(["first", "second"], 0)
    database = databases.open(["first", "second"], 0)
    assert database.store("first").get(b"key") is None
    assert database.store("second").get(b"key") is None


def test_an_open_database_is_not_opened_twice(databases):
    databases.open(["first"], 0)
    with pytest.raises(StateError, match="already open"):
        databases.open(["other", "first"], 0)


def test_a_closed_store_raises_an_error(databases):
    database = databases.open(["first"], 0)
    store = database.store("first")
    fill(database, "first", b"key")
    database.close()
    database.close()
    for call in (
        lambda: store.get(b"key"),
        lambda: store.get_many([b"key"]),
        lambda: list(store.scan()),
        store.approximate_count,
        database.metadata,
        lambda: database.write({}, {}),
        lambda: database.store("first"),
        lambda: database.drop("first"),
    ):
        with pytest.raises(StateError, match="closed"):
            call()


def test_a_scan_that_is_not_finished_does_not_keep_the_database_open(databases):
    database = databases.open(["first"], 0)
    store = database.store("first")
    database.write({"first": Changes({number(value): b"" for value in range(3000)})}, {})
    scan = store.scan()
    assert next(scan) == (number(0), b"")
    database.close()
    again = databases.open(["first"], 0)
    assert len(list(again.store("first").scan())) == 3000
    with pytest.raises(StateError, match="closed"):
        list(scan)


def test_closing_all_closes_each(databases):
    opened = [databases.open(["first"], partition) for partition in range(3)]
    databases.close()
    for partition, database in enumerate(opened):
        with pytest.raises(StateError, match="closed"):
            database.store("first")
        databases.open(["first"], partition)


def test_memory_is_counted(databases):
    before = databases.memory_bytes()
    database = databases.open(["first"], 0)
    database.write({"first": Changes({number(value): b"x" * 100 for value in range(10_000)})}, {})
    assert 1_000_000 <= databases.memory_bytes() - before <= 10_000_000


def test_threads_read_while_the_task_writes_and_closes(database):
    """Each write sets all values to one number, so a reader that sees two numbers saw a partial write."""
    store = database.store("first")
    names = [number(value) for value in range(50)]
    database.write({"first": Changes(dict.fromkeys(names, number(0)))}, {})
    trouble: list[object] = []
    reading = threading.Barrier(4)

    def read() -> None:
        reading.wait()
        try:
            while True:
                if len(set(store.get_many(names))) != 1:
                    trouble.append("half a write")
                found = list(store.scan(reverse=True))
                if [key for key, _ in found] != names[::-1]:
                    trouble.append(found)
                if len({value for _, value in found}) != 1:
                    trouble.append("half a write in a scan")
                if store.get(names[0]) is None:
                    trouble.append("nothing")
                store.approximate_count()
        except StateError as error:
            if "closed" not in str(error):
                trouble.append(error)
        except BaseException as error:  # noqa: BLE001  # a thread's errors are seen here or nowhere
            trouble.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    reading.wait()
    for value in range(300):
        changes = Changes(dict.fromkeys(names, number(value)), [(number(0), number(1000))])
        database.write({"first": changes, "second": changes}, {"value": number(value)})
    database.close()
    for thread in threads:
        thread.join()
    assert trouble == []


NAMES = ["default", "a", "b"]
KEYS = st.one_of(
    st.sampled_from([b"\x00", b"\x00\x00", b"\xff", b"\xff\xff", b"a", b"a\x00", b"a\xff", b"b"]),
    st.binary(min_size=1, max_size=3),
)
BOUNDS = st.none() | KEYS
VALUES = st.binary(max_size=4)
CHANGES = st.builds(
    Changes,
    st.dictionaries(KEYS, st.none() | VALUES, max_size=8),
    st.lists(st.tuples(KEYS, KEYS), max_size=2),
)
STORES = st.sampled_from(NAMES)


class StoreMachine(RuleBasedStateMachine):
    """Any sequence of calls, compared with dictionaries."""

    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="streams-test-"))
        self.databases = make(self.kind, self.folder)
        self.expected: dict[str, dict[bytes, bytes]] = {name: {} for name in NAMES}
        self.metadata: dict[str, bytes] = {}
        self.database: Database

    def teardown(self) -> None:
        self.databases.close()
        shutil.rmtree(self.folder)

    @initialize(stores=st.permutations(NAMES))
    def open(self, stores: Sequence[str]) -> None:
        self.database = self.databases.open(stores, 0)

    @rule(name=STORES, key=KEYS, value=VALUES)
    def put(self, name: str, key: bytes, value: bytes) -> None:
        put(self.database, name, {key: value})
        self.expected[name][key] = value

    @rule(name=STORES, key=KEYS)
    def delete(self, name: str, key: bytes) -> None:
        put(self.database, name, {key: None})
        self.expected[name].pop(key, None)

    @rule(name=STORES, key=KEYS)
    def get(self, name: str, key: bytes) -> None:
        assert self.database.store(name).get(key) == self.expected[name].get(key)

    @rule(name=STORES, asked=st.lists(KEYS, max_size=10))
    def get_many(self, name: str, asked: list[bytes]) -> None:
        assert self.database.store(name).get_many(asked) == [self.expected[name].get(key) for key in asked]

    @rule(name=STORES, start=BOUNDS, stop=BOUNDS, reverse=st.booleans())
    def scan(self, name: str, start: bytes | None, stop: bytes | None, reverse: bool) -> None:
        assert list(self.database.store(name).scan(start, stop, reverse=reverse)) == sorted(
            (
                (key, value)
                for key, value in self.expected[name].items()
                if (start is None or start <= key) and (stop is None or key < stop)
            ),
            reverse=reverse,
        )

    @rule(
        changes=st.dictionaries(STORES, CHANGES),
        metadata=st.dictionaries(st.sampled_from(["x", "y"]), VALUES),
    )
    def write(self, changes: dict[str, Changes], metadata: dict[str, bytes]) -> None:
        self.database.write(changes, metadata)
        for name, (entries, deleted) in changes.items():
            expected = self.expected[name]
            for start, stop in deleted:
                for key in [key for key in expected if start <= key < stop]:
                    del expected[key]
            for key, value in entries.items():
                if value is None:
                    expected.pop(key, None)
                else:
                    expected[key] = value
        self.metadata |= metadata

    @rule(stores=st.permutations(NAMES))
    def reopen(self, stores: Sequence[str]) -> None:
        self.database.close()
        self.database = self.databases.open(stores, 0)
        for name in NAMES:
            self.scan(name, None, None, reverse=False)

    @rule(name=STORES)
    def drop(self, name: str) -> None:
        self.database.drop(name)
        self.expected[name].clear()

    @invariant()
    def metadata_is_what_was_written(self) -> None:
        assert self.database.metadata() == self.metadata


class RocksMachine(StoreMachine):
    kind = "rocksdb"


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
RocksMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
TestMemoryAsDictionaries = StoreMachine.TestCase
TestRocksAsDictionaries = RocksMachine.TestCase
