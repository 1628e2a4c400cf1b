"""Records of changelogs: keys like the runtime's own, those of earlier versions, and foreign ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from streams import (
    App,
    Bytes,
    Json,
    Record,
    Session,
    Text,
    Tumbling,
    count,
    key_value_store,
    maximum,
    mean,
    total,
)
from streams.durations import milliseconds
from streams.errors import StateError
from streams.events import Event
from streams.state.changelog import ENTRY_PREFIX, RESERVED, SCHEMA_KEY, TIME_KEY
from streams.state.rocksdb import RocksDatabases
from tests.support.crew import Crew
from tests.support.logs import capture_logs

KEYS = [
    b"plain",
    b"\xff",
    b"\xff\xff",
    b"\xff\xff\xff",
    RESERVED[:-1],
    RESERVED,
    RESERVED + b"x",
    RESERVED + b"stream-time-too",
    TIME_KEY,
    SCHEMA_KEY,
    ENTRY_PREFIX,
    ENTRY_PREFIX + b"x",
    ENTRY_PREFIX + TIME_KEY,
    ENTRY_PREFIX + ENTRY_PREFIX,
]

STORES = ("counts", "windows", "sessions", "kept", "last", "short")


class Remember:
    """Keeps the last value of each key; an empty one deletes it."""

    def __init__(self, store: str) -> None:
        self._name = store

    def open(self, context: Any) -> None:
        self.store = context.store(self._name)

    def process(self, record: Any, context: Any) -> None:
        self.store.put(record.key, record.value or None)


class RememberLast(Remember):
    def __init__(self) -> None:
        super().__init__("last")


class RememberShortly(Remember):
    def __init__(self) -> None:
        super().__init__("short")


def program(**settings: Any) -> App:
    """A store of each kind, all with the input's bytes as keys."""
    app = App("app", **{"commit_interval": 0.05, "dead_letter_limit": 1.0} | settings)
    stream = app.stream("in", key=Bytes(), value=Bytes())
    grouped = stream.group_by_key()
    grouped.count("counts").to("out")
    grouped.window(Tumbling(hours=1)).count("windows").updates().to("out")
    grouped.window(Session(hours=1)).count("sessions").updates(tombstones=True).to("out")
    stream.to_table("kept", value=Bytes()).to_stream().to("out", value=Bytes())
    stream.process(RememberLast, stores=[key_value_store("last", key=Bytes(), value=Bytes())])
    stream.process(
        RememberShortly,
        stores=[key_value_store("short", key=Bytes(), value=Bytes(), ttl=milliseconds(3_600_000))],
    )
    return app


def record(key: bytes | None, value: bytes | None = b"v", time: int = 1_000, **more: Any) -> Record[Any, Any]:
    return Record(key, value, time, **more)


def shown(crew: Crew, slot: int = 0) -> dict[str, Any]:
    """The content of each store."""
    queries = crew.queries(slot)
    windows = [(found.key, found.start, found.value) for found in queries.windows("windows")]
    return {name: queries.entries(name) for name in STORES if name != "windows"} | {"windows": windows}


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("disk", ["memory", "rocksdb"])
def test_keys_like_the_runtimes_own_are_counted_through_lost_disks(tmp_path, disk, compacted):
    disks: list[RocksDatabases] = []

    def on_disk() -> RocksDatabases:
        disks.append(RocksDatabases(tmp_path / str(len(disks)), 8_000_000))
        return disks[-1]

    crew = Crew(program()) if disk == "memory" else Crew(program(), new_disk=on_disk)
    crew.start()
    for number in range(3):
        crew.send("in", *(record(key, b"%d" % number) for key in KEYS for _ in range(2)))
        crew.settle()
        before = shown(crew)
        crew.stop()
        crew.lose_disk()
        if compacted:
            for store in STORES:
                crew.compact(f"app-{store}-changelog")
        crew.start()
        crew.settle()
        assert shown(crew) == before
    assert before["counts"] == [(key, 6) for key in sorted(KEYS)]
    assert [(key, count) for key, _, count in before["windows"]] == [(key, 6) for key in sorted(KEYS)]
    assert before["kept"] == before["last"] == [(key, b"2") for key in sorted(KEYS)]
    crew.stop()


