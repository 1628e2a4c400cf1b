"""Resets on the memory broker: the results are those of a fresh run, whatever disks and interruptions."""

from __future__ import annotations

import random
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from streams import App, Text, Tumbling
from streams.broker import GroupSettings, NewTopic
from streams.errors import BrokerError, ConfigurationError, GroupActive, StateError, TopicError
from streams.events import Event
from streams.records import Output, Record, TopicPartition
from streams.replay.positions import AtOffsets, AtTime, Earliest, Latest
from streams.replay.reset import Reset
from streams.replay.reset_plan import (
    ResetPlan,
    ShiftBy,
    ToOffset,
    plan_reset,
)
from streams.replay.topic_notes import LARGEST_NOTES, decode_topics, encode_topics
from streams.runtime import commit_numbers
from streams.state.rocksdb import RocksDatabases
from tests.support.crew import Crew
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streams.replay.reset_plan import ResetPosition
    from streams.runtime.worker import Worker

GUARANTEES = ["exactly_once", "at_least_once"]


def counting(**settings: Any) -> App:
    """Counts by key and in windows, joins a table, and counts again by another key."""
    app = App("app", **{"commit_interval": 0.05} | settings)
    names = app.table("names", key=Text(), value=Text(), store="names")
    records = app.stream("in", key=Text(), value=Text())
    records.group_by_key().count("counts").to("out")
    records.group_by_key().window(Tumbling(seconds=10)).count("windows").final().to("final")
    records.join(names, lambda value, name: f"{name}{value}").group_by(str, value=Text()).count("named").to(
        "named"
    )
    return app


def record(key: str, value: str = "x", time: int = 1_000) -> Record[Any, Any]:
    return Record(key.encode(), value.encode(), time)


class Stage:
    """An app with its workers, and resets of it."""

    def __init__(self, make: Callable[[], App] = counting, **options: Any) -> None:
        self.crew = Crew(make(), inputs=options.pop("inputs", ("in", "names")), **{"partitions": 2} | options)

    def plan(self, position: ResetPosition = Earliest(), *topics: str, **more: Any) -> ResetPlan:  # noqa: B008 - frozen
        return plan_reset(
            self.crew.app.topology,
            self.crew.broker,
            application="app",
            position=position,
            topics=topics,
            **more,
        )

    def reset(self, position: ResetPosition = Earliest(), *topics: str) -> Reset:  # noqa: B008 - as above
        work = Reset(self.crew.broker, self.plan(position, *topics))
        work.run()
        return work

    def counts(self) -> dict[str, int]:
        """The content of the stores of all workers."""
        return {
            f"{store}:{key}": value
            for slot in self.crew.alive
            for store in ("counts", "named")
            for key, value in self.crew.queries(slot).entries(store)
        }

    def texts(self) -> dict[TopicPartition, str]:
        reader = self.crew.broker.consumer(GroupSettings(group="app"))
        places = [
            TopicPartition(topic, number)
            for topic, item in self.crew.admin.topics().items()
            for number in range(item.partitions)
        ]
        found = reader.committed_metadata(places)
        reader.close()
        return found


KEYS = "adef"
"""In both partitions."""

FIRST = [
    record(key, value, time)
    for time in range(1_000, 40_000, 3_000)
    for key, value in ("ax", "dx", "ey", "fz")
]
NAMES = [record(key, f"{key}-") for key in KEYS]


def first_run(stage: Stage, *slots: int) -> None:
    """Process input with these workers, then kill them: the disks are kept."""
    for slot in slots:
        stage.crew.start(slot)
    stage.crew.send("names", *NAMES)
    stage.crew.settle()
    stage.crew.send("in", *FIRST)
    stage.crew.settle()
    for slot in slots:
        stage.crew.stop(slot)


