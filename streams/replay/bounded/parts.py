"""A bounded run: a range of the app's input, processed beside production, with results that can be repeated.

It belongs to no group, and its state is its own. Subtopologies run one after the other, each after those
whose repartition topics it reads; what goes from one to the next, and the results, are files until the end.
Tasks commit after a number of records, repartitioned records are merged by event time, and the wall clock is
the newest record's time: so results depend on the range alone, however many processes share the work.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

from streams.app import resources_of_worker
from streams.broker import BEGINNING
from streams.replay.bounded.counts import RunCounts
from streams.replay.bounded.effects import muted
from streams.replay.bounded.phase import PhaseInputs, PhaseResults
from streams.replay.bounded.range_reader import read_range
from streams.replay.bounded.sink_effects import SinkEffects
from streams.replay.bounded.stages import internal_outputs, stages
from streams.replay.bounded.throttle import Throttle
from streams.replay.bounded.unit import SLICE_RECORDS, Unit, UnitCounts
from streams.replaying import running_in
from streams.runtime.global_tables import GlobalTable
from streams.state.memory import MemoryDatabases
from streams.state.rocksdb import RocksDatabases
from streams.topology.graph import Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streams.app import App
    from streams.broker import Broker
    from streams.config import Settings
    from streams.replay.bounded.plan import RunPlan
    from streams.replay.bounded.spool import Phase
    from streams.replay.bounded.stages import Stage
    from streams.runtime.task import TaskId
    from streams.state.store import Databases

PHASES: Final[tuple[Phase, ...]] = ("warmup", "range")


class RunParts:
    """Runs the units of a plan in this process, one after the other. Close it in the end.

    ``settings`` replace the app's.
    """

    def __init__(
        self,
        app: App,
        broker: Broker,
        plan: RunPlan,
        progress: Callable[[int], None] = lambda _: None,
        *,
        settings: Settings | None = None,
    ) -> None:
        self._app = app
        self._settings = settings or app.settings
        self._broker = broker
        self._plan = plan
        self._progress = progress
        self._throttle = Throttle(plan.max_records, plan.max_bytes, look=lambda: progress(0))
        self._stack = ExitStack()
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def _open(self) -> None:
        app = self._app
        topology: Topology = app.topology
        if self._settings.schema_registry_url is not None:
            from streams.registry_topics import connect_registry  # noqa: PLC0415 - few apps need it

            connection = self._stack.enter_context(closing(connect_registry(topology, self._settings)))
            topology = _reading(connection.topology, topology)
        self._topology = topology if self._plan.replay.effects else muted(topology)
        resources = resources_of_worker(app)
        self._stack.callback(resources.close)
        resources.open()
        self._stack.enter_context(resources.active())
        self._stack.enter_context(running_in(self._plan.replay))
        self._lookups: dict[str, Any] = {}
        if self._topology.global_tables:
            name = f"global-tables-{os.getpid()}"
            self._lookups = self._read_lookups(self._stack.enter_context(self._databases(name)))
        self._parts = {part.number: part for part in self._topology.subtopologies}

    def close(self) -> None:
        """Close the app's resources."""
        self._stack.close()

    def stage_of(self, subtopology: int) -> Stage:
        """The stage that a subtopology belongs to."""
        return next(
            stage
            for stage in stages(self._topology)
            if any(part.number == subtopology for part in stage.parts)
        )

    def run(self, stage: Stage, unit: Sequence[TaskId]) -> RunCounts:
        """Run one unit of a stage: first the warm-up, whose results are dropped, then the range."""
        within = {
            topic
            for part in stage.parts
            for topic in internal_outputs(part)
            if any(other.reads(topic) for other in stage.parts)
        }
        name = f"{unit[0]}" if len(unit) == 1 else f"{unit[0].subtopology}"
        counts = RunCounts()
        with self._databases(name) as databases:
            work = Unit(
                unit,
                {part.number: self._parts[part.number] for part in stage.parts},
                application=self._app.name,
                dead_letter_topic=self._app.dead_letter_topic,
                databases=databases,
                lookups=self._lookups,
                partitions=self._plan.partitions,
                within=within,
                internal=self._topology.repartitions,
                progress=self._progress,
            )
            effects = (
                SinkEffects(self._app.name, self._topology, self._plan) if self._plan.replay.effects else None
            )
            try:
                for phase in PHASES:
                    inputs = PhaseInputs(
                        self._plan, self._broker, self._topology, within, phase, self._throttle
                    )
                    results = PhaseResults(self._plan, self._topology, phase, effects)
                    try:
                        work.run(inputs, results)
                    finally:
                        results.close()
                        inputs.close()
                    counts.results += results.written
                    counts.muted += results.muted
            finally:
                if effects is not None:
                    effects.close()
                work.close()
        counts.add(_of_unit(work.counts))
        return counts

    @contextmanager
    def _databases(self, name: str) -> Iterator[Databases]:
        if self._settings.state_store != "rocksdb":
            databases: Databases = MemoryDatabases()
            yield databases
            databases.close()
            return
        folder = self._plan.spool.state(name)
        databases = RocksDatabases(folder, self._settings.state_memory_mb * 1_000_000)
        try:
            yield databases
        finally:
            databases.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _read_lookups(self, databases: Databases) -> dict[str, Any]:
        """The global tables as of the plan's ends."""
        tables = {
            source.topic: GlobalTable(source, databases, lambda: 0) for source in self._topology.global_tables
        }
        for place, end in self._plan.bounds.lookups.items():
            for fetched in read_range(
                self._broker, place, BEGINNING, end, size=SLICE_RECORDS, throttle=self._throttle
            ):
                tables[place.topic].apply(fetched)
        return {table.source.store.name: table.lookup for table in tables.values()}


def _reading(connected: Topology, own: Topology) -> Topology:
    """The connected topology, with sinks that use the schema folder: a replay registers nothing."""
    sinks = {sink.name: sink for sink in own.sinks}
    return Topology(tuple(sinks.get(node.name, node) for node in connected.nodes), connected.global_tables)


def run_stages(
    topology: Topology,
    plan: RunPlan,
    run: Callable[[Stage, list[tuple[TaskId, ...]]], Iterator[tuple[tuple[TaskId, ...], RunCounts]]],
) -> RunCounts:
    """Run all stages. ``run`` runs the units of one, in any order, and yields each with what it has done.

    Units that an interrupted run has completed are not run again.
    """
    total = RunCounts()
    journal = plan.journal
    for stage in stages(topology):
        units = []
        for unit in stage.units(plan.partitions):
            before = journal.counts(unit) if plan.continues else None
            if before is None:
                units.append(unit)
            else:
                total.add(before)
        for unit, counts in run(stage, units):
            if plan.identity is not None:
                journal.note(unit, counts)
            total.add(counts)
        for topic in topology.repartitions:
            # They were read for the last time.
            if any(part.reads(topic) for part in stage.parts):
                plan.spool.forget_internal(topic)
    return total


def _of_unit(counts: UnitCounts) -> RunCounts:
    return RunCounts(
        records=counts.records,
        late=counts.late,
        skipped=counts.skipped,
        dead_letters=counts.dead_letters,
    )
