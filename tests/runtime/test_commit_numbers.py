"""Restored state belongs to the committed offsets, whatever a broker says about the ends of changelogs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json, Text, Tumbling, key_value_store, seconds
from streams.broker import GroupSettings, NewTopic
from streams.errors import StateError
from streams.events import Event
from streams.records import Record, TopicPartition
from streams.runtime.commit_numbers import LARGEST_TEXT, decode, encode
from streams.state.changelog import COMMIT, METADATA, TIME_KEY
from tests.support.crew import Crew
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHANGELOG = TopicPartition("app-counts-changelog", 0)
GUARANTEES = ["exactly_once", "at_least_once"]
ALWAYS = 1_000_000


@pytest.fixture(autouse=True)
def _one_record_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll that brings more would read past an end that is reported too early, and hide it."""
    monkeypatch.setattr("streams.runtime.restore.CHUNK_RECORDS", 1)


def record(key: str, value: Any = b"x", time: int = 1_000, **more: Any) -> Record[Any, Any]:
    return Record(key.encode(), value, time, **more)


def counting(*topics: str, **settings: Any) -> App:
    app = App("app", **{"commit_interval": 0.05} | settings)
    stream = app.stream(list(topics or ("in",)), key=Text(), value=Text())
    stream.group_by_key().count("counts").to("out")
    return app


class Ticking:
    """Counts ticks of the wall clock, and nothing else."""

    def open(self, context: Any) -> None:
        self.store = context.store("ticks")
        context.schedule(seconds(1), self.tick, on="wall_clock")

    def tick(self, _: int) -> None:
        self.store.put("ticks", (self.store.get("ticks") or 0) + 1)

    def process(self, record: Any, context: Any) -> None:
        pass


def ticking() -> App:
    app = App("app", commit_interval=0.05)
    stream = app.stream("in", key=Text(), value=Text())
    stream.process(Ticking, stores=[key_value_store("ticks", key=Text(), value=Json(int))])
    return app


def metadata(crew: Crew, *topics: str) -> dict[TopicPartition, str]:
    """What stands beside the app's committed offsets."""
    reader = crew.broker.consumer(GroupSettings(group="app"))
    found = reader.committed_metadata([TopicPartition(topic, 0) for topic in topics or ("in",)])
    reader.close()
    return found


def counts(crew: Crew, store: str = "counts") -> dict[str, Any]:
    return dict(crew.queries().entries(store))


def lose_tail(crew: Crew, place: TopicPartition, left: int) -> None:
    """As an unclean leader election does: the topic ends where the new leader's copy of it ended."""
    records = [item for item in crew.read(place.topic) if item.partition == place.partition]
    crew.admin.delete_topics([place.topic])
    crew.admin.create_topics([NewTopic(name=place.topic, partitions=1)])
    crew.send(place.topic, *records[:left])


def incomplete(logs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for entry in logs if entry["event"] == Event.RESTORE_INCOMPLETE]


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("disk", ["kept", "lost"])
@pytest.mark.parametrize("answers", [1, 4])
def test_a_changelog_is_read_to_its_end_although_a_replaced_leader_tells_an_earlier_one(
    answers, disk, guarantee
):
    crew = Crew(counting(guarantee=guarantee))
    crew.start()
    crew.send("in", *[record("a")] * 3)
    crew.settle()
    crew.broker.replace_leader(CHANGELOG, answers=answers)
    for _ in range(3):
        crew.send("in", record("a"), record("b"))
        crew.settle()
    crew.kill()
    if disk == "lost":
        crew.lose_disk()
    with capture_logs() as logs:
        crew.start()
        crew.send("in", record("a"))
        crew.settle()
    assert counts(crew) == {"a": 7, "b": 3}
    assert [entry["task"] for entry in incomplete(logs)] == ["0_0"]
    crew.stop()