def test_keys_like_metadata_do_not_move_stream_time():
    crew = Crew(program())
    crew.start()
    crew.send("in", record(TIME_KEY, b"9" * 15, 5_000), record(SCHEMA_KEY, b"{}", 5_000))
    crew.settle()
    (task,) = crew.alive[0].tasks.values()
    before = task.stream_times
    crew.stop()
    crew.lose_disk()
    crew.start()
    crew.settle()
    (task,) = crew.alive[0].tasks.values()
    assert task.stream_times == before
    assert set(before.values()) == {5_000}
    crew.stop()


@hypothesis_settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KEYS) | st.binary(max_size=3).map(RESERVED.__add__),
            st.sampled_from([b"", b"1", b"2", b"17 18", b'{"purpose":1,"key":1,"value":1}']),
            st.sampled_from(["", "", "", "restart", "lose disk", "compact", "take over"]),
        ),
        max_size=25,
    )
)
def test_a_store_has_what_was_put_last_after_any_loss_of_disks(moves):
    app = App("app", commit_interval=0.05, standby_replicas=1)
    app.stream("in", key=Bytes(), value=Bytes()).process(
        RememberLast, stores=[key_value_store("last", key=Bytes(), value=Bytes())]
    )
    crew = Crew(app)
    crew.start(0)
    expected: dict[bytes, bytes] = {}
    slot = 0
    for key, value, move in moves:
        crew.send("in", record(key, value))
        expected.pop(key, None)
        if value:
            expected[key] = value
        crew.settle()
        if not move:
            continue
        if move == "take over":
            crew.start(slot + 1)
            crew.settle()
            crew.kill(slot)
            slot += 1
        else:
            crew.stop(slot)
            if move != "restart":
                crew.lose_disk(slot)
            if move == "compact":
                crew.compact("app-last-changelog")
            crew.start(slot)
        crew.settle()
        assert dict(crew.queries(slot).entries("last")) == expected
    assert dict(crew.queries(slot).entries("last")) == expected
    crew.stop(slot)


def test_a_standby_replica_has_keys_like_the_runtimes_own():
    crew = Crew(program(standby_replicas=1), partitions=2)
    crew.start(0)
    crew.start(1)
    crew.send("in", *(record(key) for key in KEYS for _ in range(3)))
    crew.settle()
    crew.until(lambda: all(worker.standby_lag for worker in crew.alive.values()))
    crew.settle()
    crew.kill(0)
    crew.send("in", *(record(key) for key in KEYS))
    crew.settle()
    assert shown(crew, 1)["counts"] == [(key, 4) for key in sorted(KEYS)]
    crew.stop(1)


def test_ordinary_entries_are_plain_records_of_their_keys_and_values():
    crew = Crew(program())
    crew.start()
    crew.send("in", record(b"plain", b"value"), record(RESERVED + b"x", b"value"))
    crew.settle()
    crew.stop()
    records = crew.read("app-last-changelog")
    assert [(item.key, item.value, item.headers) for item in records if item.key == b"plain"] == [
        (b"plain", b"value", None)
    ]
    assert RESERVED + b"x" not in {item.key for item in records}


# --- what earlier versions wrote


def remembering(key: Any, value: Any) -> App:
    app = App("app", commit_interval=0.05, standby_replicas=1)
    app.stream("in", key=key, value=value).process(
        RememberLast, stores=[key_value_store("last", key=key, value=value)]
    )
    return app


def test_entries_of_earlier_versions_under_reserved_keys_are_kept():
    crew = Crew(remembering(Bytes(), Bytes()))
    schema = crew.app.topology.subtopologies[0].stores[0].schema.encode()
    own = [RESERVED + b"x", RESERVED, ENTRY_PREFIX + b"x", b"plain"]
    crew.send("app-last-changelog", *(record(key, b"old") for key in own))
    # No time and no schema, so these were entries too; the last two are the metadata.
    crew.send("app-last-changelog", record(TIME_KEY, b"yesterday"), record(SCHEMA_KEY, b"{"))
    crew.start()
    crew.settle()
    kept = dict.fromkeys(own, b"old")
    assert dict(crew.queries().entries("last")) == kept | {TIME_KEY: b"yesterday", SCHEMA_KEY: b"{"}
    crew.stop()
    crew.lose_disk()
    crew.send("app-last-changelog", record(TIME_KEY, b"700"), record(SCHEMA_KEY, schema))
    crew.start()
    crew.settle()
    assert dict(crew.queries().entries("last")).items() >= kept.items()
    # Deleted now, they do not come back with what the earlier version wrote.
    crew.send("in", *(record(key, b"") for key in own[:2]), record(own[2], b"new"))
    crew.settle()
    crew.stop()
    crew.lose_disk()
    crew.compact("app-last-changelog")
    crew.start()
    crew.settle()
    left = dict(crew.queries().entries("last"))
    assert left.keys() - {TIME_KEY, SCHEMA_KEY} == set(own[2:])
    assert left[own[2]] == b"new"
    crew.stop()


