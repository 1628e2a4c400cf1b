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
    from collections.abc import Callable, Mapping, Sequence
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

SETTINGS = {"cleanup.policy": "compact", "segment.ms": str(24 * 3600 * 1000)}


class Replicas:
    """The directory of an app's workers: a compacted topic of one partition, ``<app>-replicas``.

    Each worker writes one record, under its address: the partitions it holds of each store, and nothing when
    it stops. For a partition the latest record counts, so that what a killed worker held is its successor's
    as soon as that has it. ``held`` tells what this worker holds, by store; it is looked at all the time.

    The group itself knows this too, but asking it ends the process when its coordinator goes away meanwhile
    (librdkafka 2.16, its issue 4605).
    """

    def __init__(self, broker: Broker, application: str, held: Callable[[], Mapping[str, list[int]]]) -> None:
        self.address: str | None = None
        """Where this worker may be asked, as ``host:port``, once it is started."""
        self._broker = broker
        self._topic = TopicPartition(f"{application}-replicas", 0)
        self._held = held
        self._log = get_logger()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._producer: Producer | None = None
        self._told: Mapping[str, list[int]] | None = None
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._complete = False
        self._known_at = -float("inf")
        self._owners: dict[tuple[str, int], str] = {}

    def start(self, address: str) -> None:
        """Make the topic if it is missing, and tell others from now on. Raises ``BrokerError``."""
        admin = self._broker.admin()
        try:
            admin.create_topics([NewTopic(name=self._topic.topic, partitions=1, settings=SETTINGS)])
        finally:
            admin.close()
        self.address = address
        self._thread = threading.Thread(target=self._tell_changes, name="streams-replicas", daemon=True)
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
            return {place[1]: address for place, address in self._owners.items() if place[0] == store}

    def close(self) -> None:
        """Tell others that this worker holds nothing any more, and release the clients."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._told:
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

    def _tell_changes(self) -> None:
        while not self._stop.is_set():
            held = self._held()
            told = held == (self._told or {}) or self._tell(held)
            self._stop.wait(TELL_SECONDS if told else RETRY_SECONDS)

    def _tell(self, held: Mapping[str, list[int]] | None) -> bool:
        """Write what is held, ``None`` for a worker that stops; whether that worked."""
        assert self.address is not None
        value = None if held is None else msgspec.json.encode(held)
        now = time.time_ns() // 1_000_000
        try:
            if self._producer is None:
                self._producer = self._broker.producer()
            self._producer.produce(
                Output(self._topic.topic, [self.address.encode()], [value], [now], partition=0)
            )
            self._producer.flush(ANSWER_SECONDS)
        except BrokerError as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            if self._producer is not None:
                # A producer remembers for seconds that a topic, just made by another worker, was missing.
                self._producer.close()
                self._producer = None
            return False
        self._told = held
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

    def _take(self, addresses: Sequence[bytes | None], told: Sequence[bytes | None]) -> None:
        for key, value in zip(addresses, told, strict=True):
            address = (key or b"").decode()
            try:
                stores = msgspec.json.decode(value or b"{}", type=dict[str, list[int]])
            except msgspec.DecodeError as error:
                self._log.warning(Event.BROKER_TROUBLE, error=f"{self._topic}: {error}")
                continue
            self._owners = {place: owner for place, owner in self._owners.items() if owner != address}
            for store, partitions in stores.items():
                self._owners |= dict.fromkeys(((store, partition) for partition in partitions), address)