def test_other_tasks_work_and_the_group_is_served_while_a_changelog_is_asked_for_again():
    crew = Crew(counting(), partitions=2)
    crew.start()
    crew.send("in", record("a", partition=0), record("b", partition=1))
    crew.settle()
    crew.broker.replace_leader(CHANGELOG, answers=ALWAYS)
    crew.send("in", record("a", partition=0), record("b", partition=1))
    crew.settle()
    crew.kill()
    crew.lose_disk()
    worker = crew.start()
    crew.send("in", record("a", partition=0), record("b", partition=1))
    crew.until(lambda: crew.admin.committed_offsets("app").get(TopicPartition("in", 1)) == 3)
    assert len(worker.restoring) == 1
    crew.start(1)
    crew.until(lambda: len(crew.alive[1].progress) == 1)
    # The leader is the one that has all of it.
    crew.broker.replace_leader(CHANGELOG, answers=1)
    crew.settle()
    assert sorted(crew.latest("out").values(), key=str) == [b"3", b"3"]
    crew.stop(0)
    crew.stop(1)


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        ("lost", r"store 'counts', task 0_0: app-counts-changelog-0 was read .* commit 1, but .* commit 3"),
        ("kept", r"store 'counts' includes app-counts-changelog-0 up to offset .*deleted or truncated"),
    ],
)
def test_a_changelog_without_its_tail_ends_the_worker_after_a_minute(disk, message):
    crew = Crew(counting())
    crew.start()
    for _ in range(3):
        crew.send("in", record("a"))
        crew.settle()
    crew.kill()
    if disk == "lost":
        crew.lose_disk()
    lose_tail(crew, CHANGELOG, 3)
    crew.start()
    crew.turn(5)
    began = crew.clock.now
    with capture_logs() as logs, pytest.raises(StateError, match=message) as ended:
        crew.until(lambda: False, 10_000)
    assert 59 < crew.clock.now - began < 65
    assert ended.value.exit_code == 8
    assert "--to-current" in str(ended.value)
    assert not incomplete(logs)
    # As the message says: the offsets committed once more, by others, carry no number.
    crew.cluster.expire(crew.alive.pop(0))
    crew.disks.clear()
    committed = crew.admin.committed_offsets("app")
    crew.broker.consumer(GroupSettings(group="app")).commit(committed)
    crew.start()
    crew.send("in", record("a"))
    crew.settle()
    assert counts(crew) == {"a": 2}
    crew.stop()


def test_commits_that_move_no_input_are_counted_too():
    crew = Crew(ticking())
    crew.start()
    crew.send("in", record("a"))
    crew.settle()
    changelog = TopicPartition("app-ticks-changelog", 0)
    crew.until(lambda: counts(crew, "ticks").get("ticks") == 2)
    crew.broker.replace_leader(changelog, answers=2)
    offsets, texts = crew.admin.committed_offsets("app"), metadata(crew)
    crew.until(lambda: counts(crew, "ticks")["ticks"] >= 5)
    assert crew.admin.committed_offsets("app") == offsets
    assert metadata(crew) != texts
    crew.kill()
    ticks = [int(item.value or b"0") for item in crew.read(changelog.topic) if item.key == b"ticks"][-1]
    crew.lose_disk()
    crew.start()
    crew.settle()
    assert counts(crew, "ticks")["ticks"] in (ticks, ticks + 1)
    crew.stop()


def test_the_highest_number_of_all_input_partitions_counts():
    crew = Crew(counting("in", "other"), inputs=("in", "other"))
    crew.start()
    crew.send("in", record("a"))
    crew.send("other", record("a"))
    crew.settle()
    crew.broker.replace_leader(CHANGELOG, answers=2)
    for _ in range(3):
        crew.send("other", record("a"))
        crew.settle()
    crew.kill()
    crew.lose_disk()
    # Another program may have committed one of them since: what stands beside the others remains.
    place = TopicPartition("in", 0)
    crew.broker.consumer(GroupSettings(group="app")).commit(
        {place: crew.admin.committed_offsets("app")[place]}
    )
    assert list(metadata(crew, "in", "other")) == [TopicPartition("other", 0)]
    crew.start()
    crew.send("in", record("a"))
    crew.settle()
    assert counts(crew) == {"a": 6}
    crew.stop()


