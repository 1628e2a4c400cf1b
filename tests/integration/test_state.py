"""Workers with state as processes on a real broker: killed, stopped, started, with and without their
disks.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from streams import App, Bytes
from streams.broker import GroupSettings, NewTopic
from streams.broker.reading import read_to_end
from streams.errors import StateUnavailable
from streams.records import Output, TopicPartition
from streams.runtime.commit_numbers import decode
from streams.state.changelog import COMMIT, RESERVED, SCHEMA_KEY, TIME_KEY

pytestmark = pytest.mark.kafka

SETTINGS: dict[str, Any] = {"group_protocol": "classic", "session_timeout": 6, "transaction_timeout": 3}
FAR = 10_000_000


def records(start: int, stop: int, keys: int) -> list[tuple[str, int]]:
    """Records of that many keys in turn, ten milliseconds apart."""
    # The client treats the timestamp 0 as the current time.
    return [(f"key-{number % keys}", 1 + number * 10) for number in range(start, stop)]


def check(count, sent: list[tuple[str, int]]) -> None:
    """Compare the app's output with a recount of the input."""
    counts: dict[str, list[int]] = {}
    for key, value in count.read(count.output):
        counts.setdefault(key, []).append(value)
    assert {key: values[-1] for key, values in counts.items()} == Counter(key for key, _ in sent)
    for values in counts.values():
        assert values == sorted(set(values))
    windows = Counter((key, time // 1_000 * 1_000) for key, time in sent if time < FAR)
    final = [(value["key"], value["start"], value["value"]) for _, value in count.read(count.final)]
    assert Counter(final) == Counter((key, start, number) for (key, start), number in windows.items())


def restored(worker) -> int:
    return sum(event["records"] for event in worker.events("restored"))


def test_each_record_is_counted_once_while_workers_are_killed_stopped_and_started(count):
    count.environment["COUNT_SLOW_SECONDS"] = "0.0005"
    sent = records(0, 10_000, keys=50)
    count.send(sent)
    workers = [count.start(**SETTINGS) for _ in range(3)]
    count.wait_for(lambda: all(worker.events("restored") for worker in workers), 30, "all three are running")
    count.wait_for(lambda: count.lag() < 9_000, 30, "under way")
    workers[0].kill()
    more = records(10_000, 12_000, keys=50)
    count.send(more)
    assert workers[1].stop() == 0
    last = count.start(**SETTINGS)
    count.wait_for(lambda: last.events("restored"), 30, "the new one is running")
    # Closes every window: the keys cover all four partitions.
    closing = [(f"key-{number}", FAR) for number in range(50)]
    count.send(closing)
    count.wait_until_consumed()
    check(count, sent + more + closing)
    assert workers[2].stop() == 0
    assert last.stop() == 0


def test_a_restart_on_the_same_disk_reads_the_tail_and_one_without_reads_all(count):
    keys = 3_000
    sent = records(0, 6_000, keys)
    count.send(sent)
    first = count.start(**SETTINGS)
    count.wait_until_consumed()
    assert first.stop() == 0

    again = count.start(**SETTINGS)
    more = records(6_000, 7_000, keys)
    count.send(more)
    count.wait_until_consumed()
    assert again.stop() == 0
    # Only transaction markers may not have been read.
    assert restored(again) < 200

    shutil.rmtree(count.state)
    anew = count.start(**SETTINGS)
    closing = [(f"key-{number}", FAR) for number in range(50)]
    count.send(closing)
    count.wait_until_consumed()
    assert anew.stop() == 0
    assert restored(anew) >= keys
    check(count, sent + more + closing)


def test_the_offsets_metadata_has_the_last_commit_numbers_and_a_new_disk_restores_them(count):
    keys = 50
    sent = records(0, 2_000, keys)
    count.send(sent)
    first = count.start(**SETTINGS)
    count.wait_until_consumed()
    assert first.stop() == 0
    before = committed_numbers(count)
    assert before == written_numbers(count)
    assert {store for store, _ in before} == {"counts", "windows"}

    shutil.rmtree(count.state)
    last = count.start(**SETTINGS)
    closing = [(f"key-{number}", FAR) for number in range(keys)]
    count.send(closing)
    count.wait_until_consumed()
    assert last.stop() == 0
    assert not last.events("restore incomplete")
    after = committed_numbers(count)
    assert after == written_numbers(count)
    assert all(after[place] > number for place, number in before.items())
    check(count, sent + closing)


def committed_numbers(count) -> dict[tuple[str, int], int]:
    """The number in the metadata of the committed offsets, by store and partition."""
    admin, reader = count.broker.admin(), count.broker.consumer(GroupSettings(group=count.group))
    texts = reader.committed_metadata(admin.committed_offsets(count.group))
    reader.close()
    admin.close()
    return {
        (store, place.partition): number
        for place, text in texts.items()
        for store, number in decode([text], ["counts", "windows"]).items()
    }


def written_numbers(count) -> dict[tuple[str, int], int]:
    """The last number in the changelog, by store and partition."""
    return {
        (store, fetched.partition): int(value or b"0")
        for store in ("counts", "windows")
        for fetched in read_to_end(count.broker, [f"{count.group}-{store}-changelog"])
        for headers in fetched.headers() or ()
        for name, value in headers or ()
        if name == COMMIT
    }


def test_a_foreign_record_in_a_changelog_ends_the_worker_with_its_offset_until_it_is_repaired(count):
    sent = records(0, 400, keys=40)
    count.send(sent)
    first = count.start(**SETTINGS)
    count.wait_until_consumed()
    assert first.stop() == 0
    changelog = f"{count.group}-counts-changelog"
    place = TopicPartition(changelog, 2)
    admin = count.broker.admin()

    def write(key: bytes, value: bytes | None) -> None:
        producer = count.broker.producer()
        producer.produce(Output(changelog, [key], [value], [0], partition=2))
        producer.flush(30)
        producer.close()

    offset = admin.end_offsets([place])[place]
    write(b"key-1", b"not what a count looks like")
    shutil.rmtree(count.state)
    ended = count.start(**SETTINGS)
    assert ended.wait() == 8
    log = ended.log.read_text()
    for part in ("store 'counts'", str(place), f"offset {offset}", "hint"):
        assert part in log
    assert "Traceback" not in log
    write(b"key-1", None)
    closing = [(f"key-{number}", FAR) for number in range(40)]
    last = count.start(**SETTINGS)
    count.send(closing)
    count.wait_until_consumed()
    assert last.stop() == 0
    # Key 1 is in another partition: the foreign record here was not its count.
    check(count, sent + closing)
    admin.close()


def test_keys_like_the_runtimes_own_survive_lost_disks(kafka, prefix, tmp_path):
    topic, keys = f"{prefix}-in", [b"plain", RESERVED, TIME_KEY, SCHEMA_KEY, b"\xff"]
    admin = kafka.admin()
    admin.create_topics([NewTopic(name=name, partitions=1) for name in (topic, f"{prefix}-out")])

    def count_once_more(round_number: int) -> None:
        """Send each key once more, to a worker with a new disk."""
        app = App(f"{prefix}-keys", state_dir=str(tmp_path / str(round_number)), **SETTINGS)
        app.stream(topic, key=Bytes(), value=Bytes()).group_by_key().count("counts").to(f"{prefix}-out")
        producer = kafka.producer()
        producer.produce(Output(topic, list(keys), list(keys), [1] * len(keys)))
        producer.flush(30)
        producer.close()
        stop = threading.Event()
        thread = threading.Thread(target=app.run, kwargs={"broker": kafka, "stop": stop})
        thread.start()
        expected = [(key, round_number) for key in sorted(keys)]
        found: list[tuple[bytes, int]] = []
        deadline = time.monotonic() + 60
        while found != expected and time.monotonic() < deadline:
            with suppress(StateUnavailable):
                found = app.query_range("counts")
            time.sleep(0.05)
        stop.set()
        thread.join(30)
        assert found == expected

    for round_number in (1, 2, 3):
        count_once_more(round_number)
    admin.close()
