"""The directory of an app's workers: a topic to which each writes what it holds, and which all of them read.

Any client may write to the topic, so its records are not trusted: those that cannot be decoded are skipped.
Of contradicting claims the latest counts. A worker that sees the claim of another worker, or none, for a task
that it holds claims it again.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.broker import BEGINNING, GroupSettings, NewTopic
from streams.broker.reading import read_to_end
from streams.errors import BrokerError, BrokerUnreachable, Retriable, TopicMissing
from streams.events import Event, get_logger
from streams.records import Output, TopicPartition
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import TracebackType
    from typing import Self

    from streams.broker import Broker, Consumer, Producer
    from streams.records import Fetched

PUBLISH_SECONDS = 0.2
"""Seconds between checks for changes to write to the topic, or to read from it."""

RETRY_SECONDS = 1.0
"""Seconds to the next attempt after a failure."""

KNOWN_SECONDS = 1.0
"""How long a result of reading the topic is used before it is read again."""

NEWS_SECONDS = 0.2
"""How long to wait for new records after an entry of the directory proved wrong."""

ANSWER_SECONDS = 5.0
"""The time-out for reading the topic, and for writing a record."""

ALIVE_SECONDS = 30.0
"""A worker without tasks counts as dead if its last record is older than this."""

REFRESH_SECONDS = 600.0
"""Each worker repeats its record after this time, in case the topic was emptied or recreated."""

CONTEST_SECONDS = 1.0
"""How long a worker waits before it repeats a claim that another worker contests; doubled each time.

It does not repeat it at once: while a task moves, a record of its old owner may follow one of its new owner.
"""

LONGEST_CONTEST_SECONDS = 300.0
"""The maximum of that wait."""

TROUBLE_SECONDS = 30.0
"""How long reading the topic may fail before health reports it."""

REPORT_SECONDS = 10.0
"""The shortest time between two log lines with the same text."""

LARGEST_RECORD = 1024 * 1024
"""The maximum size of a worker's record, in bytes."""

SETTINGS = {"cleanup.policy": "compact", "segment.ms": str(24 * 3600 * 1000)}