def test_commits_of_versions_that_did_not_count_are_not_checked():
    crew = Crew(counting("in", "other"), inputs=("in", "other"))
    crew.start()
    for _ in range(3):
        crew.send("in", record("a"))
        crew.send("other", record("b"))
        crew.settle()
    crew.kill()
    crew.lose_disk()
    # An older worker had the task meanwhile: its time has no number, and nothing stands beside its offsets.
    place = TopicPartition("in", 0)
    crew.send(
        CHANGELOG.topic,
        [item for item in crew.read(CHANGELOG.topic) if item.key == b"a"][-1],
        Record(TIME_KEY, b"1000", 0, [METADATA], partition=0),
    )
    crew.broker.consumer(GroupSettings(group="app")).commit(
        {place: crew.admin.committed_offsets("app")[place]}
    )
    with capture_logs() as logs:
        crew.start()
        crew.send("in", record("a"))
        crew.settle()
    assert (counts(crew), incomplete(logs)) == ({"a": 4, "b": 3}, [])
    crew.kill()
    crew.lose_disk()
    # From there on it counts again, above all that was counted before.
    with capture_logs() as logs:
        crew.start()
        crew.settle()
    assert (counts(crew), incomplete(logs)) == ({"a": 4, "b": 3}, [])
    numbers = [
        int(value or b"0")
        for item in crew.read(CHANGELOG.topic)
        for name, value in item.headers or ()
        if name == COMMIT
    ]
    assert numbers == sorted(set(numbers))
    crew.stop()


def test_a_store_that_is_new_in_the_program_is_not_checked_and_then_is():
    crew = Crew(counting())
    crew.start()
    crew.send("in", record("a"))
    crew.settle()
    crew.stop()
    crew.app = App("app", commit_interval=0.05)
    grouped = crew.app.stream("in", key=Text(), value=Text()).group_by_key()
    grouped.count("counts").to("out")
    grouped.count("more").to("out")
    crew.counts = crew.cluster.prepare(crew.app, create_outputs=True)
    with capture_logs() as logs:
        crew.start()
        crew.send("in", record("a"))
        crew.settle()
    assert not incomplete(logs)
    crew.broker.replace_leader(TopicPartition("app-more-changelog", 0), answers=2)
    for _ in range(3):
        crew.send("in", record("a"))
        crew.settle()
    crew.kill()
    crew.lose_disk()
    crew.start()
    crew.settle()
    assert counts(crew) == {"a": 5}
    assert counts(crew, "more") == {"a": 4}
    crew.stop()


class Noting:
    """Puts each value into as many stores as there are."""

    stores = tuple(f"notes-{number}" for number in range(400))

    def open(self, context: Any) -> None:
        self.opened = [context.store(name) for name in self.stores]

    def process(self, record: Any, context: Any) -> None:
        for store in self.opened:
            store.put(record.key, record.value)


def test_a_task_with_many_stores_commits_the_numbers_for_which_there_is_room():
    app = App("app", commit_interval=0.05)
    app.stream("in", key=Text(), value=Text()).process(
        Noting, stores=[key_value_store(name, key=Text(), value=Text()) for name in Noting.stores]
    )
    crew = Crew(app)
    crew.start()
    crew.send("in", record("a"))
    crew.settle()
    (text,) = metadata(crew).values()
    assert LARGEST_TEXT - 30 < len(text) <= LARGEST_TEXT
    assert len(decode([text], Noting.stores)) > 200
    crew.kill()
    crew.lose_disk()
    crew.start()
    crew.settle()
    assert {name: counts(crew, name) for name in Noting.stores} == {
        name: {"a": "x"} for name in Noting.stores
    }
    crew.stop()


