"""Which worker of an app holds what: each writes it to a topic, which all of them follow.

The topic is as open as any other: a record there may say anything, and under any name. What cannot be read is
left out. Of claims that contradict each other the latest counts, so a worker that sees another one, or none,
where it holds a task claims that again.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.broker import BEGINNING, GroupSettings, NewTopic
from streams.errors import BrokerError, BrokerUnreachable, Retriable, TopicMissing
from streams.events import Event, get_logger
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import TracebackType
    from typing import Self

    from streams.broker import Broker, Consumer, Producer
    from streams.records import Fetched

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

REFRESH_SECONDS = 600.0
"""Each worker writes its record again after this long: for a topic that was emptied, or made again."""

CONTEST_SECONDS = 1.0
"""How long another claim to what a worker holds may last before it claims that again; doubled each time.

Not at once: while a task moves, records of its last owner may come after those of the next.
"""

LONGEST_CONTEST_SECONDS = 300.0
"""As far as it is doubled."""

TROUBLE_SECONDS = 30.0
"""For so long the topic may not be followed before health says so."""

REPORT_SECONDS = 10.0
"""How often the same is logged at most."""

LARGEST_RECORD = 1024 * 1024
"""No worker's record is larger (bytes)."""

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
    changed: int | None = None
    """When that changed last (milliseconds since the epoch).

    Of two workers that hold the same, the one with the later change has it: the other one has been replaced
    and does not know it yet.
    """


class Trouble(NamedTuple):
    """Why a worker does not know what the others hold."""

    reason: str
    mended_by_restart: bool

    def __str__(self) -> str:
        return self.reason


