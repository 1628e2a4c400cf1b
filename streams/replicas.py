"""Which worker of an app holds what: told by each in a topic, read by those who look for another."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import msgspec

from streams.broker import BEGINNING, GroupSettings, NewTopic
from streams.errors import BrokerError, BrokerUnreachable
from streams.events import Event, get_logger
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from streams.broker import Broker, Consumer, Producer

TELL_SECONDS = 0.2
"""How soon others may know of a change to what a worker holds."""

RETRY_SECONDS = 1.0
"""When to tell it again after the broker did not take it."""

KNOWN_SECONDS = 1.0
"""For so long nobody looks again who holds what."""

NEWS_SECONDS = 0.2
"""How long to wait for news where what was known has proved wrong."""

ANSWER_SECONDS = 5.0
"""How long the topic may take to be read, or to take a record."""

ALIVE_SECONDS = 30.0
"""A worker that holds nothing is taken for gone when it has not told so for this long."""

SETTINGS = {"cleanup.policy": "compact", "segment.ms": str(24 * 3600 * 1000)}


class Replica(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker tells of itself."""

    address: str | None = None
    """Where it may be asked, as ``host:port``."""
    member: str | None = None
    """What the group sorts it by, see ``Consumer.member``."""
    tasks: list[str] = []
    """Its tasks, those that are being restored included."""
    stores: dict[str, list[int]] = {}
    """The partitions of each store that it can be asked for, or will be once they are restored."""


