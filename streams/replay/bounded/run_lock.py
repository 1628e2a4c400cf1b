"""One run of a name at a time: the command is a member of a group of its own while it works.

The coordinator gives the group's only partition to one member, and ends a killed member's session after
seconds. Who the owner is, it commits beside an offset, which only a member can. So nothing has to be cleaned
up.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

import msgspec

from streams.broker import GroupSettings
from streams.errors import BrokerError, GroupActive, Retriable, TransactionAborted
from streams.process.identity import ProcessIdentity
from streams.records import TopicPartition
from streams.replay.positions import as_time
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from streams.broker import Admin, Broker, Consumer, GroupMember
    from streams.replay.bounded.log import RunLog

SESSION_SECONDS: Final = 10.0
"""How long a killed command remains a member."""

WAIT_SECONDS: Final = 15.0
"""How long to wait for a member to leave that may be a killed command's."""

JOIN_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 0.2
TEND_SECONDS: Final = 1.0


@decodable
class RunOwner(msgspec.Struct, frozen=True, kw_only=True):
    """The command that runs a replay."""

    member: str
    """Its name in the group, for the assignor."""
    host: str
    process: int
    started: str
    """When its process started, by which a reused process id is not mistaken for it."""
    begun: int
    """When it got the lock, in milliseconds since the epoch."""

    def __str__(self) -> str:
        return f"on host {self.host} (process {self.process}), since {as_time(self.begun)}"

    def is_member(self, member: GroupMember) -> bool:
        """Whether it is this member of the group."""
        # The assignor puts a digit before the names.
        return self.member[1:] == member.name

    @property
    def ended(self) -> bool:
        """Whether it certainly runs no more: its process was on this host."""
        return self.host == socket.gethostname() and not self._lives

    @property
    def certain(self) -> bool:
        """Whether it certainly runs."""
        return self.host == socket.gethostname() and self._lives

    @property
    def _lives(self) -> bool:
        return ProcessIdentity(self.process, self.started).status() is not None


def _this_process(member: str) -> RunOwner:
    process = ProcessIdentity.of(os.getpid())
    return RunOwner(
        member=member,
        host=socket.gethostname(),
        process=process.pid,
        started=process.started,
        begun=time.time_ns() // 1_000_000,
    )


class _State(Enum):
    NEW = "new"
    JOINING = "joining"
    HELD = "held"
    LOST = "lost"
    RELEASED = "released"


_NEXT: Final = {
    _State.NEW: {_State.JOINING, _State.RELEASED},
    _State.JOINING: {_State.HELD, _State.RELEASED},
    _State.HELD: {_State.LOST, _State.RELEASED},
    _State.LOST: {_State.HELD, _State.RELEASED},
    _State.RELEASED: {_State.RELEASED},
}