def expected(*records: Record[Any, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in records:
        key, value = item.key.decode(), item.value.decode()
        for name in (f"counts:{key}", f"named:{key}-{value}"):
            counts[name] = counts.get(name, 0) + 1
    return counts


@pytest.fixture(params=["memory", "rocksdb"])
def disks(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any] | None:
    if request.param == "memory":
        return None
    numbers = iter(range(100))
    return lambda: RocksDatabases(tmp_path / str(next(numbers)), 8 << 20, tasks=8)


def staged(disks: Callable[[], Any] | None = None, **settings: Any) -> Stage:
    more = {} if disks is None else {"new_disk": disks}
    return Stage(lambda: counting(**settings), **more)


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_after_a_reset_the_counts_are_those_of_a_fresh_run(disks, guarantee):
    stage = staged(disks, guarantee=guarantee)
    first_run(stage, 0)
    finals = len(stage.crew.read("final"))
    epoch = stage.reset().epoch
    with capture_logs() as logs:
        stage.crew.start(0)
        stage.crew.settle()
    assert stage.counts() == expected(*FIRST)
    assert len(stage.crew.read("final")) == 2 * finals
    assert stage.crew.latest("out") == {key.encode(): b"13" for key in KEYS}
    rebuilt = {(entry["task"], entry["store"]) for entry in logs if entry["event"] == Event.STATE_REBUILT}
    assert {store for _, store in rebuilt} == {"counts", "named", "names", "windows"}
    assert {commit_numbers.epoch([text]) for text in stage.texts().values()} == {epoch}
    # Once more, with the disk as it is now: nothing is rebuilt.
    stage.crew.stop(0)
    with capture_logs() as logs:
        stage.crew.start(0)
        stage.crew.send("in", record("a"))
        stage.crew.settle()
    assert stage.counts() == expected(*FIRST, record("a"))
    assert not [entry for entry in logs if entry["event"] == Event.STATE_REBUILT]
    stage.crew.stop(0)


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("more", [0, 30], ids=["at once", "after more commits than before"])
def test_a_machine_that_was_away_during_a_reset_does_not_use_its_old_state(disks, more, guarantee):
    stage = staged(disks, guarantee=guarantee)
    first_run(stage, 0, 1)
    stage.reset()
    stage.crew.start(0)
    stage.crew.settle()
    later = [record("a", time=2_000) for _ in range(more)]
    for item in later:
        stage.crew.send("in", item)
        stage.crew.settle()
    stage.crew.stop(0)
    with capture_logs() as logs:
        stage.crew.start(1)
        stage.crew.settle()
    assert stage.counts() == expected(*FIRST, *later)
    assert any(entry["event"] == Event.STATE_REBUILT for entry in logs)
    stage.crew.stop(1)


@pytest.mark.parametrize("position", [Latest(), ToOffset(10), AtTime(20_000)], ids=str)
def test_state_begins_again_where_the_reset_goes(disks, position):
    stage = staged(disks)
    first_run(stage, 0, 1)
    plan = stage.plan(position)
    stage.reset(position)
    new = {item.partition: item.new for item in plan.partitions}
    read = [
        item for item in stage.crew.read("in") if item.offset >= new[TopicPartition("in", item.partition)]
    ]
    assert 0 < len(read) < len(FIRST) or position == Latest()
    for slot in (0, 1):
        stage.crew.start(slot)
        stage.crew.send("in", record("a", time=41_000))
        stage.crew.settle()
        # The table is complete: it is as of the position, which all of its records are before.
        read.append(record("a", time=41_000))
        assert stage.counts() == expected(*read)
        stage.crew.stop(slot)


STATEFUL = ("0_0", "0_1", "1_0", "1_1")
"""The tasks of ``counting``."""


def test_standby_replicas_of_another_epoch_are_not_used():
    stage = staged(standby_replicas=1)
    first_run(stage, 0, 1)
    stage.reset()
    with capture_logs() as logs:
        stage.crew.start(0)
        stage.crew.start(1)
        stage.crew.until(
            lambda: (
                sum(entry["event"] == Event.STANDBY_READY for entry in logs) >= len(STATEFUL)
                and stage.crew.lag() == 0
                and all(worker.ready for worker in stage.crew.alive.values())
            )
        )
        stage.crew.settle()
    assert stage.counts() == expected(*FIRST)
    stage.crew.kill(0)
    with capture_logs() as logs:
        stage.crew.settle()
    assert stage.counts() == expected(*FIRST)
    assert not [entry for entry in logs if entry["event"] == Event.STATE_REBUILT], "a replica is used"
    stage.crew.stop(1)


class Killed(Exception):
    pass


def steps(stage: Stage) -> list[str]:
    done: list[str] = []
    Reset(stage.crew.broker, stage.plan(), done=done.append).run()
    return done


STEPS = 9
"""How many steps the reset of ``counting`` has, which the first test of them checks."""


def test_the_steps_of_a_reset_are_reported_in_order():
    stage = staged()
    first_run(stage, 0)
    done = steps(stage)
    assert len(done) == STEPS
    assert done[0].startswith("reset begun")
    assert done[1] == "app-named-repartition: records deleted"
    assert done[2:4] == ["app-counts-changelog: deleted", "app-counts-changelog: created empty"]
    assert done[-1].startswith("offsets of 6 partitions committed")


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("last", range(STEPS))
def test_a_reset_that_is_killed_after_any_step_is_loud_and_can_be_completed(last, guarantee):
    stage = staged(guarantee=guarantee)
    first_run(stage, 0, 1)
    before = stage.crew.admin.own_settings(stage.crew.admin.topics())
    done: list[str] = []

    def kill(step: str) -> None:
        done.append(step)
        if len(done) == last + 1:
            raise Killed

    with pytest.raises(Killed):
        Reset(stage.crew.broker, stage.plan(), done=kill).run()
    finished = last == STEPS - 1
    if not finished:
        with pytest.raises(StateError, match=r"a reset .* was begun and not finished"):
            stage.crew.cluster.prepare(stage.crew.app, create_outputs=True)
        # A worker that had checked that just before the reset began.
        worker = stage.crew.worker(0)
        with pytest.raises(StateError, match=r"a reset .* was begun and not finished"):
            worker.run()
        plan = stage.plan()
        assert plan.resumes
        Reset(stage.crew.broker, plan).run()
    assert stage.crew.admin.own_settings(stage.crew.admin.topics()) == before
    stage.crew.start(0)
    stage.crew.settle()
    assert stage.counts() == expected(*FIRST)
    stage.crew.stop(0)
    stage.crew.start(1)
    stage.crew.settle()
    assert stage.counts() == expected(*FIRST)
    stage.crew.stop(1)


def test_changelogs_are_created_again_with_the_settings_that_they_had():
    stage = staged()
    first_run(stage, 0)
    admin = stage.crew.admin
    # As an operator might have changed it.
    before = admin.own_settings(["app-counts-changelog"])["app-counts-changelog"] | {"segment.bytes": "12345"}
    admin.delete_topics(["app-counts-changelog"])
    admin.create_topics([NewTopic(name="app-counts-changelog", partitions=2, settings=before)])
    ids = admin.topic_ids(["app-counts-changelog"])

    def kill(step: str) -> None:
        if step == "app-counts-changelog: deleted":
            raise Killed

    with pytest.raises(Killed):
        Reset(stage.crew.broker, stage.plan(), done=kill).run()
    assert "app-counts-changelog" not in admin.topics()
    stage.reset()
    assert admin.own_settings(["app-counts-changelog"]) == {"app-counts-changelog": before}
    assert admin.topic_ids(["app-counts-changelog"]) != ids


def test_a_dry_run_changes_nothing_and_the_plan_is_what_is_done():
    stage = staged()
    first_run(stage, 0)
    admin = stage.crew.admin
    committed, texts, topics = admin.committed_offsets("app"), stage.texts(), admin.topics()
    plan = stage.plan()
    assert (admin.committed_offsets("app"), stage.texts(), admin.topics()) == (committed, texts, topics)
    assert stage.plan().fields() == plan.fields()
    assert {item.partition: item.committed for item in plan.partitions} == committed
    Reset(stage.crew.broker, plan).run()
    assert admin.committed_offsets("app") == {item.partition: item.new for item in plan.partitions}
    fields = plan.fields(rate=10)
    assert fields["emptied_changelogs"] == [
        "app-counts-changelog",
        "app-windows-changelog",
        "app-named-changelog",
    ]
    assert fields["emptied_repartition_topics"] == ["app-named-repartition"]
    assert fields["written_again"] == ["out", "final", "named"]
    selected = [item for item in plan.partitions if item.partition.topic in ("in", "names")]
    assert fields["again"] == fields["left"] == sum(item.end for item in selected) > len(FIRST)
    assert fields["seconds"] == pytest.approx(fields["left"] / 10)
    assert plan.fields()["seconds"] is None
    for topic in plan.changelogs:
        places = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        assert set(admin.end_offsets(places).values()) == {0}


def test_a_group_with_members_is_refused_and_they_are_named():
    stage = staged()
    stage.crew.start(0)
    stage.crew.send("in", *FIRST)
    stage.crew.settle()
    committed, texts = stage.crew.admin.committed_offsets("app"), stage.texts()
    with pytest.raises(GroupActive, match=r"has 1 member: app-000001, client memory, host /127\.0\.0\.1"):
        stage.reset()
    assert (stage.crew.admin.committed_offsets("app"), stage.texts()) == (committed, texts)
    stage.crew.stop(0)


def turn_for_ever(worker: Worker) -> None:
    for _ in range(1_000):
        worker.run_once()


def test_a_worker_that_joins_during_a_reset_ends_it_and_fails_itself():
    stage = staged()
    first_run(stage, 0)
    worker = stage.crew.worker(0)

    def join(step: str) -> None:
        if step.startswith("app-counts-changelog: created"):
            worker.start()
            while not stage.crew.admin.group_members("app"):
                worker.run_once()

    with pytest.raises(GroupActive):
        Reset(stage.crew.broker, stage.plan(), done=join).run()
    with pytest.raises(StateError, match="not finished"):
        turn_for_ever(worker)
    stage.crew.cluster.freeze(worker)
    stage.crew.disks[0].close()
    stage.reset()
    stage.crew.start(0)
    stage.crew.settle()
    assert stage.counts() == expected(*FIRST)
    stage.crew.stop(0)


def test_a_plan_is_not_executed_when_offsets_were_committed_since():
    stage = staged()
    first_run(stage, 0)
    plan = stage.plan()
    stage.crew.start(0)
    stage.crew.send("in", record("a"))
    stage.crew.settle()
    stage.crew.stop(0)
    texts = stage.texts()
    with pytest.raises(BrokerError, match="has committed other offsets since the plan"):
        Reset(stage.crew.broker, plan).run()
    assert stage.texts() == texts


@pytest.mark.parametrize("lost", [False, True])
def test_commits_of_an_earlier_version_lose_the_epoch_which_costs_a_rebuild_only(lost):
    stage = staged()
    first_run(stage, 0)
    stage.reset()
    stage.crew.start(0)
    stage.crew.settle()
    stage.crew.stop(0)
    reader = stage.crew.broker.consumer(GroupSettings(group="app"))
    offsets = stage.crew.admin.committed_offsets("app")
    texts = {
        place: " ".join(piece for piece in text.split(" ") if not piece.startswith("e="))
        for place, text in stage.texts().items()
    }
    if lost:
        reader.commit(offsets, texts)
    with capture_logs() as logs:
        stage.crew.start(0)
        stage.crew.send("in", record("a"))
        stage.crew.settle()
    assert stage.counts() == expected(*FIRST, record("a"))
    assert any(entry["event"] == Event.STATE_REBUILT for entry in logs) == lost
    stage.crew.stop(0)


def test_only_the_part_that_reads_the_topic_is_affected():
    def make() -> App:
        app = App("app", commit_interval=0.05)
        app.stream("in", key=Text(), value=Text()).group_by_key().count("counts").to("out")
        app.stream("names", key=Text(), value=Text()).group_by(str, value=Text()).count("named").to("named")
        return app

    stage = Stage(make)
    first_run(stage, 0)
    committed = stage.crew.admin.committed_offsets("app")
    plan = stage.plan(Earliest(), "names")
    assert plan.affected.stores == ("named",)
    assert plan.affected.repartitions == ("app-named-repartition",)
    assert {item.partition.topic for item in plan.partitions} == {"names", "app-named-repartition"}
    texts = stage.texts()
    Reset(stage.crew.broker, plan).run()
    for place in (TopicPartition("in", 0), TopicPartition("in", 1)):
        assert stage.crew.admin.committed_offsets("app")[place] == committed[place]
        assert stage.texts()[place] == texts[place]
    with capture_logs() as logs:
        stage.crew.start(0)
        stage.crew.settle()
    assert {entry["store"] for entry in logs if entry["event"] == Event.STATE_REBUILT} == {"named"}
    found = stage.counts()
    assert {k: v for k, v in found.items() if k.startswith("counts")} == {f"counts:{key}": 13 for key in KEYS}
    assert {k: v for k, v in found.items() if k.startswith("named")} == {f"named:{key}-": 1 for key in KEYS}
    stage.crew.stop(0)


def test_an_interrupted_reset_is_not_continued_without_its_topics():
    def make() -> App:
        app = App("app", commit_interval=0.05)
        app.stream("in", key=Text(), value=Text()).group_by_key().count("counts").to("out")
        app.stream("names", key=Text(), value=Text()).group_by(str, value=Text()).count("named").to("named")
        return app

    stage = Stage(make)
    first_run(stage, 0)

    def kill(_: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        Reset(stage.crew.broker, stage.plan(), done=kill).run()
    with pytest.raises(ConfigurationError, match="an interrupted reset also affects in, which would not"):
        stage.plan(Earliest(), "names")
    stage.reset()


def test_an_app_that_never_committed_is_refused():
    with pytest.raises(TopicError, match="group 'app' has no committed offsets in app-named-repartition, in"):
        staged().plan()


@pytest.mark.parametrize(
    ("position", "topics", "error", "message"),
    [
        (AtTime(2**60), (), ConfigurationError, "is in the future"),
        (
            AtOffsets({TopicPartition("in", 0): 1, TopicPartition("names", 0): 1}, "f"),
            (),
            ConfigurationError,
            "f has no offset for in-1, names-1",
        ),
        (
            AtOffsets({TopicPartition("in", 7): 1, TopicPartition("names", 0): 1}, "f"),
            (),
            ConfigurationError,
            "f: in has no partition 7",
        ),
        (
            AtOffsets({TopicPartition("else", 0): 1}, "f"),
            (),
            ConfigurationError,
            "does not read topic 'else'",
        ),
        (Earliest(), ("else",), ConfigurationError, "does not read topic 'else'"),
        (Earliest(), ("app-named-repartition",), ConfigurationError, "is internal"),
        (Earliest(), ("in",), ConfigurationError, "stores names, counts, windows: made of topic names too"),
        (Earliest(), ("names",), ConfigurationError, "made of topic in too, which is not selected"),
    ],
)
def test_what_cannot_be_reset_is_refused_and_nothing_is_touched(position, topics, error, message):
    stage = staged()
    first_run(stage, 0)
    state = stage.crew.admin.committed_offsets("app"), stage.texts()
    with pytest.raises(error, match=message):
        stage.reset(position, *topics)
    assert (stage.crew.admin.committed_offsets("app"), stage.texts()) == state


def test_offsets_outside_of_the_log_are_replaced_as_kafkas_tool_does_and_the_plan_says_so():
    stage = staged()
    first_run(stage, 0)
    place = TopicPartition("in", 0)
    stage.crew.admin.delete_records({place: 3})
    plan = stage.plan(ShiftBy(-10_000))
    moved = next(item for item in plan.partitions if item.partition == place)
    assert (moved.new, moved.requested) == (3, 0)
    end = stage.crew.admin.end_offsets([place])[place]
    moved = next(item for item in stage.plan(ToOffset(10**9)).partitions if item.partition == place)
    assert (moved.new, moved.requested, moved.skipped) == (end, 10**9, 0)


def test_shifting_needs_committed_offsets():
    stage = staged()
    stage.crew.send("in", *FIRST)
    reader = stage.crew.broker.consumer(GroupSettings(group="app"))
    reader.commit({TopicPartition("in", 0): 5})
    reader.close()
    with pytest.raises(ConfigurationError, match="in-1 has no committed offset that could be shifted"):
        stage.plan(ShiftBy(-1))
    new = {item.partition: item.new for item in stage.plan(ToOffset(2)).partitions}
    assert new[TopicPartition("in", 0)] == new[TopicPartition("in", 1)] == 2


def test_a_transaction_that_is_left_open_is_waited_for():
    stage = staged()
    first_run(stage, 0)
    producer = stage.crew.broker.producer(transactional_id="killed", transaction_timeout=3600)
    producer.init_transactions(1)
    producer.begin()
    producer.produce(Output("app-counts-changelog", [b"k"], [b"v"], [0], partition=0))
    plan, waited = stage.plan(), list[str]()

    def end(reason: str) -> None:
        waited.append(reason)
        producer.abort(1)

    Reset(stage.crew.broker, plan, waiting=end).run()
    assert waited == ["a transaction is open in app-counts-changelog-0"]
    producer.begin()
    producer.produce(Output("app-counts-changelog", [b"k"], [b"v"], [0], partition=0))
    texts = stage.texts()
    with pytest.raises(BrokerError, match=r"a transaction is open in app-counts-changelog-0, for more than"):
        Reset(stage.crew.broker, stage.plan(), patience=0.0).run()
    assert stage.texts() == texts


NUMBERS = st.dictionaries(st.text(max_size=20), st.integers(1, 2**62), max_size=400)


@given(NUMBERS, st.integers(1, 2**62), st.integers(1, 2**62), st.text("abc=-_", max_size=3_000))
def test_the_mark_of_a_reset_keeps_what_the_metadata_says(numbers, epoch, next_epoch, notes):
    text = commit_numbers.encode(numbers, epoch)
    assert commit_numbers.epoch([text]) == epoch
    assert commit_numbers.reset_begun(text) is None
    marked = commit_numbers.marked(text, next_epoch, notes)
    assert len(marked.encode()) <= commit_numbers.LARGEST_TEXT
    assert commit_numbers.reset_begun(marked) == next_epoch
    assert commit_numbers.reset_notes(marked) == notes
    assert commit_numbers.epoch([marked]) == epoch
    # The numbers that still fit are unchanged.
    before, after = (commit_numbers.decode([item], numbers) for item in (text, marked))
    assert after.items() <= before.items()
    if len(numbers) < 20:
        assert after == before
        assert commit_numbers.unmarked(marked) == text
    again = commit_numbers.marked(marked, next_epoch + 1, "")
    assert commit_numbers.reset_begun(again) == next_epoch + 1
    assert commit_numbers.reset_notes(again) == ""


@pytest.mark.parametrize(
    "text", ["v2 e=5 reset=5", "e=5 reset=5", "v1 e= reset=", "v1 e=-5 reset=g", "", "v1"]
)
def test_metadata_of_other_programs_is_neither_an_epoch_nor_a_mark(text):
    assert commit_numbers.epoch([text]) == 0
    assert commit_numbers.reset_begun(text) is None


@given(
    st.lists(
        st.builds(
            lambda name, partitions, replication, settings: NewTopic(
                name=name, partitions=partitions, replication_factor=replication, settings=settings
            ),
            st.text(max_size=20),
            st.integers(1, 1000),
            st.none() | st.integers(1, 5),
            st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4),
        ),
        max_size=5,
        unique_by=lambda topic: topic.name,
    )
)
def test_topics_are_remembered_as_they_were(topics):
    found: dict[str, NewTopic] = {}
    for text in encode_topics(topics):
        assert " " not in text
        assert len(text) <= LARGEST_NOTES
        found |= decode_topics(text)
    assert found == {topic.name: topic for topic in topics}
    assert not topics or len(encode_topics(topics)) == 1


def test_many_topics_with_settings_of_their_own_are_remembered_in_several_texts():
    topics = [
        NewTopic(name=f"{uuid.uuid4()}", partitions=number + 1, settings={"retention.ms": f"{uuid.uuid4()}"})
        for number in range(300)
    ]
    texts = encode_topics(topics)
    assert len(texts) > 1
    assert max(map(len, texts)) <= LARGEST_NOTES
    found: dict[str, NewTopic] = {}
    for text in texts:
        found |= decode_topics(text)
    assert list(found.values()) == topics


def test_what_is_no_memory_of_topics_is_none():
    for text in ("", "x", "eA==", encode_topics([NewTopic(name="a", partitions=1)])[0][:-3]):
        assert decode_topics(text) == {}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_between_resets_the_counts_are_those_since_the_last_one(seed):
    """Machines come and go, die, lose disks and stay away, and resets are interrupted, in any order."""
    choose = random.Random(seed)
    stage = staged(
        guarantee=choose.choice(GUARANTEES), standby_replicas=choose.choice([0, 1]), commit_interval=0.05
    )
    crew = stage.crew
    starts = {TopicPartition("in", number): 0 for number in range(2)}
    crew.send("names", *NAMES)
    history: list[str] = []

    def reset() -> None:
        for slot in list(crew.alive):
            crew.stop(slot)
        positions: list[ResetPosition] = [
            Earliest(),
            Latest(),
            ToOffset(choose.randrange(30)),
            ShiftBy(-5),
        ]
        position = choose.choice(positions)
        for last in choose.choice([[], [choose.randrange(STEPS - 1)]]):
            done: list[str] = []

            def kill(step: str, done: list[str] = done, last: int = last) -> None:
                done.append(step)
                if len(done) == last + 1:
                    raise Killed

            with pytest.raises(Killed):
                Reset(crew.broker, stage.plan(position), done=kill).run()
        plan = stage.plan(position)
        Reset(crew.broker, plan).run()
        starts.update({item.partition: item.new for item in plan.partitions if item.partition in starts})
        history.append(f"reset to {position}")

    for _ in range(25):
        away = [slot for slot in range(3) if slot not in crew.alive]
        event = choose.choices(["start", "stop", "kill", "lose", "send", "reset"], [6, 2, 2, 1, 6, 3])[0]
        if event == "start" and away:
            crew.start(choose.choice(away))
        elif event in ("stop", "kill") and crew.alive:
            getattr(crew, event)(choose.choice(list(crew.alive)))
        elif event == "lose" and (disks := [slot for slot in away if slot in crew.disks]):
            crew.lose_disk(choose.choice(disks))
        elif event == "reset" and crew.admin.committed_offsets("app").keys() >= starts.keys():
            reset()
        else:
            event = "send"
            crew.send("in", *(record(choose.choice(KEYS), choose.choice("xyz")) for _ in range(7)))
        history.append(event)
        if crew.alive and choose.random() < 0.7:
            crew.settle()
        else:
            crew.turn(choose.randrange(20))
    if not crew.alive:
        crew.start()
    crew.settle()
    records = [
        item for item in crew.read("in") if item.offset >= starts[TopicPartition("in", item.partition)]
    ]
    assert stage.counts() == expected(*records), history
    for slot in list(crew.alive):
        crew.stop(slot)