class _Contest:
    """When to repeat a claim that another one contradicts: soon at first, then less and less often.

    So false claims are corrected, and two processes never flood the topic.
    """

    def __init__(self) -> None:
        self._claims = 0
        self._began: float | None = None
        self._last = -float("inf")

    def due(self, contested: bool, now: float) -> bool:
        """Whether to claim again now (seconds), as things are or are not contested."""
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

    Each worker writes one record, under its name, with what it holds, and nothing when it stops. For a
    partition the latest record counts, so that what a killed worker held is its successor's as soon as that
    has it. A worker whose claim is not the latest any more, or is gone, writes it again, unless a worker that
    got its tasks later claims the same.

    The group itself knows this too, but not where workers may be asked, and asking it is only safe with
    precautions (librdkafka 2.16, its issue 4605; see DESIGN, "Pitfalls").
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
        self._changed: int | None = None
        self._contest = _Contest()
        self._expected: frozenset[str] | None = None
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

        # What health says of the thread.
        self._round_began = self._worked_at = time.monotonic()
        self._in_round = False
        self._failure = ""
        self._failure_logged_at = self._skips_logged_at = -float("inf")
        self._skips = 0

    @property
    def members(self) -> Sequence[str]:
        """The group's members, see ``Consumer.member``, as far as known to who follows them."""
        return self._members

    @property
    def seconds_behind(self) -> float:
        """How long ago the topic was read, and written to where that was due; 0 before ``start``."""
        return 0.0 if self._thread is None else time.monotonic() - self._worked_at

    @property
    def trouble(self) -> Trouble | None:
        """Why this worker cannot know what others hold, nor they what it holds; ``None`` where it works."""
        thread, topic = self._thread, self._topic.topic
        if thread is None or self._stop.is_set():
            return None
        if not thread.is_alive():
            return Trouble(f"the thread that follows {topic} has ended: {self._failure}", True)
        now = time.monotonic()
        if self._in_round and now - self._round_began > TROUBLE_SECONDS + ANSWER_SECONDS:
            return Trouble(
                f"the thread that follows {topic} hangs since {now - self._round_began:.0f} s", True
            )
        if now - self._worked_at > TROUBLE_SECONDS:
            return Trouble(
                f"{topic} could not be followed for {now - self._worked_at:.0f} s: {self._failure}", False
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
        """Make the topic if it is missing; say what this worker holds, and follow the others, from now on.

        ``replica`` gives what this worker is, apart from its address; it is looked at all the time. With
        ``follow``, it also says so regularly while it holds nothing, and ``members`` are kept up to date:
        from claims to ``tasks``, which are all that the app has, or to any if that is not given. Raises
        ``BrokerError``.
        """
        self._make_topic()
        self.address = address
        self._expected = None if tasks is None else frozenset(tasks)
        self._worked_at = time.monotonic()
        self._thread = threading.Thread(
            target=self._run, args=(replica, follow), name="streams-replicas", daemon=True
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
            self._thread.join(2 * ANSWER_SECONDS)
            if self._thread.is_alive():
                # It hangs in one of the clients, which nothing else may touch then.
                return
        if self._told is not None:
            self._tell(None)
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
        """The thread. Nothing that is read or that fails may end it: nothing else follows the topic."""
        while not self._stop.is_set():
            pause = RETRY_SECONDS
            self._round_began, self._in_round = time.monotonic(), True
            try:
                self._round(replica, follow)
            except Exception as error:  # noqa: BLE001 - see above
                self._note_failure(error)
            else:
                self._worked_at, pause = time.monotonic(), TELL_SECONDS
            finally:
                self._in_round = False
            self._stop.wait(pause)

    def _round(self, replica: Callable[[], Replica], follow: bool) -> None:
        """Write what changed and read what others wrote. Raises ``BrokerError``."""
        own = self._stamped(msgspec.structs.replace(replica(), address=self.address))
        age = time.monotonic() - self._told_at
        due = own != (self._told or Replica(self.address, changed=own.changed))
        if follow and not own.tasks:
            due = due or age > ALIVE_SECONDS / 3
        due = due or (self._told is not None and age > REFRESH_SECONDS)
        told = not (due or self._contested()) or self._tell(own)
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
        if not told:
            raise BrokerUnreachable(f"{self._topic} could not be written to")

    def _stamped(self, own: Replica) -> Replica:
        """With the time when what this worker holds changed last."""
        before = self._told or Replica()
        if (own.tasks, own.stores) != (before.tasks, before.stores) or self._changed is None:
            self._changed = time.time_ns() // 1_000_000
        return msgspec.structs.replace(own, changed=self._changed)

    def _contested(self) -> bool:
        """Whether to write again what was written, as others do not see it so."""
        told = self._told
        if told is None or not self._complete:
            return False
        with self._lock:
            known = self._known.get(self._name)
            rivals = {self._owners.get(place, "") for place in _places(told)} - {self._name}
            contested = known != told and not _replaced(told, known)
            contested = contested or any(not _replaced(told, self._known.get(rival)) for rival in rivals)
        return self._contest.due(contested, time.monotonic())

    def _note_failure(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if text != self._failure or now - self._failure_logged_at > REPORT_SECONDS:
            self._failure, self._failure_logged_at = text, now
            self._log.warning(Event.BROKER_TROUBLE, error=text, topic=self._topic.topic)

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
        except Exception as error:  # noqa: BLE001 - the next attempt has a new producer
            self._note_failure(error)
            if self._producer is not None:
                # A producer remembers for seconds that a topic, just made by another worker, was missing.
                self._producer.close()
                self._producer = None
            if isinstance(error, TopicMissing):
                self._make_topic()
            return False
        self._told, self._told_at = replica, time.monotonic()
        return True

    def _read(self, timeout: float) -> None:
        """Take in what workers wrote since the last time; the client has fetched it already.

        Waits up to ``timeout`` (seconds) for news, the first time for all that there is.
        """
        if self._consumer is None:
            self._consumer = self._broker.consumer(GroupSettings(group=self._topic.topic, protocol="classic"))
            self._consumer.assign({self._topic: BEGINNING})
        try:
            self._read_on(self._consumer, timeout)
        except (Retriable, BrokerUnreachable):
            raise
        except Exception:
            # A client in an unknown state is of no use: the next one reads everything again.
            self._drop_consumer()
            raise

    def _read_on(self, consumer: Consumer, timeout: float) -> None:
        give_up = time.monotonic() + ANSWER_SECONDS
        while True:
            polled = consumer.poll(1000, timeout if self._complete else 0.1)
            for fetched in polled.fetched:
                self._take(fetched)
            self._complete = self._complete or self._topic in polled.ends
            if self._complete and not polled.fetched:
                return
            if time.monotonic() > give_up:
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
                # Compaction leaves it in the place of what stood under this name: it counts as nothing.
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
        """Log a record that no worker has written: at most one line in ``REPORT_SECONDS``."""
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


def _places(replica: Replica) -> list[tuple[str, int | str]]:
    """What a worker claims: its tasks, under no store, and partitions of stores."""
    places: list[tuple[str, int | str]] = [("", task) for task in replica.tasks]
    return places + [(store, partition) for store in replica.stores for partition in replica.stores[store]]


def _replaced(own: Replica, other: Replica | None) -> bool:
    """Whether another worker that claims the same got it later, and at a time that has been."""
    if other is None or other.changed is None or own.changed is None:
        return False
    return own.changed < other.changed <= time.time_ns() // 1_000_000 + round(ALIVE_SECONDS * 1000)


def _name_of(key: bytes | None) -> str:
    """The worker's name that is a record's key. Raises ``ValueError``."""
    if not key:
        raise ValueError("no worker's record has no key")
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"no worker's name is {key!r:.80}: {error}") from error


def _decoded(value: bytes | None) -> Replica | None:
    """What a worker writes of itself. Raises ``ValueError``."""
    if value is None:
        return None
    if len(value) > LARGEST_RECORD:
        raise ValueError(f"no worker's record has {len(value)} bytes")
    try:
        return msgspec.json.decode(value, type=Replica)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no worker's record is {value!r:.80}: {error}") from error
