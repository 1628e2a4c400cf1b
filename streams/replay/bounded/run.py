"""A bounded run from its plan to its results."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.errors import BrokerError, ConfigurationError, WorkersFailed
from streams.process.slot import default_state_dir
from streams.replay.bounded.bounds import find_bounds
from streams.replay.bounded.effects import differences_by_design, effects_left_out
from streams.replay.bounded.identity import run_identity
from streams.replay.bounded.journal import Journal
from streams.replay.bounded.log import ResultTopic, RunLog, RunRecord
from streams.replay.bounded.parts import RunParts, run_stages
from streams.replay.bounded.plan import RunPlan
from streams.replay.bounded.pool import Pool
from streams.replay.bounded.publish import (
    check_free,
    create_results,
    delete_results,
    require_unread,
    result_topic,
    write_results,
)
from streams.replay.bounded.spool import Spool
from streams.replay.bounded.stages import require_replayable
from streams.replaying import Replay
from streams.runtime.topics import known_partitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from streams.app import App
    from streams.broker import Admin, Broker
    from streams.config import Settings
    from streams.records import TopicPartition
    from streams.replay.bounded.bounds import Bounds, PartitionBounds
    from streams.replay.bounded.counts import RunCounts
    from streams.replay.bounded.journal import Begun
    from streams.replay.positions import Position
    from streams.replaying import ReplayKind

_REPEATED: Final = (KeyboardInterrupt, BrokerError, WorkersFailed)
"""After these, what is complete is kept for a command that continues."""

_NAME: Final = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A bounded run as it is requested. ``max_records`` and ``max_bytes`` are limits a second, together."""

    name: str
    begin: Position
    end: Position
    warmup: int | None = None
    """Milliseconds; without it, as long as earlier records can matter."""
    workers: int = 1
    max_records: float | None = None
    max_bytes: float | None = None
    effects: bool = False
    kind: ReplayKind = "bounded"
    restart: bool = False
    """Whether to begin again although an interrupted run could be continued."""
    pinned: Mapping[TopicPartition, PartitionBounds] | None = None
    """The ranges of partitions that another run reads too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What a run has done."""

    plan: RunPlan
    counts: RunCounts
    seconds: float
    """How long it took to process the range."""
    left_out: list[str]
    """Effects that were left out, in words."""
    differences: list[str]
    """What works in another way than in a worker, in words."""

    def fields(self) -> dict[str, Any]:
        """As plain data."""
        bounds = self.plan.bounds
        return {
            "name": self.plan.replay.name,
            "continued": self.plan.continues > 0,
            "records": self.counts.records,
            "seconds": round(self.seconds, 3),
            "warmup": bounds.warmup,
            "partitions": {
                str(place): {"start": item.start, "begin": item.begin, "end": item.end}
                for place, item in sorted(bounds.partitions.items())
            },
            "results": {
                topic: {"topic": result_topic(topic, self.plan.replay.name), "records": count}
                for topic, count in sorted(self.counts.results.items())
            },
            "late": dict(self.counts.late),
            "skipped": dict(self.counts.skipped),
            "dead_letters": self.counts.dead_letters,
            "left_out": self.left_out,
            "rows_left_out": dict(self.counts.muted),
            "differences": self.differences,
        }


