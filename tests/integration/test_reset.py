"""Resets of an app of worker processes on the real broker, by the command."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Text, Tumbling
from streams.errors import StateError
from streams.records import TopicPartition
from streams.replay.positions import Earliest
from streams.replay.reset import Reset
from streams.replay.reset_plan import plan_reset
from tests.integration.conftest import HERE
from tests.support.commands import run_streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streams.broker.kafka import KafkaBroker
    from tests.integration.conftest import Count

pytestmark = pytest.mark.kafka

SETTINGS: dict[str, Any] = {"transaction_timeout": 3}
FAR = 10_000_000


def records(start: int, stop: int, keys: int = 50) -> list[tuple[str, int]]:
    """Records of that many keys in turn, ten milliseconds apart."""
    return [(f"key-{number % keys}", 1 + number * 10) for number in range(start, stop)]


CLOSING = [(f"key-{number}", FAR) for number in range(50)]
"""Closes all windows, as its keys are in all partitions."""


class Resets:
    """The command, for the counting app."""

    def __init__(self, count: Count) -> None:
        self.count = count
        self.environment = os.environ | {
            "COUNT_PREFIX": count.prefix,
            "STREAMS_BOOTSTRAP_SERVERS": count.servers,
        }

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "streams", "replay", "reset", "count_app:app", *arguments],
            cwd=HERE,
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        command = ("replay", "reset", "count_app:app", *arguments)
        return run_streams(*command, folder=HERE, environment=self.environment)

    def answer(self, text: str, *arguments: str) -> tuple[int, str, str]:
        """Run it on a terminal, and answer its question."""
        ours, theirs = pty.openpty()
        try:
            os.write(ours, f"{text}\n".encode())
            with self.start(*arguments, stdin=theirs) as process:
                out, error = process.communicate(timeout=120)
            return process.returncode, out, error
        finally:
            os.close(ours)
            os.close(theirs)

    def committed(self) -> tuple[dict[TopicPartition, int], dict[TopicPartition, str]]:
        with closing(self.count.broker.admin()) as admin:
            offsets = admin.committed_offsets(self.count.group)
            return offsets, admin.committed_metadata(self.count.group, list(offsets))

    def topics(self) -> dict[str, str]:
        with closing(self.count.broker.admin()) as admin:
            return admin.topic_ids([name for name in admin.topics() if name.startswith(self.count.prefix)])


@pytest.fixture
def resets(count: Count) -> Resets:
    return Resets(count)


def last_counts(count: Count) -> dict[str, int]:
    return dict(count.read(count.output))


def check(count: Count, sent: Sequence[tuple[str, int]], times: int) -> None:
    """Compare the results with a recount of the input, which was processed as often as ``times``."""
    assert last_counts(count) == Counter(key for key, _ in sent)
    windows = Counter((key, time // 1_000 * 1_000) for key, time in sent if time < FAR)
    final = Counter((value["key"], value["start"], value["value"]) for _, value in count.read(count.final))
    assert final == {(key, start, number): times for (key, start), number in windows.items()}


def test_reset_of_three_machines_one_of_which_is_away(count, resets, tmp_path):
    machines = [tmp_path / f"machine-{number}" for number in range(3)]

    def start(number: int) -> Any:
        folder, name = machines[number], f"machine-{number}"
        settings = {"group_protocol": "classic", "session_timeout": 6, **SETTINGS}
        return count.start(**settings, state_dir=folder, worker_id=name)

    sent = records(0, 4_000) + CLOSING
    workers = [start(number) for number in range(3)]
    count.wait_for(lambda: all(worker.events("restored") for worker in workers), 60, "all three are running")
    count.send(sent)
    count.wait_until_consumed()

    # One stays up: refused, it is named, and nothing is touched.
    assert workers[0].stop() == 0
    assert workers[1].stop() == 0
    count.wait_until_consumed()
    offsets, texts = resets.committed()
    topics = resets.topics()
    code, _, error = resets.run("--to", "earliest", "--yes")
    assert code == 3
    assert re.search(r"group \S+-count has 1 member: \S+, client \S+, host /127\.0\.0\.1", error), error
    assert "stop these workers" in error
    code, out, error = resets.run("--to", "earliest", "--dry-run", "--json")
    assert code == 0
    assert "could not be reset" in error
    plan = json.loads(out)
    assert (resets.committed(), resets.topics()) == ((offsets, texts), topics)
    assert {(item["topic"], item["partition"]): item["committed"] for item in plan["partitions"]} == offsets
    assert plan["emptied_repartition_topics"] == [f"{count.group}-counts-repartition"]
    changelogs = [f"{count.group}-{store}-changelog" for store in ("windows", "counts")]
    assert sorted(plan["emptied_changelogs"]) == sorted(changelogs)
    assert plan["written_again"] == [count.final, count.output]

    # Killed, it is a member until its session ends. The command is killed too, between two deletions.
    with resets.start("--to", "earliest", "--yes", "--json", "--wait", "60") as process:
        assert process.stderr is not None
        shown = []
        for line in process.stderr:
            shown.append(line)
            if "waiting for member" in line and workers[2].process.poll() is None:
                workers[2].kill()
            if "changelog: created empty" in line:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL, shown
    assert any("waiting for member" in line for line in shown)
    refused = start(0)
    assert refused.wait() == 8
    assert "begun and not finished" in refused.log.read_text()

    # And run again, to its end.
    code, out, error = resets.run("--to", "earliest", "--yes", "--json")
    assert code == 0, error
    done, end = map(json.loads, out.splitlines())
    assert done.pop("resumes")
    assert not plan.pop("resumes")
    assert done == plan
    assert end["reset"]
    new = {(item["topic"], item["partition"]): item["new"] for item in plan["partitions"]}
    assert resets.committed()[0] == new

    workers[:2] = [start(0), start(1)]
    count.wait_until_consumed()
    check(count, sent, times=2)
    assert any(worker.events("state rebuilt") for worker in workers[:2])
    assert workers[0].stop() == 0

    # The machine that was away comes back with its old disk and takes over.
    more = records(4_000, 4_100)
    late = [(key, FAR + time) for key, time in more]
    workers[2] = start(2)
    count.send(late)
    count.wait_until_consumed()
    assert workers[1].stop() == 0
    count.send(late)
    count.wait_until_consumed()
    assert workers[2].events("state rebuilt")
    assert last_counts(count) == Counter(key for key, _ in sent + late + late)
    assert workers[2].stop() == 0


class Killed(Exception):
    pass


@contextmanager
def stopping(seconds: float = 60) -> Iterator[threading.Event]:
    """What stops a worker that runs although it should have been refused."""
    stop = threading.Event()
    timer = threading.Timer(seconds, stop.set)
    timer.start()
    try:
        yield stop
    finally:
        timer.cancel()


def test_a_reset_that_is_killed_after_each_step_is_completed_by_the_next(count, resets):
    """Each attempt gets one step further; in between no worker starts. Here it is one of this process."""
    sent = records(0, 1_000) + CLOSING
    worker = count.start(**SETTINGS)
    count.send(sent)
    count.wait_until_consumed()
    assert worker.stop() == 0
    app = App(count.group, state_dir=str(count.state), **SETTINGS)
    stream = app.stream(count.input, key=Text(), value=Text())
    stream.group_by(str, value=Text()).count("counts").to(count.output)
    stream.group_by_key().window(Tumbling(seconds=1)).count("windows").final().to(count.final)
    with closing(count.broker.admin()) as admin:
        names = [f"{count.group}-{store}-changelog" for store in ("windows", "counts")]
        settings = admin.own_settings(names)
        described = {name: admin.topics()[name] for name in names}
        for last in range(20):
            done: list[str] = []

            def kill(step: str, done: list[str] = done, last: int = last) -> None:
                done.append(step)
                if len(done) == last + 1:
                    raise Killed

            plan = plan_reset(app.topology, count.broker, application=count.group, position=Earliest())
            assert plan.resumes == (last > 0)
            try:
                Reset(count.broker, plan, done=kill).run()
            except Killed:
                if done[-1].endswith("committed"):
                    break
                name, _, what = done[-1].partition(": ")
                if what == "deleted":
                    count.wait_for(lambda name=name: name not in admin.topics(), 30, f"{name} is gone")
                missing = set(names) - admin.topics().keys()
                with stopping() as stop, pytest.raises(StateError, match="begun and not finished"):
                    app.run(broker=count.broker, stop=stop)
                # The missing topic, if any, is not created by a worker.
                assert set(names) - admin.topics().keys() == missing
        else:
            pytest.fail("no end")
        assert last == 6, done
        assert admin.own_settings(names) == settings
        assert {name: admin.topics()[name] for name in names} == described
    worker = count.start(**SETTINGS)
    count.wait_until_consumed()
    assert worker.stop() == 0
    check(count, sent, times=2)


def test_what_is_not_clear_ends_with_an_error_before_anything_is_touched(count, resets, tmp_path):
    code, _, error = resets.run("--to", "earliest", "--yes")
    assert (code, "the app's own topics do not exist" in error) == (3, True), error
    worker = count.start(**SETTINGS)
    count.send(records(0, 100))
    count.wait_until_consumed()
    assert worker.stop() == 0
    before = resets.committed(), resets.topics()
    offsets = tmp_path / "offsets.csv"
    offsets.write_text(f"{count.input},0,0\n")
    for arguments, expected, message in [
        (("--to", "earliest", "--topic", "elsewhere"), 2, "does not read topic 'elsewhere'"),
        (("--from-file", str(offsets)), 2, f"has no offset for {count.input}-1"),
        (("--to", "earliest"), 2, "a reset has to be confirmed"),
    ]:
        sure = () if "confirmed" in message else ("--yes",)
        code, _, error = resets.run(*arguments, *sure)
        assert (code, message in error) == (expected, True), error
    assert (resets.committed(), resets.topics()) == before


def test_reset_to_a_time_and_by_a_file_in_the_words_of_kafkas_tool(
    count, resets, tmp_path, kafka: KafkaBroker
):
    worker = count.start(**SETTINGS)
    sent = records(0, 1_000)
    count.send(sent)
    count.wait_until_consumed()
    assert worker.stop() == 0
    places = [TopicPartition(count.input, number) for number in range(4)]
    with closing(kafka.admin()) as admin:
        at = admin.offsets_for_times(dict.fromkeys(places, 5_001))
    offsets = tmp_path / "offsets.csv"
    offsets.write_text("".join(f"{place.topic},{place.partition},{at[place]}\n" for place in places))
    for arguments in (
        ("--to", "1970-01-01T00:00:05.001Z"),
        ("--to-datetime", "1970-01-01T00:00:05.001"),
        ("--to", "5001"),
        ("--to", str(offsets)),
        ("--from-file", str(offsets)),
    ):
        code, out, error = resets.run(*arguments, "--dry-run", "--json")
        assert code == 0, error
        plan = json.loads(out)["partitions"]
        found = {item["partition"]: item["new"] for item in plan if item["topic"] == count.input}
        assert found == {place.partition: offset for place, offset in at.items()}
    before = resets.committed(), resets.topics()
    code, out, error = resets.answer("n", "--to", "5001")
    assert (code, "nothing was changed: not confirmed" in error) == (2, True), error
    assert (resets.committed(), resets.topics()) == before
    code, out, error = resets.answer("y", "--to", "5001", "--rate", "1000")
    assert code == 0, error
    assert "at 1,000 a second" in out
    assert "is reset; its workers can be started" in out
    worker = count.start(**SETTINGS)
    count.wait_until_consumed()
    assert worker.stop() == 0
    assert last_counts(count) == Counter(key for key, time in sent if time >= 5_001)


def test_an_app_without_state_is_reset_without_emptying_anything(copy, kafka):
    copy.produce([f"value-{number}" for number in range(100)])
    worker = copy.start()
    copy.wait_until_consumed()
    assert worker.stop() == 0
    app = App(copy.group)
    app.stream(copy.input, value=Text()).to(copy.output)
    done: list[str] = []
    plan = plan_reset(app.topology, kafka, application=copy.group, position=Earliest())
    assert not plan.changelogs
    Reset(kafka, plan, done=done.append).run()
    assert len(done) == 2
    worker = copy.start()
    copy.wait_until_consumed()
    assert worker.stop() == 0
    assert set(copy.outputs().values()) == {2}
