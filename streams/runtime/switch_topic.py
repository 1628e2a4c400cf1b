"""Which app of a blue/green pair emits, and how far a switch is: a record that all of them follow.

The topic ``<pair>-switch`` has one partition. Its record ``switch`` is only written by compare-and-set: every
writer uses the same transactional id, and ``init_transactions`` fences those before it. After that it reads
the record, so what it writes replaces exactly what it has read. Each app describes its inputs beside it.
"""

from __future__ import annotations

import time
import uuid
from enum import Enum
from typing import TYPE_CHECKING, Final

import msgspec

from streams.broker import BEGINNING, GroupSettings, NewTopic
from streams.errors import (
    BrokerUnreachable,
    OutcomeUnknown,
    Retriable,
    TopicError,
    TransactionAborted,
)
from streams.records import Output, TopicPartition
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.broker import Admin, Broker, Consumer, Producer
    from streams.records import Fetched

SETTINGS: Final = {"cleanup.policy": "compact"}

TRANSACTION_SECONDS: Final = 10.0
"""How long the transaction of a writer that was killed stays open, and how long a commit may take."""

READ_SECONDS: Final = 10.0
"""How long reading the topic to its end may take."""

POLL_SECONDS: Final = 0.1

AGAIN: Final = (Retriable, BrokerUnreachable, OutcomeUnknown, TransactionAborted)
"""Errors after which a call is repeated: another writer came between, or the broker did not answer."""

_SWITCH: Final = b"switch"
_APP: Final = b"app:"


class SwitchPhase(Enum):
    """The phases of a switch, and whether the emitter may emit in them.

    ::

                 ┌──────────────switched───────────────┐
                 v                                     │
        ──> RUNNING ──> FREEZING ──> ADVANCING ──> SEALING
                 ^──aborted─┴────────────┴─────────────┘
    """

    RUNNING = "running"
    """One app emits, and all others are muted."""
    FREEZING = "freezing"
    """Both apps stop taking records of their external inputs, and process their internal topics."""
    ADVANCING = "advancing"
    """Both process exactly up to the barriers, and then their internal topics to the ends."""
    SEALING = "sealing"
    """Both process nothing, so that no record is processed by the wrong one after the next phase begins."""

    def may_become(self, other: SwitchPhase) -> bool:
        """Whether the transition is allowed."""
        return other in _NEXT[self]


_NEXT = {
    SwitchPhase.RUNNING: {SwitchPhase.FREEZING},
    SwitchPhase.FREEZING: {SwitchPhase.ADVANCING, SwitchPhase.RUNNING},
    SwitchPhase.ADVANCING: {SwitchPhase.SEALING, SwitchPhase.RUNNING},
    SwitchPhase.SEALING: {SwitchPhase.RUNNING},
}


