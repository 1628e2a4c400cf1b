"""Records that the broker does not take, for their time, size or missing key: their step's policy, alone."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from streams import (
    App,
    Bytes,
    Hopping,
    Json,
    Session,
    Sliding,
    Text,
    Tumbling,
    collect,
    days,
    dead_letter,
    fail,
    skip,
)
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.broker.memory import MemoryBroker
from streams.broker.reading import read_to_end
from streams.errors import ProcessingError, StateError, TransactionAborted
from streams.records import Output
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from streams.broker import Broker
    from streams.policy import ErrorPolicy

HOUR = 3_600_000
SMALL = 10_000
"""Bytes that a topic takes, where a test makes one that takes little."""

Row = tuple[bytes | None, bytes | None, int]


class Bench:
    """Topics of its own on a broker, and workers on threads."""

    def __init__(self, broker: Broker, prefix: str, folder: Path) -> None:
        self.broker = broker
        self.prefix = prefix
        self.folder = folder
        self.admin = broker.admin()
        self.errors: list[BaseException] = []

    def topic(self, name: str, partitions: int = 1, **settings: str) -> str:
        named = {key.replace("_", "."): value for key, value in settings.items()}
        full = f"{self.prefix}-{name}"
        self.admin.create_topics([NewTopic(name=full, partitions=partitions, settings=named)])
        return full

    def app(self, **settings: Any) -> App:
        chosen: dict[str, Any] = {
            "state_dir": str(self.folder),
            "dead_letter_limit": 1.0,
            "commit_interval": 0.2,
            **settings,
        }
        return App(f"{self.prefix}-app", **chosen)

    def write(self, topic: str, rows: Sequence[Row]) -> None:
        keys, values, times = zip(*rows, strict=True)
        producer = self.broker.producer()
        producer.produce(Output(topic, keys, values, times))
        producer.flush(30)
        producer.close()

    def read(self, topic: str) -> list[Any]:
        return [
            row
            for fetched in read_to_end(self.broker, [topic])
            for row in zip(
                fetched.keys(),
                fetched.values(),
                fetched.timestamps(),
                fetched.headers() or [None] * len(fetched),
                strict=True,
            )
        ]

    def values(self, topic: str) -> Counter[bytes | None]:
        return Counter(value for _, value, _, _ in self.read(topic))

    def headers(self, topic: str) -> list[dict[str, bytes]]:
        return [dict(headers or ()) for _, _, _, headers in self.read(topic)]

    def committed(self, app: App) -> int:
        return sum(self.admin.committed_offsets(app.name).values())

    def run(self, app: App, until: Callable[[], bool], timeout: float = 60.0) -> None:
        """Run one worker until the condition holds, then stop it. Raises what ended it."""
        stop = threading.Event()
        raised: list[BaseException] = []

        def work() -> None:
            try:
                app.run(broker=self.broker, stop=stop)
            except BaseException as error:  # noqa: BLE001 - raised again below
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        deadline = time.monotonic() + timeout
        while thread.is_alive() and time.monotonic() < deadline and not until():
            time.sleep(0.05)
        reached = until()
        stop.set()
        thread.join(30)
        if raised:
            raise raised[0]
        assert reached, f"not within {timeout} s"


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def bench(request: pytest.FixtureRequest, prefix: str, tmp_path: Path) -> Bench:
    if request.param == "memory":
        return Bench(MemoryBroker(), prefix, tmp_path)
    return Bench(request.getfixturevalue("kafka"), prefix, tmp_path)


@pytest.fixture
def memory(prefix: str, tmp_path: Path) -> Bench:
    return Bench(MemoryBroker(), prefix, tmp_path)


def now() -> int:
    return time.time_ns() // 1_000_000


def mixed(count: int) -> list[Row]:
    """Rows whose values say what is wrong with them: nothing with most."""
    at = now()
    rows: list[Row] = []
    for number in range(count):
        wrong = {13: b"ahead", 57: b"large", 58: b"large", 91: b"keyless"}.get(number % 100, b"good")
        key = None if wrong == b"keyless" else b"k%d" % (number % 7)
        rows.append((key, b"%s %d" % (wrong, number), at))
    return rows


def is_of(kind: str, value: bytes) -> bool:
    return value.startswith((kind.encode(), b"good"))


def spoil(app: App, source: str, outputs: dict[str, str], policy: ErrorPolicy) -> None:
    """Write each kind of row where it cannot be written, and all the others beside it."""
    rows = app.stream(source, key=Bytes(), value=Bytes())
    for kind, topic in outputs.items():
        mine = rows.filter(partial(is_of, kind))
        mine.map(
            lambda value: value + bytes(2 * SMALL) if value.startswith(b"large") else value,
            timestamp=lambda value: now() + (3 * HOUR if value.startswith(b"ahead") else 0),
            name=f"make-{kind}",
        ).to(topic, key=Bytes(), value=Bytes(), on_error=policy, name=f"to-{kind}")


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_refused_records_become_dead_letters_and_all_others_come_through(bench, guarantee):
    source = bench.topic("in", 2)
    outputs = {
        "ahead": bench.topic("ahead", 2),
        "large": bench.topic("large", 2, max_message_bytes=str(SMALL)),
        "keyless": bench.topic("compacted", 2, cleanup_policy="compact"),
    }
    app = bench.app(guarantee=guarantee)
    spoil(app, source, outputs, dead_letter)
    rows = mixed(600)
    bench.write(source, rows)
    bench.run(app, lambda: bench.committed(app) >= len(rows))
    good = Counter(value for _, value, _ in rows if value and value.startswith(b"good"))
    for topic in outputs.values():
        found = bench.values(topic)
        assert set(found) == set(good)
        if guarantee == "exactly_once":
            assert found == good
    spoilt = {value for _, value, _ in rows if value and not value.startswith(b"good")}
    letters = bench.values(app.dead_letter_topic)
    assert set(letters) == spoilt
    if guarantee == "exactly_once":
        assert letters.total() == len(spoilt)
    steps = {headers["__streams.errors.step"] for headers in bench.headers(app.dead_letter_topic)}
    assert steps == {b"to-ahead", b"to-large", b"to-keyless"}


@pytest.mark.parametrize("kind", ["ahead", "large", "keyless"])
def test_under_policy_fail_the_error_has_the_coordinates_the_topic_the_reason_and_advice(memory, kind):
    source = memory.topic("in")
    settings = {
        "ahead": {},
        "large": {"max_message_bytes": str(SMALL)},
        "keyless": {"cleanup_policy": "compact"},
    }[kind]
    out = memory.topic("out", **settings)
    app = memory.app()
    spoil(app, source, {kind: out}, fail)
    rows = [row for row in mixed(100) if row[1] and row[1].startswith((kind.encode(), b"good"))]
    memory.write(source, rows)
    place = next(at for at, row in enumerate(rows) if row[1] and row[1].startswith(kind.encode()))
    with pytest.raises(ProcessingError) as ended:
        memory.run(app, lambda: False, timeout=20)
    said = str(ended.value)
    assert f"step 'to-{kind}' failed on {source}-0 offset {place}," in said
    assert f"topic {out} " in said
    assert "on_error=dead_letter" in said
    assert ended.value.exit_code == 4
    # What was refused is not there, and neither is anything that is not committed.
    assert memory.committed(app) <= place
    assert all(value.startswith(b"good") for value in memory.values(out))


def test_the_error_on_a_real_broker_says_what_to_set(kafka, prefix, tmp_path):
    bench = Bench(kafka, prefix, tmp_path)
    source, out = bench.topic("in"), bench.topic("out")
    app = bench.app()
    spoil(app, source, {"ahead": out}, fail)
    bench.write(source, mixed(20))
    with pytest.raises(ProcessingError, match=f"offset 13,.* topic {out} .* ahead of") as ended:
        bench.run(app, lambda: False)
    assert "message.timestamp.after.max.ms" in str(ended.value)


def test_one_of_several_rows_of_a_record_is_refused_alone(memory):
    source, out = memory.topic("in"), memory.topic("out", cleanup_policy="compact")
    app = memory.app()
    stream = app.stream(source, value=Text())
    parts = stream.flat_map(lambda value: [f"{value}-{part}" for part in "abc"])
    keyed = parts.key_by(lambda value: None if value == "2-b" else "k")
    merged = keyed.merge(keyed.filter(lambda value: value == "2-c", name="again"))
    merged.to(out, key=Text(), value=Text(), on_error=dead_letter)
    memory.write(source, [(None, b"%d" % number, now()) for number in range(4)])
    memory.run(app, lambda: memory.committed(app) >= 4)
    expected = Counter(f"{number}-{part}".encode() for number in range(4) for part in "abc")
    expected[b"2-c"] += 1
    del expected[b"2-b"]
    assert memory.values(out) == expected
    assert memory.values(app.dead_letter_topic) == {b"2": 1}


def test_results_of_aggregates_that_are_refused_get_their_steps_policy_alone(bench):
    source = bench.topic("in")
    out = bench.topic("out", max_message_bytes=str(SMALL))
    app = bench.app()
    groups = app.stream(source, key=Text(), value=Text()).group_by_key()
    groups.aggregate("all", collect(limit=1_000)).to(out, on_error=dead_letter, name="to-out")
    rows = [(b"few", b"x" * 100, now())] * 5 + [(b"many", b"y" * 100, now())] * 300
    bench.write(source, [*rows, (b"few", b"last", now())])
    bench.run(app, lambda: bench.committed(app) >= len(rows) + 1)
    assert {key for key, _, _, _ in bench.read(out)} <= {b"few", b"many"}
    last = [value for key, value, _, _ in bench.read(out) if key == b"few"][-1]
    assert last.endswith(b'"last"]')
    letters = bench.headers(app.dead_letter_topic)
    assert letters
    assert {letter["__streams.errors.step"] for letter in letters} == {b"to-out"}


def test_a_change_of_a_store_that_its_changelog_refuses_ends_the_worker_with_the_store_and_sizes(bench):
    source, app = bench.topic("in"), bench.app()
    groups = app.stream(source, key=Text(), value=Text()).group_by_key()
    groups.aggregate("all", collect(limit=1_000)).to(bench.topic("out"), on_error=skip)
    bench.admin.create_topics(
        [
            NewTopic(
                name=f"{app.name}-all-changelog",
                partitions=1,
                settings={"cleanup.policy": "compact", "max.message.bytes": str(SMALL)},
            )
        ]
    )
    bench.write(source, [(b"many", b"y" * 100, now())] * 300)
    with pytest.raises(StateError) as ended:
        bench.run(app, lambda: False)
    said = str(ended.value)
    assert "store 'all', task 0_0: the entry of key b'many' has a key of 4 and a value of" in said
    assert f"{app.name}-all-changelog" in said
    assert "max.message.bytes" in said
    assert ended.value.exit_code == 8


@pytest.mark.parametrize(
    "window",
    [Tumbling(days=7), Hopping(size=days(7), advance=days(1)), Sliding(days=7), Session(days=7)],
    ids=["tumbling", "hopping", "sliding", "session"],
)
def test_updates_of_windows_that_end_in_days_can_be_written_to_a_topic_with_kafkas_default(memory, window):
    source, out = memory.topic("in"), memory.topic("out")
    app = memory.app()
    groups = app.stream(source, key=Text(), value=Text()).group_by_key()
    groups.window(window).count("weekly").updates().to(out)
    times = [now() - 2_000, now() - 3_000, now()]
    memory.write(source, [(b"k", b"v", at) for at in times])
    memory.run(app, lambda: memory.committed(app) >= 3)
    found = memory.read(out)
    assert found
    assert max(stamp for _, _, stamp, _ in found) == max(times)


def test_updates_of_windows_of_a_week_come_through_on_a_real_broker(kafka, prefix, tmp_path):
    bench = Bench(kafka, prefix, tmp_path)
    source, out = bench.topic("in"), bench.topic("out")
    app = bench.app()
    groups = app.stream(source, key=Text(), value=Text()).group_by_key()
    groups.window(Tumbling(days=7)).count("weekly").updates().to(out)
    bench.write(source, [(b"k", b"v", now())] * 3)
    bench.run(app, lambda: bench.committed(app) >= 3)
    assert sum(1 for _ in bench.read(out)) >= 1


def test_topics_that_an_app_makes_take_any_event_time(bench):
    source = bench.topic("in")
    app = bench.app(create_topics=True)
    rows = app.stream(source, key=Text(), value=Text()).map(str, timestamp=lambda _: now() + 100 * HOUR)
    rows.group_by(lambda value: value, key=Text(), value=Text()).count("counts").to(f"{bench.prefix}-made")
    bench.write(source, [(b"k", b"v", now())] * 3)
    bench.run(app, lambda: bool(bench.values(f"{bench.prefix}-made")) if made(bench) else False)
    assert b"3" in bench.values(f"{bench.prefix}-made")


def made(bench: Bench) -> bool:
    return f"{bench.prefix}-made" in bench.admin.topics()


# --- attempts that fail one after another


def test_attempts_that_fail_one_after_another_wait_longer_and_are_a_stall_with_the_reason(memory):
    source, out = memory.topic("in"), memory.topic("out")
    app = memory.app(stall_timeout=1, commit_interval=0.1)
    app.stream(source, value=Bytes()).to(out, value=Bytes())
    memory.write(source, [(b"k", b"v", now())])
    attempts: list[float] = []

    def refuse(step: str) -> None:
        if step == "commit.before":
            attempts.append(time.monotonic())
            if len(attempts) < 8:
                raise TransactionAborted("the broker has its reasons")

    memory.broker.before = refuse
    with capture_logs() as logged:
        memory.run(app, lambda: memory.committed(app) >= 1)
    waits = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    # The first one is repeated at once: most of what aborts a transaction has passed by then.
    assert waits[0] < 1
    assert waits[-1] > 2
    assert memory.values(out) == {b"v": 1}
    reasons = [line["reason"] for line in logged if line["event"] == "partition stalled"]
    assert reasons
    assert "because no commit succeeded: the broker has its reasons" in reasons[0]


# --- dead letters that are refused themselves


def numbers(bench: Bench, source: str, **settings: Any) -> App:
    app = bench.app(**settings)
    app.stream(source, value=Json(int)).to(bench.topic("out"))
    return app


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_a_dead_letter_too_large_for_its_topic_is_written_with_the_beginning_of_its_value(bench, guarantee):
    source = bench.topic("in")
    letters = bench.topic("letters", max_message_bytes=str(SMALL))
    app = numbers(bench, source, dead_letter_topic=letters, guarantee=guarantee)
    rows: list[Row] = [(b"k", b"1", now()), (b"bad", b"x" * 50_000, now()), (b"k", b"2", now())]
    bench.write(source, rows)
    bench.run(app, lambda: bench.committed(app) >= 3)
    assert set(bench.values(f"{bench.prefix}-out")) == {b"1", b"2"}
    found = bench.read(letters)
    assert {(key, value) for key, value, _, _ in found} == {(b"bad", b"x" * 1024)}
    headers = bench.headers(letters)[0]
    assert headers["__streams.errors.topic"] == source.encode()
    assert headers["__streams.errors.partition"] == b"0"
    assert headers["__streams.errors.offset"] == b"1"
    assert headers["__streams.errors.left_out"] == b"most of the value"
    assert headers["__streams.errors.value_bytes"] == b"50000"


def test_a_dead_letter_whose_key_is_too_large_keeps_its_coordinates(memory):
    source = memory.topic("in")
    letters = memory.topic("letters", max_message_bytes="900")
    app = numbers(memory, source, dead_letter_topic=letters)
    memory.write(source, [(b"k" * 2_000, b"not a number", now())])
    memory.run(app, lambda: memory.committed(app) >= 1)
    assert [(key, value) for key, value, _, _ in memory.read(letters)] == [(None, None)]
    headers = memory.headers(letters)[0]
    assert headers["__streams.errors.offset"] == b"0"
    assert headers["__streams.errors.left_out"] == b"key, value and headers"
    assert headers["__streams.errors.key_bytes"] == b"2000"


def test_a_dead_letter_with_a_time_that_its_topic_refuses_is_written_with_the_time_of_writing(bench):
    source = bench.topic("in", message_timestamp_after_max_ms=str(2**63 - 1))
    letters = bench.topic("letters")
    app = numbers(bench, source, dead_letter_topic=letters)
    ahead = now() + 5 * HOUR
    bench.write(source, [(b"k", b"not a number", ahead)])
    bench.run(app, lambda: bench.committed(app) >= 1)
    ((_, value, stamp, _),) = bench.read(letters)
    assert value == b"not a number"
    assert abs(stamp - now()) < HOUR
    assert bench.headers(letters)[0]["__streams.errors.timestamp"] == b"%d" % ahead


def test_a_dead_letter_that_nothing_can_be_left_out_of_ends_the_worker_with_its_coordinates(memory):
    source = memory.topic("in")
    letters = memory.topic("letters", max_message_bytes="200")
    app = numbers(memory, source, dead_letter_topic=letters)
    memory.write(source, [(b"k", b"1", now()), (b"k", b"x" * 300, now())])
    with pytest.raises(ProcessingError, match=f"failed on {source}-0 offset 1 .*dead-letter topic") as ended:
        memory.run(app, lambda: False, timeout=20)
    assert ended.value.exit_code == 4


def test_undecodable_records_of_a_megabyte_and_of_twenty_become_whole_dead_letters(
    kafka, kafka_bootstrap, prefix, tmp_path
):
    bench = Bench(kafka, prefix, tmp_path)
    source = bench.topic("in")
    app = numbers(bench, source)
    sizes = [1_048_000, 20_000_000]
    chance = random.Random(7)
    bench.write(source, [(b"k", chance.randbytes(sizes[0]), now())])
    # What compression made small is large again where it is read.
    bench.broker = KafkaBroker({"bootstrap.servers": kafka_bootstrap}, producer={"compression.type": "zstd"})
    bench.write(source, [(b"k", b"x" * sizes[1], now()), (b"k", b"7", now())])
    bench.broker = kafka
    bench.run(app, lambda: bench.committed(app) >= 3)
    assert [len(value) for _, value, _, _ in bench.read(app.dead_letter_topic)] == sizes
    assert bench.values(f"{bench.prefix}-out") == {b"7": 1}