def test_a_store_that_is_migrated_is_counted_on():
    def program(value: Any, **more: Any) -> App:
        app = App("app", commit_interval=0.05)
        app.stream("in", key=Text(), value=Text()).process(
            type("Sums", (Keeping,), {"first": value(0)}),
            stores=[key_value_store("kept", key=Text(), value=Json(value), **more)],
        )
        return app

    crew = Crew(program(int))
    crew.start()
    crew.send("in", record("a"), record("b"))
    crew.settle()
    crew.stop()
    crew.app = program(str, migrate=lambda old: f"migrated {old}")
    crew.start()
    crew.broker.replace_leader(TopicPartition("app-kept-changelog", 0), answers=2)
    crew.send("in", record("c"))
    crew.settle()
    crew.kill()
    crew.lose_disk()
    with capture_logs() as logs:
        crew.start()
        crew.settle()
    assert counts(crew, "kept") == {"a": "migrated 0", "b": "migrated 0", "c": "0"}
    assert len(incomplete(logs)) == 1
    crew.stop()


class Keeping:
    """Keeps the same value for each key."""

    first: Any

    def open(self, context: Any) -> None:
        self.store = context.store("kept")

    def process(self, record: Any, context: Any) -> None:
        self.store.put(record.key, self.first)


def test_a_changelog_that_age_has_emptied_is_not_waited_for():
    app = App("app", commit_interval=0.05)
    grouped = app.stream("in", key=Text(), value=Text()).group_by_key()
    grouped.window(Tumbling(seconds=1)).count("windows").updates().to("out")
    crew = Crew(app)
    crew.start()
    crew.send("in", record("a"))
    crew.settle()
    crew.kill()
    crew.lose_disk()
    place = TopicPartition("app-windows-changelog", 0)
    crew.broker.truncate(place, crew.admin.end_offsets([place])[place])
    with capture_logs() as logs:
        crew.start()
        crew.send("in", record("a", time=9_000))
        crew.settle()
    assert not incomplete(logs)
    crew.kill()
    crew.lose_disk()
    with capture_logs() as logs:
        crew.start()
        crew.settle()
    assert not incomplete(logs)
    crew.stop()


def test_a_store_whose_changelog_was_not_changed_gets_no_number():
    crew = Crew(counting())
    crew.start()
    crew.send("in", record("a"))
    crew.settle()
    before = metadata(crew)
    size = len(crew.read(CHANGELOG.topic))
    crew.turn(50)
    assert (metadata(crew), len(crew.read(CHANGELOG.topic))) == (before, size)
    crew.stop()


# --- the text


def test_numbers_come_back_by_the_names_of_stores():
    numbers = {"counts": 1, "sums": 35, "windows": 1 << 40}
    text = encode(numbers | {"never changed": 0})
    assert decode([text], [*numbers, "never changed", "new"]) == numbers
    assert decode([encode({"counts": 3}), text, encode({"counts": 2, "sums": 40})], ["counts", "sums"]) == {
        "counts": 3,
        "sums": 40,
    }


def test_nothing_to_tell_is_no_text():
    assert encode({}) == encode({"a": 0}) == ""
    assert decode([""], ["a"]) == {}


@pytest.mark.parametrize(
    "text", ["of another tool", "v2 00000000=1", "v1", "v1 counts=1", "v1 0=1 00000000=", "\0"]
)
def test_what_others_leave_beside_offsets_says_nothing(text):
    assert decode([text], ["", "counts"]) == {}


def test_two_names_with_one_hash_need_the_lower_number():
    names = ["plumless", "buckeroo"]
    text = encode(dict(zip(names, [5, 3], strict=True)))
    assert decode([text], names) == dict.fromkeys(names, 3)


def test_a_text_is_never_longer_than_a_broker_takes():
    for count in range(200, 400, 7):
        numbers = {f"store-{number}": 1 << number % 60 for number in range(count)}
        text = encode(numbers)
        assert len(text) <= LARGEST_TEXT
        assert decode([text], numbers).items() <= numbers.items()
