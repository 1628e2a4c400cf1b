"""Replays, resets and switches of an app, read from its topics in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams.errors import ConfigurationError
from streams.replay.bounded.bounds import EVERYTHING
from streams.replay.bounded.effects import differences_by_design, effects_left_out
from streams.replay.bounded.journal import Journal
from streams.replay.bounded.log import RunLog
from streams.replay.bounded.run import BoundedRun, RunRequest, run_folder
from streams.replay.bounded.run_lock import running_owner
from streams.replay.bounded.spool import Spool
from streams.replay.bounded.stages import stages
from streams.replay.diff.kept import ComparisonLog
from streams.replay.positions import parse_duration
from streams.replay.reset_plan import plan_reset
from streams.replay.switch import Switch
from streams.runtime import commit_numbers
from streams.runtime.switch_topic import SwitchTopic
from streams.runtime.topics import known_partitions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from streams.app import App
    from streams.broker import Admin, Broker
    from streams.records import TopicPartition
    from streams.replay.bounded.journal import Begun
    from streams.replay.bounded.log import RunRecord
    from streams.replay.bounded.plan import RunPlan
    from streams.replay.bounded.run_lock import RunOwner
    from streams.replay.diff.kept import KeptComparison
    from streams.replay.positions import Position
    from streams.replay.reset_plan import ResetPlan
    from streams.runtime.switch_topic import SwitchRecord

SWITCH_SUFFIX: Final = "-switch"

PATIENCE_SECONDS: Final = 3.0
"""How long the plan of a reset waits for transactions that are open."""


class Run(NamedTuple):
    """A replay of a range."""

    name: str
    state: str
    """``running``, ``interrupted`` or ``complete``."""
    record: RunRecord | None
    """What the topic of replays says; there is nothing before the run has processed its range."""
    owner: RunOwner | None
    """The command that works on it."""
    begun: Begun | None
    """What its folder says, if it is on this machine."""
    units: int | None
    """How many tasks are complete, if that is known here."""
    all_units: int | None

    @property
    def writes(self) -> bool:
        """Whether it has processed its range, and writes the results."""
        return self.state == "running" and self.record is not None and self.record.state == "running"


class Reset(NamedTuple):
    """What the group's committed offsets say of resets. Times are milliseconds since the epoch."""

    unfinished: int | None
    """When one was begun that is not finished."""
    partitions: int
    """How many partitions it has marked."""
    last: int | None
    """When the last one was made that is finished."""


class Replays(NamedTuple):
    """What is known of an app's replays."""

    runs: Sequence[Run]
    comparisons: Sequence[KeptComparison]
    """The latest first."""
    reset: Reset
    local: bool
    """Whether the folder of runs on this machine was looked at."""


class Pair(NamedTuple):
    """A blue/green pair."""

    name: str
    record: SwitchRecord
    apps: Mapping[str, Mapping[str, Any]]
    """Of each app whether it ``emits``, its ``members`` and its ``lag``."""


class Plan(NamedTuple):
    """What a replay or a reset would do."""

    run: RunPlan | None
    reset: ResetPlan | None
    left_out: Sequence[str]
    differences: Sequence[str]
    members: int
    """Of the app's group: a reset needs it to have none."""


def read_replays(broker: Broker, application: str, program: App | None) -> Replays:
    """Read what is known of an app's replays. Raises ``BrokerError``."""
    log = RunLog(broker, application)
    records = log.read()
    folder = None if program is None else run_folder(program, "x").parent
    local = {} if folder is None else _begun_here(folder)
    admin = broker.admin()
    try:
        total = None if program is None or not local else _units(admin, program)
        runs = []
        for name in sorted(records.keys() | local.keys()):
            record, begun = records.get(name), local.get(name)
            done = record is not None and record.state == "complete" and begun is None
            owner = None if done else running_owner(admin, log, name)
            state = "running" if owner is not None else "complete" if done else "interrupted"
            units = None if begun is None or folder is None else Journal(Spool(folder / name)).units
            runs.append(Run(name, state, record, owner, begun, units, total))
        reset = _reset(admin, application)
    finally:
        admin.close()
    runs.sort(key=lambda run: run.record.begun if run.record else run.begun.begun if run.begun else 0)
    comparisons = sorted(
        ComparisonLog(broker, application).read().values(), key=lambda item: item.time, reverse=True
    )
    return Replays(runs[::-1], comparisons, reset, folder is not None)


