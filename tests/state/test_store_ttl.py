"""Stores whose entries expire some time after they were put, compared with a model of all times."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings, strategies as st

from streams import App, Json, Record, Text, key_value_store
from streams.durations import milliseconds, seconds
from streams.errors import ProcessingError, TopologyError
from streams.policy import fail, skip
from streams.serde import Bytes
from streams.state.buffered import KeyValueState, WindowState
from streams.state.deadlines import Deadlines
from streams.state.expiring import ExpiringState
from streams.state.memory import MemoryDatabases
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.operators.processor import Context
    from streams.records import Batch
    from streams.state.expiring import Expiring


class Command(NamedTuple):
    """A command for the processor: ``put``, ``get``, ``delete`` or ``scan``; then it may fail."""

    verb: str
    key: str
    number: int
    time: int
    fails: bool = False


class Obeys:
    def open(self, context: Context) -> None:
        self.store = context.store("entries")

    def process(self, record: Record[Any, Any], context: Context) -> None:
        verb, key, number, fails = record.value
        answer: Any = None
        if verb == "put":
            self.store.put(key, number)
        elif verb == "delete":
            self.store.delete(key)
        elif verb == "scan":
            answer = list(self.store.scan())
        else:
            answer = self.store.get(key)
        if fails:
            raise ValueError("undone")
        if verb in ("get", "scan"):
            context.forward(replace(record, value=answer))


class Model:
    def __init__(self, ttl: int) -> None:
        self.ttl = ttl
        self.now = -1
        self.entries: dict[str, tuple[int, int]] = {}

    def obey(self, command: Command) -> list[Any]:
        self.now = max(self.now, command.time)
        self.entries = {
            key: (number, put) for key, (number, put) in self.entries.items() if self.now < put + self.ttl
        }
        if command.fails:
            return []
        if command.verb == "put":
            self.entries[command.key] = command.number, self.now
        elif command.verb == "delete":
            self.entries.pop(command.key, None)
        elif command.verb == "scan":
            return [[[key, number] for key, (number, _) in sorted(self.entries.items())]]
        else:
            return [self.entries.get(command.key, (None,))[0]]
        return []


class Entries:
    """An app with a store, and a downstream step in which a slice can be made to fail."""

    def __init__(self, ttl: int, *, batches: bool = False) -> None:
        app = App("test")
        self.failing = False
        source = app.stream("in", key=Text(), value=Json())
        source.process(
            ObeysInBatches if batches else Obeys,
            stores=[key_value_store("entries", ttl=milliseconds(ttl))],
            on_error=skip,
        ).to("out", value=Json())
        source.peek(self._explode, on_error=fail)
        self.driver = TopologyDriver(app)

    def _explode(self, _value: Any) -> None:
        if self.failing:
            raise RuntimeError("the slice fails")

    def send(self, commands: Sequence[Command]) -> list[Any]:
        self.driver.send_all(
            "in",
            [Record("k", [each.verb, each.key, each.number, each.fails], each.time) for each in commands],
        )
        return self.driver.values("out")


class ObeysInBatches(Obeys):
    def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
        for record in batch.records():
            self.process(record, context)


@st.composite
def commands(draw: st.DrawFn) -> list[Command]:
    moves = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["put", "put", "put", "get", "get", "delete", "scan"]),
                st.sampled_from("abcde"),
                st.one_of(st.integers(0, 3), st.integers(0, 30)),
                st.integers(0, 20),
                st.integers(0, 5),
            ),
            min_size=1,
            max_size=60,
        )
    )
    ahead = 0
    made = []
    for number, (verb, key, further, behind, chance) in enumerate(moves):
        ahead += further
        made.append(Command(verb, key, number, max(0, ahead - behind), chance == 0))
    return made


@settings(max_examples=300)
@given(commands(), st.integers(1, 40), st.data())
def test_entries_are_there_until_their_time_has_come(
    given_commands: list[Command], ttl: int, data: st.DataObject
) -> None:
    entries, model = Entries(ttl), Model(ttl)
    driver = entries.driver
    left = given_commands
    while left:
        size = data.draw(st.integers(1, len(left)))
        part, left = left[:size], left[size:]
        fault = data.draw(st.sampled_from(["restart", "fail", None]))
        if fault == "restart":
            driver.restart()
        if fault == "fail":
            entries.failing = True
            with pytest.raises(ProcessingError, match="the slice fails"):
                entries.send(part)
            entries.failing = False
        expected = [answer for command in part for answer in model.obey(command)]
        assert entries.send(part) == expected
        # What has expired is gone, and for the rest there is one deadline each.
        held = {key: entry.value for key, entry in driver.store("entries").items()}
        assert held == {key: number for key, (number, _) in model.entries.items()}
        deadlines = driver.store("entries-deadlines")
        assert sorted(key for _, key in deadlines) == sorted(held)
        assert all(time > model.now for time, _ in deadlines)


def put(key: str, number: int, time: int) -> Command:
    return Command("put", key, number, time)


def get(key: str, time: int) -> Command:
    return Command("get", key, 0, time)


def test_an_entry_goes_at_the_very_end_of_its_time():
    entries = Entries(10)
    assert entries.send([put("a", 1, 100)]) == []
    assert entries.send([get("a", 109)]) == [1]
    assert entries.send([get("a", 110)]) == [None]


def test_within_a_batch_an_entry_goes_between_two_records():
    assert Entries(10).send([put("a", 1, 100), get("a", 109), get("a", 110), get("a", 50)]) == [1, None, None]


def test_all_records_of_a_batch_have_the_stream_time_at_its_end():
    entries = Entries(10, batches=True)
    assert entries.send([put("a", 1, 100), get("a", 150)]) == [1]
    assert entries.send([get("a", 159)]) == [1]
    assert entries.send([get("a", 160)]) == [None]


def test_putting_again_makes_an_entry_last_longer():
    entries = Entries(10)
    entries.send([put("a", 1, 100)])
    entries.send([put("a", 2, 109)])
    assert entries.send([get("a", 118)]) == [2]
    assert entries.send([get("a", 119)]) == [None]


def test_an_entry_without_a_time_to_live_stays():
    app = App("test")
    source = app.stream("in", key=Text(), value=Json())
    source.process(Obeys, stores=[key_value_store("entries")]).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send("in", ["put", "a", 1, False], key="k", timestamp=0)
    driver.send("in", ["get", "a", 0, False], key="k", timestamp=10**12)
    assert driver.values("out") == [1]


def test_state_is_bounded_by_what_is_alive():
    entries = Entries(1000)
    for time in range(0, 12_000, 10):
        entries.send([put(f"key-{time}", time, time), put("hot", time, time)])
        assert len(entries.driver.store("entries")) <= 102
        assert len(entries.driver.store("entries-deadlines")) <= 102
    entries.driver.restart()
    assert entries.send([get("key-11990", 12_500)]) == [11_990]
    entries.send([get("hot", 22_000)])
    assert entries.driver.store("entries") == entries.driver.store("entries-deadlines") == {}


def test_putting_and_deleting_one_key_leaves_no_entries():
    entries = Entries(10**6)
    for time in range(500):
        entries.send([put("a", 1, time), Command("delete", "a", 0, time)])
    assert entries.driver.store("entries") == entries.driver.store("entries-deadlines") == {}


def test_a_shorter_time_to_live_holds_for_what_is_put_from_now_on():
    databases = MemoryDatabases()
    stored = databases.open(["entries", "deadlines"], 0)
    now = 0

    def open_with(ttl: int) -> tuple[ExpiringState[str, int], WindowState[str, bytes]]:
        definition = key_value_store("entries", ttl=milliseconds(ttl))
        state: KeyValueState[str, Expiring] = KeyValueState(
            stored.store("entries"), definition.key, definition.value
        )
        times: WindowState[str, bytes] = WindowState(
            stored.store("deadlines"), definition.key, Bytes(), retention=0
        )
        return ExpiringState(state, Deadlines(times), ttl=ttl, now=lambda: now), times

    entries, _ = open_with(1000)
    entries.put("a", 1)
    entries, times = open_with(10)
    entries.put("a", 2)
    assert list(times.entries()) == [((10, "a"), b"")]


def test_another_step_that_uses_the_store_sees_entries_go_too():
    class Asks:
        def process(self, record: Record[Any, Any], context: Context) -> None:
            context.forward(Record(record.key, context.store("entries").get("a"), record.timestamp))

    app = App("test")
    source = app.stream("in", key=Text(), value=Json())
    source.process(Obeys, stores=[key_value_store("entries", ttl=milliseconds(10))])
    source.process(Asks, stores=["entries"]).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send("in", ["put", "a", 1, False], key="k", timestamp=0)
    driver.send("in", ["get", "b", 0, False], key="k", timestamp=9)
    driver.send("in", ["get", "b", 0, False], key="k", timestamp=10)
    assert driver.values("out") == [1, 1, None]


def test_prefixes_and_reads_of_many_keys_leave_out_what_has_expired():
    class Asks(Obeys):
        def process(self, record: Record[Any, Any], context: Context) -> None:
            if record.value is None:
                found = self.store.get_many(["aa", "ab", "b"]), list(self.store.prefix(b"a"))
                context.forward(Record(record.key, [*found, list(self.store.scan(reverse=True))], 0))
            else:
                self.store.put_many(record.value)

    app = App("test")
    source = app.stream("in", key=Text(), value=Json(), tombstones=True)
    source.process(Asks, stores=[key_value_store("entries", ttl=seconds(1))]).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send_all(
        "in", [Record("k", {"aa": 1, "b": 2}, 0), Record("k", {"ab": 3}, 500), Record("k", None, 1000)]
    )
    assert driver.values("out") == [[[None, 3, None], [["ab", 3]], [["ab", 3]]]]


def test_an_invalid_time_to_live_is_refused():
    with pytest.raises(TopologyError, match="'entries' needs a ttl of 1 ms or more, got 0"):
        key_value_store("entries", ttl=milliseconds(0))


def test_the_schema_tells_that_entries_expire():
    plain, expiring = key_value_store("entries"), key_value_store("entries", ttl=milliseconds(5))
    assert plain.schema != expiring.schema == key_value_store("entries", ttl=milliseconds(6)).schema
