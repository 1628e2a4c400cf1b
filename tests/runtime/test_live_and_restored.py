"""State is equal whether it was processed, restored on a new disk, or taken over from a standby replica.

Any input is processed by two crews of workers: one without faults, and one whose workers lose their disks and
die. Their outputs and query results must be equal.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given, settings as hypothesis_settings, strategies as st

from streams import App, Json, Record, Session, Sliding, Text, Tumbling, dead_letter, key_value_store
from streams.durations import milliseconds
from streams.errors import StateError
from streams.events import Event
from streams.partitioning import partition_for
from streams.state.store import Changes
from tests.support.crew import Crew
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PARTITIONS = 2
INPUTS = ("events", "people", "marks", "prices")
AT_COMMITS = ("counts", "groups", "windows", "sessions", "sliding")
"""Outputs that depend on the times of commits: compared by the last value of each key."""


class Marks:
    """Text whose payload ``-`` is read as ``None``, and whose payload ``!`` cannot be read."""

    name = "marks"

    def serialize(self, values: Sequence[str]) -> Iterable[bytes]:
        return map(str.encode, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[str | None]:
        for payload in payloads:
            if payload == b"!":
                raise ValueError("not a mark")
            yield None if payload == b"-" else payload.decode()


class Previous:
    """Forwards the key's previous value; a value of zero deletes it."""

    def __init__(self, store: str) -> None:
        self._name = store

    def open(self, context: Any) -> None:
        self.store = context.store(self._name)

    def process(self, record: Any, context: Any) -> None:
        context.forward(Record(record.key, [self.store.get(record.key), record.value], record.timestamp))
        if record.value == 0:
            self.store.delete(record.key)
        else:
            self.store.put(record.key, record.value)


class Lasting(Previous):
    def __init__(self) -> None:
        super().__init__("lasting")


class Passing(Previous):
    def __init__(self) -> None:
        super().__init__("passing")


def both(*pair: Any) -> list[Any]:
    return list(pair)


def program() -> App:
    app = App("same", commit_interval=0.05, dead_letter_limit=1.0, standby_replicas=1, max_poll_records=5)
    events = app.stream("events", key=Text(), value=Json(), tombstones=True)
    people = app.table("people", key=Text(), value=Json())
    marks: Any = app.table("marks", key=Text(), value=Marks())
    prices = app.global_table("prices", key=Text(), value=Json())
    events.left_join(people, both).to("left")
    events.join(people, both).to("inner")
    events.join(marks, both).to("marked")
    people.filter(lambda value: value != 1).map(lambda value: [value]).to("mapped")
    people.outer_join(marks, both).to("pairs")
    by_mark = people.join_foreign_key(
        marks, lambda value: "abc"[value] if value < 3 else None, both, store="by-mark", result=Json()
    )
    by_mark.to("by-mark")
    people.group_by(str, value=Json()).count("groups").to("groups")
    events.to_table("kept").to_stream(tombstones=True).to("kept", value=Json())
    events.process(Lasting, stores=[key_value_store("lasting")], on_error=dead_letter).to(
        "lasting", value=Json()
    )
    events.process(
        Passing, stores=[key_value_store("passing", ttl=milliseconds(30))], on_error=dead_letter
    ).to("passing", value=Json())
    grouped = events.filter(lambda value: value is not None).group_by_key()
    grouped.count("counts").to("counts")
    kept = milliseconds(40)
    windows = grouped.window(Tumbling(milliseconds=20), grace=milliseconds(10), keep=kept).count("windows")
    windows.updates().to("windows")
    windows.final().to("final")
    windows.late().to("late", value=Json())
    grouped.window(Session(milliseconds=15), grace=milliseconds(5), keep=kept).count("sessions").updates(
        tombstones=True
    ).to("sessions")
    grouped.window(Sliding(milliseconds=15), grace=milliseconds(5), keep=kept).count("sliding").updates().to(
        "sliding"
    )
    events.left_join_global(prices, lambda _: "a", both).to("priced")
    return app


