"""The consumer of a Kafka cluster: positions, rebalances, lost offsets."""

from __future__ import annotations

import logging
import time
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition as ClientPartition,
)

from streams.broker import END, OutOfRange, Polled, RebalanceListener
from streams.broker.kafka.access import REQUEST_SECONDS, Access, LastError, Settings, log
from streams.broker.kafka.partition_state import Delivery, PartitionState, Position, Reading
from streams.broker.kafka.partitions import placed, plain, with_offsets
from streams.broker.kafka.subscription import LOOK_SECONDS, Subscription
from streams.errors import AccessDenied, BrokerError, FatalBrokerError, NotAuthorized, Right, TopicError
from streams.records import Fetched, Headers, Rows, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from streams.broker import NamePattern
    from streams.broker.kafka.admin import KafkaAdmin
    from streams.broker.kafka.roll_calls import RollCalls

REJOIN_SECONDS: Final = 1.0
"""How often a static member asks whether its predecessor's session is over."""

OCCUPIED_SECONDS: Final = 120.0
"""For longer no killed member's session lasts: there is another one alive with the same instance id."""

SEEK_SECONDS: Final = 5.0
"""How long a partition that was just assigned may take until it can be positioned."""

COMMITTED_SECONDS: Final = 0.5
"""How long an assignment may wait for the group's committed offsets; after that, other partitions go on."""

UNPLACED: Final = END
"""Where the client reads, to be discarded, while it is not known where to begin.

Left to request committed offsets itself, librdkafka 2.16 forgets to do so again when the group's coordinator
moves, and then never releases a partition in any later rebalance."""

ASK_SECONDS: Final = 0.1, 2.0
"""How long a poll may wait for them at first, and at last when that was always too short."""

ASK_GROWTH: Final = 1.25
"""Slow: what is waited for is mostly the end of a killed member's transaction, and not a slow broker."""

ASK_PAUSE: Final = 2
"""The time until a poll asks again, as a multiple: the other partitions are to go on meanwhile."""


class Membership(NamedTuple):
    """A group's member, as the commit of offsets in a transaction needs to know it."""

    group: str
    metadata: object