@decodable
class SwitchRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who emits, and the switch that is being made."""

    version: int
    """One more than that of the record before."""
    token: str
    """Different in each record. Committed beside an offset, it says that the partition has stopped there."""
    phase: SwitchPhase
    emitter: str
    """The app whose results are written."""
    follower: str | None = None
    """The app that emits after the switch; while there is none, the one that emitted before the last."""
    barriers: dict[str, list[int]] = {}
    """From ``ADVANCING`` on: the first offset that belongs to the follower, by external topic and number."""
    pause_limit: float = 0.0
    """Seconds after which a switch that is not finished is aborted."""
    began: int = 0
    """When ``FREEZING`` was written, in milliseconds since the epoch."""
    pause: float | None = None
    """Seconds from ``FREEZING`` to the end of the last switch."""
    reason: str = ""
    """Why the last switch was aborted; empty if it was not."""

    @property
    def active(self) -> bool:
        """Whether a switch is being made."""
        return self.phase is not SwitchPhase.RUNNING

    def concerns(self, app: str) -> bool:
        """Whether the app takes part in the switch that is being made."""
        return self.active and app in (self.emitter, self.follower)

    def barrier(self, partition: TopicPartition) -> int | None:
        """The first offset of an external partition that belongs to the follower, if it has a barrier."""
        offsets = self.barriers.get(partition.topic, [])
        return offsets[partition.partition] if partition.partition < len(offsets) else None

    def begin(self, follower: str, pause_limit: float, now: int) -> SwitchRecord:
        """The record that begins a switch."""
        return self._next(
            SwitchPhase.FREEZING,
            follower=follower,
            pause_limit=pause_limit,
            began=now,
            pause=None,
            reason="",
            barriers={},
        )

    def advance(self, barriers: Mapping[str, list[int]]) -> SwitchRecord:
        """The record that lets both process up to the barriers."""
        return self._next(SwitchPhase.ADVANCING, barriers=dict(barriers))

    def seal(self) -> SwitchRecord:
        """The record that lets both stop completely."""
        return self._next(SwitchPhase.SEALING)

    def switch(self, now: int) -> SwitchRecord:
        """The record that makes the follower the emitter."""
        assert self.phase is SwitchPhase.SEALING, f"switched while {self.phase.value}"
        assert self.follower is not None
        pause = max(0, now - self.began) / 1000
        return self._next(
            SwitchPhase.RUNNING, emitter=self.follower, follower=self.emitter, pause=pause, barriers={}
        )

    def abort(self, reason: str) -> SwitchRecord:
        """The record that leaves the emitter as it is."""
        return self._next(SwitchPhase.RUNNING, reason=reason, barriers={})

    def _next(self, phase: SwitchPhase, **changes: object) -> SwitchRecord:
        assert self.phase.may_become(phase), f"a switch that is {self.phase.value} cannot be {phase.value}"
        return msgspec.structs.replace(
            self, version=self.version + 1, token=new_token(), phase=phase, **changes
        )


def first_record(emitter: str) -> SwitchRecord:
    """The record of the pair's first app."""
    return SwitchRecord(version=1, token=new_token(), phase=SwitchPhase.RUNNING, emitter=emitter)


def new_token() -> str:
    """A text that no other record has."""
    return uuid.uuid4().hex[:16]


@decodable
class AppInputs(msgspec.Struct, frozen=True):
    """What an app of the pair reads."""

    external: list[str]
    """Topics that other programs write, and own results that it reads again."""
    internal: list[str]
    """Its own repartition topics."""
    outputs: list[str] = []
    """The fixed topics that it writes results to, for comparison."""


def switch_topic(pair: str) -> str:
    """The name of a pair's topic."""
    return f"{pair}-switch"