@pytest.mark.parametrize("compacted", [False, True])
def test_values_of_an_earlier_schema_are_no_foreign_records(compacted):
    def figures(**aggregates: Any) -> App:
        app = App("app", commit_interval=0.05)
        app.stream("in", key=Text(), value=Json(int)).group_by_key().aggregate("figures", **aggregates).to(
            "out"
        )
        return app

    def run(app: App, crew: Crew) -> dict[str, Any]:
        crew.app = app
        crew.start()
        crew.send("in", *(record(b"%d" % number, b"5") for number in range(20)))
        crew.settle()
        found = dict(crew.queries().entries("figures"))
        crew.stop()
        crew.lose_disk()
        if compacted:
            crew.compact("app-figures-changelog")
        return found

    first = figures(seen=count(), sum=total())
    crew = Crew(first)
    run(first, crew)
    for rounds, app in enumerate(
        (
            figures(highest=maximum(), sum=total(), seen=count()),
            figures(sum=total(), highest=maximum(), seen=count(), mean=mean()),
        ),
        start=2,
    ):
        found = run(app, crew)
        assert {(item.seen, item.sum, item.highest) for item in found.values()} == {(rounds, 5 * rounds, 5)}


# --- what the app did not write


class Garbage:
    """Foreign records for the changelog of a store, with the expected error."""

    def __init__(self, store: str, record: Record[Any, Any], *says: str) -> None:
        self.store = store
        self.record = record
        self.says = says

    def __str__(self) -> str:
        return f"{self.store}-{self.record.key!r:.20}-{self.record.value!r:.12}"


def typed() -> App:
    """The same as ``program``, with keys of text and typed values."""
    app = App("app", commit_interval=0.05, standby_replicas=1, dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json(int))
    grouped = stream.group_by_key()
    grouped.count("counts").to("out")
    grouped.window(Tumbling(hours=1)).count("windows").updates().to("out")
    grouped.window(Session(hours=1)).count("sessions").updates(tombstones=True).to("out")
    stream.to_table("kept").to_stream(tombstones=True).to("out", value=Json())
    stream.process(RememberLast, stores=[key_value_store("last", value=Json(int))])
    stream.process(
        RememberShortly, stores=[key_value_store("short", value=Json(int), ttl=milliseconds(3_600_000))]
    )
    return app


START = b"\0\0\0\0\0\0\0\0"

FOREIGN = [
    Garbage("counts", record(b"\xff\xfe"), "Text", "UnicodeDecodeError"),
    Garbage("counts", record(b"a", b"not msgpack"), "its value b'not msgpack'"),
    Garbage("counts", record(b"a", b""), "its value b''"),
    Garbage("counts", record(RESERVED + b"unknown", b"v"), "Text"),
    Garbage("windows", record(b"a", b"\x01"), "too short"),
    Garbage("windows", record(b"\xff" * 9, b"\x01"), "window's start"),
    Garbage("windows", record(START + b"\xff", b"\x01"), "Text"),
    Garbage("windows", record(TIME_KEY, b"12 "), "key of stream time"),
    Garbage("windows", record(TIME_KEY, b""), "key of stream time"),
    Garbage("windows", record(TIME_KEY, b"1" * 40), "key of stream time"),
    Garbage("windows", record(SCHEMA_KEY, b'{"purpose": "pl'), "key of the schema"),
    Garbage("windows", record(SCHEMA_KEY, b"\xff"), "key of the schema"),
    Garbage("windows", record(SCHEMA_KEY, b'{"purpose":1,"key":2,"value":3}'), "key of the schema"),
    Garbage(
        "windows", record(SCHEMA_KEY, b'{"purpose":"","key":2,"value":3,"earlier":4}'), "key of the schema"
    ),
    Garbage("windows", record(SCHEMA_KEY, b"[" * 100_000), "key of the schema"),
    Garbage("sessions", record(b"a", b"{}"), "its value"),
    Garbage("kept", record(b"a", b"12345678"), "its value"),
    Garbage("kept", record(b"a", b"1234"), "its value"),
    Garbage("last", record(b"a", b"{"), "Json"),
    Garbage("last", record(b"a", b'"text"'), "Json"),
    Garbage("last", record(b"a", b"\0" * 100), "Json"),
    Garbage("short", record(b"a", b"1" * 15), "its value"),
    Garbage("short-deadlines", record(b"1234567"), "too short"),
]


