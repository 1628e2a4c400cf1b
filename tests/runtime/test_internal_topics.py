"""Foreign records in an app's internal topics become dead letters, and the app continues."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import (
    App,
    Json,
    Record,
    Text,
    Tumbling,
    dead_letter,
    key_value_store,
    mean,
    quantile,
    total,
    variance,
)
from streams.broker import NewTopic
from streams.durations import milliseconds
from streams.errors import RecordsRefused
from tests.support.crew import Crew

if TYPE_CHECKING:
    from streams.records import Headers

INPUTS = ("events", "people", "marks")
PARTITIONS = 2


class Keep:
    def open(self, context: Any) -> None:
        self.store = context.store("kept")

    def process(self, record: Any, context: Any) -> None:
        self.store.put(record.key, record.value)
        context.forward(record)


def both(*pair: Any) -> list[Any]:
    return list(pair)


def program() -> App:
    """All kinds of steps downstream of internal topics; records on which they fail become dead letters."""
    app = App("app", commit_interval=0.05, dead_letter_limit=1.0)
    events = app.stream("events", key=Text(), value=Json(int)).filter(lambda value: value is not None)
    people = app.table("people", key=Text(), value=Json(int))
    marks = app.table("marks", key=Text(), value=Text())
    people.join_foreign_key(marks, lambda value: "abc"[value % 3], both, store="by-mark", result=Json()).to(
        "by-mark"
    )
    people.group_by(str, value=Json(int)).count("groups", on_error=dead_letter).to("groups")
    people.group_by(lambda value: value % 2, key=Json(int), value=Json(int)).aggregate(
        "figures",
        on_error=dead_letter,
        sum=total(),
        mean=mean(),
        variance=variance(),
        median=quantile(0.5),
    ).to("figures")
    people.group_by(lambda value: str(value % 2), value=Json(int)).reduce(
        "sums", lambda one, two: one + two, lambda one, two: one - two, on_error=dead_letter
    ).to("sums")
    grouped = events.group_by(lambda value: str(value % 3), store="by-rest")
    grouped.count("counts", on_error=dead_letter).to("counts")
    grouped.window(Tumbling(milliseconds=20)).count("windows", on_error=dead_letter).updates().to("windows")
    rekeyed = events.key_by(lambda value: str(value % 2))
    rekeyed.to_table("latest").to_stream().to("latest", value=Json(int))
    rekeyed.process(Keep, stores=[key_value_store("kept")], on_error=dead_letter).to("kept", value=Json())
    left, right = (rekeyed.repartition(side, value=Json(int)) for side in ("left", "right"))
    left.join(right, both, within=milliseconds(10), store="pairs").to("pairs")
    return app


def internal_topics() -> list[str]:
    return sorted(program().topology.repartitions)


def send_real(crew: Crew) -> None:
    for number in range(12):
        key = b"abc"[number % 3 : number % 3 + 1]
        crew.send("events", Record(key, b"%d" % number, 100 + number))
        crew.send("people", Record(key, b"%d" % number, 100 + number))
        crew.send("marks", Record(key, b'"%d"' % number, 100 + number))


def results(crew: Crew) -> dict[str, Any]:
    """The last result of each key, and the stores' contents."""
    topics = [topic for topic in crew.app.topology.output_topics if not topic.startswith("app-")]
    return {topic: crew.latest(topic) for topic in topics} | answers(crew)


def answers(crew: Crew) -> dict[str, Any]:
    queries = crew.queries()
    plain = [name for name in queries.names if queries.definition(name).retention is None]
    # Each topology has its own class of combined results.
    return {f"store {name}": [tuple(map(repr, entry)) for entry in queries.entries(name)] for name in plain}


@pytest.fixture(scope="module")
def without_faults() -> dict[str, Any]:
    crew = Crew(program(), INPUTS, PARTITIONS)
    crew.start()
    send_real(crew)
    crew.settle()
    found = results(crew)
    crew.stop()
    return found


