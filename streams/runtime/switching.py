"""A worker's part in a switch between the apps of a blue/green pair.

One app of a pair emits; the others are muted: they process everything, keep state and commit, but what leaves
the app is dropped. A worker follows the pair's record (``streams.runtime.switch_topic``). It reads it to its
end before it processes anything of a partition that was assigned to it: whoever owned the partition before
has stopped it under a record that is there by then.

A partition that has stopped is committed with the record's token beside the offset. The command that switches
reads these tokens, of all partitions, so it depends on no worker's word but its commit, which the group
fences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.errors import ConfigurationError
from streams.events import Event, get_logger
from streams.runtime import commit_numbers
from streams.runtime.input_gate import InputGate
from streams.runtime.switch_topic import (
    AGAIN,
    AppInputs,
    SwitchPhase,
    SwitchTopic,
    SwitchWriter,
    first_record,
)
from streams.topology.effects import with_muted_peeks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.broker import Broker, Consumer
    from streams.records import Output, TopicPartition
    from streams.runtime.assignment import Assignment
    from streams.runtime.sinks import Sinks
    from streams.runtime.switch_topic import SwitchRecord
    from streams.runtime.task import Task
    from streams.runtime.transaction import Transaction
    from streams.topology.graph import Topology

LOOK_SECONDS: Final = 0.05
"""How often the record is looked at while no switch is made."""

ACTIVE_POLL_SECONDS: Final = 0.02
"""How long a poll waits during a switch."""

ABORT_SECONDS: Final = 1.0
"""Shortest time between attempts to abort a switch whose command is gone."""


def check_pair(topology: Topology) -> None:
    """Raise ``ConfigurationError`` for an app that cannot be one of a blue/green pair."""
    for source in topology.sources:
        if source.connector is not None:
            raise ConfigurationError(
                f"source {source.store!r} ({source.connector.kind}) in an app of a blue/green pair: a source "
                "connector has one position, and no offsets at which another app could continue",
                hint="let an app of its own write what it reads to a topic, and read that topic here",
            )
    if topology.own_topics:
        raise ConfigurationError(
            "an app of a blue/green pair has jobs: both apps would execute their own, and only one may have "
            "effects",
            hint="declare the jobs in an app of its own, which both apps enqueue to",
        )
    patterns = [topic for topic in topology.input_topics if not isinstance(topic, str)]
    if patterns:
        raise ConfigurationError(
            "an app of a blue/green pair reads topics by a pattern: topics that are created during a switch "
            "would have no barrier",
            hint="name the topics",
        )


def pair_inputs(topology: Topology) -> AppInputs:
    """What an app of a pair reads and writes."""
    internal = set(topology.repartitions)
    named = {topic for topic in topology.input_topics if isinstance(topic, str)}
    return AppInputs(
        external=sorted(named - internal),
        internal=sorted(internal),
        outputs=sorted(set(topology.output_topics) - internal),
    )


class Switching:
    """The state of one worker. Its methods are called by the worker's thread, between slices."""

    def __init__(
        self,
        topology: Topology,
        broker: Broker,
        *,
        pair: str,
        application: str,
        clock: Callable[[], float],
    ) -> None:
        check_pair(topology)
        self.muted = True
        """Whether what leaves the app is dropped; from any thread."""
        self.dropped = 0
        """The number of records and rows that were dropped."""
        self._pair = pair
        self._application = application
        self._inputs = pair_inputs(topology)
        self._internal = frozenset(self._inputs.internal)
        self._clock = clock
        self._log = get_logger()
        self._topic = SwitchTopic(broker, pair)
        self._writer = SwitchWriter(broker, self._topic)
        self._gate: InputGate | None = None
        self._applied: SwitchRecord | None = None
        """The record that the limits and ``muted`` belong to."""
        self._acknowledged: dict[TopicPartition, str] = {}
        """The token that each partition was last committed with."""
        self._look_at = -float("inf")
        self._active_since: tuple[int, float] | None = None
        """When the switch that is being made was first seen, and since when (by ``began``)."""
        self._abort_at = -float("inf")

    # --- the topology and the consumer

    def with_muted_effects(self, topology: Topology) -> Topology:
        """The topology with functions of ``peek`` that are called only while the app emits."""
        return with_muted_peeks(topology, lambda: self.muted)

    def gate(self, consumer: Consumer) -> InputGate:
        """The consumer through which the worker reads its input."""
        self._gate = InputGate(consumer)
        return self._gate

    # --- life

    def start(self) -> None:
        """Read the record; the pair's first app becomes the emitter. Raises ``BrokerError``."""
        self._topic.create()
        self._topic.read(to_end=True)
        self._writer.describe(self._application, self._inputs)
        if self._topic.record is None:
            self._writer.change(lambda record: first_record(self._application) if record is None else None)
        self._writer.close()
        record = self._topic.record
        assert record is not None
        self._log.info(
            Event.PAIR_JOINED,
            pair=self._pair,
            emitter=record.emitter,
            muted=record.emitter != self._application,
            phase=record.phase.value,
        )

    def close(self) -> None:
        """Release the clients."""
        self._writer.close()
        self._topic.close()

    # --- partitions

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing of these is read before the record was. Called in a rebalance."""
        assert self._gate is not None
        self._gate.hold(partitions)
        for partition in partitions:
            self._acknowledged.pop(partition, None)

    def released(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions are no longer held."""
        assert self._gate is not None
        self._gate.forget(partitions)
        for partition in partitions:
            self._acknowledged.pop(partition, None)

    # --- following

    @property
    def stopped(self) -> bool:
        """Whether input is held back for a switch: timers must not run, nor time pass for idle input."""
        return self._applied is not None and self._applied.concerns(self._application)

    @property
    def phase(self) -> SwitchPhase:
        """The phase that the worker obeys; from any thread."""
        return SwitchPhase.RUNNING if self._applied is None or not self.stopped else self._applied.phase

    def follow(self, assignment: Assignment, transaction: Transaction, commit: Callable[[], None]) -> None:
        """Read the record and obey it. Called in each round, while no slice is open."""
        assert self._gate is not None
        now = self._clock()
        unread = bool(self._gate.held)
        if not (unread or self.stopped or now >= self._look_at) or transaction.must_rewind:
            return
        try:
            self._topic.read(to_end=unread)
        except AGAIN as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            return
        self._look_at = now + LOOK_SECONDS
        record = self._topic.record
        assert record is not None, f"{self._topic.name} has no record although this worker has read one"
        known = self._applied
        if known is None or record.version > known.version:
            self._obey(record, assignment, transaction, commit)
        elif unread:
            self._stop_partitions(record, assignment, [*self._gate.held])
            self._gate.release()
        self._abort_overdue(record, now)

    def _obey(
        self,
        record: SwitchRecord,
        assignment: Assignment,
        transaction: Transaction,
        commit: Callable[[], None],
    ) -> None:
        gate, known, own = self._gate, self._applied, self._application
        assert gate is not None
        muted = record.emitter != own
        if transaction.dirty:
            if known is not None and muted is not self.muted:
                # All partitions have stopped before the emitter changes: what was processed since is not
                # this worker's any more, and its commit would be refused.
                transaction.abort()
                return
            commit()
            if transaction.must_rewind:
                return
        assert known is None or record.version > known.version, "an older record of a switch is obeyed"  # I12
        assert not transaction.dirty, "the emitter changes in the middle of uncommitted work"  # I11
        if record.concerns(own) or self.stopped:
            # Queued records may lie beyond a limit, and an end that was queued may have been a limit.
            assignment.read_queued_again()
        self.muted, self._applied = muted, record
        if record.concerns(own):
            self._stop_partitions(record, assignment, list(assignment.progress))
        else:
            gate.lift()
        gate.release()
        if known is None or record.phase is not known.phase or record.emitter != known.emitter:
            self._log.info(
                Event.SWITCH_PHASE,
                pair=self._pair,
                phase=record.phase.value,
                emitter=record.emitter,
                muted=muted,
                reason=record.reason or None,
            )

    def _stop_partitions(
        self, record: SwitchRecord, assignment: Assignment, partitions: list[TopicPartition]
    ) -> None:
        if not record.concerns(self._application):
            return
        assert self._gate is not None
        assignment.note_starts()
        for partition in partitions:
            internal = partition.topic in self._internal
            if internal and record.phase is not SwitchPhase.SEALING:
                continue
            position = assignment.position(partition)
            barrier = record.barrier(partition)
            if record.phase is SwitchPhase.ADVANCING and barrier is not None:
                self._gate.limit(partition, position, barrier)
            else:
                self._gate.stop(partition, position)

    def _abort_overdue(self, record: SwitchRecord, now: float) -> None:
        """Abort a switch that takes longer than its limit: its command is gone."""
        if not record.concerns(self._application):
            self._active_since = None
            return
        if self._active_since is None or self._active_since[0] != record.began:
            self._active_since = record.began, now
        if now - self._active_since[1] <= record.pause_limit or now < self._abort_at:
            return
        self._abort_at = now + ABORT_SECONDS
        reason = f"not finished within {record.pause_limit:g} s"

        def abort(found: SwitchRecord | None) -> SwitchRecord | None:
            same = found is not None and found.active and found.began == record.began
            return found.abort(reason) if found is not None and same else None

        try:
            self._writer.change(abort)
        except AGAIN as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))
        finally:
            self._writer.close()

    # --- outputs

    def drops(self, output: Output) -> bool:
        """Whether an output leaves the app while it is muted."""
        if not self.muted or output.topic in self._internal:
            return False
        self.dropped += len(output)
        return True

    def drop_rows(self, tasks: Iterable[Task]) -> None:
        """Drop rows for sink connectors while muted: the positions in the sinks move without them."""
        if self.muted:
            for task in tasks:
                self.dropped += sum(len(delivery.batch) for delivery in task.take_deliveries())

    # --- commits

    def due(self, assignment: Assignment, sinks: Sinks) -> bool:
        """Whether a commit is due so that the command sees where partitions have stopped."""
        if not self.stopped:
            return False
        token = self._token
        return bool(assignment.offsets()) or any(
            self._acknowledged.get(partition) != token for partition in self._at_limits(assignment, sinks)
        )

    def stopped_partitions(self, assignment: Assignment, sinks: Sinks) -> dict[TopicPartition, int]:
        """The partitions to commit with a token, and where they have stopped.

        To be called before sinks are written to: what a sink has by then is committed there.
        """
        return self._at_limits(assignment, sinks) if self.stopped else {}

    def add_tokens(
        self, metadata: dict[TopicPartition, str], stopped: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, str]:
        """The texts to commit with the offsets, with the token where a partition has stopped."""
        token = self._token
        if not stopped:
            return metadata
        return metadata | {
            partition: commit_numbers.with_token(metadata.get(partition, ""), token) for partition in stopped
        }

    def committed(self, stopped: Mapping[TopicPartition, int]) -> None:
        """These were committed with the token."""
        self._acknowledged |= dict.fromkeys(stopped, self._token)

    @property
    def _token(self) -> str:
        return "" if self._applied is None else self._applied.token

    def _at_limits(self, assignment: Assignment, sinks: Sinks) -> dict[TopicPartition, int]:
        """The stopped partitions whose tasks, and sinks, have everything before that."""
        assert self._gate is not None
        found: dict[TopicPartition, int] = {}
        for partition, task in assignment.held.items():
            position = task.positions.get(partition)
            if position is None or self._gate.stopped_at(partition) != position:
                continue
            # Kafka's offset may be ahead of the sink's, which counts after a restart.
            if not task.delivers or sinks.position(task, partition) == position:
                found[partition] = position
        return found
