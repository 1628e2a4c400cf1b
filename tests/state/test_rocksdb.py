"""Stores on disk only: damage, locks, outliving the process, more data than memory.

What they share with others is tested in ``tests/contract/test_store.py``.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import psutil
import pytest

from streams.errors import StateError
from streams.events import Event
from streams.state.rocksdb import RocksDatabases
from streams.state.store import Changes
from tests.support.logs import capture_logs
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streams.state.store import Store

MIB = 1024 * 1024
BUDGET = 8 * MIB
COUNT = 2000

OTHER_PROCESS = """
import sys
from pathlib import Path
from streams.errors import StateError
from streams.state.rocksdb import RocksDatabases
from streams.state.store import Changes

databases = RocksDatabases(Path(sys.argv[1]), 8 * 1024 * 1024)
"""


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[RocksDatabases]:
    databases = RocksDatabases(tmp_path, BUDGET)
    yield databases
    databases.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder of a closed database with a full store, an empty one and metadata."""
    databases = RocksDatabases(tmp_path, BUDGET)
    database = databases.open(["first", "second"], 0)
    generator = random.Random(7)
    entries = {number(value): generator.randbytes(50) for value in range(COUNT)}
    database.write({"first": Changes(entries)}, {"offset": b"7"})
    databases.close()
    return tmp_path / "first" / "0"