class KafkaFetched:
    """``Fetched`` on the client's own messages: a column is copied out when it is asked for."""

    __slots__ = ("_messages", "partition", "topic")

    def __init__(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        self.topic = topic
        self.partition = partition
        self._messages = messages

    @property
    def next_offset(self) -> int:
        return cast("int", self._messages[-1].offset()) + 1

    def __len__(self) -> int:
        return len(self._messages)

    def _at(self, rows: Rows | None) -> Sequence[Message]:
        messages = self._messages
        return messages if rows is None else [messages[row] for row in rows]

    def keys(self, rows: Rows | None = None) -> list[bytes | None]:
        return list(map(Message.key, self._at(rows)))

    def values(self, rows: Rows | None = None) -> list[bytes | None]:
        return list(map(Message.value, self._at(rows)))

    def timestamps(self, rows: Rows | None = None) -> list[int]:
        # A record without a time comes as type 0 with time -1 or 0.
        return [stamp if kind else -1 for kind, stamp in map(Message.timestamp, self._at(rows))]

    def offsets(self, rows: Rows | None = None) -> list[int]:
        return cast("list[int]", list(map(Message.offset, self._at(rows))))

    def headers(self, rows: Rows | None = None) -> list[Headers | None] | None:
        headers = cast("list[Headers | None]", list(map(Message.headers, self._at(rows))))
        return headers if any(headers) else None

    def slice(self, start: int, stop: int) -> KafkaFetched:
        return KafkaFetched(self.topic, self.partition, self._messages[start:stop])


class KafkaConsumer:
    """See ``streams.broker.Consumer``."""

    def __init__(
        self,
        settings: Settings,
        access: Access,
        *,
        roll_calls: RollCalls | None,
        start: int,
        admin: Callable[[], KafkaAdmin],
    ) -> None:
        self._access = access
        self._admin = admin
        """Makes the client that lists topics for patterns."""
        self._subscription: Subscription | None = None
        """What patterns match, for who subscribed to some."""
        self._roll_calls = roll_calls
        """For members by KIP-848's protocol, whose assignments change one partition at a time."""
        self._group: str = settings["group.id"]
        self._start = start
        """Where partitions without a committed offset begin."""
        self._partitions: dict[TopicPartition, PartitionState] = {}
        """The partitions that are assigned."""
        self._ask_at = 0.0
        """When the broker is to be asked again where the group is."""
        self._ask_seconds = ASK_SECONDS[0]
        self._rebalanced = False
        self._instance = settings.get("group.instance.id")
        self._settings: Settings = settings | {"error_cb": LastError()}
        self._client = access.make(Consumer, self._settings)
        self._names: list[str] = []
        self._occupied_since: float | None = None
        """Since when the group has refused this member, as its predecessor's session is not over."""
        self._rejoin_at = 0.0
        self._cooperative = roll_calls is not None
        self._listener: RebalanceListener | None = None
        self._raised: BaseException | None = None
        self._stash: list[Message] = []

    def subscribe(self, topics: Collection[str | NamePattern], listener: RebalanceListener) -> None:
        self._listener = listener
        names = [topic for topic in topics if isinstance(topic, str)]
        patterns = [topic for topic in topics if not isinstance(topic, str)]
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
        if patterns:
            # The first poll that knows which topics there are joins the group.
            refresh = int(self._settings["topic.metadata.refresh.interval.ms"]) / 1000
            self._subscription = Subscription(
                names,
                patterns,
                self._admin,
                seconds=min(LOOK_SECONDS, refresh) if refresh > 0 else LOOK_SECONDS,
            )
            return
        self._names = names
        self._subscribe()

    def _follow_subscription(self, subscription: Subscription) -> None:
        """Subscribe to other topics where patterns match others than before."""
        names = subscription.names
        if names is None or names == self._names:
            return
        log.info("group %s: patterns match %s", self._group, ", ".join(names) or "no topic yet")
        self._names = names
        self._subscribe()

    def _subscribe(self) -> None:
        if not self._names:
            # The client takes no empty subscription.
            self._call("leaving the group", self._client.unsubscribe)
            return
        self._call(
            "subscribing",
            lambda: self._client.subscribe(
                self._names, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            ),
        )

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        before = self._partitions
        # The client keeps a partition paused over assignments.
        self._partitions = {
            place: PartitionState(offset, before[place].delivery if place in before else Delivery.RUNNING)
            for place, offset in positions.items()
        }
        self._call("assigning", lambda: self._client.assign(with_offsets(positions)))

    def poll(self, max_records: int, timeout: float) -> Polled:
        waits = any(state.waits for state in self._partitions.values())
        if waits:
            self.resume_idled()
            self._place_unplaced()
        if self._subscription is not None:
            self._follow_subscription(self._subscription)
        if self._roll_calls is not None and self._listener is not None:
            self._answer_roll_call(self._roll_calls)
        out_of_range = self._settle() if waits else {}
        messages, self._stash = self._stash, []
        if not messages:
            # consume() waits for all it was asked for: wait for one only, then take what is there.
            messages = self._consume(1, timeout)
            if messages and max_records > 1 and not self._rebalanced:
                messages += self._consume(max_records - 1, 0)
            if self._rebalanced:
                messages = self._after_rebalance(messages)
        polled = self._polled(messages)
        return polled._replace(out_of_range=out_of_range) if out_of_range else polled

    def keep_alive(self) -> None:
        running = self._all(Delivery.RUNNING)
        if running:
            self._call("pausing", lambda: self._client.pause(plain(running)))
            for state in running.values():
                state.idle()
        # What comes all the same is kept for the next poll.
        came = self._consume(1, 0)
        if self._rebalanced:
            came = self._after_rebalance(came)
        # A rebalance meanwhile took messages out of the stash: they must not come back.
        self._stash += came

    def resume_idled(self) -> None:
        """Let continue what ``keep_alive`` paused."""
        self._resume(self._all(Delivery.IDLE))

    def _all(self, delivery: Delivery) -> dict[TopicPartition, PartitionState]:
        return {place: state for place, state in self._partitions.items() if state.delivery is delivery}

    def _resume(self, paused: Mapping[TopicPartition, PartitionState]) -> None:
        """Let paused partitions continue, exactly where polls have come to.

        By itself the client continues from what it believes to have handed out, and it notes that in another
        thread: with a rebalance at the same time it can be wrong by a whole poll.
        """
        if not paused:
            return
        for state in paused.values():
            state.resume()
        self._call("resuming", lambda: self._client.resume(plain(paused)))
        self._seek_again(paused)

    def _seek_again(self, places: Iterable[TopicPartition]) -> None:
        for place in sorted(places):
            state = self._partitions[place]
            state.moved()
            # What the client has stopped reading is assigned again, once it is settled from where.
            if state.reached is not None and not state.stopped:
                self._seek(place, state.reached)

    def _after_rebalance(self, messages: list[Message]) -> list[Message]:
        """What may be kept of messages among which a rebalance came: errors, no records.

        A rebalance pauses all partitions, and of what the client has fetched before, it drops some and hands
        out some, in no order that can be relied on. All of it is read again.
        """
        self._rebalanced = False
        kept, dropped = [], set()
        for message in messages:
            error = message.error()
            if error is None or error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - a public name of the library
                dropped.add(_place(message))
            else:
                kept.append(message)
                if _is_stopped(message):
                    self._note_stopped(message)
        self._seek_again(
            place
            for place, state in self._partitions.items()
            if state.position is Position.UNCERTAIN or place in dropped
        )
        return kept

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        # Resuming continues from where the client was, which would undo a seek made before it.
        self.resume_idled()
        strangers = sorted(positions.keys() - self._partitions.keys())
        if strangers:
            raise FatalBrokerError(f"cannot seek in {', '.join(map(str, strangers))}: not assigned")
        for message in self._stash:
            if _is_stopped(message):
                self._note_stopped(message)
        self._stash = [message for message in self._stash if _place(message) not in positions]
        self._place_again({place: at for place, at in positions.items() if self._partitions[place].stopped})
        for place, offset in positions.items():
            self._partitions[place].sought(offset)
        for place, offset in positions.items():
            self._seek(place, offset)

    def _seek(self, place: TopicPartition, offset: int) -> None:
        deadline = time.monotonic() + SEEK_SECONDS
        while True:
            try:
                self._client.seek(ClientPartition(*place, offset))
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:  # noqa: SLF001 - a public name of the library
                    raise self._means(error.args[0], f"seeking {place}", place.topic) from error
                # Just assigned, a partition is not ready for it for some milliseconds.
                if time.monotonic() < deadline:
                    time.sleep(0.005)
                    continue
                # The client has stopped reading it, which it has not reported yet.
                self._place_again({place: offset})
                return
            else:
                return

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        for place in partitions:
            if place in self._partitions:
                self._partitions[place].pause()
        self._call("pausing", lambda: self._client.pause(plain(partitions)))

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        # Those that it has not paused itself, the client reads again from where it once began.
        known = {place: self._partitions[place] for place in partitions if place in self._partitions}
        self._resume({place: state for place, state in known.items() if state.paused})

    def assignment(self) -> set[TopicPartition]:
        return set(self._partitions)

    def positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return {
            place: state.reached
            for place in partitions
            if (state := self._partitions.get(place)) and state.reached is not None
        }

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return {
            TopicPartition(item.topic, item.partition): item.offset
            for item in self._committed(partitions)
            if item.offset >= 0
        }

    def committed_metadata(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, str]:
        return {
            TopicPartition(item.topic, item.partition): item.metadata
            for item in self._committed(partitions)
            if item.offset >= 0 and item.metadata
        }

    def _committed(self, partitions: Collection[TopicPartition]) -> list[ClientPartition]:
        if not partitions:
            return []
        found = self._call(
            "asking for committed offsets",
            lambda: self._client.committed(plain(partitions), timeout=REQUEST_SECONDS),
        )
        for partition in found:
            if partition.error is not None:
                doing = f"committed offset of {partition.topic}-{partition.partition}"
                raise self._means(partition.error, doing, partition.topic)
        return cast("list[ClientPartition]", found)

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        if not offsets:
            return
        done = self._call(
            "committing offsets",
            lambda: self._client.commit(offsets=with_offsets(offsets, offset_metadata), asynchronous=False),
        )
        for partition in done or ():
            if partition.error is not None:
                doing = f"committing {partition.topic}-{partition.partition}"
                raise self._means(partition.error, doing, partition.topic)

    def known_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        ends = {}
        for partition in partitions:
            _, high = self._client.get_watermark_offsets(ClientPartition(*partition), cached=True)
            if high >= 0:
                ends[partition] = high
        return ends

    @property
    def member(self) -> str | None:
        # Static members come first, by their instance ids.
        if self._instance is not None:
            return f"0{self._instance}"
        identifier = self._client.memberid()
        return f"1{identifier}" if identifier else None

    def group_metadata(self) -> object:
        return Membership(self._group, self._client.consumer_group_metadata())

    def close(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
        self._call("leaving the group", self._client.close)
        self._reraise()

    def _consume(self, count: int, timeout: float) -> list[Message]:
        if self._occupied_since is not None:
            self._rejoin(timeout)
        try:
            return self._client.consume(count, timeout)
        except KafkaException as error:
            raise self._means(error.args[0], "reading") from error
        finally:
            self._reraise()

    def _rejoin(self, timeout: float) -> None:
        """Try again to join as a static member whose predecessor was killed; a client is refused for good."""
        assert self._occupied_since is not None
        if time.monotonic() < self._rejoin_at:
            time.sleep(min(timeout, max(0.0, self._rejoin_at - time.monotonic())))
            return
        if time.monotonic() - self._occupied_since > OCCUPIED_SECONDS:
            raise FatalBrokerError(
                f"group {self._group} has had another member with the instance id {self._instance!r} "
                f"for {OCCUPIED_SECONDS:.0f} s",
                hint="give each worker a group_instance_id of its own",
            )
        self._rejoin_at = time.monotonic() + REJOIN_SECONDS
        self._renew()

    def _answer_roll_call(self, roll_calls: RollCalls) -> None:
        """Leave the group and join again when its coordinator goes on believing something else."""
        member = self._client.memberid()
        differs = roll_calls.ask(member, self._partitions.keys()) if member else None
        if differs is not None:
            log.warning("group %s: this member joins again: %s", self._group, differs)
            self._renew()

    def _renew(self) -> None:
        """Be another member, which has nothing yet."""
        self._client.close()
        self._client = self._access.make(Consumer, self._settings)
        self._reraise()
        self._subscribe()

    def _polled(self, messages: list[Message]) -> Polled:
        ends: dict[TopicPartition, int] = {}
        if any(map(Message.error, messages)):
            messages = self._without_errors(messages, ends)
        parts: dict[tuple[Any, Any], list[Message]] = {}
        # Records come in runs of one partition; groupby keeps the work per record inside C.
        for partition, run in groupby(messages, Message.partition):
            for topic, part in groupby(run, Message.topic):
                parts.setdefault((topic, partition), []).extend(part)
        fetched: list[Fetched] = []
        for (topic, number), came in parts.items():
            place = TopicPartition(topic, number)
            state = self._partitions.get(place)
            if state is None or state.reached is None:
                continue
            records, reached = came, state.reached
            if cast("int", came[0].offset()) < reached:
                # A pause that overtakes a poll makes the client read again what that poll has handed out.
                records = [message for message in came if cast("int", message.offset()) >= reached]
                if not records:
                    continue
            last = cast("int", records[-1].offset())
            state.handed_out(last + 1)
            # Records behind a reported end mean that it is not the end any more.
            if last >= ends.get(place, last + 1):
                del ends[place]
            fetched.append(KafkaFetched(*place, records))
        return Polled(fetched, {place: end for place, end in ends.items() if self._believes(place, end)})

    def _believes(self, place: TopicPartition, end: int) -> bool:
        """Whether a reported end is one; where that is doubted, it is read up to again."""
        state = self._partitions.get(place)
        # What a rebalance made uncertain is sought again by the next poll, and its end reported again.
        if state is None or state.reached is None or state.position is Position.UNCERTAIN:
            return False
        doubts = state.doubts(end)
        if doubts:
            self._seek(place, state.reached)
        else:
            state.ended(end)
        state.end_reached()
        return not doubts

    def _without_errors(self, messages: list[Message], ends: dict[TopicPartition, int]) -> list[Message]:
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - a public name of the library
                ends[_place(message)] = cast("int", message.offset())
            elif _is_stopped(message):
                self._note_stopped(message)
            elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                if self._subscription is not None and not self._subscription.named(message.topic() or ""):
                    # What only a pattern matches may be deleted.
                    self._subscription.look_soon()
                    continue
                raise TopicError(
                    f"topic {message.topic()!r} does not exist",
                    hint=f"create it, e.g. with: streams topics create {message.topic()} --partitions 4",
                )
            else:
                if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED and self._listener is None:
                    # The client looks for the coordinator of the group it is named, which nobody joins.
                    continue
                topic = message.topic()
                doing = f"reading {topic}-{message.partition()}" if topic else f"as a member of {self._group}"
                means = self._means(error, doing, topic)
                if error.code() == KafkaError._FATAL and "Group authorization failed" in error.str():  # noqa: SLF001 - a public name of the library
                    # Its own code is lost when the client says that it can do nothing any more.
                    right = Right("READ", "group", self._group)
                    raise NotAuthorized(error.str(), [right], principal=self._access.principal)
                if isinstance(means, AccessDenied) or (isinstance(means, FatalBrokerError) and error.fatal()):
                    raise means
                if error.code() == KafkaError._FATAL:  # noqa: SLF001 - a public name of the library
                    self._stand_in_line(means)
                    continue
                # The client goes on by itself after the others, e.g. it rejoins after a missed deadline.
                self._access.log(logging.WARNING, "%s", means)
        return records

    def _stand_in_line(self, means: BrokerError) -> None:
        """After an error that ends the client: join again once a killed predecessor's session is over.

        Raises ``FatalBrokerError`` for all other errors.
        """
        # The code is lost on the way here, its text is not.
        if KafkaError(KafkaError.UNRELEASED_INSTANCE_ID).str() not in str(means) or self._partitions:
            raise FatalBrokerError(str(means))
        if self._occupied_since is None:
            self._occupied_since = time.monotonic()
            log.warning(
                "group %s: the session of the member before with instance id %r is not over yet",
                self._group,
                self._instance,
            )
        self._rejoin_at = time.monotonic() + REJOIN_SECONDS

    def _begin(
        self, client: Consumer, partitions: list[ClientPartition]
    ) -> dict[TopicPartition, PartitionState]:
        """Have partitions begin where the group is in them, or where new ones should, before they are read.

        The client would ask by itself, but not say where it begins, and only who knows that can have it read
        again what it drops in a rebalance.
        """
        places = placed(partitions)
        starts = self._starts(client, places, COMMITTED_SECONDS)
        if starts is None:
            self._ask_at = time.monotonic() + ASK_PAUSE * self._ask_seconds
            for partition in partitions:
                partition.offset = UNPLACED
            return {place: PartitionState(None) for place in places}
        for partition, place in zip(partitions, places, strict=True):
            partition.offset = starts[place]
        return {place: PartitionState(starts[place]) for place in places}

    def _starts(
        self, client: Consumer, places: Collection[TopicPartition], timeout: float
    ) -> dict[TopicPartition, int] | None:
        """Where the group is in these; ``None`` while the broker cannot tell."""
        try:
            committed = client.committed(plain(places), timeout=timeout)
        except KafkaException:
            # E.g. while it is not known whether a killed member's last transaction was committed.
            return None
        if any(item.error is not None for item in committed):
            return None
        return {
            TopicPartition(item.topic, item.partition): self._start if _has_none(item) else item.offset
            for item in committed
        }

    def _place_unplaced(self) -> None:
        """Ask again where the group is in partitions of which the broker could not tell."""
        unplaced = [place for place, state in self._partitions.items() if state.unplaced]
        if not unplaced or time.monotonic() < self._ask_at:
            return
        starts = self._starts(self._client, unplaced, self._ask_seconds)
        if starts is None:
            self._ask_at = time.monotonic() + ASK_PAUSE * self._ask_seconds
            self._ask_seconds = min(ASK_SECONDS[1], ASK_GROWTH * self._ask_seconds)
            return
        self._ask_seconds = ASK_SECONDS[0]
        self.seek(starts)

    def _note_stopped(self, message: Message) -> None:
        state = self._partitions.get(_place(message))
        if state is not None:
            state.stop(message.offset())

    def _settle(self) -> dict[TopicPartition, OutOfRange]:
        """Begin what turned out to have no committed offset, and find out what the other logs hold.

        The client has one policy for both, so it is asked to stop instead.
        """
        out_of_range: dict[TopicPartition, OutOfRange] = {}
        positions: dict[TopicPartition, int] = {}
        stopped = [
            (place, state.stopped_at)
            for place, state in self._partitions.items()
            if state.reading is Reading.STOPPED
        ]
        for place, offset in sorted(stopped, key=itemgetter(0)):
            if offset is None:
                positions[place] = self._start
                continue
            try:
                beginning, end = self._client.get_watermark_offsets(
                    ClientPartition(*place), timeout=REQUEST_SECONDS
                )
            except KafkaException as error:
                means = self._means(error.args[0], f"asking for the log of {place}", place.topic)
                if isinstance(means, AccessDenied):
                    raise means from error
                # With the next poll it is asked again.
                self._access.log(logging.WARNING, "%s", means)
                continue
            if beginning <= offset <= end:
                # A broker that has just become the leader did not know better.
                positions[place] = offset
            else:
                out_of_range[place] = OutOfRange(offset, beginning, end)
        self._place_again(positions)
        for place in out_of_range:
            self._partitions[place].reported()
        return out_of_range

    def _place_again(self, positions: Mapping[TopicPartition, int]) -> None:
        """Assign partitions again, from these offsets: the client does not seek in what it has stopped."""
        if not positions:
            return
        again = dict(positions)
        if not self._cooperative:
            # The older protocol's assignment is only made as a whole.
            again = {
                place: UNPLACED if state.reached is None else state.reached
                for place, state in self._partitions.items()
            } | again
        paused = [place for place in again if self._partitions[place].paused]
        self._stash = [message for message in self._stash if _place(message) not in again]

        def assign() -> None:
            # Paused, they would continue from where they were paused.
            self._client.resume(plain(paused))
            if self._cooperative:
                self._client.incremental_unassign(plain(again))
                self._client.incremental_assign(with_offsets(again))
            else:
                self._client.assign(with_offsets(again))
            self._client.pause(plain(paused))

        self._call("positioning", assign)
        for place, offset in positions.items():
            self._partitions[place].placed(offset)

    def _on_assign(self, client: Consumer, partitions: list[ClientPartition]) -> None:
        self._occupied_since = None
        self._rebalanced = True
        added = self._begin(client, partitions)
        if self._cooperative:
            client.incremental_assign(partitions)
            self._keep_through_rebalance()
            self._partitions |= added
        else:
            client.assign(partitions)
            self._partitions = added
        self._tell("assigned", list(added))

    def _keep_through_rebalance(self) -> None:
        for state in self._partitions.values():
            state.rebalanced()

    def _on_revoke(self, client: Consumer, partitions: list[ClientPartition]) -> None:
        self._release("revoked", client, partitions)

    def _on_lost(self, client: Consumer, partitions: list[ClientPartition]) -> None:
        self._release("lost", client, partitions)

    def _release(self, how: str, client: Consumer, partitions: list[ClientPartition]) -> None:
        gone = set(placed(partitions))
        self._rebalanced = True
        self._tell(how, sorted(gone))
        released = {place: self._partitions.pop(place) for place in gone if place in self._partitions}
        self._keep_through_rebalance()
        # The client keeps a partition paused over the next assignment. Resumed then, it would continue where
        # it was paused and not where the group has committed; so that is done now.
        paused = [place for place, state in released.items() if state.paused]
        if paused:
            client.resume(plain(paused))
        self._stash = [message for message in self._stash if _place(message) not in gone]
        if self._cooperative:
            client.incremental_unassign(partitions)
        else:
            client.unassign()

    def _tell(self, what: str, partitions: Sequence[TopicPartition]) -> None:
        # An exception must not unwind through the client's C code: it is raised when the call is back.
        if self._listener is None or not partitions:
            return
        try:
            getattr(self._listener, what)(partitions)
        except BaseException as error:  # noqa: BLE001 - kept, and raised by _reraise
            self._raised = self._raised or error

    def _reraise(self) -> None:
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def _means(self, error: KafkaError, doing: str, topic: str | None = None) -> BrokerError:
        topics = [topic] if topic else self._names
        rights = [Right("READ", "topic", name) for name in topics]
        return self._access.means(error, doing, *rights, Right("READ", "group", self._group))

    def _call(self, doing: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except KafkaException as error:
            raise self._means(error.args[0], doing) from error
        except RuntimeError as error:
            raise FatalBrokerError(f"{doing}: {error}") from error


def _place(message: Message) -> TopicPartition:
    return TopicPartition(cast("str", message.topic()), cast("int", message.partition()))


def _has_none(partition: ClientPartition) -> bool:
    """Whether the group is known to have committed no offset of it."""
    return partition.error is None and partition.offset == OFFSET_INVALID


def _is_stopped(message: Message) -> bool:
    """Whether it says that the client knows no place in the log to go on from."""
    error = message.error()
    return error is not None and error.code() == KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001 - a public name of the library
