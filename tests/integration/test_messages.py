"""ZeroMQ on the real broker: workers and the programs on the other side are killed, frozen, started again."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import psutil
import pytest

from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from streams.records import TopicPartition
from tests.conftest import QUICK_GROUPS
from tests.integration.conftest import Copy
from tests.support.message_process import HIGH_WATER_MARK, MessageProcess, received, sent
from tests.support.messages import free_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.kafka

SESSION = {"group_protocol": "classic", "session_timeout": 6, "transaction_timeout": 3}
KERNEL_BYTES = 12_000_000
"""More than the kernel buffers of one connection on this machine."""


class Messages(Copy):
    """The app of ``messages_app``, and the processes on the other side."""

    name = "messages"

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        super().__init__(servers, prefix, folder)
        self.others: list[MessageProcess] = []
        self.create_topics()

    def other(self, *arguments: object) -> MessageProcess:
        process = MessageProcess(*arguments)
        self.others.append(process)
        return process

    def committed(self) -> Mapping[TopicPartition, int]:
        return self._admin.committed_offsets(self.group)

    def end(self) -> None:
        for process in self.others:
            process.kill()
        super().end()


@pytest.fixture
def make_messages(prefix: str, tmp_path: Path) -> Iterator[Callable[[str], Messages]]:
    made: list[Messages] = []

    def make(servers: str) -> Messages:
        messages = Messages(servers, prefix, tmp_path)
        made.append(messages)
        return messages

    yield make
    for messages in made:
        messages.end()


@pytest.fixture
def messages(make_messages: Callable[[str], Messages], kafka_bootstrap: str) -> Messages:
    return make_messages(kafka_bootstrap)


def numbered(start: int, stop: int) -> list[str]:
    return [f"{number}" for number in range(start, stop)]


def test_a_killed_worker_of_a_sink_repeats_messages_with_the_same_origin(messages: Messages, tmp_path: Path):
    file, address = tmp_path / "received", free_address()
    messages.environment["MESSAGES_RECEIVER"] = address
    messages.other("receive", address, file)
    messages.produce(numbered(0, 20_000))
    worker = messages.start(commit_interval=0.05, **SESSION)
    messages.wait_for(lambda: len(received(file)) > 2_000, 60, "under way")
    worker.kill()
    assert len(received(file)) < 20_000
    committed = messages.committed()
    messages.start(**SESSION)
    messages.wait_until_consumed()
    messages.produce(["last"])
    messages.wait_for(lambda: received(file)[-1][1] == "last", 60, "the last message")
    found = received(file)
    by_origin = {origin: value for _, value, origin in found}
    counts = Counter(value for value in by_origin.values())
    # Who remembers the origins has no message twice.
    assert max(counts.values()) == 1
    # Those that were committed and had not left the killed process.
    lost = 20_001 - len(by_origin)
    assert 0 <= lost <= HIGH_WATER_MARK
    # What was sent since its last commit.
    repeated = [origin for origin, count in Counter(origin for _, _, origin in found).items() if count > 1]
    for origin in repeated:
        topic, partition, offset = origin.split("/")
        assert int(offset) >= committed.get(TopicPartition(topic, int(partition)), 0)
    print(f"repeated {len(repeated)}, lost {lost}")  # noqa: T201 - shown by pytest -rP


def test_a_killed_receiver_loses_what_is_on_its_way_and_the_sink_continues(
    messages: Messages, tmp_path: Path
):
    file, address, size = tmp_path / "received", free_address(), 10_000
    messages.environment["MESSAGES_RECEIVER"] = address
    receiver = messages.other("receive", address, file)
    padding = " " * size
    messages.produce([value + padding for value in numbered(0, 3_000)])
    worker = messages.start(**SESSION)
    messages.wait_for(lambda: len(received(file)) > 500, 60, "under way")
    receiver.kill()
    messages.other("receive", address, file)
    messages.produce([value + padding for value in numbered(3_000, 4_000)])
    messages.wait_until_consumed()
    messages.produce(["last"])
    messages.wait_for(lambda: received(file)[-1][1] == "last", 60, "the last message")
    numbers = {value.strip() for _, value, _ in received(file)}
    lost = set(numbered(0, 4_000)) - numbers
    assert len(lost) <= 2 * HIGH_WATER_MARK + KERNEL_BYTES // size
    assert worker.stop() == 0
    print(f"lost {len(lost)}")  # noqa: T201 - shown by pytest -rP


def test_a_receiver_that_stands_still_holds_the_sink_and_nothing_is_lost(messages: Messages, tmp_path: Path):
    file, address, size = tmp_path / "received", free_address(), 10_000
    messages.environment["MESSAGES_RECEIVER"] = address
    receiver = messages.other("receive", address, file)
    messages.produce(["first"])
    worker = messages.start(**SESSION)
    messages.wait_for(lambda: received(file), 60, "the first message")
    receiver.process.send_signal(signal.SIGSTOP)
    padding = " " * size
    messages.produce([value + padding for value in numbered(0, 6_000)])
    messages.wait_for(lambda: worker.events("sink unavailable"), 60, "the sink is held")
    assert messages.lag() > 0
    receiver.process.send_signal(signal.SIGCONT)
    messages.wait_until_consumed()
    numbers = set(numbered(0, 6_000))
    messages.wait_for(
        lambda: {value.strip() for _, value, _ in received(file)} == numbers | {"first"}, 60, "all messages"
    )
    assert worker.stop() == 0


def test_a_stop_waits_for_messages_that_are_committed_and_not_on_their_way(
    messages: Messages, tmp_path: Path
):
    file, address, size = tmp_path / "received", free_address(), 700_000
    messages.environment["MESSAGES_RECEIVER"] = address
    receiver = messages.other("receive", address, file)
    messages.produce(["first"])
    worker = messages.start(**SESSION)
    messages.wait_for(lambda: received(file), 60, "the first message")
    receiver.process.send_signal(signal.SIGSTOP)
    # They fit into the sink's buffer, and not into the kernel's.
    assert (HIGH_WATER_MARK - 10) * size > KERNEL_BYTES
    for value in numbered(0, HIGH_WATER_MARK - 10):
        messages.produce([value + " " * size], keyed=False)
    messages.wait_until_consumed()
    worker.process.send_signal(signal.SIGTERM)
    messages.wait_for(lambda: worker.events("partitions revoked"), 60, "the worker has left the group")
    receiver.process.send_signal(signal.SIGCONT)
    assert worker.wait() == 0
    numbers = {"first", *numbered(0, HIGH_WATER_MARK - 10)}
    messages.wait_for(
        lambda: {value.strip() for _, value, _ in received(file)} == numbers, 60, "all messages"
    )
    assert not worker.events("messages discarded")


def test_a_killed_worker_of_a_source_loses_what_it_had_not_committed_and_repeats_nothing(
    messages: Messages, tmp_path: Path
):
    file, address, size = tmp_path / "sent", free_address(), 10_000
    messages.environment["MESSAGES_SENDER"] = address
    messages.other("send", address, file, 0, 8_000, size)
    worker = messages.start(**SESSION)
    messages.wait_for(lambda: sum(messages.outputs_now().values()) > 500, 60, "under way")
    worker.kill()
    before = sent(file)
    # Nothing takes them: the sender waits.
    messages.wait_for(lambda: sent(file)[0] in {"waiting", "sent"}, 60, f"the sender waits {before}")
    messages.start(**SESSION)
    messages.wait_for(lambda: sent(file) == ("sent", 8_000), 90, "all is sent")
    messages.wait_for(lambda: "7999" in messages.outputs_now(), 60, "the last message")
    found = messages.outputs()
    assert max(found.values()) == 1
    lost = set(numbered(0, 8_000)) - found.keys()
    # Both buffers, the kernel's, four batches on their way to a commit, and those processed since the last.
    assert len(lost) <= 2 * HIGH_WATER_MARK + KERNEL_BYTES // size + 4 * 20 + 2_000
    # They are one piece: those on their way when it was killed.
    missing = sorted(map(int, lost))
    assert missing == list(range(missing[0], missing[-1] + 1)) if missing else True
    print(f"lost {len(lost)}")  # noqa: T201 - shown by pytest -rP


def test_a_killed_sender_is_connected_again(messages: Messages, tmp_path: Path):
    file, address = tmp_path / "sent", free_address()
    messages.environment["MESSAGES_SENDER"] = address
    sender = messages.other("send", address, file, 0, 2_000, 10)
    worker = messages.start(**SESSION)
    messages.wait_for(messages.outputs_now, 60, "under way")
    sender.kill()
    messages.other("send", address, file, 10_000, 2_000, 10)
    messages.wait_for(
        lambda: messages.outputs_now().keys() >= set(numbered(10_000, 12_000)), 60, "all of the second sender"
    )
    assert max(messages.outputs().values()) == 1
    assert worker.stop() == 0


def test_while_kafka_stands_still_a_source_takes_no_more_than_its_buffers(
    make_messages: Callable[[str], Messages], tmp_path: Path
):
    file, address, size, count = tmp_path / "sent", free_address(), 10_000, 30_000
    with LocalKafka.start(
        tmp_path / "kafka", heap_mb=384, properties=QUICK_GROUPS, java_options=QUICK_JAVA
    ) as cluster:
        messages = make_messages(cluster.bootstrap_servers)
        messages.environment["MESSAGES_SENDER"] = address
        worker = messages.start(**SESSION)
        messages.wait_for(lambda: worker.events("partitions assigned"), 60, "assigned")
        process = psutil.Process(worker.process.pid)
        messages.other("send", address, file, 0, count, size)
        messages.wait_for(messages.outputs_now, 60, "under way")
        node = cluster.node(1)
        node.pause()
        before = process.memory_info().rss
        messages.wait_for(lambda: sent(file)[0] == "waiting", 60, "the sender waits")
        assert sent(file)[1] < count
        grown = process.memory_info().rss - before
        # The producer's queue is larger than ZeroMQ's buffers, and the allocator keeps some.
        assert grown < 150_000_000
        node.resume()
        messages.wait_for(lambda: sent(file) == ("sent", count), 120, "all is sent")
        messages.wait_for(lambda: len(messages.outputs_now()) == count, 120, "all messages")
        assert max(messages.outputs().values()) == 1
        assert worker.stop() == 0
        print(f"grown by {grown / 1e6:.0f} MB")  # noqa: T201 - shown by pytest -rP
        messages.end()
