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
from streams.broker.kafka.client_factory import REQUEST_SECONDS, ClientFactory, LastError, Settings, log
from streams.broker.kafka.fetched import KafkaFetched
from streams.broker.kafka.partition_state import Delivery, PartitionState, Position, Reading
from streams.broker.kafka.partitions import from_client, to_client, with_offsets
from streams.broker.kafka.subscription import LOOK_SECONDS, Subscription
from streams.errors import AccessDenied, BrokerError, FatalBrokerError, NotAuthorized, Right, TopicError
from streams.records import Fetched, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from streams.broker import NamePattern
    from streams.broker.kafka.admin import KafkaAdmin
    from streams.broker.kafka.assignment_check import AssignmentCheck

REJOIN_SECONDS: Final = 1.0
"""Seconds between attempts of a static member to join while its predecessor's session lasts."""

OCCUPIED_SECONDS: Final = 120.0
"""Longer than the session of a killed member: after it, a running member has the same instance id."""

SEEK_SECONDS: Final = 5.0
"""How long a partition that was just assigned may take until the client accepts a seek."""

COMMITTED_SECONDS: Final = 0.5
"""How long an assignment waits for the group's committed offsets before other partitions continue."""

UNPLACED: Final = END
"""The offset at which partitions are assigned while their start is unknown; their records are discarded.

If it requests the committed offsets itself, librdkafka 2.16 does not repeat the request when the group's
coordinator moves, and then never releases a partition in any later rebalance."""

LEADER_SECONDS: Final = 1.0
"""How long an assignment waits for the leaders of a topic that the client does not know yet."""

ASK_SECONDS: Final = 0.1, 2.0
"""The time-out of a poll's request for committed offsets: its initial and its maximum value."""

ASK_GROWTH: Final = 1.25
"""The growth of that time-out: small, as the usual cause is an open transaction, not a slow broker."""

ASK_PAUSE: Final = 2
"""The time to the next request, as a multiple of the time-out: other partitions continue meanwhile."""


class Membership(NamedTuple):
    """A group and the metadata of its member, for committing offsets in a transaction."""

    group: str
    metadata: object