@contextmanager
def other_process(folder: Path, program: str) -> Iterator[IO[str]]:
    """A process that runs a program with ``databases`` on the folder; its output can be read."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS + program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def files(place: Path, pattern: str) -> list[Path]:
    found = sorted(place.glob(pattern))
    assert found
    return found


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def without_manifest(place: Path) -> None:
    for path in files(place, "MANIFEST-*"):
        path.unlink()


def with_an_empty_manifest(place: Path) -> None:
    for path in files(place, "MANIFEST-*"):
        path.write_bytes(b"")


def with_a_wrong_manifest(place: Path) -> None:
    for path in files(place, "MANIFEST-*"):
        flip(path, 20)


def with_a_garbled_current(place: Path) -> None:
    (place / "CURRENT").write_bytes(b"\x00\xffgarbage")


def with_a_current_that_leads_nowhere(place: Path) -> None:
    (place / "CURRENT").write_bytes(b"MANIFEST-999999\n")


def without_current(place: Path) -> None:
    (place / "CURRENT").unlink()


def without_tables(place: Path) -> None:
    for path in files(place, "*.sst"):
        path.unlink()


def with_cut_tables(place: Path) -> None:
    for path in files(place, "*.sst"):
        os.truncate(path, 100)


def with_wrong_ends_of_tables(place: Path) -> None:
    for path in files(place, "*.sst"):
        flip(path, -3)


def with_wrong_metadata(place: Path) -> None:
    # The smallest table is the metadata's.
    flip(min(files(place, "*.sst"), key=lambda path: path.stat().st_size), 5)


@pytest.mark.parametrize(
    "damage",
    [
        without_manifest,
        with_an_empty_manifest,
        with_a_wrong_manifest,
        with_a_garbled_current,
        with_a_current_that_leads_nowhere,
        without_current,
        without_tables,
        with_cut_tables,
        with_wrong_ends_of_tables,
        with_wrong_metadata,
    ],
)
def test_a_damaged_database_is_set_aside_and_an_empty_one_opened(
    place: Path, databases: RocksDatabases, damage: Callable[[Path], None]
) -> None:
    damage(place)
    with capture_logs() as logged:
        database = databases.open(["first", "second"], 0)
    aside = place.with_name("0.damaged-1")
    assert [line["event"] for line in logged] == [Event.STATE_DAMAGED]
    assert logged[0]["moved_to"] == str(aside)
    assert aside.is_dir()
    assert database.metadata() == {}
    assert list(database.store("first").scan()) == []
    database.write({"first": Changes({b"key": b"value"})}, {})
    database.close()
    assert databases.open(["first"], 0).store("first").get(b"key") == b"value"


def test_only_the_last_damaged_database_of_a_partition_is_kept(
    place: Path, databases: RocksDatabases
) -> None:
    others = databases.open(["first"], 1)
    for _ in range(11):
        without_current(place)
        (place / "note").write_text("kept as it was")
        databases.open(["first"], 0).close()
    others.close()
    without_current(place.with_name("1"))
    databases.open(["first"], 1).close()
    assert sorted(path.name for path in place.parent.iterdir()) == [
        "0",
        "0.damaged-11",
        "1",
        "1.damaged-1",
    ]
    assert (place.with_name("0.damaged-11") / "note").read_text() == "kept as it was"
    databases.destroy(["first"], 0)
    assert sorted(path.name for path in place.parent.iterdir()) == ["1", "1.damaged-1"]


def test_a_cut_manifest_never_leaves_metadata_ahead_of_the_stores(place: Path, tmp_path: Path) -> None:
    (manifest,) = files(place, "MANIFEST-*")
    outcomes = set()
    for length in range(0, manifest.stat().st_size, 7):
        folder = tmp_path / f"cut-{length}"
        shutil.copytree(place, folder / "first" / "0")
        os.truncate(folder / "first" / "0" / manifest.name, length)
        databases = RocksDatabases(folder, BUDGET)
        database = databases.open(["first", "second"], 0)
        outcomes.add((len(database.metadata()), len(list(database.store("first").scan()))))
        databases.close()
        shutil.rmtree(folder)
    assert (0, 0) in outcomes
    assert (1, 0) not in outcomes


def get_each(store: Store) -> None:
    for value in range(COUNT):
        store.get(number(value))


def flushed_many_times(folder: Path, place: Path) -> dict[str, dict[bytes, bytes]]:
    """Leave a database at ``place`` like a killed process, after many flushes; returns its content."""
    databases = RocksDatabases(folder, 4 * MIB)
    database = databases.open(["first", "second", "third"], 0)
    generator = random.Random(7)
    expected: dict[str, dict[bytes, bytes]] = {"first": {}, "second": {}, "third": {}}
    for step in range(60):
        for name in ("first", "second"):
            entries = {number(generator.randrange(COUNT)): generator.randbytes(400) for _ in range(100)}
            database.write({name: Changes(entries)}, {"offset": number(step)})
            expected[name] |= entries
        if step == 40:
            # Emptied and filled again, a store has another column family.
            database.drop("second")
            database.write({"third": Changes({b"key": b"value"})}, {})
            expected["second"], expected["third"] = {}, {b"key": b"value"}
    # A copy made while tables are written or deleted would be another thing than a killed process leaves.
    wait_until(lambda: at_rest(folder / "first" / "0"), 30, what="compactions are over")
    # On a busy machine they may only have paused.
    wait_until(lambda: copied(folder / "first" / "0", place), 60, what="a copy between compactions")
    databases.close()
    assert len(list(place.glob("*.sst"))) > 3
    return expected


def copied(folder: Path, place: Path) -> bool:
    """Copy a database; return whether the copy is complete."""
    shutil.rmtree(place, ignore_errors=True)
    trial = place.with_name(f"{place.name}-trial")
    try:
        shutil.copytree(folder, place)
        shutil.copytree(place, trial / "first" / "0")
    except (FileNotFoundError, shutil.Error):
        return False
    databases = RocksDatabases(trial, BUDGET)
    complete = bool(databases.open(["first", "second", "third"], 0).metadata())
    databases.close()
    shutil.rmtree(trial)
    return complete


def at_rest(place: Path) -> bool:
    def listing() -> set[tuple[str, int]]:
        return {(path.name, path.stat().st_size) for path in place.glob("*[0-9]*")}

    try:
        before = listing()
        time.sleep(0.5)
        return listing() == before
    except FileNotFoundError:
        return False


def ends_of_records(manifest: bytes) -> set[int]:
    """Where the records of a manifest end: one that is cut there looks like a whole one."""
    ends, end = set(), 0
    while end < len(manifest):
        # A checksum of four bytes, the length in two, the type in one, and the content.
        end += 7 + int.from_bytes(manifest[end + 4 : end + 6], "little")
        ends.add(end)
    assert end == len(manifest)
    return ends


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_broken_manifest_is_always_detected(tmp_path: Path, how: str) -> None:
    expected = flushed_many_times(tmp_path / "before", tmp_path / "killed")
    (manifest,) = (tmp_path / "killed").glob("MANIFEST-*")
    whole = manifest.read_bytes()
    opened = set_aside = 0
    for at in sorted({*range(0, len(whole), 37), *ends_of_records(whole)}):
        folder = tmp_path / str(at)
        place = folder / "first" / "0"
        shutil.copytree(tmp_path / "killed", place)
        rest = b"" if how == "cut" else bytes(255 - byte for byte in whole[at : at + 1]) + whole[at + 1 :]
        (place / manifest.name).write_bytes(whole[:at] + rest)
        databases = RocksDatabases(folder, BUDGET)
        database = databases.open(["first", "second", "third"], 0)
        found = {name: dict(database.store(name).scan()) for name in expected}
        if database.metadata():
            assert found == expected
            opened += 1
        else:
            assert found == {"first": {}, "second": {}, "third": {}}
            assert place.with_name("0.damaged-1").exists()
            set_aside += 1
        databases.close()
        shutil.rmtree(folder)
    assert opened > 0
    assert set_aside > opened


def test_a_database_whose_first_manifest_is_lost_is_not_half_empty(tmp_path: Path) -> None:
    """All entries are still in the log file, which identifies column families by number."""
    databases = RocksDatabases(tmp_path, BUDGET)
    database = databases.open(["first", "second"], 0)
    database.write({"first": Changes({b"key": b"value"})}, {"offset": b"7"})
    shutil.copytree(tmp_path / "first" / "0", tmp_path / "killed")
    databases.close()
    (manifest,) = (tmp_path / "killed").glob("MANIFEST-*")
    whole = manifest.read_bytes()
    for length in sorted({*range(0, len(whole), 5), *ends_of_records(whole)}):
        folder = tmp_path / str(length)
        place = folder / "first" / "0"
        shutil.copytree(tmp_path / "killed", place)
        (place / manifest.name).write_bytes(whole[:length])
        databases = RocksDatabases(folder, BUDGET)
        database = databases.open(["first", "second"], 0)
        kept = database.metadata(), dict(database.store("first").scan())
        databases.close()
        assert kept in [({"offset": b"7"}, {b"key": b"value"}), ({}, {})], length
        shutil.rmtree(folder)


def test_a_table_of_a_store_that_was_emptied_since_is_no_damage(tmp_path: Path) -> None:
    """A compaction that runs while a store is emptied leaves its table behind."""
    databases = RocksDatabases(tmp_path, BUDGET)
    database = databases.open(["first", "second"], 0)
    place = tmp_path / "first" / "0"
    whole: dict[str, bytes] = {}
    for step in range(3):
        for name in ("first", "second"):
            database.write({name: Changes({number(step): b"value"})}, {"offset": number(step)})
            databases.close()
            databases = RocksDatabases(tmp_path, BUDGET)
            database = databases.open(["first", "second"], 0)
        whole |= {path.name: path.read_bytes() for path in place.glob("*.sst")}
        database.drop("second")
    databases.close()
    tables = {path.name for path in place.glob("*.sst")}
    left = [content for name, content in whole.items() if name not in tables and b"store2.second" in content]
    assert left
    (place / "999999.sst").write_bytes(left[-1])
    databases = RocksDatabases(tmp_path, BUDGET)
    database = databases.open(["first", "second"], 0)
    assert database.metadata() == {"offset": number(2)}
    assert dict(database.store("first").scan()) == {number(step): b"value" for step in range(3)}
    assert dict(database.store("second").scan()) == {}
    assert not (place / "999999.sst").exists()
    databases.close()


def test_a_table_of_a_store_that_is_still_in_use_is_damage(place: Path, databases: RocksDatabases) -> None:
    table = next(path for path in place.glob("*.sst") if b"namestore.first" in path.read_bytes())
    (place / "999999.sst").write_bytes(table.read_bytes())
    assert databases.open(["first", "second"], 0).metadata() == {}
    assert place.with_name("0.damaged-1").exists()


def test_a_table_that_was_being_written_is_no_damage(place: Path, databases: RocksDatabases) -> None:
    table = next(place.glob("*.sst")).read_bytes()
    (place / "999999.sst").write_bytes(table[: len(table) // 2])
    database = databases.open(["first", "second"], 0)
    assert database.metadata() == {"offset": b"7"}
    assert len(dict(database.store("first").scan())) == COUNT


def test_compactions_continue_after_a_restart(tmp_path: Path) -> None:
    for step in range(12):
        databases = RocksDatabases(tmp_path, BUDGET)
        database = databases.open(["first"], 0)
        entries = {number(value): random.Random(step).randbytes(50) for value in range(COUNT)}
        database.write({"first": Changes(entries)}, {})
        databases.close()
    databases = RocksDatabases(tmp_path, BUDGET)
    databases.open(["first"], 0)
    place = tmp_path / "first" / "0"
    wait_until(lambda: len(list(place.glob("*.sst"))) < 8, 10, what="tables are made fewer")
    databases.close()


@pytest.mark.parametrize(
    "read",
    [
        get_each,
        lambda store: store.get_many([number(value) for value in range(COUNT)]),
        lambda store: list(store.scan()),
        lambda store: list(store.scan(reverse=True)),
    ],
    ids=["get", "get_many", "scan", "scan backwards"],
)
def test_damage_found_while_reading_names_the_folder_to_delete(
    place: Path, databases: RocksDatabases, read: Callable[[Store], object]
) -> None:
    table = max(files(place, "*.sst"), key=lambda path: path.stat().st_size)
    flip(table, table.stat().st_size // 2)
    store = databases.open(["first", "second"], 0).store("first")
    with pytest.raises(StateError, match=f"cannot read store first in {place}: Corruption") as raised:
        read(store)
    assert raised.value.hint is not None
    assert f"delete {place}" in raised.value.hint
    # The traceback is still at hand, and the folder free nevertheless.
    databases.close()
    databases.destroy(["first", "second"], 0)
    assert list(databases.open(["first", "second"], 0).store("first").scan()) == []


def test_an_error_that_is_kept_does_not_keep_the_database_open(databases: RocksDatabases) -> None:
    database = databases.open(["first"], 0)
    wrong: dict[str, Changes] = {"first": Changes({b"key": b"value", "text": b"value"})}  # type: ignore[dict-item]
    with pytest.raises(KeyError) as kept:
        database.write(wrong, {})
    database.close()
    database = databases.open(["first"], 0)
    assert database.store("first").get(b"key") is None
    assert kept.value is not None


def test_a_database_that_another_process_has_open_is_not_touched(
    place: Path, databases: RocksDatabases
) -> None:
    program = "databases.open(['first'], 0)\nprint('open', flush=True)\nsys.stdin.read()"
    with other_process(place.parents[1], program) as printed:
        assert printed.readline() == "open\n"
        with pytest.raises(StateError, match=f"cannot open the state in {place}") as raised:
            databases.open(["first"], 0)
        assert raised.value.hint is not None
        assert "stop the process" in raised.value.hint
        with pytest.raises(StateError, match=f"cannot delete the state in {place}"):
            databases.destroy(["first"], 0)
    assert [path.name for path in place.parent.iterdir()] == ["0"]
    database = databases.open(["first"], 0)
    assert database.store("first").approximate_count() == COUNT


def test_a_closed_database_is_free_for_another_process(place: Path, databases: RocksDatabases) -> None:
    database = databases.open(["first", "second"], 0)
    scan = database.store("first").scan()
    next(scan)
    database.drop("second")
    database.close()
    program = "print(databases.open(['first'], 0).store('first').approximate_count(), flush=True)"
    with other_process(place.parents[1], program) as printed:
        assert printed.readline() == f"{COUNT}\n"


def test_complete_writes_survive_the_kill_of_the_process(tmp_path: Path, databases: RocksDatabases) -> None:
    program = """