FOREIGN: list[tuple[bytes | None, bytes | None]] = [
    (b"\xff", b"\xff"),
    (b"a", b"\xff\xff"),
    (b"a", b"{"),
    (b"a", b""),
    (None, b"\x93"),
    (b"\xff\xffstreams.schema", b"\0" * 100),
    (b"a", b"[" * 100_000),
]


@pytest.mark.parametrize("topic", internal_topics())
def test_unreadable_records_become_dead_letters_and_change_no_result(without_faults, topic):
    crew = Crew(program(), INPUTS, PARTITIONS)
    crew.start()
    for number, (key, value) in enumerate(FOREIGN):
        crew.send(topic, Record(key, value, 100, partition=number % PARTITIONS))
    send_real(crew)
    crew.settle()
    assert results(crew) == without_faults
    letters = Counter(
        (item.key, item.value)
        for item in crew.read("app-dead-letters")
        if ("__streams.errors.topic", topic.encode()) in (item.headers or [])
    )
    assert letters == Counter(FOREIGN)
    crew.stop()
    crew.lose_disk()
    crew.start()
    crew.settle()
    assert answers(crew).items() <= without_faults.items()
    crew.stop()


def packed(*parts: Any) -> bytes:
    return msgspec.msgpack.encode(parts)


KEYS = [b"a", b"\xff", b"", None, b"0", b"1", b"[1]", b"null", b"\xff\xffstreams.schema", b"\0" * 9]
VALUES = [
    *(
        None,
        b"",
        b"null",
        b"{",
        b"\xff",
        b"1",
        b"[]",
        b"1e400",
        b"1" * 400,
        b"[" * 100_000,
        b"\xdd\xff\xff\xff\xff",
    ),
    *(packed(b"a", b"b", action) for action in (0, 1, 2, 3, 99, -1)),
    *(packed(b"\xff", None, 0), packed(b"a", None, 1), packed(None, None, 0), packed(b"a", b"b")),
    *(packed(None, None), packed(b"b", b"1"), packed(b"b", b"{"), packed(b"b", 1), packed(*range(50))),
]
HEADERS: list[Headers | None] = [
    None,
    [("__streams.removed", None)],
    [("__streams.changelog", b"metadata")],
    [("", b"")],
]
TIMES = [0, -1, 1, 1_000, 10**15, 2**62, -(2**62)]


@pytest.mark.parametrize("seed", range(3))
def test_no_record_in_an_internal_topic_ends_a_worker(seed):
    """Foreign records that can be read change results; they must have no other effect, even after a lost
    disk.
    """
    choose = random.Random(seed)
    crew = Crew(program(), INPUTS, PARTITIONS)
    crew.start()
    topics = [*internal_topics(), *INPUTS]
    for _ in range(40):
        key, value, time = choose.choice(KEYS), choose.choice(VALUES), choose.choice(TIMES)
        foreign = Record(key, value, time, choose.choice(HEADERS), partition=choose.randrange(PARTITIONS))
        with suppress(RecordsRefused):
            crew.send(choose.choice(topics), foreign)
        if choose.random() < 0.3:
            send_real(crew)
        if choose.random() < 0.2:
            crew.settle()
        if choose.random() < 0.05:
            crew.settle()
            crew.stop()
            crew.lose_disk()
            crew.start()
    crew.settle()
    before = answers(crew)
    crew.stop()
    crew.lose_disk()
    crew.start()
    crew.settle()
    assert answers(crew) == before
    crew.stop()


def test_dead_letters_are_written_and_never_read():
    crew = Crew(program(), INPUTS, PARTITIONS)
    crew.admin.create_topics([NewTopic(name="app-dead-letters", partitions=1)])
    crew.start()
    crew.send("app-dead-letters", Record(b"\xff", b"\xff", -1), Record(None, None, 0))
    send_real(crew)
    crew.settle()
    assert len(crew.read("app-dead-letters")) == 2
    crew.stop()