class Sent(NamedTuple):
    """A record of the input, and the fault of the workers after it."""

    topic: str
    key: bytes | None
    value: bytes | None
    time: int
    then: str


@st.composite
def inputs(draw: st.DrawFn) -> list[Sent]:
    moves = draw(
        st.lists(
            st.tuples(
                st.sampled_from(INPUTS),
                st.sampled_from([b"a", b"a", b"b", b"b", b"c", b"\xff", None]),
                st.sampled_from([b"0", b"1", b"2", b"3", b"null", b" null ", b"{", None]),
                st.integers(-15, 25),
                st.sampled_from(["", "", "", "", "", "wait", "restart", "lose", "kill", "take over"]),
            ),
            min_size=1,
            max_size=30,
        )
    )
    marks = {b"null": b"-", b" null ": b"-", b"{": b"!"}
    sent, now = [], 100
    for topic, key, value, step, then in moves:
        now += max(0, step)
        payload = marks.get(value or b"", value) if topic == "marks" else value
        sent.append(Sent(topic, key, payload, now + min(0, step), then))
    return sent


def send(crew: Crew, sent: Sent) -> None:
    count = crew.partitions
    partition = 0 if sent.key is None else partition_for(sent.key, count)
    crew.send(sent.topic, Record(sent.key, sent.value, sent.time, partition=partition))


def disturb(crew: Crew, then: str) -> None:
    """Inject a fault on which results must not depend."""
    (slot,) = crew.alive
    if then == "take over":
        crew.start(slot + 1)
        crew.settle()
        crew.until(lambda: all(worker.standby_lag for worker in crew.alive.values()))
        crew.settle()
        crew.kill(slot)
    elif then == "kill":
        crew.kill(slot)
        crew.start(slot)
    else:
        crew.stop(slot)
        if then == "lose":
            crew.lose_disk(slot)
        crew.start(slot)


def window_of(value: bytes | None) -> tuple[str, int, int]:
    """The key and the bounds of a result's window."""
    assert value is not None
    result = msgspec.json.decode(value)
    return result["key"], result["start"], result["end"]


def outcome(crew: Crew) -> dict[str, Any]:
    """The outputs and the query results."""
    found: dict[str, Any] = {}
    for topic in crew.app.topology.output_topics:
        if topic.startswith("same-"):
            continue
        records = crew.read(topic)
        if topic in AT_COMMITS:
            if topic in ("counts", "groups"):
                found[topic] = crew.latest(topic)
            else:
                # The last result of each window, without its event time, which depends on commits and
                # restarts, like earlier results.
                last = {window_of(item.value): item.value or b"" for item in records}
                # A session that was merged into another one is only known, and deleted, if there was a commit
                # before.
                found[topic] = {
                    window: value
                    for window, value in last.items()
                    if msgspec.json.decode(value)["value"] is not None
                }
        else:
            keyed = [item for item in records if item.key is not None]
            found[topic] = [(item.partition, item.key, item.value, item.timestamp) for item in keyed]
            # A producer may put a record without a key into any partition.
            found[f"{topic} without keys"] = Counter(
                (item.value, item.timestamp) for item in records if item.key is None
            )
    found["dead letters"] = Counter(
        (
            item.key,
            item.value,
            *(value for name, value in item.headers or () if name.endswith(("topic", "offset"))),
        )
        for item in crew.read("same-dead-letters")
    )
    queries = crew.queries(next(iter(crew.alive)))
    for store in queries.names:
        if queries.definition(store).retention is None:
            found[f"store {store}"] = queries.entries(store)
        else:
            found[f"store {store}"] = queries.windows(store)
        if queries.definition(store).lists_windows:
            found[f"windows {store}"] = [queries.windows(store, key) for key in ("a", "b", "c")]
    return found