database = databases.open(["first", "second"], 0)
for value in range(1, 1_000_000):
    text = str(value).encode()
    changes = Changes({b"%d" % key: text for key in range(300)}, [(b"0", b"a")])
    database.write({"first": changes, "second": changes}, {"value": text})
    print(value, flush=True)
"""
    with other_process(tmp_path, program) as printed:
        last = [int(printed.readline()) for _ in range(20)][-1]
    database = databases.open(["first", "second"], 0)
    value = database.metadata()["value"]
    assert int(value) >= last
    for name in ("first", "second"):
        assert dict(database.store(name).scan()) == {b"%d" % key: value for key in range(300)}


def test_stores_keep_their_folder_when_stores_are_added_in_front(
    tmp_path: Path, databases: RocksDatabases
) -> None:
    databases.open(["first", "second"], 0).close()
    databases.open(["new", "second", "first"], 0).close()
    databases.open(["new"], 1).close()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == ["first/0", "new/1"]


def test_a_folder_that_cannot_be_made_is_an_error_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    databases = RocksDatabases(tmp_path / "file", BUDGET)
    with pytest.raises(StateError, match="cannot open the state in") as raised:
        databases.open(["first"], 0)
    assert raised.value.hint is not None
    assert "state_dir" in raised.value.hint


def test_all_databases_together_stay_near_their_budget(tmp_path: Path) -> None:
    budget = 32 * MIB
    generator = random.Random(7)
    databases = RocksDatabases(tmp_path, budget)
    opened = [databases.open(["first", "second"], partition) for partition in range(8)]
    process = psutil.Process()
    before = process.memory_info().rss
    peak = resident = written = 0
    while written < 200 * MIB:
        for database in opened:
            for name in ("first", "second"):
                entries = {generator.randbytes(20): generator.randbytes(200) for _ in range(1000)}
                database.write({name: Changes(entries)}, {"written": b"%d" % written})
                database.store(name).get_many(list(entries))
                database.store(name).get_many([generator.randbytes(20) for _ in range(100)])
                written += 1000 * 220
                peak = max(peak, databases.memory_bytes())
                resident = max(resident, process.memory_info().rss - before)
    for database in opened:
        assert sum(1 for _ in database.store("first").scan()) > 40_000
        peak = max(peak, databases.memory_bytes())
    databases.close()
    assert budget / 2 < peak < budget * 1.25
    assert resident < budget * 3


OPENING = """
import pathlib, resource, sys
from streams.errors import StateError
from streams.state.rocksdb import RocksDatabases
folder, soft, hard, wanted = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
databases = RocksDatabases(folder, 8_000_000, tasks=wanted)
try:
    for number in range(wanted):
        databases.open(["counts"], number).write({"counts": ({b"k": b"v"}, [])}, {})