class Replicas:
    """The directory of an app's workers: a compacted topic of one partition, ``<app>-replicas``.

    Each worker writes one record, under its name, with what it holds, and nothing when it stops. For a
    partition the latest record counts, so that what a killed worker held is its successor's as soon as that
    has it.

    The group itself knows this too, but asking it ends the process when its coordinator goes away meanwhile
    (librdkafka 2.16, its issue 4605).
    """

    def __init__(self, broker: Broker, application: str, name: str) -> None:
        self.address: str | None = None
        """Where this worker may be asked, once it is started."""
        self._broker = broker
        self._topic = TopicPartition(f"{application}-replicas", 0)
        self._name = name
        self._log = get_logger()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._producer: Producer | None = None
        self._told: Replica | None = None
        self._told_at = -float("inf")
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._complete = False
        self._known_at = -float("inf")
        self._known: dict[str, Replica] = {}
        self._idle_since: dict[str, float] = {}
        """The workers that say that they hold nothing, and when they said so last."""
        self._owners: dict[tuple[str, int | str], str] = {}
        """The name of the worker that holds each partition of a store, and each task."""
        self._members: tuple[str, ...] = ()

    @property
    def members(self) -> Sequence[str]:
        """The group's members, see ``Consumer.member``, as far as known to who follows them."""
        return self._members

    def start(
        self, replica: Callable[[], Replica], *, address: str | None = None, follow: bool = False
    ) -> None:
        """Make the topic if it is missing, and tell others from now on; keep up with them to ``follow``.

        ``replica`` tells what this worker is, apart from its address; it is looked at all the time. Raises
        ``BrokerError``.
        """
        admin = self._broker.admin()
        try:
            admin.create_topics([NewTopic(name=self._topic.topic, partitions=1, settings=SETTINGS)])
            admin.require_rights({self._topic.topic: ["READ", "WRITE"]})
        finally:
            admin.close()
        self.address = address
        self._thread = threading.Thread(
            target=self._tell_changes, args=(replica, follow), name="streams-replicas", daemon=True
        )
        self._thread.start()

    def owners(self, store: str, *, anew: bool = False) -> dict[int, str]:
        """The address of the worker that holds each partition of a store, as far as known.

        Looks again when what is known is a second old, or ``anew`` says that it was wrong; that waits for no
        broker that is away. Raises ``BrokerError`` when the topic was never read as a whole.
        """
        with self._lock:
            if anew or time.monotonic() - self._known_at >= KNOWN_SECONDS:
                try:
                    self._read(NEWS_SECONDS if anew else 0.0)
                except BrokerError:
                    # Without a broker the workers still answer from what they have.
                    if not self._complete:
                        raise
                finally:
                    self._known_at = time.monotonic()
            elif not self._complete:
                raise BrokerUnreachable(f"{self._topic} could not be read just now")
            return {
                partition: address
                for (name, partition), owner in self._owners.items()
                if name == store and isinstance(partition, int) and (address := self._known[owner].address)
            }

    def close(self) -> None:
        """Tell others that this worker holds nothing any more, and release the clients."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._told is not None:
            self._tell(None)
        if self._producer is not None:
            self._producer.close()
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
            self._consumer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _tell_changes(self, tell: Callable[[], Replica], follow: bool) -> None:
        while not self._stop.is_set():
            replica = msgspec.structs.replace(tell(), address=self.address)
            due = replica != (self._told or Replica(self.address))
            if follow and not replica.tasks:
                due = due or time.monotonic() - self._told_at > ALIVE_SECONDS / 3
            told = not due or self._tell(replica)
            if follow:
                self._follow()
            self._stop.wait(TELL_SECONDS if told else RETRY_SECONDS)

    def _follow(self) -> None:
        with self._lock:
            try:
                self._read(0.0)
            except BrokerError as error:
                self._log.warning(Event.BROKER_TROUBLE, error=str(error))
                return
            now = time.monotonic()
            busy = set(self._owners.values())
            busy.update(name for name, since in self._idle_since.items() if now - since < ALIVE_SECONDS)
            self._members = tuple(sorted(member for name in busy if (member := self._known[name].member)))

    def _tell(self, replica: Replica | None) -> bool:
        """Write what this worker is, ``None`` when it stops; whether that worked."""
        value = None if replica is None else msgspec.json.encode(replica)
        now = time.time_ns() // 1_000_000
        try:
            if self._producer is None:
                self._producer = self._broker.producer()
            self._producer.produce(
                Output(self._topic.topic, [self._name.encode()], [value], [now], partition=0)
            )
            self._producer.flush(ANSWER_SECONDS)
        except BrokerError as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            if self._producer is not None:
                # A producer remembers for seconds that a topic, just made by another worker, was missing.
                self._producer.close()
                self._producer = None
            return False
        self._told, self._told_at = replica, time.monotonic()
        return True

    def _read(self, timeout: float) -> None:
        """Take in what workers told since the last time; the client has fetched it already.

        Waits up to ``timeout`` (seconds) for news, the first time for all that there is.
        """
        if self._consumer is None:
            self._consumer = self._broker.consumer(GroupSettings(group=self._topic.topic, protocol="classic"))
            self._consumer.assign({self._topic: BEGINNING})
        give_up = time.monotonic() + ANSWER_SECONDS
        while True:
            polled = self._consumer.poll(1000, timeout if self._complete else 0.1)
            for fetched in polled.fetched:
                self._take(fetched.keys(), fetched.values())
            self._complete = self._complete or self._topic in polled.ends
            if self._complete and not polled.fetched:
                return
            if time.monotonic() > give_up:
                raise BrokerUnreachable(f"{self._topic} could not be read within {ANSWER_SECONDS:.0f} s")

    def _take(self, names: Sequence[bytes | None], told: Sequence[bytes | None]) -> None:
        for key, value in zip(names, told, strict=True):
            name = (key or b"").decode()
            try:
                replica = None if value is None else msgspec.json.decode(value, type=Replica)
            except msgspec.DecodeError as error:
                self._log.warning(Event.BROKER_TROUBLE, error=f"{self._topic}: {error}")
                continue
            self._owners = {place: owner for place, owner in self._owners.items() if owner != name}
            self._idle_since.pop(name, None)
            self._known.pop(name, None)
            if replica is None:
                continue
            self._known[name] = replica
            places: list[tuple[str, int | str]] = [("", task) for task in replica.tasks]
            places += [(store, partition) for store in replica.stores for partition in replica.stores[store]]
            self._owners |= dict.fromkeys(places, name)
            if not replica.tasks:
                self._idle_since[name] = time.monotonic()
