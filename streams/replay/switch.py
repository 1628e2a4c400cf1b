"""Switches a blue/green pair: one app's results end, and the other's begin, at one offset of each partition.

The command only reads the groups' committed offsets and changes the pair's record, so it may be killed and
run again at any moment: where a switch stands is in the record. See ``streams.runtime.switching`` for the
workers' part.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams.errors import BrokerError, ConfigurationError, SwitchAborted, TopicError
from streams.records import TopicPartition
from streams.runtime import commit_numbers
from streams.runtime.switch_topic import (
    AGAIN,
    AppInputs,
    SwitchPhase,
    SwitchRecord,
    SwitchTopic,
    SwitchWriter,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.broker import Broker

STEP_SECONDS: Final = 0.02
"""How often offsets are read while a switch is made."""

CATCH_UP_SECONDS: Final = 0.5
"""How often they are read before."""


class CatchUp(NamedTuple):
    """How far the follower is from the emitter, before a switch."""

    apart: int
    """Offsets between the two groups in their external inputs, and those that wait in internal topics."""
    per_second: float | None
    """By how many of these it gets less each second, if that is known."""
    members: Mapping[str, int]
    """The number of members of each group."""

    @property
    def seconds(self) -> float | None:
        """When nothing is left at this rate."""
        return self.apart / self.per_second if self.per_second and self.per_second > 0 else None


class Switched(NamedTuple):
    """The result of a switch."""

    emitter: str
    before: str | None
    """The app that emitted before, and can be switched back to."""
    pause: float | None
    """Seconds from the request to stop until the new emitter was allowed to write."""
    already: bool
    """Whether nothing had to be done."""


class Switch:
    """A switch of a pair to an app. ``clock`` returns seconds, ``pause`` waits for that many.

    ``waiting`` is called while the app catches up, and ``entered`` with each phase.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        pair: str,
        app: str,
        pause_limit: float = 30.0,
        max_lag: int = 10_000,
        waiting: Callable[[CatchUp], None] = lambda _: None,
        entered: Callable[[SwitchPhase], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._pair = pair
        self._app = app
        self._pause_limit = pause_limit
        self._max_lag = max_lag
        self._waiting = waiting
        self._entered = entered
        self._clock = clock
        self._pause = pause
        self._admin = broker.admin()
        self._topic = SwitchTopic(broker, pair)
        self._writer = SwitchWriter(broker, self._topic)
        self._began: int | None = None
        """The switch that this command has begun, or continues."""
        self._began_at = 0.0
        self._mine = False
        """Whether this command has begun it."""
        self.phase: SwitchPhase | None = None
        """The phase of the switch that is being made, as last read."""
        self._counts: dict[str, int] = {}
        self._first: tuple[float, int] | None = None
        self.missing: list[str] = []
        """What the phase waits for, in words."""

    def run(self) -> Switched:
        """Make the switch, or continue one to the same app.

        Raises ``SwitchAborted`` if it was aborted, ``ConfigurationError`` and ``TopicError`` where there is
        nothing to switch, and ``BrokerError``. If it is interrupted in a phase in which nothing is emitted,
        the switch is aborted.
        """
        try:
            while (result := self.step()) is None:
                self._pause(STEP_SECONDS if self._began is not None else CATCH_UP_SECONDS)
        except KeyboardInterrupt:
            if self._began is not None:
                self.abort("interrupted")
            raise
        finally:
            self.close()
        return result

    def close(self) -> None:
        """Release the clients."""
        self._writer.close()
        self._topic.close()
        self._admin.close()

    def step(self) -> Switched | None:
        """Read the record and the offsets once, and go on if possible. Returns the result at the end."""
        try:
            record = self._read()
            if not record.active:
                return self._outside(record)
            if record.follower != self._app:
                raise SwitchAborted(
                    f"pair {self._pair!r} is being switched to {record.follower!r}",
                    hint="let that command end, or abort it: streams replay switch MODULE:APP --abort",
                )
            if self._began is None:
                self._continue(record)
            self._enter(record.phase)
            if self._clock() - self._began_at > record.pause_limit:
                waits = f": {'; '.join(self.missing)}" if self.missing else ""
                self._change(record, record.abort(f"not finished within {record.pause_limit:g} s{waits}"))
            elif record.phase is SwitchPhase.FREEZING:
                self._freeze(record)
            elif record.phase is SwitchPhase.ADVANCING:
                self._advance(record)
            else:
                self._seal(record)
        except AGAIN as error:
            self.missing = [str(error).partition("\n")[0]]
        return None

    def abort(self, reason: str) -> SwitchRecord:
        """Abort the pair's switch, whoever makes it. The emitter continues. Raises ``BrokerError``."""

        def aborted(record: SwitchRecord | None) -> SwitchRecord | None:
            return record.abort(reason) if record is not None and record.active else None

        deadline = self._clock() + self._pause_limit
        while True:
            try:
                self._read()
                record = self._writer.change(aborted)
            except AGAIN:
                if self._clock() > deadline:
                    raise
                self._pause(STEP_SECONDS)
            else:
                assert record is not None
                return record

    def status(self) -> dict[str, Any]:
        """The pair as it is, for people. Raises ``TopicError`` if no app of it has started."""
        record = self._read()
        topics = self._admin.topics()
        apps = {}
        for app, inputs in sorted(self._topic.apps.items()):
            places = _places([*inputs.external, *inputs.internal], _counts(topics))
            committed = self._admin.committed_offsets(app, places)
            ends = self._admin.end_offsets(places)
            begins = self._admin.beginning_offsets(places)
            apps[app] = {
                "emits": app == record.emitter,
                "members": len(self._admin.group_members(app)),
                "lag": sum(max(0, end - committed.get(place, begins[place])) for place, end in ends.items()),
            }
        return {
            "pair": self._pair,
            "phase": record.phase.value,
            "emitter": record.emitter,
            "follower": record.follower,
            "pause": record.pause,
            "aborted": record.reason or None,
            "apps": apps,
        }

    def differences(self) -> list[str]:
        """What the two apps write, where they differ. Raises ``TopicError`` and ``ConfigurationError``."""
        record = self._read()
        if record.emitter == self._app:
            return []
        ours, theirs = self._inputs(self._app), self._inputs(record.emitter)
        return [
            f"only {app} writes {topic}"
            for app, own, other in (
                (self._app, ours.outputs, theirs.outputs),
                (record.emitter, theirs.outputs, ours.outputs),
            )
            for topic in sorted(set(own) - set(other))
        ]

    # --- before

    def _read(self) -> SwitchRecord:
        if not self._topic.exists:
            raise self._nobody()
        self._topic.read(to_end=True)
        if self._topic.record is None:
            raise self._nobody()
        return self._topic.record

    def _nobody(self) -> TopicError:
        return TopicError(
            f"no app of the pair {self._pair!r} has ever started in this cluster",
            hint="check the cluster and the setting blue_green; the first app that starts emits",
        )

    def _inputs(self, app: str) -> AppInputs:
        found = self._topic.apps.get(app)
        if found is None:
            raise TopicError(
                f"no worker of {app!r} has ever started in the pair {self._pair!r}",
                hint=f"start its workers with blue_green={self._pair!r}: they are muted until the switch",
            )
        return found

    def _outside(self, record: SwitchRecord) -> Switched | None:
        self.phase = None
        if record.emitter == self._app:
            return Switched(record.emitter, record.follower, record.pause, already=self._began is None)
        if self._began is not None:
            raise SwitchAborted(
                f"the switch to {self._app!r} was aborted: {record.reason or 'by another command'}",
                hint=f"{record.emitter!r} emits as before, and nothing is lost; run the command again",
            )
        self._check_inputs(record)
        caught_up = self._catch_up(record)
        self._waiting(caught_up)
        if caught_up.apart <= self._max_lag and all(caught_up.members.values()):
            now, begun = time.time_ns() // 1_000_000, self._clock()
            if self._change(record, record.begin(self._app, self._pause_limit, now)):
                self._began, self._began_at, self._mine = now, begun, True
        return None

    def _check_inputs(self, record: SwitchRecord) -> None:
        ours, theirs = self._inputs(self._app), self._inputs(record.emitter)
        if ours.external != theirs.external:
            only = [
                f"only {app} reads {', '.join(sorted(topics))}"
                for app, topics in (
                    (self._app, set(ours.external) - set(theirs.external)),
                    (record.emitter, set(theirs.external) - set(ours.external)),
                )
                if topics
            ]
            raise ConfigurationError(
                f"the apps of a pair read the same topics: {'; '.join(only)}",
                hint="an input that only one of them reads has no offset at which the other continues",
            )
        self._counts = _counts(self._admin.topics())

    def _catch_up(self, record: SwitchRecord) -> CatchUp:
        external = self._external()
        begins = self._admin.beginning_offsets(external)
        groups = [self._app, record.emitter]
        follower, emitter = (self._admin.committed_offsets(group, external) for group in groups)
        apart = sum(
            abs(follower.get(place, begins[place]) - emitter.get(place, begins[place])) for place in external
        )
        for group in groups:
            apart += sum(self._undrained(group).values())
        now = self._clock()
        if self._first is None or apart > self._first[1]:
            self._first = now, apart
        since, most = self._first
        rate = (most - apart) / (now - since) if now > since else None
        return CatchUp(apart, rate, {group: len(self._admin.group_members(group)) for group in groups})

    def _continue(self, record: SwitchRecord) -> None:
        self._began, self._began_at = record.began, self._clock()
        self._check_inputs(record)

    def _enter(self, phase: SwitchPhase) -> None:
        if phase is not self.phase:
            self.phase = phase
            self._entered(phase)

    # --- phases

    def _freeze(self, record: SwitchRecord) -> None:
        external = self._external()
        apps = self._apps(record)
        if not self._all_stopped(record, dict.fromkeys(apps, external)):
            return
        # Stopped partitions do not move, so these are the offsets that the tokens belong to.
        offsets = [self._admin.committed_offsets(app, external) for app in apps]
        barriers: dict[str, list[int]] = {}
        for place in external:
            barriers.setdefault(place.topic, []).append(max(own[place] for own in offsets))
        self._change(record, record.advance(barriers))

    def _advance(self, record: SwitchRecord) -> None:
        if self._reached(record) and self._drained(record):
            self._change(record, record.seal())

    def _seal(self, record: SwitchRecord) -> None:
        apps = self._apps(record)
        if not self._all_stopped(record, {app: self._external() + self._internal(app) for app in apps}):
            return
        counts = _counts(self._admin.topics())
        changed = sorted(
            topic
            for app in apps
            for topic in [*self._inputs(app).external, *self._inputs(app).internal]
            if counts.get(topic) != self._counts.get(topic)
            or (topic in self._inputs(app).external and counts.get(topic) != len(record.barriers[topic]))
        )
        if changed:
            self._change(record, record.abort(f"{', '.join(changed)} got more partitions"))
        elif not (self._reached(record) and self._drained(record)):
            self._change(record, record.abort(f"input moved after it had stopped: {'; '.join(self.missing)}"))
        else:
            self._change(record, record.switch(self._now()))

    def _now(self) -> int:
        """The time, to measure the pause: by this process's clock, if it has begun the switch."""
        if self._mine:
            assert self._began is not None
            return self._began + round((self._clock() - self._began_at) * 1000)
        return time.time_ns() // 1_000_000

    def _all_stopped(self, record: SwitchRecord, places: Mapping[str, Sequence[TopicPartition]]) -> bool:
        """Whether all partitions were committed under this record after they had stopped."""
        self.missing = []
        for app, own in places.items():
            texts = self._admin.committed_metadata(app, own)
            left = [place for place in own if commit_numbers.token(texts.get(place, "")) != record.token]
            self.missing += [f"{app} has not stopped {place}" for place in left[:3]]
            if len(left) > 3:
                self.missing.append(f"and {len(left) - 3} more")
        return not self.missing

    def _reached(self, record: SwitchRecord) -> bool:
        """Whether both groups have committed exactly the barriers."""
        external = self._external()
        self.missing = []
        for app in self._apps(record):
            committed = self._admin.committed_offsets(app, external)
            self.missing += [
                f"{app} is at {committed.get(place)} in {place}, not at {record.barrier(place)}"
                for place in external
                if committed.get(place) != record.barrier(place)
            ][:3]
        return not self.missing

    def _drained(self, record: SwitchRecord) -> bool:
        """Whether nothing is left in internal topics.

        What is written to one while another is looked at shows in the second look: if no end has moved in
        between, everything before these ends was processed in the first, and has led to nothing.
        """
        apps = self._apps(record)
        before = None
        for _ in range(2):
            ends = {app: self._ends(app) for app in apps}
            left = [
                f"{app} has {count} records in {place}"
                for app in apps
                for place, count in self._undrained(app, ends[app]).items()
                if count
            ]
            if left or before not in (None, ends):
                self.missing = left[:3] or ["internal topics grow"]
                return False
            before = ends
        return True

    def _ends(self, app: str) -> dict[TopicPartition, int]:
        return self._admin.end_offsets(self._internal(app), "read_uncommitted")

    def _undrained(
        self, app: str, ends: Mapping[TopicPartition, int] | None = None
    ) -> dict[TopicPartition, int]:
        """Offsets of internal topics that the app has not committed, by partition."""
        if ends is None:
            ends = self._ends(app)
        committed = self._admin.committed_offsets(app, list(ends))
        fresh = [place for place in ends if place not in committed]
        begins = self._admin.beginning_offsets(fresh)
        return {
            place: max(0, end - (committed[place] if place in committed else begins[place]))
            for place, end in ends.items()
        }

    def _change(self, before: SwitchRecord, after: SwitchRecord) -> bool:
        """Replace a record, unless another writer has done so. Returns whether it was replaced."""
        record = self._writer.change(
            lambda found: after if found is not None and found.version == before.version else None
        )
        return record is after

    def _apps(self, record: SwitchRecord) -> list[str]:
        assert record.follower is not None
        return [record.emitter, record.follower]

    def _external(self) -> list[TopicPartition]:
        return self._existing(self._inputs(self._app).external)

    def _internal(self, app: str) -> list[TopicPartition]:
        return self._existing(self._inputs(app).internal)

    def _existing(self, topics: Iterable[str]) -> list[TopicPartition]:
        topics = list(topics)
        gone = [topic for topic in topics if topic not in self._counts]
        if gone:
            raise BrokerError(f"topics do not exist: {', '.join(gone)}", hint="nothing was switched")
        return _places(topics, self._counts)


def _counts(topics: Mapping[str, Any]) -> dict[str, int]:
    return {name: topic.partitions for name, topic in topics.items()}


def _places(topics: Iterable[str], counts: Mapping[str, int]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for topic in topics for number in range(counts.get(topic, 0))]