def _begun_here(folder: Path) -> dict[str, Begun]:
    """The runs that have begun on this machine and are not complete."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        begun = Journal(Spool(path)).read()
        if begun is not None:
            found[path.name] = begun
    return found


def _units(admin: Admin, program: App) -> int | None:
    """How many tasks a run of the program has, one after another."""
    try:
        partitions = known_partitions(program.topology, admin.topics(), application=program.name)
    except ConfigurationError:
        return None
    return sum(len(stage.units(partitions)) for stage in stages(program.topology))


def _reset(admin: Admin, application: str) -> Reset:
    places = list(admin.committed_offsets(application))
    texts = admin.committed_metadata(application, places) if places else {}
    begun = [number for text in texts.values() if (number := commit_numbers.reset_begun(text)) is not None]
    return Reset(max(begun, default=None), len(begun), commit_numbers.epoch(texts.values()) or None)


def read_pair(broker: Broker, application: str, names: Collection[str]) -> Pair | None:
    """The pair that an app belongs to, of pairs with these names; ``None`` if to none. ``BrokerError``."""
    for name in names:
        topic = SwitchTopic(broker, name)
        try:
            if not topic.exists:
                continue
            topic.read(to_end=True)
            if topic.record is None or application not in topic.apps:
                continue
            switch = Switch(broker, pair=name, app=application)
            try:
                return Pair(name, topic.record, switch.status()["apps"])
            finally:
                switch.close()
        finally:
            topic.close()
    return None


def pairs_of(program: App | None, topics: Collection[str]) -> list[str]:
    """The names of pairs that an app may belong to."""
    if program is not None:
        return [] if program.settings.blue_green is None else [program.settings.blue_green]
    return sorted(
        topic.removesuffix(SWITCH_SUFFIX)
        for topic in topics
        if topic.endswith(SWITCH_SUFFIX) and topic != SWITCH_SUFFIX
    )


def plan_run(broker: Broker, program: App, name: str, begin: Position, end: Position, warmup: str) -> Plan:
    """What ``streams replay run`` would read. Raises ``ConfigurationError``, ``BrokerError``."""
    before = None if not warmup else EVERYTHING if warmup == "all" else parse_duration(warmup)
    request = RunRequest(name=name, begin=begin, end=end, warmup=before)
    plan = BoundedRun(program, request, broker=broker).plan()
    topology = program.topology
    return Plan(plan, None, effects_left_out(topology), differences_by_design(topology), 0)


def plan_of_reset(broker: Broker, program: App, position: Position) -> Plan:
    """What ``streams replay reset`` would do. Raises ``ConfigurationError``, ``BrokerError``."""
    plan = plan_reset(
        program.topology,
        broker,
        application=program.name,
        position=position,
        patience=PATIENCE_SECONDS,
    )
    admin = broker.admin()
    try:
        members = len(admin.group_members(program.name))
    finally:
        admin.close()
    return Plan(None, plan, [], [], members)


def ranges(plan: Plan) -> list[tuple[TopicPartition, Sequence[int | None]]]:
    """The figures of each partition.

    Of a run: the begin, the end, the records, and the warm-up before. Of a reset: the committed offset, the
    new one, the end, and how many are processed again and skipped.
    """
    if plan.run is not None:
        return [
            (place, (item.begin, item.end, item.end - item.begin, item.begin - item.start))
            for place, item in sorted(plan.run.bounds.partitions.items())
        ]
    assert plan.reset is not None, "it is one of the two"
    return [
        (item.partition, (item.committed, item.new, item.end, item.again, item.skipped))
        for item in plan.reset.partitions
    ]
