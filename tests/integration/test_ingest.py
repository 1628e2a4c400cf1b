"""``streams ingest`` as a process on a real broker: all lines are in the topic, counted exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.broker.reading import read_to_end
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kafka


class Found(NamedTuple):
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: list[tuple[str, bytes | None]] | None


def records(broker: KafkaBroker, topic: str) -> list[Found]:
    """The values of a topic, in the order of their times."""
    found = [
        Found(*row)
        for fetched in read_to_end(broker, [topic])
        for row in zip(
            fetched.keys(),
            fetched.values(),
            fetched.timestamps(),
            fetched.headers() or [None] * len(fetched),
            strict=True,
        )
    ]
    return sorted(found, key=lambda record: record.timestamp)


def values(broker: KafkaBroker, topic: str) -> list[bytes | None]:
    return [record.value for record in records(broker, topic)]


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.05)


class Command:
    """``streams ingest`` with a pipe for its standard input."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def give(self, content: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def end(self, number: signal.Signals | None = None) -> dict[str, int | str]:
        """Stop it by a signal, or by the end of its input, and return its output."""
        begun = time.monotonic()
        if number is not None:
            self.process.send_signal(number)
            assert self.process.stdout is not None
            out = self.process.stdout.read()
            self.process.wait(30)
        else:
            out, _ = self.process.communicate(timeout=60)
        assert time.monotonic() - begun < 20
        said: dict[str, int | str] = json.loads(out)
        return said