except StateError as error:
    print(number, error)
else:
    print("all opened")
databases.close()
"""


def open_many(folder: Path, soft: int, hard: int, wanted: int) -> str:
    command = [sys.executable, "-c", OPENING, str(folder), str(soft), str(hard), str(wanted)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_soft_limit_of_open_files_is_raised(tmp_path):
    assert open_many(tmp_path, 128, 4096, 40) == "all opened\n"


def test_a_limit_that_cannot_be_raised_is_an_early_error_with_what_is_needed(tmp_path):
    said = open_many(tmp_path, 200, 200, 40)
    opened = int(said.split()[0])
    assert 0 < opened < 40
    assert f"may have 200 files open, which is only enough for {opened} tasks with stores" in said
    # 20 for each of 40 tasks and 256 for the rest, which is then enough.
    assert "ulimit -n 1056" in said
    assert open_many(tmp_path, 128, 1056, 40) == "all opened\n"


def test_databases_stay_within_their_share_of_the_open_files(tmp_path):
    databases = RocksDatabases(tmp_path, BUDGET, tasks=10_000)
    database = databases.open(["counts"], 0)
    for number in range(40):
        # Of no other entry, so that tables do not overlap and no compaction makes fewer of them.
        keys = [b"%04d-%04d" % (number, row) for row in range(5)]
        database.write({"counts": Changes(dict.fromkeys(keys, b"v"), [])}, {})
        database.store("counts").close()
        database.close()
        database = databases.open(["counts"], 0)
    opened = [file.path for file in psutil.Process().open_files()]
    assert 5 < sum(path.startswith(str(tmp_path)) for path in opened) <= 20
    databases.close()