@decodable
class Replica(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's record in the directory."""

    address: str | None = None
    """The address of its HTTP port, as ``host:port``."""
    member: str | None = None
    """Its member id, by which the group sorts members, see ``Consumer.member``."""
    tasks: list[str] = []
    """Its tasks, including those being restored."""
    stores: dict[str, list[int]] = {}
    """The partitions of each store that it holds, including those being restored."""
    changed: int | None = None
    """When tasks or stores last changed (milliseconds since the epoch).

    If two workers claim the same, the one with the later change has it: the other has been replaced and does
    not know it yet.
    """


class Trouble(NamedTuple):
    """Why a worker cannot read or write the directory."""

    reason: str
    fixed_by_restart: bool

    def __str__(self) -> str:
        return self.reason


class _Contest:
    """Decides when to repeat a contested claim, with exponential backoff.

    So false claims are corrected, but two contesting processes never flood the topic.
    """

    def __init__(self) -> None:
        self._claims = 0
        self._began: float | None = None
        self._last = -float("inf")

    def due(self, contested: bool, now: float) -> bool:
        """Whether to repeat the claim at time ``now`` (seconds), given whether it is contested."""
        wait = min(CONTEST_SECONDS * 2**self._claims, LONGEST_CONTEST_SECONDS)
        if not contested:
            self._began = None
            if now - self._last > 2 * wait:
                self._claims = 0
            return False
        if self._began is None:
            self._began = now
        if now - max(self._began, self._last) < wait:
            return False
        self._claims = min(self._claims + 1, 30)
        self._last = now
        return True


class Replicas:
    """The directory of an app's workers: a compacted topic of one partition, ``<app>-replicas``.

    Each worker writes one record with what it holds, keyed by its name, and a tombstone when it stops. For a
    partition the latest record counts, so that the partitions of a killed worker belong to its successor as
    soon as that has written its record. A worker whose claim is no longer the latest, or is missing, repeats
    it, unless the other worker got its tasks later.

    The group itself knows this too, but not where workers may be asked, and asking it is only safe with
    precautions (librdkafka 2.16, its issue 4605; see DESIGN, "Pitfalls").
    """

    def __init__(self, broker: Broker, application: str, name: str) -> None:
        self.address: str | None = None
        """The address of this worker's HTTP port, once it is started."""
        self._broker = broker
        self._topic = TopicPartition(f"{application}-replicas", 0)
        self._name = name
        self._log = get_logger()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._producer: Producer | None = None
        self._published: Replica | None = None
        self._published_at = -float("inf")
        self._changed: int | None = None
        self._contest = _Contest()
        self._expected: frozenset[str] | None = None
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._complete = False
        self._known_at = -float("inf")
        self._known: dict[str, Replica] = {}
        self._idle_since: dict[str, float] = {}
        """The workers without tasks, and when their last record was read."""
        self._owners: dict[tuple[str, int | str], str] = {}
        """The name of the worker that holds each partition of a store, and each task."""
        self._members: tuple[str, ...] = ()

        # The state of the thread, for health checks.
        self._round_began = self._worked_at = time.monotonic()
        self._in_round = False
        self._failure = ""
        self._failure_logged_at = self._skips_logged_at = -float("inf")
        self._skips = 0

    @property
    def members(self) -> Sequence[str]:
        """The group's member ids, see ``Consumer.member``; only kept up to date with ``follow``."""
        return self._members

    @property
    def seconds_behind(self) -> float:
        """Seconds since the topic was last read, and written to if necessary; 0 before ``start``."""
        return 0.0 if self._thread is None else time.monotonic() - self._worked_at

    @property
    def trouble(self) -> Trouble | None:
        """Why this worker cannot read or write the directory; ``None`` if it can."""
        thread, topic = self._thread, self._topic.topic
        if thread is None or self._stop.is_set():
            return None
        if not thread.is_alive():
            return Trouble(f"the thread that reads {topic} has ended: {self._failure}", True)
        now = time.monotonic()
        if self._in_round and now - self._round_began > TROUBLE_SECONDS + ANSWER_SECONDS:
            return Trouble(
                f"the thread that reads {topic} has hung for {now - self._round_began:.0f} s", True
            )
        if now - self._worked_at > TROUBLE_SECONDS:
            return Trouble(
                f"{topic} could not be read or written for {now - self._worked_at:.0f} s: {self._failure}",
                False,
            )
        return None

    def start(
        self,
        replica: Callable[[], Replica],
        *,
        address: str | None = None,
        follow: bool = False,
        tasks: Collection[str] | None = None,
    ) -> None:
        """Create the topic if it is missing, and start to write this worker's record and to read the others.

        ``replica`` returns this worker's record without its address; it is called in each round. With
        ``follow``, the record is also repeated regularly while the worker has no tasks, and ``members`` is
        kept up to date: from the workers that claim one of ``tasks``, all tasks of the app, or any task if
        that is ``None``. Raises ``BrokerError``.
        """
        self._make_topic()
        self.address = address
        self._expected = None if tasks is None else frozenset(tasks)
        self._worked_at = time.monotonic()
        self._thread = threading.Thread(
            target=self._run, args=(replica, follow), name="streams-replicas", daemon=True
        )
        self._thread.start()

    def owners(self, store: str, *, refresh: bool = False) -> dict[int, str]:
        """The address of the worker that holds each partition of a store, as far as known.

        The topic is read again if the last read is more than a second ago, or with ``refresh``, if an earlier
        result proved wrong; this does not wait for a broker that does not answer. Raises ``BrokerError`` if
        the topic was never read to its end.
        """
        with self._lock:
            if refresh or time.monotonic() - self._known_at >= KNOWN_SECONDS:
                try:
                    self._read(NEWS_SECONDS if refresh else 0.0)
                except BrokerError:
                    # Without a broker, workers still answer queries from the last known directory.
                    if not self._complete:
                        raise
                finally:
                    self._known_at = time.monotonic()
            elif not self._complete:
                raise BrokerUnreachable(f"{self._topic} could not be read a moment ago")
            return {
                partition: address
                for (name, partition), owner in self._owners.items()
                if name == store and isinstance(partition, int) and (address := self._known[owner].address)
            }

    def close(self) -> None:
        """Write a tombstone for this worker's record, and close the clients."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * ANSWER_SECONDS)
            if self._thread.is_alive():
                # It hangs in one of the clients, which no other thread may use then.
                return
        if self._published is not None:
            self._publish(None)
        if self._producer is not None:
            self._producer.close()
        with self._lock:
            self._drop_consumer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _make_topic(self) -> None:
        admin = self._broker.admin()
        try:
            admin.create_topics([NewTopic(name=self._topic.topic, partitions=1, settings=SETTINGS)])
            admin.require_rights({self._topic.topic: ["READ", "WRITE"]})
        finally:
            admin.close()

    def _run(self, replica: Callable[[], Replica], follow: bool) -> None:
        """The thread's loop. No record and no failure may end it, as only this thread reads the topic."""
        while not self._stop.is_set():
            pause = RETRY_SECONDS
            self._round_began, self._in_round = time.monotonic(), True
            try:
                self._round(replica, follow)
            except Exception as error:  # noqa: BLE001 - see above
                self._note_failure(error)
            else:
                self._worked_at, pause = time.monotonic(), PUBLISH_SECONDS
            finally:
                self._in_round = False
            self._stop.wait(pause)

    def _round(self, replica: Callable[[], Replica], follow: bool) -> None:
        """Write this worker's record if necessary, and read the others. Raises ``BrokerError``."""
        own = self._stamped(msgspec.structs.replace(replica(), address=self.address))
        age = time.monotonic() - self._published_at
        due = own != (self._published or Replica(self.address, changed=own.changed))
        if follow and not own.tasks:
            due = due or age > ALIVE_SECONDS / 3
        due = due or (self._published is not None and age > REFRESH_SECONDS)
        published = not (due or self._contested()) or self._publish(own)
        with self._lock:
            self._read(0.0)
            now = time.monotonic()
            busy = {
                owner
                for (store, task), owner in self._owners.items()
                if not store and (self._expected is None or task in self._expected)
            }
            busy.update(name for name, since in self._idle_since.items() if now - since < ALIVE_SECONDS)
            members = {member for name in busy if (member := self._known[name].member)}
            self._members = tuple(sorted(members))
        if not published:
            raise BrokerUnreachable(f"{self._topic} could not be written to")

    def _stamped(self, own: Replica) -> Replica:
        """The record with the time when its tasks or stores last changed."""
        before = self._published or Replica()
        if (own.tasks, own.stores) != (before.tasks, before.stores) or self._changed is None:
            self._changed = time.time_ns() // 1_000_000
        return msgspec.structs.replace(own, changed=self._changed)

    def _contested(self) -> bool:
        """Whether to repeat this worker's record, because the directory contradicts it."""
        published = self._published
        if published is None or not self._complete:
            return False
        with self._lock:
            known = self._known.get(self._name)
            rivals = {self._owners.get(place, "") for place in _places(published)} - {self._name}
            contested = known != published and not _replaced(published, known)
            contested = contested or any(not _replaced(published, self._known.get(rival)) for rival in rivals)
        return self._contest.due(contested, time.monotonic())

    def _note_failure(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if text != self._failure or now - self._failure_logged_at > REPORT_SECONDS:
            self._failure, self._failure_logged_at = text, now
            self._log.warning(Event.BROKER_TROUBLE, error=text, topic=self._topic.topic)

    def _publish(self, replica: Replica | None) -> bool:
        """Write this worker's record, or a tombstone for ``None``. Returns whether it succeeded."""
        value = None if replica is None else msgspec.json.encode(replica)
        now = time.time_ns() // 1_000_000
        try:
            if self._producer is None:
                self._producer = self._broker.producer()
            self._producer.produce(
                Output(self._topic.topic, [self._name.encode()], [value], [now], partition=0)
            )
            self._producer.flush(ANSWER_SECONDS)
        except Exception as error:  # noqa: BLE001 - the next attempt has a new producer
            self._note_failure(error)
            if self._producer is not None:
                # A producer caches for seconds that a topic is missing, even if another worker created it.
                self._producer.close()
                self._producer = None
            if isinstance(error, TopicMissing):
                self._make_topic()
            return False
        self._published, self._published_at = replica, time.monotonic()
        return True

    def _read(self, timeout: float) -> None:
        """Read the records since the last call, which the client has usually fetched already.

        Waits up to ``timeout`` (seconds) for new records; the first time it reads to the topic's end.
        """
        if self._consumer is None:
            self._consumer = self._broker.consumer(GroupSettings(group=self._topic.topic, protocol="classic"))
            self._consumer.assign({self._topic: BEGINNING})
        try:
            self._read_on(self._consumer, timeout)
        except (Retriable, BrokerUnreachable):
            raise
        except Exception:
            # The client's state is unknown: the next client reads the topic from the beginning.
            self._drop_consumer()
            raise

    def _read_on(self, consumer: Consumer, timeout: float) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            polled = consumer.poll(1000, timeout if self._complete else 0.1)
            for fetched in polled.fetched:
                self._take(fetched)
            self._complete = self._complete or self._topic in polled.ends
            if self._complete and not polled.fetched:
                return
            if time.monotonic() > deadline:
                raise BrokerUnreachable(f"{self._topic} could not be read within {ANSWER_SECONDS:.0f} s")

    def _drop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(BrokerError):
                consumer.close()

    def _take(self, fetched: Fetched) -> None:
        for row, (key, value) in enumerate(zip(fetched.keys(), fetched.values(), strict=True)):
            try:
                name = _name_of(key)
            except ValueError as error:
                self._skip(fetched, row, error)
                continue
            try:
                replica = _decoded(value)
            except ValueError as error:
                # Compaction keeps it instead of earlier records of this name, so it counts as a tombstone.
                self._skip(fetched, row, error)
                replica = None
            before = self._known.pop(name, None)
            for place in () if before is None else _places(before):
                if self._owners.get(place) == name:
                    del self._owners[place]
            self._idle_since.pop(name, None)
            if replica is None:
                continue
            self._known[name] = replica
            self._owners |= dict.fromkeys(_places(replica), name)
            if not replica.tasks:
                self._idle_since[name] = time.monotonic()

    def _skip(self, fetched: Fetched, row: int, error: ValueError) -> None:
        """Log a record that is not a worker's, at most one line in ``REPORT_SECONDS``."""
        self._skips += 1
        now = time.monotonic()
        if now - self._skips_logged_at > REPORT_SECONDS:
            self._log.warning(
                Event.RECORDS_SKIPPED,
                topic=fetched.topic,
                partition=fetched.partition,
                offset=fetched.offsets([row])[0],
                reason=str(error),
                records=self._skips,
            )
            self._skips_logged_at, self._skips = now, 0


def read_replicas(broker: Broker, application: str) -> dict[str, Replica]:
    """Read the directory once, as another program: the records of an app's workers, by their names.

    A worker that was killed is in it until another one has its name. Records that are not a worker's are left
    out. Raises ``TopicError`` if the app has no directory, and ``BrokerError``.
    """
    found: dict[str, Replica] = {}
    for fetched in read_to_end(broker, [f"{application}-replicas"]):
        for key, value in zip(fetched.keys(), fetched.values(), strict=True):
            try:
                name = _name_of(key)
                replica = _decoded(value)
            except ValueError:
                continue
            found.pop(name, None)
            if replica is not None:
                found[name] = replica
    return found


def _places(replica: Replica) -> list[tuple[str, int | str]]:
    """What a worker claims: its tasks, with an empty store name, and its partitions of stores."""
    places: list[tuple[str, int | str]] = [("", task) for task in replica.tasks]
    return places + [(store, partition) for store in replica.stores for partition in replica.stores[store]]


def _replaced(own: Replica, other: Replica | None) -> bool:
    """Whether another worker with the same claim got it later, at a time that is not in the future."""
    if other is None or other.changed is None or own.changed is None:
        return False
    return own.changed < other.changed <= time.time_ns() // 1_000_000 + round(ALIVE_SECONDS * 1000)


def _name_of(key: bytes | None) -> str:
    """The worker's name in a record's key. Raises ``ValueError``."""
    if not key:
        raise ValueError("not a worker's record: it has no key")
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not a worker's record: its key is {key!r:.80}: {error}") from error


def _decoded(value: bytes | None) -> Replica | None:
    """Decode a worker's record. Raises ``ValueError``."""
    if value is None:
        return None
    if len(value) > LARGEST_RECORD:
        raise ValueError(f"not a worker's record: it has {len(value)} bytes, the limit is {LARGEST_RECORD}")
    try:
        return msgspec.json.decode(value, type=Replica)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a worker's record: {value!r:.80}: {error}") from error