class BoundedRun:
    """Runs an app over a range of its input.

    With several workers, ``load`` makes the app in each process. With one, ``settings`` replace the app's, as
    tests do. Raises ``ConfigurationError`` for a name that cannot be part of a topic's.
    """

    def __init__(
        self,
        app: App,
        request: RunRequest,
        *,
        broker: Broker | None = None,
        load: Callable[[], App] | None = None,
        folder: Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        if request.workers > 1 and load is None:
            raise ConfigurationError("several workers need load=, which makes the app in each process")
        assert settings is None or request.workers == 1, "other processes use the app's settings"
        self._app = app
        self._settings = settings or app.settings
        self._request = request
        self._load = load
        self._broker = broker or app.broker(client_id=f"{app.name}-replay-{request.name}")
        self._log = RunLog(self._broker, app.name)
        self._folder = run_folder(app, request.name, folder, settings=self._settings)

    def plan(self) -> RunPlan:
        """Resolve the range, and check that results can be written. Changes nothing."""
        request, app = self._request, self._app
        topology = app.topology
        require_replayable(topology)
        admin = self._broker.admin()
        try:
            existing = admin.topics()
            partitions = known_partitions(topology, existing, application=app.name)
            bounds = find_bounds(
                topology,
                self._broker,
                admin,
                partitions,
                begin=request.begin,
                end=request.end,
                warmup=request.warmup,
                now=_now(),
                pinned=request.pinned,
            )
            most = max(partitions.values(), default=1)
            outputs = {
                topic: existing[topic].partitions if topic in existing else most
                for topic in (*topology.output_topics, app.dead_letter_topic)
                if topic not in topology.repartitions
            }
            identity, earlier = None, None
            if request.kind == "bounded":
                require_unread(topology, outputs, request.name)
                check_free(admin, outputs, request.name, self._log.read().get(request.name))
                identity = self._identity(admin, partitions, outputs)
                earlier = self._interrupted(admin, identity, bounds)
        finally:
            admin.close()
        share = 1 / request.workers
        return RunPlan(
            replay=Replay(request.name, request.kind, request.effects),
            bounds=bounds if earlier is None else earlier.bounds,
            identity=identity,
            begun=_now() if earlier is None else earlier.begun,
            continues=0 if earlier is None else Journal(Spool(self._folder)).units,
            partitions=partitions,
            outputs=outputs,
            folder=str(self._folder),
            max_records=request.max_records and request.max_records * share,
            max_bytes=request.max_bytes and request.max_bytes * share,
        )

    def process(self, plan: RunPlan, progress: Callable[[int], None] = lambda _: None) -> RunReport:
        """Process the range; results stay in the plan's folder. ``progress`` gets the records read so far."""
        begun = time.monotonic()
        topology = self._app.topology
        if plan.continues:
            plan.journal.discard_incomplete()
        else:
            plan.spool.clear()
            if plan.identity is not None:
                plan.journal.begin(plan.identity, plan.begun, plan.bounds)
        try:
            if self._request.workers == 1:
                counts = self._alone(plan, progress)
            else:
                with _processes(self._load, plan, self._request.workers) as pool:
                    counts = run_stages(topology, plan, partial(pool.run, progress=progress))
        except BaseException as error:
            # An error of the program is to be fixed, and a run of another program begins again.
            if not isinstance(error, _REPEATED) or plan.identity is None or not plan.journal.units:
                plan.spool.clear()
            raise
        return RunReport(
            plan=plan,
            counts=counts,
            seconds=time.monotonic() - begun,
            left_out=[] if plan.replay.effects else effects_left_out(topology),
            differences=differences_by_design(topology),
        )

    def publish(self, report: RunReport, progress: Callable[[int], None] = lambda _: None) -> RunRecord:
        """Write the results to topics of their own, which replace those of an earlier run of the name.

        ``progress`` gets the number of records written so far.
        """
        plan, name = report.plan, self._request.name
        topics = {
            topic: plan.outputs.get(topic) or max(plan.outputs.values(), default=1)
            for topic in dict.fromkeys([*plan.outputs, *plan.spool.topics])
        }
        record = RunRecord(
            name=name,
            state="running",
            begun=_now(),
            begin=str(self._request.begin),
            end=str(self._request.end),
            records=report.counts.records,
        )
        admin = self._broker.admin()
        try:
            earlier = self._log.read().get(name)
            check_free(admin, topics, name, earlier)
            if earlier is not None:
                delete_results(admin, earlier)
            # Noted before they are created: a command that is killed in between can be repeated.
            names = {result_topic(topic, name): topic for topic in topics}
            record = msgspec.structs.replace(
                record, results={full: ResultTopic(topic=topic, id="") for full, topic in names.items()}
            )
            self._log.write(record)
            ids = create_results(admin, topics, name)
        finally:
            admin.close()
        record = msgspec.structs.replace(
            record,
            results={full: ResultTopic(topic=topic, id=ids[full]) for full, topic in names.items()},
        )
        self._log.write(record)
        written = write_results(self._broker, plan.spool, topics, name, progress)
        # Before the run is complete in the log: a later run of the name must not continue it.
        plan.spool.clear()
        record = msgspec.structs.replace(
            record,
            state="complete",
            ended=_now(),
            results={
                full: msgspec.structs.replace(result, records=written[result.topic])
                for full, result in record.results.items()
            },
        )
        self._log.write(record)
        return record

    def _identity(self, admin: Admin, partitions: Mapping[str, int], outputs: Mapping[str, int]) -> str:
        request, own = self._request, self._app.topology.repartitions
        counts = {f"{topic}, partitions": count for topic, count in {**partitions, **outputs}.items()}
        inputs = admin.topic_ids([topic for topic in partitions if topic not in own])
        return run_identity(
            self._app,
            (request.name, request.begin, request.end, request.warmup, request.effects),
            {**counts, **inputs},
        )

    def _interrupted(self, admin: Admin, identity: str, bounds: Bounds) -> Begun | None:
        """The interrupted run that the next one continues; ``None`` if there is none.

        ``bounds`` are those of a run that begins now. If global tables have changed, or the log has lost
        the range's first records, the rest would not be what an undisturbed run would have read.
        """
        earlier = None if self._request.restart else Journal(Spool(self._folder)).read()
        if earlier is None or earlier.identity != identity:
            return None
        known = earlier.bounds
        beginnings = admin.beginning_offsets(list(known.partitions))
        if known.lookups != bounds.lookups or any(
            item.start < beginnings[place] for place, item in known.partitions.items()
        ):
            return None
        return earlier

    def _alone(self, plan: RunPlan, progress: Callable[[int], None]) -> RunCounts:
        read = 0

        def more(records: int) -> None:
            nonlocal read
            read += records
            progress(read)

        parts: RunParts | None = None
        try:
            parts = RunParts(self._app, self._broker, plan, more, settings=self._settings)
            own = parts
            return run_stages(
                self._app.topology,
                plan,
                lambda stage, units: ((unit, own.run(stage, unit)) for unit in units),
            )
        finally:
            if parts is not None:
                parts.close()


@contextmanager
def _processes(load: Callable[[], App] | None, plan: RunPlan, count: int) -> Iterator[Pool]:
    assert load is not None, "checked at the start"
    pool = Pool(load, plan, count)
    try:
        yield pool
    finally:
        pool.close()


def run_folder(app: App, name: str, base: Path | None = None, *, settings: Settings | None = None) -> Path:
    """The folder of a run while it is not complete, in the app's state folder or in ``base``.

    Raises ``ConfigurationError`` for a name that cannot be part of a topic's.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot name a replay: it becomes the end of its topics' names",
            hint="use up to 40 letters, digits, '_' and '-'",
        )
    state = (settings or app.settings).state_dir
    base = base or (default_state_dir() if state is None else Path(state))
    return base / f"{app.name}-replay" / name


def _now() -> int:
    return time.time_ns() // 1_000_000