class KafkaConsumer:
    """See ``streams.broker.Consumer``."""

    def __init__(
        self,
        settings: Settings,
        factory: ClientFactory,
        *,
        assignment_check: AssignmentCheck | None,
        start: int,
        admin: Callable[[], KafkaAdmin],
    ) -> None:
        self._factory = factory
        self._admin = admin
        """Creates the client that lists topics for patterns."""
        self._subscription: Subscription | None = None
        """The topics that match patterns, if there are patterns."""
        self._assignment_check = assignment_check
        """For members with KIP-848's protocol, whose assignments change incrementally."""
        self._group: str = settings["group.id"]
        self._start = start
        """The start of partitions without a committed offset."""
        self._partitions: dict[TopicPartition, PartitionState] = {}
        """The assigned partitions."""
        self._located: set[str] = set()
        """Topics whose leaders ``assign`` has asked for."""
        self._ask_at = 0.0
        """When to request the committed offsets of unplaced partitions again."""
        self._ask_seconds = ASK_SECONDS[0]
        self._rebalanced = False
        self._instance = settings.get("group.instance.id")
        self._settings: Settings = settings | {"error_cb": LastError()}
        self._client = factory.make(Consumer, self._settings)
        self._names: list[str] = []
        self._occupied_since: float | None = None
        """Since when the group has rejected this static member because its predecessor's session lasts."""
        self._rejoin_at = 0.0
        self._cooperative = assignment_check is not None
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
            # The group is joined by the first poll after the topics were listed.
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
        """Subscribe again if patterns now match other topics."""
        names = subscription.names
        if names is None or names == self._names:
            return
        log.info("group %s: patterns match %s", self._group, ", ".join(names) or "no topics yet")
        self._names = names
        self._subscribe()

    def _subscribe(self) -> None:
        if not self._names:
            # The client rejects an empty subscription.
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
        # In the client, a partition stays paused across assignments.
        self._partitions = {
            place: PartitionState(offset, before[place].delivery if place in before else Delivery.RUNNING)
            for place, offset in positions.items()
        }
        self._locate({place.topic for place in positions} - self._located)
        self._call("assigning", lambda: self._client.assign(with_offsets(positions)))

    def _locate(self, topics: set[str]) -> None:
        """Let the client ask for the leaders of topics, which it does half a second after an assignment."""
        for topic in sorted(topics):
            self._located.add(topic)
            try:
                self._client.list_topics(topic, timeout=LEADER_SECONDS)
            except KafkaException:
                # No broker answers: the client finds the leaders later.
                return

    def poll(self, max_records: int, timeout: float) -> Polled:
        waits = any(state.waits for state in self._partitions.values())
        if waits:
            self.resume_idled()
            self._place_unplaced()
        if self._subscription is not None:
            self._follow_subscription(self._subscription)
        if self._assignment_check is not None and self._listener is not None:
            self._check_assignment(self._assignment_check)
        out_of_range = self._settle() if waits else {}
        messages, self._stash = self._stash, []
        if not messages:
            # consume() waits for the full number: wait for one message, then take those already fetched.
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
            self._call("pausing", lambda: self._client.pause(to_client(running)))
            for state in running.values():
                state.idle()
        # Messages that arrive nevertheless are kept for the next poll.
        came = self._consume(1, 0)
        if self._rebalanced:
            came = self._after_rebalance(came)
        # Appended, because a rebalance in the meantime may have removed messages from the stash.
        self._stash += came

    def resume_idled(self) -> None:
        """Resume the partitions that ``keep_alive`` paused."""
        self._resume(self._all(Delivery.IDLE))

    def _all(self, delivery: Delivery) -> dict[TopicPartition, PartitionState]:
        return {place: state for place, state in self._partitions.items() if state.delivery is delivery}

    def _resume(self, paused: Mapping[TopicPartition, PartitionState]) -> None:
        """Resume paused partitions exactly at the offsets that polls have reached.

        The client itself resumes at its own record of what it has delivered, which another thread updates:
        with a rebalance at the same time it can be wrong by a complete poll.
        """
        if not paused:
            return
        for state in paused.values():
            state.resume()
        self._call("resuming", lambda: self._client.resume(to_client(paused)))
        self._seek_again(paused)

    def _seek_again(self, places: Iterable[TopicPartition]) -> None:
        for place in sorted(places):
            state = self._partitions[place]
            state.moved()
            # Partitions that the client has stopped reading are assigned again once their offset is known.
            if state.reached is not None and not state.stopped:
                self._seek(place, state.reached)

    def _after_rebalance(self, messages: list[Message]) -> list[Message]:
        """The messages to keep of a poll in which a rebalance happened: errors, but no records.

        A rebalance pauses all partitions. Of the records fetched before, the client drops some and delivers
        others, in no reliable order. So all of them are read again.
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
        # Resuming seeks to the reached offsets, which would undo a seek made before it.
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
                    raise self._to_error(error.args[0], f"seeking {place}", place.topic) from error
                # For some milliseconds after its assignment, a partition does not accept a seek.
                if time.monotonic() < deadline:
                    time.sleep(0.005)
                    continue
                # The client has stopped reading it, and has not reported that yet.
                self._place_again({place: offset})
                return
            else:
                return

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        for place in partitions:
            if place in self._partitions:
                self._partitions[place].pause()
        self._call("pausing", lambda: self._client.pause(to_client(partitions)))

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        # On resuming a partition that is not paused, the client reads again from where it started.
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
            "reading committed offsets",
            lambda: self._client.committed(to_client(partitions), timeout=REQUEST_SECONDS),
        )
        for partition in found:
            if partition.error is not None:
                doing = f"committed offset of {partition.topic}-{partition.partition}"
                raise self._to_error(partition.error, doing, partition.topic)
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
                raise self._to_error(partition.error, doing, partition.topic)

    def known_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        ends = {}
        for partition in partitions:
            _, high = self._client.get_watermark_offsets(ClientPartition(*partition), cached=True)
            if high >= 0:
                ends[partition] = high
        return ends

    @property
    def member(self) -> str | None:
        # The assignor sorts static members first, by their instance ids.
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
            raise self._to_error(error.args[0], "reading") from error
        finally:
            self._reraise()

    def _rejoin(self, timeout: float) -> None:
        """Try again to join as a static member whose predecessor was killed, with a new client each time."""
        assert self._occupied_since is not None
        if time.monotonic() < self._rejoin_at:
            time.sleep(min(timeout, max(0.0, self._rejoin_at - time.monotonic())))
            return
        if time.monotonic() - self._occupied_since > OCCUPIED_SECONDS:
            raise FatalBrokerError(
                f"group {self._group} has another running member with the instance id {self._instance!r}: "
                f"this one could not join for {OCCUPIED_SECONDS:.0f} s",
                hint="give each worker a different group_instance_id",
            )
        self._rejoin_at = time.monotonic() + REJOIN_SECONDS
        self._renew()

    def _check_assignment(self, assignment_check: AssignmentCheck) -> None:
        """Leave the group and join again if the coordinator's assignment differs for too long."""
        member = self._client.memberid()
        differs = assignment_check.check(member, self._partitions.keys()) if member else None
        if differs is not None:
            log.warning("group %s: this member leaves and joins again: %s", self._group, differs)
            self._renew()

    def _renew(self) -> None:
        """Replace the client: join again as a new member without partitions."""
        self._client.close()
        self._client = self._factory.make(Consumer, self._settings)
        self._reraise()
        self._subscribe()

    def _polled(self, messages: list[Message]) -> Polled:
        ends: dict[TopicPartition, int] = {}
        if any(map(Message.error, messages)):
            messages = self._without_errors(messages, ends)
        parts: dict[tuple[Any, Any], list[Message]] = {}
        # Records arrive in runs of one partition; groupby does the work per record in C.
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
                # If a pause overtakes a poll, the client reads again what that poll has delivered.
                records = [message for message in came if cast("int", message.offset()) >= reached]
                if not records:
                    continue
            last = cast("int", records[-1].offset())
            state.handed_out(last + 1)
            # Records after a reported end mean that it is no longer the end.
            if last >= ends.get(place, last + 1):
                del ends[place]
            fetched.append(KafkaFetched(*place, records))
        return Polled(fetched, {place: end for place, end in ends.items() if self._believes(place, end)})

    def _believes(self, place: TopicPartition, end: int) -> bool:
        """Whether a reported end counts; if it is in doubt, the partition is read up to its end again."""
        state = self._partitions.get(place)
        # After a rebalance, the next poll seeks again, and the client reports the end again.
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
                    # A topic that only matches a pattern may be deleted.
                    self._subscription.look_soon()
                    continue
                raise TopicError(
                    f"topic {message.topic()!r} does not exist",
                    hint=f"create it, e.g. with: streams topics create {message.topic()} --partitions 4",
                )
            else:
                if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED and self._listener is None:
                    # The client looks up the coordinator of its group id even if it does not join a group.
                    continue
                topic = message.topic()
                doing = f"reading {topic}-{message.partition()}" if topic else f"member of {self._group}"
                translated = self._to_error(error, doing, topic)
                if error.code() == KafkaError._FATAL and "Group authorization failed" in error.str():  # noqa: SLF001 - a public name of the library
                    # A fatal error of the client replaces the original code; only the text has the cause.
                    right = Right("READ", "group", self._group)
                    raise NotAuthorized(error.str(), [right], principal=self._factory.principal)
                if isinstance(translated, AccessDenied) or (
                    isinstance(translated, FatalBrokerError) and error.fatal()
                ):
                    raise translated
                if error.code() == KafkaError._FATAL:  # noqa: SLF001 - a public name of the library
                    self._wait_for_predecessor(translated)
                    continue
                # The client recovers from all others by itself, e.g. it rejoins after a missed deadline.
                self._factory.log(logging.WARNING, "%s", translated)
        return records

    def _wait_for_predecessor(self, error: BrokerError) -> None:
        """After a fatal error of the client: join again once a killed predecessor's session has ended.

        Raises ``FatalBrokerError`` for all other errors.
        """
        # The fatal error has lost the original code, but has its text.
        if KafkaError(KafkaError.UNRELEASED_INSTANCE_ID).str() not in str(error) or self._partitions:
            raise FatalBrokerError(str(error))
        if self._occupied_since is None:
            self._occupied_since = time.monotonic()
            log.warning(
                "group %s: waiting for the end of the previous member's session with instance id %r",
                self._group,
                self._instance,
            )
        self._rejoin_at = time.monotonic() + REJOIN_SECONDS

    def _begin(
        self, client: Consumer, partitions: list[ClientPartition]
    ) -> dict[TopicPartition, PartitionState]:
        """Set the start of partitions to the committed offsets, or to the start for new ones.

        The client would read these offsets itself, but not report them, and they are needed to read again
        what it drops in a rebalance.
        """
        places = from_client(partitions)
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
        """The start of each partition: its committed offset, or that for new ones; ``None`` while unknown."""
        try:
            committed = client.committed(to_client(places), timeout=timeout)
        except KafkaException:
            # For example while the outcome of a killed member's last transaction is open.
            return None
        if any(item.error is not None for item in committed):
            return None
        return {
            TopicPartition(item.topic, item.partition): self._start if _has_none(item) else item.offset
            for item in committed
        }

    def _place_unplaced(self) -> None:
        """Request the committed offsets of unplaced partitions again."""
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
        """Start stopped partitions without a committed offset, and check the logs of the others.

        The client has one policy (``auto.offset.reset``) for both cases, so it is set to stop with an error.
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
                translated = self._to_error(error.args[0], f"reading the offsets of {place}", place.topic)
                if isinstance(translated, AccessDenied):
                    raise translated from error
                # The next poll tries again.
                self._factory.log(logging.WARNING, "%s", translated)
                continue
            if beginning <= offset <= end:
                # The offset exists: a broker that had just become the leader did not have it yet.
                positions[place] = offset
            else:
                out_of_range[place] = OutOfRange(offset, beginning, end)
        self._place_again(positions)
        for place in out_of_range:
            self._partitions[place].reported()
        return out_of_range

    def _place_again(self, positions: Mapping[TopicPartition, int]) -> None:
        """Assign partitions again from these offsets, as the client cannot seek in those it has stopped."""
        if not positions:
            return
        again = dict(positions)
        if not self._cooperative:
            # With the classic protocol, only the complete assignment can be set.
            again = {
                place: UNPLACED if state.reached is None else state.reached
                for place, state in self._partitions.items()
            } | again
        paused = [place for place in again if self._partitions[place].paused]
        self._stash = [message for message in self._stash if _place(message) not in again]

        def assign() -> None:
            # If they stayed paused, the client would later resume at their old offsets.
            self._client.resume(to_client(paused))
            if self._cooperative:
                self._client.incremental_unassign(to_client(again))
                self._client.incremental_assign(with_offsets(again))
            else:
                self._client.assign(with_offsets(again))
            self._client.pause(to_client(paused))

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
        gone = set(from_client(partitions))
        self._rebalanced = True
        self._tell(how, sorted(gone))
        released = {place: self._partitions.pop(place) for place in gone if place in self._partitions}
        self._keep_through_rebalance()
        # In the client, a partition stays paused in its next assignment, and resuming it then would continue
        # where it was paused instead of at the committed offset. So it is resumed now.
        paused = [place for place, state in released.items() if state.paused]
        if paused:
            client.resume(to_client(paused))
        self._stash = [message for message in self._stash if _place(message) not in gone]
        if self._cooperative:
            client.incremental_unassign(partitions)
        else:
            client.unassign()

    def _tell(self, what: str, partitions: Sequence[TopicPartition]) -> None:
        # An exception must not propagate through the client's C code: it is raised after the call returns.
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

    def _to_error(self, error: KafkaError, doing: str, topic: str | None = None) -> BrokerError:
        topics = [topic] if topic else self._names
        rights = [Right("READ", "topic", name) for name in topics]
        return self._factory.to_error(error, doing, *rights, Right("READ", "group", self._group))

    def _call(self, doing: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except KafkaException as error:
            raise self._to_error(error.args[0], doing) from error
        except RuntimeError as error:
            raise FatalBrokerError(f"{doing}: {error}") from error


def _place(message: Message) -> TopicPartition:
    return TopicPartition(cast("str", message.topic()), cast("int", message.partition()))


def _has_none(partition: ClientPartition) -> bool:
    """Whether it is known that the group has no committed offset of the partition."""
    return partition.error is None and partition.offset == OFFSET_INVALID


def _is_stopped(message: Message) -> bool:
    """Whether a message reports that the client found no offset from which to read the partition."""
    error = message.error()
    return error is not None and error.code() == KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001 - a public name of the library
