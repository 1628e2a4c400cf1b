"""Resets an app in place: its committed offsets, and the state that belongs to them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from streams.broker import GroupSettings
from streams.errors import BrokerError, GroupActive, Retriable, TopicError, TransactionAborted
from streams.replay.reset_plan import TRANSACTION_SECONDS, places_of, read_committed
from streams.replay.topic_notes import encode_topics
from streams.runtime import commit_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.broker import Admin, Broker, GroupMember, NewTopic
    from streams.records import TopicPartition
    from streams.replay.reset_plan import ResetPlan

TOPIC_SECONDS: Final = 60.0
"""How long a topic that was deleted or created may be unknown to some brokers."""

PAUSE_SECONDS: Final = 0.2


def wait_for_members(
    admin: Admin, group: str, seconds: float, waiting: Callable[[Sequence[GroupMember], float], None]
) -> None:
    """Wait until a group has no members, whatever else its coordinator says about it.

    ``waiting`` is called about once a second with the members and the remaining seconds. Raises
    ``GroupActive``, naming each member, if there are still any.
    """
    deadline = time.monotonic() + seconds
    while members := admin.group_members(group):
        left = deadline - time.monotonic()
        if left <= 0:
            raise active(group, members)
        waiting(members, left)
        time.sleep(min(1.0, left))


def active(group: str, members: Sequence[GroupMember]) -> GroupActive:
    """The error for a group with these members."""
    shown = "; ".join(map(str, members)) or "one that joined meanwhile"
    return GroupActive(
        f"group {group} has {len(members) or 1} member{'s' * (len(members) > 1)}: {shown}",
        hint="stop these workers; one that was killed is a member until its session ends: --wait SECONDS "
        "waits for that",
    )


class Reset:
    """Executes a plan. Each step is reported to ``done`` when it is over.

    ``waiting`` is called with the reason while something has to end first; for transactions, that is
    ``patience`` seconds at most.

    Before anything is emptied, the offsets to be replaced are marked. From then on no worker begins (see
    ``streams.runtime.unfinished_reset``), until the last step replaces the marked offsets by the new ones,
    all at once. If it is interrupted in between, planning and executing it again completes it.
    """

    def __init__(
        self,
        broker: Broker,
        plan: ResetPlan,
        *,
        done: Callable[[str], None] = lambda _: None,
        waiting: Callable[[str], None] = lambda _: None,
        patience: float = TRANSACTION_SECONDS,
    ) -> None:
        self._patience = patience
        self._broker = broker
        self._plan = plan
        self._done = done
        self._waiting = waiting
        self._admin = broker.admin()
        self.epoch = 0
        """The epoch that begins with the new offsets, after ``run``: milliseconds since the epoch of 1970."""

    def run(self) -> None:
        """Execute the plan.

        Raises ``GroupActive`` if the group has members, ``BrokerError`` if its offsets are not those of the
        plan any more; then nothing is changed. Other errors, and ``GroupActive`` for a worker that joins
        meanwhile, may leave the reset unfinished.
        """
        try:
            self._run()
        finally:
            self._admin.close()

    def _run(self) -> None:
        plan = self._plan
        self._require_rights()
        wait_for_members(self._admin, plan.group, 0.0, lambda *_: None)
        self._require_unchanged()
        self._wait_for_transactions()
        texts = plan.committed.texts
        begun = [number for text in texts.values() if (number := commit_numbers.reset_begun(text))]
        latest = max([commit_numbers.epoch(texts.values()), *begun])
        self.epoch = max(time.time_ns() // 1_000_000, latest + 1)
        self._mark()
        offsets = {item.partition: item.new for item in plan.partitions}
        offsets |= self._empty_repartitions()
        for topic in plan.changelogs:
            self._empty_changelog(topic)
        self._commit(offsets, dict.fromkeys(offsets, commit_numbers.encode({}, self.epoch)))
        self._done(f"offsets of {len(offsets)} partitions committed")

    def _require_rights(self) -> None:
        topics = [*self._plan.affected.repartitions, *(topic.name for topic in self._plan.changelogs)]
        self._admin.require_rights({topic: ["DELETE"] for topic in topics})

    def _require_unchanged(self) -> None:
        known = self._plan.committed
        places = sorted({*known.offsets, *(item.partition for item in self._plan.partitions)})
        now = read_committed(self._broker, self._plan.group, places, self._waiting, self._patience)
        if now.offsets != known.offsets:
            raise BrokerError(
                f"group {self._plan.group} has committed other offsets since the plan was made",
                hint="nothing was changed; stop its workers and repeat the command",
            )

    def _wait_for_transactions(self) -> None:
        """Wait until no transaction is open in the topics that are emptied.

        A killed worker's stays open until it times out. Raises ``Retriable`` if one does not end.
        """
        existing = self._admin.topics()
        topics = [*self._plan.affected.repartitions, *(topic.name for topic in self._plan.changelogs)]
        counts = {topic: existing[topic].partitions for topic in topics if topic in existing}
        left = places_of(counts, counts)
        deadline = time.monotonic() + self._patience
        while True:
            stable = self._admin.end_offsets(left, "read_committed")
            ends = self._admin.end_offsets(left, "read_uncommitted")
            left = [place for place in left if stable[place] < ends[place]]
            if not left:
                return
            reason = f"a transaction is open in {', '.join(map(str, left))}"
            if time.monotonic() > deadline:
                raise Retriable(
                    f"{reason}, for more than {self._patience:g} s",
                    hint="nothing was changed; find and abort it with Kafka's kafka-transactions.sh",
                )
            self._waiting(reason)
            time.sleep(PAUSE_SECONDS)

    def _mark(self) -> None:
        committed = self._plan.committed
        places = [item.partition for item in self._plan.partitions if item.partition in committed.offsets]
        if not places:
            # Nothing was committed in what is affected, so there is no state either.
            return
        texts = {place: commit_numbers.marked(committed.texts.get(place, ""), self.epoch) for place in places}
        for place, notes in zip(sorted(places), encode_topics(self._plan.changelogs), strict=False):
            texts[place] = commit_numbers.marked(committed.texts.get(place, ""), self.epoch, notes)
        self._commit({place: committed.offsets[place] for place in places}, texts)
        self._done("reset begun: no worker starts until it is finished")

    def _commit(self, offsets: Mapping[TopicPartition, int], texts: Mapping[TopicPartition, str]) -> None:
        """Commit without being a member, which is refused while there are any."""
        consumer = self._broker.consumer(GroupSettings(group=self._plan.group, protocol="classic"))
        deadline = time.monotonic() + TOPIC_SECONDS
        try:
            while True:
                try:
                    consumer.commit(offsets, texts)
                except TransactionAborted as error:
                    raise active(self._plan.group, self._admin.group_members(self._plan.group)) from error
                except Retriable as error:
                    if time.monotonic() > deadline:
                        raise
                    self._waiting(error.message)
                else:
                    return
                time.sleep(PAUSE_SECONDS)
        finally:
            consumer.close()

    def _empty_repartitions(self) -> dict[TopicPartition, int]:
        """Delete the records of repartition topics; returns their ends."""
        topics = self._plan.affected.repartitions
        places = [item.partition for item in self._plan.partitions if item.partition.topic in topics]
        ends = self._admin.end_offsets(places, "read_uncommitted")
        for topic in topics:
            own = {place: end for place, end in ends.items() if place.topic == topic}
            self._admin.delete_records({place: end for place, end in own.items() if end})
            self._done(f"{topic}: records deleted")
        return ends

    def _empty_changelog(self, topic: NewTopic) -> None:
        """Delete and create a topic: a compacted one does not allow its records to be deleted."""
        name = topic.name
        old = self._admin.topic_ids([name]).get(name)
        if old is not None:
            self._admin.delete_topics([name])
            self._done(f"{name}: deleted")
        deadline = time.monotonic() + TOPIC_SECONDS
        while name not in self._admin.create_topics([topic]):
            found = self._admin.topic_ids([name]).get(name)
            if found not in (None, old):
                # A reader made the broker create it, with settings of its own.
                self._admin.delete_topics([name])
                old = found
            self._check_deadline(deadline, f"{name} was not created again")
        places = places_of([name], {name: topic.partitions})
        while self._admin.topic_ids([name]).get(name) in (None, old) or any(
            self._admin.end_offsets(places, "read_uncommitted").values()
        ):
            self._check_deadline(deadline, f"some brokers still have {name} as it was")
        self._done(f"{name}: created empty")

    def _check_deadline(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            raise TopicError(
                f"{what} within {TOPIC_SECONDS:g} s", hint="the reset is not finished: run the command again"
            )
        self._waiting(what)
        time.sleep(PAUSE_SECONDS)