def spoil(crew: Crew, garbage: Garbage) -> int:
    """Append the record to the app's records, and return its offset."""
    topic = f"app-{garbage.store}-changelog"
    crew.send(topic, garbage.record)
    return max(item.offset for item in crew.read(topic))


@pytest.mark.parametrize("garbage", FOREIGN, ids=str)
def test_a_foreign_record_ends_a_restore_naming_store_topic_and_offset(garbage):
    crew = Crew(typed())
    crew.start()
    crew.send("in", record(b"a", b"1"), record(b"b", b"2"))
    crew.settle()
    before = shown(crew)
    crew.stop()
    offset = spoil(crew, garbage)
    for _ in range(2):
        # Again at the next start, on a new disk and on the one on which it failed.
        crew.lose_disk()
        for _ in range(2):
            with pytest.raises(StateError) as failed:
                crew.worker().run()
            assert failed.value.exit_code == 8
            for part in (
                f"store {garbage.store!r}",
                f"app-{garbage.store}-changelog-0",
                f"offset {offset}",
                *garbage.says,
            ):
                assert part in str(failed.value)
    # What the hint says to do about it.
    right = {item.key: item for item in crew.read(f"app-{garbage.store}-changelog")[: offset - 1]}
    fix = right.get(garbage.record.key, record(garbage.record.key, None))
    crew.send(f"app-{garbage.store}-changelog", fix)
    for lost in (False, True):
        if lost:
            crew.stop()
            crew.lose_disk()
        crew.start()
        crew.settle()
        assert shown(crew) == before
    crew.stop()


def test_a_standby_replica_of_a_spoilt_changelog_is_abandoned_and_its_owner_works_on():
    crew = Crew(typed(), partitions=2)
    workers = [crew.start(0), crew.start(1)]
    keys = [b"%d" % number for number in range(10)]
    crew.send("in", *(record(key, b"1") for key in keys))
    crew.settle()
    crew.until(lambda: all(worker.standby_lag for worker in workers))
    with capture_logs() as logs:
        crew.send("app-last-changelog", record(b"a", b"{", partition=0), record(b"a", b"{", partition=1))
        crew.until(lambda: not any(worker.standby_lag for worker in workers))
        crew.turn(300)
        crew.clock.advance(120)
        crew.send("in", *(record(key, b"2") for key in keys))
        crew.settle()
    abandoned = [entry for entry in logs if entry["event"] == Event.STANDBY_ABANDONED]
    assert [worker.standbys_abandoned for worker in workers] == [1, 1]
    assert len(abandoned) == 2
    assert all("app-last-changelog" in entry["error"] for entry in abandoned)
    last = [dict(crew.queries(slot).entries("last")) for slot in (0, 1)]
    assert last[0] | last[1] == {key.decode(): 2 for key in keys}
    # Who takes over reads the changelog itself, and ends for it.
    crew.kill(0)
    with pytest.raises(StateError, match="app-last-changelog"):
        crew.until(lambda: False)


@pytest.mark.parametrize("many", [3, 40])
def test_all_foreign_records_are_counted_in_one_error(many):
    crew = Crew(typed())
    crew.start()
    crew.send("in", record(b"a", b"1"))
    crew.settle()
    crew.stop()
    crew.lose_disk()
    crew.send("app-last-changelog", *(record(b"%d" % number, b"{") for number in range(many)))
    with pytest.raises(StateError, match=f"{many} such records in total"):
        crew.worker().run()
