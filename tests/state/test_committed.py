"""Reading a store as of its last commit, on both kinds of stores."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

import pytest

from streams.errors import QueryError, StateError
from streams.serde import Json, Text
from streams.state.committed import CHUNK, CommittedStore
from streams.state.definition import StoreDefinition
from streams.state.memory import MemoryDatabases
from streams.state.rocksdb import RocksDatabases
from streams.state.store import Changes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.state.store import Database

_TIME = Struct(">Q")


@pytest.fixture(params=["memory", "rocksdb"])
def database(request, tmp_path) -> Iterator[Database]:
    databases = MemoryDatabases() if request.param == "memory" else RocksDatabases(tmp_path, 16_000_000)
    yield databases.open(["s"], 0)
    databases.close()


def plain(database: Database, values: dict[str, int]) -> CommittedStore:
    definition = StoreDefinition(
        name="s", key=Text(), value=Json(), view=lambda value: None if value < 0 else value * 10
    )
    database.write({"s": Changes({key.encode(): b"%d" % value for key, value in values.items()})}, {})
    return CommittedStore(database.store("s"), definition)


def windowed(database: Database, values: dict[tuple[int, str], int], oldest: int = 0) -> CommittedStore:
    definition = StoreDefinition(
        name="s", key=Text(), value=Json(), retention=10, window_end=lambda start, value: start + value
    )
    entries = {_TIME.pack(start) + key.encode(): b"%d" % value for (start, key), value in values.items()}
    database.write({"s": Changes(entries)}, {})
    return CommittedStore(database.store("s"), definition, oldest)


def test_values_are_those_of_the_view_and_hidden_ones_left_out(database):
    store = plain(database, {"a": 1, "b": -1, "c": 3})
    assert [store.get(key) for key in ("a", "b", "c", "d")] == [10, None, 30, None]
    assert list(store.entries(None, None)) == [(b"a", "a", 10), (b"c", "c", 30)]
    assert list(store.entries(b"a\x00", b"c")) == []


def test_entries_beyond_one_chunk_are_all_found_in_order(database):
    values = {f"{number:05d}": number for number in range(2 * CHUNK + 5)}
    assert [key for _, key, _ in plain(database, values).entries(None, None)] == sorted(values)


@pytest.mark.parametrize(
    ("starts", "keys"),
    [
        # A window with more keys than a chunk is stepped over; many windows are gone through.
        (3, 2 * CHUNK + 5),
        (3, CHUNK),
        (2 * CHUNK + 5, 2),
    ],
)
def test_one_keys_windows_are_found_among_many(database, starts, keys):
    values = {(start, f"{number:05d}"): 7 for start in range(starts) for number in range(keys)}
    store = windowed(database, values)
    wanted = f"{keys - 1:05d}"
    found = [window for _, window in store.windows_of(wanted, 1, starts - 1)]
    assert [(window.key, window.start, window.end, window.value) for window in found] == [
        (wanted, start, start + 7, 7) for start in range(1, starts - 1)
    ]
    assert list(store.windows_of("nobody", 0, starts)) == []


def test_closed_windows_are_not_returned(database):
    store = windowed(database, {(start, "a"): 1 for start in (0, 5, 10)}, oldest=5)
    assert [window.start for _, window in store.windows(0, 100)] == [5, 10]
    assert [window.start for _, window in store.windows_of("a", 0, 10)] == [5]
    assert list(store.windows(0, 5)) == list(store.windows_of("a", 20, 10)) == []


def test_a_key_of_another_type_is_refused(database):
    with pytest.raises(QueryError, match="store 's' has keys of Text, not 5"):
        plain(database, {}).get(5)


def test_a_closed_database_raises(database):
    store = plain(database, {"a": 1})
    database.close()
    with pytest.raises(StateError, match="closed"):
        store.get("a")


@pytest.mark.parametrize(
    ("settings", "queryable"),
    [
        ({}, True),
        ({"view": None}, False),
        ({"retention": 10}, False),
        ({"retention": 10, "window_end": lambda start, _: start}, True),
    ],
)
def test_only_stores_with_results_can_be_queried(settings, queryable):
    assert StoreDefinition(name="s", **settings).queryable is queryable