class SwitchTopic:
    """Reads the topic of one pair. Used by one thread."""

    def __init__(self, broker: Broker, pair: str) -> None:
        self.name = switch_topic(pair)
        self.place = TopicPartition(self.name, 0)
        self.record: SwitchRecord | None = None
        """As of the last ``read``; ``None`` before any app has started."""
        self.apps: dict[str, AppInputs] = {}
        """What the pair's apps read, by name."""
        self._broker = broker
        self._consumer: Consumer | None = None
        self._admin: Admin | None = None
        self._position = 0

    @property
    def exists(self) -> bool:
        """Whether the topic exists. Raises ``BrokerError``."""
        return self.name in self._opened_admin().topics()

    def create(self) -> None:
        """Create the topic if it does not exist.

        Raises ``TopicError`` if it exists and is not one of these topics, and other errors of the broker.
        """
        admin = self._opened_admin()
        admin.create_topics([NewTopic(name=self.name, partitions=1, settings=SETTINGS)])
        found = admin.topics().get(self.name)
        if found is None:
            # Another worker creates it at this moment.
            raise Retriable(f"{self.name} is not known to all brokers yet")
        if found.partitions != 1:
            raise TopicError(
                f"topic {self.name} has {found.partitions} partitions, a pair's topic has one",
                hint="give the pair (setting blue_green) another name",
            )

    def read(self, *, to_end: bool) -> None:
        """Take new records; with ``to_end``, all those that were committed before the call.

        Raises ``BrokerError``; it may be called again then.
        """
        if self._consumer is None:
            self._consumer = self._broker.consumer(
                GroupSettings(group="streams-reading", isolation="read_committed", protocol="classic")
            )
            self._consumer.assign({self.place: BEGINNING})
        if not to_end:
            self._poll(0.0)
            return
        end = self._opened_admin().end_offsets([self.place])[self.place]
        deadline = time.monotonic() + READ_SECONDS
        while self._position < end:
            self._poll(POLL_SECONDS)
            if time.monotonic() > deadline:
                raise Retriable(f"{self.name} could not be read to its end within {READ_SECONDS:g} s")

    def written(self, record: SwitchRecord) -> None:
        """Take over a record that was just written, before it is read."""
        self.record = record

    def close(self) -> None:
        """Release the clients."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def _poll(self, timeout: float) -> None:
        assert self._consumer is not None
        polled = self._consumer.poll(1_000, timeout)
        for fetched in polled.fetched:
            self._take(fetched)
            self._position = max(self._position, fetched.next_offset)
        self._position = max(self._position, polled.ends.get(self.place, 0))

    def _take(self, fetched: Fetched) -> None:
        for key, value in zip(fetched.keys(), fetched.values(), strict=True):
            if key is None or value is None:
                continue
            try:
                if key == _SWITCH:
                    record = msgspec.json.decode(value, type=SwitchRecord)
                    # A record that this process wrote may be known before it is read.
                    if self.record is None or record.version >= self.record.version:
                        self.record = record
                elif key.startswith(_APP):
                    name = key.removeprefix(_APP).decode()
                    self.apps[name] = msgspec.json.decode(value, type=AppInputs)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise TopicError(
                    f"{self.name} has a record that is not of a switch: {error}",
                    hint="another version of streams, or another program, has written it",
                ) from error

    def _opened_admin(self) -> Admin:
        if self._admin is None:
            self._admin = self._broker.admin()
        return self._admin


class SwitchWriter:
    """Changes the record of a pair by compare-and-set. Used by one thread.

    The producer stays open between changes: as long as no other writer has fenced it, nobody else has
    changed the record.
    """

    def __init__(self, broker: Broker, topic: SwitchTopic) -> None:
        self._broker = broker
        self._topic = topic
        self._producer: Producer | None = None

    def change(self, make: Callable[[SwitchRecord | None], SwitchRecord | None]) -> SwitchRecord | None:
        """Replace the record by what ``make`` returns for it; do nothing if that is ``None``.

        Returns the record as it is after that. Raises ``BrokerError`` if it may not be known whether the
        record was replaced, e.g. after another writer came between: the next call reads it again.
        """
        try:
            self._open()
            before = self._topic.record
            record = make(before)
            if record is None:
                return before
            assert record.version == (0 if before is None else before.version) + 1
            self._write(_SWITCH, msgspec.json.encode(record))
        except BaseException:
            self.close()
            raise
        self._topic.written(record)
        return record

    def describe(self, app: str, inputs: AppInputs) -> None:
        """Write what an app reads, unless that is known. Raises ``BrokerError``."""
        if self._topic.apps.get(app) == inputs:
            return
        try:
            self._open()
            self._write(_APP + app.encode(), msgspec.json.encode(inputs))
        except BaseException:
            self.close()
            raise
        self._topic.apps[app] = inputs

    def close(self) -> None:
        """Release the producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()

    def _open(self) -> None:
        if self._producer is not None:
            return
        self._producer = self._broker.producer(
            transactional_id=self._topic.name, transaction_timeout=TRANSACTION_SECONDS
        )
        # This fences every writer before: what is read after it cannot change.
        self._producer.init_transactions(TRANSACTION_SECONDS)
        self._topic.read(to_end=True)

    def _write(self, key: bytes, value: bytes) -> None:
        producer = self._producer
        assert producer is not None
        now = time.time_ns() // 1_000_000
        producer.begin()
        producer.produce(Output(self._topic.name, [key], [value], [now], partition=0))
        producer.commit(TRANSACTION_SECONDS)
