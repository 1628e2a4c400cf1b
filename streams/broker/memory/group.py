"""The coordinator of a group: its members, their partitions and the committed offsets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.errors import FatalBrokerError, TransactionAborted
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from streams.broker import GroupSettings, NamePattern


@dataclass(frozen=True, slots=True)
class Membership:
    """The membership by which commits are fenced. ``member`` is ``None`` for a consumer without a group."""

    group: str
    member: str | None
    epoch: int


@dataclass(eq=False, slots=True)
class Member:
    """A member of the group. ``target`` is its target assignment, once others have released it."""

    name: str
    settings: GroupSettings
    topics: frozenset[str]
    patterns: tuple[NamePattern, ...]
    deadline: float
    epoch: int = 0
    target: set[TopicPartition] = field(default_factory=set)
    departed: bool = False

    def wants(self, topic: str) -> bool:
        if topic in self.topics:
            return True
        return not topic.startswith("__") and any(pattern.fullmatch(topic) for pattern in self.patterns)

    def order(self) -> tuple[bool, str]:
        """The sort key. Members with an instance id come first, and get the same ranges after a restart."""
        instance = self.settings.instance_id
        return (instance is None, instance or self.name)


class Group:
    """The coordinator of one group.

    A partition has at most one owner. Owners release partitions that are no longer in their target, and take
    those of their target that have no owner: both happen in the member's own poll.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 0
        self.members: dict[str, Member] = {}
        self.owners: dict[TopicPartition, Member] = {}
        self.offsets: dict[TopicPartition, int] = {}
        self.metadata: dict[TopicPartition, str] = {}
        """The texts that were committed beside the offsets."""
        self._names_given = 0

    def has(self, member: Member) -> bool:
        return self.members.get(member.name) is member

    def join(
        self,
        settings: GroupSettings,
        topics: frozenset[str],
        patterns: tuple[NamePattern, ...],
        now: float,
    ) -> Member:
        instance = settings.instance_id
        if instance is not None:
            before = next((m for m in self.members.values() if m.settings.instance_id == instance), None)
            if before is not None and not before.departed:
                raise FatalBrokerError(
                    f"group {self.name}: the running member {before.name} has the instance id {instance!r}",
                    hint="give each member a different instance id",
                )
            if before is not None:
                self.remove(before)
        self._names_given += 1
        # The assignor compares names as text: with padding, their order is that of joining.
        name = f"{self.name}-{self._names_given:06d}"
        member = Member(name, settings, topics, patterns, now + settings.poll_deadline)
        self.members[name] = member
        self.epoch += 1
        return member

    def remove(self, member: Member) -> None:
        del self.members[member.name]
        self.owners = {partition: owner for partition, owner in self.owners.items() if owner is not member}
        self.epoch += 1

    def retarget(self, partition_counts: Mapping[str, int], first: Callable[[str], int]) -> None:
        """Range assignment: for each topic, each subscribed member gets the next contiguous range.

        ``first`` returns the position, among these members, of the one with which a topic's ranges begin.
        """
        members = sorted(self.members.values(), key=Member.order)
        targets: dict[Member, set[TopicPartition]] = {member: set() for member in members}
        for topic, count in partition_counts.items():
            subscribed = [member for member in members if member.wants(topic)]
            begin = first(topic) % len(subscribed) if subscribed else 0
            start = 0
            for position, member in enumerate([*subscribed[begin:], *subscribed[:begin]]):
                quota = count // len(subscribed) + (position < count % len(subscribed))
                targets[member].update(TopicPartition(topic, p) for p in range(start, start + quota))
                start += quota
        if any(member.target != target for member, target in targets.items()):
            self.epoch += 1
            for member, target in targets.items():
                member.target = target

    def release(self, member: Member, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            if self.owners.get(partition) is member:
                del self.owners[partition]

    def available(self, member: Member) -> list[TopicPartition]:
        """The partitions of the member's target that have no owner."""
        if member.target <= self.owners.keys():
            return []
        return sorted(partition for partition in member.target if partition not in self.owners)

    def take(self, member: Member) -> list[TopicPartition]:
        gained = self.available(member)
        for partition in gained:
            self.owners[partition] = member
        member.epoch = self.epoch
        return gained

    def check(self, membership: Membership, partitions: Collection[TopicPartition]) -> None:
        """Raise ``TransactionAborted`` unless the membership may commit offsets of these partitions."""
        if membership.member is None:
            if self.members:
                raise TransactionAborted(
                    f"group {self.name} has members: only they can commit offsets",
                    hint="stop the group's members first",
                )
            return
        member = self.members.get(membership.member)
        if member is None:
            raise TransactionAborted(f"{membership.member} is no longer a member of group {self.name}")
        if member.epoch != membership.epoch:
            raise TransactionAborted(
                f"{membership.member} of group {self.name} commits with epoch {membership.epoch}, "
                f"but its current epoch is {member.epoch}",
                hint="read the group metadata again before each commit",
            )
        foreign = sorted(partition for partition in partitions if self.owners.get(partition) is not member)
        if foreign:
            raise TransactionAborted(
                f"{membership.member} of group {self.name} does not hold {', '.join(map(str, foreign))}"
            )
