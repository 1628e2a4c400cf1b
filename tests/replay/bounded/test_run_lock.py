"""One run of a name at a time, by a group's membership."""

from __future__ import annotations

import os
import re
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec
import pytest

from streams.broker import GroupSettings
from streams.errors import BrokerError, GroupActive
from streams.records import TopicPartition
from streams.replay.bounded.log import RunLog
from streams.replay.bounded.run_lock import RunLock, RunOwner, run_group
from tests.replay.inputs import memory_broker

if TYPE_CHECKING:
    from streams.broker.memory import MemoryBroker, MemoryConsumer


@pytest.fixture
def broker() -> MemoryBroker:
    return memory_broker({})


def lock(broker: MemoryBroker, name: str = "again", patience: float = 0.3) -> RunLock:
    return RunLock(broker, RunLog(broker, "shop"), name, patience=patience)


def test_a_second_command_is_refused_with_host_process_and_time(broker: MemoryBroker):
    with lock(broker) as held:
        held.require_held()
        expected = rf"'again' is running on host \S+ \(process {os.getpid()}\), since 20\S+Z"
        for _ in range(2):
            with pytest.raises(GroupActive, match=expected) as caught, lock(broker, patience=60):
                pytest.fail("it is held")
            assert caught.value.exit_code == 3
        held.require_held()
        with lock(broker, "another") as other:
            other.require_held()
    with lock(broker) as held:
        held.require_held()


def test_of_several_that_start_at_once_one_gets_the_name(broker: MemoryBroker):
    got: list[object] = []
    finished = threading.Barrier(5)

    def work() -> None:
        try:
            with lock(broker, patience=20) as own:
                own.require_held()
                got.append(own)
                finished.wait(60)
        except GroupActive:
            finished.wait(60)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def owner(process: int, host: str = "elsewhere") -> RunOwner:
    return RunOwner(member="1x", host=host, process=process, started="then", begun=1_796_025_600_000)


def join(broker: MemoryBroker, who: RunOwner | None) -> MemoryConsumer:
    """A member of the group that another command has left behind."""

    class Listener:
        def assigned(self, _: object) -> None: ...

        revoked = lost = assigned

    log = RunLog(broker, "shop")
    log.create()
    member = broker.consumer(GroupSettings(group=run_group("shop", "again")))
    member.subscribe([log.topic], Listener())
    place = TopicPartition(log.topic, 0)
    while place not in member.assignment():
        member.poll(1, 0.01)
    if who is not None:
        member.commit({place: 0}, {place: msgspec.json.encode(who).decode()})
    return member


@pytest.mark.parametrize("who", [owner(1), None], ids=["with its name", "before it wrote its name"])
def test_the_session_of_a_killed_command_is_waited_for(broker: MemoryBroker, who: RunOwner | None):
    killed = join(broker, who)
    reasons: list[str] = []

    def waiting(reason: str) -> None:
        reasons.append(reason)
        if len(reasons) == 3:
            broker.expire(killed)

    with RunLock(broker, RunLog(broker, "shop"), "again", waiting=waiting, patience=60) as own:
        own.require_held()
    expected = "was running on host elsewhere" if who else "was running"
    assert all(re.search(f"'again' {expected}.*: it may have been killed", reason) for reason in reasons)


def test_a_command_on_another_host_that_does_not_leave_is_named(broker: MemoryBroker):
    join(broker, owner(17))
    expected = r"running on host elsewhere \(process 17\), since 2026-11-30T08:00:00Z"
    with pytest.raises(GroupActive, match=expected), lock(broker):
        pytest.fail("it is held")


def test_a_command_that_loses_its_session_does_not_write(broker: MemoryBroker):
    with ExitStack() as stack:
        own = stack.enter_context(lock(broker))
        consumer = vars(own)["_consumer"]
        broker.expire(consumer)
        other = stack.enter_context(lock(broker, patience=20))
        other.require_held()
        with pytest.raises(BrokerError, match="has lost its membership of group shop-replay-again"):
            own.require_held()


def test_a_command_that_gets_its_session_back_goes_on(broker: MemoryBroker):
    with lock(broker, patience=60) as own:
        broker.expire(vars(own)["_consumer"])
        own.require_held()