@contextmanager
def ingesting(
    servers: str, topic: str, *arguments: str, names: tuple[str, ...] = ("-",)
) -> Iterator[Command]:
    command = [sys.executable, "-m", "streams", "ingest", *names, "--topic", topic, "--json", *arguments]
    process = subprocess.Popen(
        [*command, "--bootstrap-servers", servers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Under nohup, the command would inherit that SIGHUP is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - calls nothing that locks
    )
    try:
        yield Command(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run(
    servers: str, topic: str, *arguments: str, content: bytes = b"", shell: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "streams", "ingest", *arguments, "--topic", topic, "--json"]
    command += ["--bootstrap-servers", servers]
    if shell is not None:
        quoted = " ".join(f"'{word}'" for word in command)
        command = ["bash", "-c", shell.replace("INGEST", quoted)]
    return subprocess.run(command, input=content, capture_output=True, timeout=120, check=False)


def test_lines_go_as_they_arrive_with_their_own_time(kafka, kafka_bootstrap, prefix):
    topic = f"{prefix}-live"
    with ingesting(kafka_bootstrap, topic, "--partitions", "1") as command:
        command.give(b"one\r\n")
        until(lambda: kafka.admin().topics().get(topic) is not None)
        until(lambda: values(kafka, topic) == [b"one"])
        command.give(b"half a")
        between = time.time() * 1000
        command.give(b" line\n\n")
        until(lambda: values(kafka, topic)[:2] == [b"one", b"half a line"])
        assert command.end(signal.SIGTERM) | {"seconds": 0} == {
            "topic": topic,
            "records": 3,
            "seconds": 0,
            "stopped_by": "SIGTERM",
        }
        assert command.process.returncode == 0
    found = records(kafka, topic)
    assert sorted(record.value or b"" for record in found) == [b"", b"half a line", b"one"]
    times = {record.value: record.timestamp for record in found}
    assert times[b"one"] < between - 1
    assert between - 1 <= times[b"half a line"] <= time.time() * 1000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_loses_nothing_that_was_in_the_pipe(kafka, kafka_bootstrap, prefix, number):
    topic = f"{prefix}-{number.name.lower()}"
    lines = [b"%d" % n for n in range(5_000)]
    with ingesting(kafka_bootstrap, topic) as command:
        command.give(b"first\n")
        until(lambda: kafka.admin().topics().get(topic) is not None)
        until(lambda: values(kafka, topic) == [b"first"])
        # The process is stopped, and finds all of this and the signal when it resumes.
        command.process.send_signal(signal.SIGSTOP)
        command.give(b"\n".join(lines) + b"\nhalf")
        command.process.send_signal(number)
        command.process.send_signal(signal.SIGCONT)
        said = command.end(signal.SIGCONT)
        assert (said["records"], said["stopped_by"]) == (5_002, number.name)
        assert command.process.returncode == 0
    assert Counter(values(kafka, topic)) == Counter([b"first", *lines, b"half"])


def test_a_signal_in_the_middle_of_a_file_is_reported_by_the_exit_code(
    tmp_path, kafka, kafka_bootstrap, prefix
):
    topic = f"{prefix}-file"
    file = tmp_path / "large"
    file.write_bytes(b"".join(b"%d\n" % n for n in range(3_000_000)))
    with ingesting(kafka_bootstrap, topic, names=(str(file),)) as command:
        until(lambda: kafka.admin().topics().get(topic) is not None)
        until(lambda: _written(kafka, topic) > 0)
        said = command.end(signal.SIGTERM)
        assert command.process.returncode == 128 + signal.SIGTERM
    count = said["records"]
    assert 0 < int(count) < 3_000_000
    assert _written(kafka, topic) == count


def _written(broker: KafkaBroker, topic: str) -> int:
    admin = broker.admin()
    partitions = admin.topics()[topic].partitions
    ends = admin.end_offsets([TopicPartition(topic, number) for number in range(partitions)])
    admin.close()
    return sum(ends.values())


def test_every_byte_passes(kafka, kafka_bootstrap, prefix):
    topic = f"{prefix}-bytes"
    done = run(
        kafka_bootstrap, topic, "-", "--partitions", "1", content=b"\0\n\xff\xfe\r\n\n\r\r\n a \nno end"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 6
    assert values(kafka, topic) == [b"\0", b"\xff\xfe", b"", b"\r", b" a ", b"no end"]


def test_keys_headers_and_times_come_from_lines(kafka, kafka_bootstrap, prefix):
    topic = f"{prefix}-keys"
    lines = [
        {"user": {"id": 7}, "at": "2015-05-17T10:05:03.123Z"},
        {"user": {"id": "ann"}, "at": 4_102_444_800_000},
        {"user": {}, "at": None},
    ]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    before = time.time() * 1000
    options = ("--key", "user.id", "--timestamp", "at", "--header", "source=web 1", "--header", "v=")
    done = run(kafka_bootstrap, topic, "-", *options, content=content)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["records"], said["without_key"], said["without_timestamp"]) == (3, 1, 1)
    first, now, last = records(kafka, topic)
    assert (first.key, first.timestamp) == (b"7", 1_431_857_103_123)
    assert (last.key, last.timestamp) == (b"ann", 4_102_444_800_000)
    assert now.key is None
    assert before - 1 <= now.timestamp <= time.time() * 1000
    assert first.headers == [("source", b"web 1"), ("v", b"")]
    topic = f"{prefix}-patterns"
    done = run(kafka_bootstrap, topic, "-", "--key-pattern", r"^(\S+) ", content=b"::1 - -\nx\n")
    assert json.loads(done.stdout)["without_key"] == 1
    assert {record.key for record in records(kafka, topic)} == {b"::1", None}


def test_pipes_and_devices_are_read(tmp_path, kafka, kafka_bootstrap, prefix):
    os.mkfifo(tmp_path / "pipe")
    for name, shell, count in (
        ("fifo", f"seq 1000 > {tmp_path}/pipe & INGEST", 1_000),
        ("process", "INGEST 9< <(seq 7)", 7),
        ("stdin", "seq 5 | INGEST", 5),
        ("null", "INGEST < /dev/null", 0),
    ):
        topic = f"{prefix}-{name}"
        files = {"fifo": str(tmp_path / "pipe"), "stdin": "/dev/stdin", "null": "/dev/stdin"}
        done = run(kafka_bootstrap, topic, files.get(name, "/dev/fd/9"), shell=shell)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["records"] == count == _written(kafka, topic)


def test_a_line_that_is_too_large_is_named_and_may_be_left_out(kafka, kafka_bootstrap, prefix):
    topic = f"{prefix}-large"
    kafka.admin().create_topics([NewTopic(name=topic, partitions=1, settings={"max.message.bytes": "20000"})])
    content = b"one\n" + b"x" * 30_000 + b"\n" + b"y" * 19_000 + b"\n" + b"z" * 19_999 + b"\nfive\n"
    done = run(kafka_bootstrap, topic, "-", content=content)
    assert done.returncode == 3
    assert b"the broker rejects line 2 of standard input, 30,000 bytes" in done.stderr
    assert b"--on-refused skip" in done.stderr
    before = _written(kafka, topic)
    assert json.loads(done.stdout)["records"] == before
    done = run(kafka_bootstrap, topic, "-", "--on-refused", "skip", content=content)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    # The fourth line leaves too few bytes for the record's overhead.
    assert (said["records"], said["refused"]) == (3, 2)
    assert _written(kafka, topic) == before + 3


def test_a_record_that_the_broker_refuses_fails_alone(kafka, kafka_bootstrap, prefix):
    topic = f"{prefix}-times"
    # By default Kafka refuses times that are more than an hour ahead.
    kafka.admin().create_topics([NewTopic(name=topic, partitions=1)])
    ahead = int((time.time() + 7_200) * 1000)
    lines = [{"n": n, "at": ahead if n in {3, 4} else int(time.time() * 1000)} for n in range(1_000)]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    done = run(kafka_bootstrap, topic, "-", "--timestamp", "at", "--on-refused", "skip", content=content)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["records"], said["refused"]) == (998, 2)
    assert b"line 4 of standard input" in done.stderr
    found = {json.loads(value or b"")["n"] for value in values(kafka, topic)}
    assert found == set(range(1_000)) - {3, 4}
    assert _written(kafka, topic) == 998


def test_a_broker_that_hangs_holds_up_neither_a_signal_nor_the_truth(tmp_path):
    with LocalKafka.start(tmp_path, heap_mb=384, java_options=QUICK_JAVA) as cluster:
        broker = KafkaBroker({"bootstrap.servers": cluster.bootstrap_servers})
        with ingesting(cluster.bootstrap_servers, "lines", "--partitions", "1") as command:
            command.give(b"one\n")
            until(lambda: broker.admin().topics().get("lines") is not None)
            until(lambda: values(broker, "lines") == [b"one"])
            cluster.node(1).pause()
            command.give(b"two\n")
            said = command.end(signal.SIGTERM)
            assert said["records"] == 1
            assert command.process.returncode == 3
            cluster.node(1).resume()


def test_a_simulation_reads_pipes_too(tmp_path):
    (tmp_path / "shop.py").write_text(
        "from streams import App, Text\napp = App('shop')\napp.stream('orders', value=Text()).to('paid')\n"
    )
    command = f"{sys.executable} -m streams simulate shop:app --seeds 2 --processes 1 --json --input orders"
    for given, count in (("<(seq 20)", 20), ("- <<< $'1\\n2'", 2), ("/dev/stdin < <(seq 3)", 3)):
        done = subprocess.run(
            ["bash", "-c", f"{command}={given}"], cwd=tmp_path, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        # Each of the two schedules compares all.
        assert json.loads(done.stdout)["records_compared"] == 2 * count