@hypothesis_settings(max_examples=25)
@example(
    [
        Sent("events", b"a", b"0", 87, "take over"),
        Sent("events", b"a", b"0", 87, ""),
        Sent("events", b"a", b"0", 123, "lose"),
        Sent("events", b"a", b"0", 122, ""),
        Sent("events", b"c", b"0", 123, ""),
        Sent("events", b"a", b"0", 138, ""),
        Sent("events", b"a", b"0", 123, ""),
        Sent("events", b"c", b"0", 138, ""),
        Sent("people", b"a", b"0", 147, "kill"),
    ]
)
@given(inputs())
def test_results_and_answers_do_not_depend_on_where_state_comes_from(records):
    calm, faulty = (Crew(program(), INPUTS, PARTITIONS) for _ in range(2))
    for crew in (calm, faulty):
        crew.start()
        for sent in records:
            send(crew, sent)
            # Records that are processed together are merged by their times.
            if sent.then:
                crew.settle()
            if crew is faulty and sent.then not in ("", "wait"):
                disturb(crew, sent.then)
                crew.settle()
        crew.settle()
        # A final lookup of each table's contents.
        for key in (b"a", b"b", b"c"):
            send(crew, Sent("events", key, b"9", 1_000, ""))
        crew.settle()
    assert outcome(faulty) == outcome(calm)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(("topic", "text"), [("people", b"null"), ("people", b" null"), ("marks", b"-")])
def test_a_value_that_reads_as_none_is_a_deletion(topic, text, lost):
    crew = Crew(program(), INPUTS, PARTITIONS)
    crew.start()
    send(crew, Sent(topic, b"a", b"2", 100, ""))
    send(crew, Sent("prices", b"a", b"2", 100, ""))
    crew.settle()
    send(crew, Sent(topic, b"a", text, 101, ""))
    send(crew, Sent("prices", b"a", b"null", 101, ""))
    crew.settle()
    if lost:
        crew.stop()
        crew.lose_disk()
        crew.start()
        crew.settle()
    send(crew, Sent("events", b"a", b"7", 102, ""))
    crew.settle()
    assert crew.read("inner" if topic == "people" else "marked") == []
    assert [item.value for item in crew.read("left")] == [b"[7,null]"]
    assert [item.value for item in crew.read("priced")] == [b"[7,null]"]
    assert crew.queries().entries(topic) == []
    crew.stop()


def test_what_a_global_table_cannot_read_is_counted_and_logged_once():
    crew = Crew(program(), INPUTS, PARTITIONS)
    worker = crew.start()
    with capture_logs() as logs:
        for key, value in ((b"a", b"1"), (None, b"1"), (b"\xff", b"1"), (b"a", b"{"), (b"b", b"null")):
            send(crew, Sent("prices", key, value, 100, ""))
        crew.turn(10)
    assert sum(counts.skipped["prices"] for counts in worker.counts) == 3
    (line,) = [entry for entry in logs if entry["event"] == Event.RECORDS_SKIPPED]
    assert (line["topic"], line["store"], line["log_level"]) == ("prices", "prices", "warning")
    assert {"partition", "offset", "reason"} <= line.keys()
    send(crew, Sent("events", b"a", b"7", 102, ""))
    crew.settle()
    assert [item.value for item in crew.read("priced")] == [b"[7,1]"]
    crew.stop()


def test_state_that_cannot_be_read_is_no_fault_of_the_record():
    app = App("app", commit_interval=0.05, dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json())
    store = key_value_store("lasting", value=Json())
    stream.process(Lasting, stores=[store], on_error=dead_letter).to("out", value=Json())
    crew = Crew(app)
    crew.start()
    send(crew, Sent("in", b"a", b"7", 1, ""))
    crew.settle()
    crew.stop()
    database = crew.disks[0].open(["lasting"], 0)
    database.write({"lasting": Changes({b"a": b"{"})}, {})
    database.close()
    crew.start()
    send(crew, Sent("in", b"a", b"8", 2, ""))
    with pytest.raises(StateError, match="'lasting' has a value that Json cannot decode") as failed:
        crew.settle()
    assert failed.value.exit_code == 8
    assert crew.read("app-dead-letters") == []