class RunLock:
    """Holds the name of a run while it is entered.

    Entering raises ``GroupActive``, naming the command that runs. ``waiting`` is called with the reason while
    it is not known whether that command was killed, for up to ``patience`` seconds.
    """

    def __init__(
        self,
        broker: Broker,
        log: RunLog,
        name: str,
        *,
        waiting: Callable[[str], None] = lambda _: None,
        patience: float = WAIT_SECONDS,
    ) -> None:
        self._broker = broker
        self._log = log
        self._name = name
        self._group = run_group(log.application, name)
        self._place = TopicPartition(log.topic, 0)
        self._waiting = waiting
        self._patience = patience
        self._state = _State.NEW
        self._owner: RunOwner | None = None
        self._consumer: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._requests: queue.SimpleQueue[queue.SimpleQueue[bool] | None] = queue.SimpleQueue()
        """For the thread that has the consumer: where to answer whether it is still a member, or to end."""

    def __enter__(self) -> Self:
        admin = self._broker.admin()
        try:
            self._log.create()
            self._wait_until_free(admin)
            self._join(admin)
        except BaseException:
            self._release()
            raise
        finally:
            admin.close()
        self._thread = threading.Thread(target=self._tend, name="streams-replay-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def require_held(self) -> None:
        """Raise ``BrokerError`` if another command may have the name by now."""
        deadline = time.monotonic() + self._patience
        answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._requests.put(answer)
        while not answer.get():
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"the replay {self._name!r} has lost its membership of group {self._group}, so another "
                    "command may run under this name",
                    hint="nothing was written: repeat the command",
                )
            time.sleep(LOOK_SECONDS)
            self._requests.put(answer)

    # The listener of the group.

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """The partition has come, or has come back."""
        if self._place in partitions and self._state is _State.LOST:
            self._become(_State.HELD if self._read_owner() == self._owner else _State.LOST)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """The partition goes, perhaps for a moment."""
        self.lost(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """The partition is gone."""
        if self._place in partitions and self._state is _State.HELD:
            self._become(_State.LOST)

    def _become(self, state: _State) -> None:
        if state is not self._state:
            assert state in _NEXT[self._state], f"a lock that is {self._state.value} cannot be {state.value}"
            self._state = state

    def _wait_until_free(self, admin: Admin) -> None:
        """Wait until the group has no members, as long as they may be those of a killed command."""
        deadline = time.monotonic() + self._patience
        while members := admin.group_members(self._group):
            owner = self._read_owner(admin)
            if time.monotonic() > deadline or (owner is not None and owner.certain):
                raise self._active(owner, members)
            self._waiting(
                f"a replay of the name {self._name!r} was running"
                + (f" {owner}" if owner is not None else "")
                + (": it was killed" if owner is not None and owner.ended else ": it may have been killed")
            )
            time.sleep(LOOK_SECONDS)

    def _join(self, admin: Admin) -> None:
        """Join the group, and become the owner of its partition."""
        self._become(_State.JOINING)
        self._consumer = consumer = self._broker.consumer(
            GroupSettings(group=self._group, protocol="classic", session_timeout=SESSION_SECONDS)
        )
        consumer.subscribe([self._place.topic], self)
        deadline = time.monotonic() + JOIN_SECONDS
        while time.monotonic() < deadline:
            consumer.poll(1, LOOK_SECONDS)
            # Two commands may have joined at the same time: the one that has committed first is the owner.
            owner = self._read_owner(admin)
            if owner is not None:
                members = admin.group_members(self._group)
                if any(owner.is_member(member) for member in members):
                    raise self._active(owner, members)
            if self._place not in consumer.assignment() or consumer.member is None:
                continue
            consumer.pause([self._place])
            self._owner = _this_process(consumer.member)
            if self._confirm():
                self._become(_State.HELD)
                return
        raise BrokerError(
            f"group {self._group} has not given its partition to this command within {JOIN_SECONDS:.0f} s",
            hint="repeat the command",
        )

    def _confirm(self) -> bool:
        """Commit who the owner is, which only works as a member that has the partition."""
        assert self._consumer is not None, "it joins"
        try:
            self._consumer.commit({self._place: 0}, {self._place: msgspec.json.encode(self._owner).decode()})
        except (TransactionAborted, Retriable):
            return False
        return True

    def _tend(self) -> None:
        """Remain a member."""
        assert self._consumer is not None, "it has joined"
        while True:
            answer: queue.SimpleQueue[bool] | None = None
            with suppress(queue.Empty):
                answer = self._requests.get(timeout=TEND_SECONDS)
                if answer is None:
                    return
            try:
                self._consumer.keep_alive()
                confirmed = answer is not None and self._state is _State.HELD and self._confirm()
            except BrokerError:
                # It is asked again before anything is written.
                confirmed = False
            if answer is not None:
                answer.put(confirmed)

    def _read_owner(self, admin: Admin | None = None) -> RunOwner | None:
        opened = admin or self._broker.admin()
        try:
            return _committed_owner(opened, self._group, self._place)
        finally:
            if admin is None:
                opened.close()

    def _active(self, owner: RunOwner | None, members: Sequence[GroupMember]) -> GroupActive:
        who = str(owner) if owner is not None else "; ".join(map(str, members))
        return GroupActive(
            f"a replay of the name {self._name!r} is running {who}",
            hint="wait until it has ended, stop it, or choose another name (--as)",
        )

    def _release(self) -> None:
        self._requests.put(None)
        if self._thread is not None:
            self._thread.join()
        if self._consumer is not None:
            self._consumer.close()
        self._become(_State.RELEASED)


def run_group(application: str, name: str) -> str:
    """The group of which the command that runs a replay is a member."""
    return f"{application}-replay-{name}"


def running_owner(admin: Admin, log: RunLog, name: str) -> RunOwner | None:
    """The command that has the name of a run now, or was killed seconds ago. Raises ``BrokerError``."""
    group = run_group(log.application, name)
    members = admin.group_members(group)
    owner = _committed_owner(admin, group, TopicPartition(log.topic, 0)) if members else None
    return owner if owner is not None and any(map(owner.is_member, members)) else None


def _committed_owner(admin: Admin, group: str, place: TopicPartition) -> RunOwner | None:
    text = admin.committed_metadata(group, [place]).get(place)
    try:
        return None if not text else msgspec.json.decode(text, type=RunOwner)
    except msgspec.DecodeError:
        return None
