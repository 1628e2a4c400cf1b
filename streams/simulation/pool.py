"""Run simulations of an app in several processes in parallel."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, ClassVar

from streams.errors import StreamsError
from streams.simulation.ranges import RangeSimulator
from streams.simulation.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from streams.app import App
    from streams.simulation.run import InputRecord
    from streams.simulation.schedule import Fault
    from streams.simulation.simulator import Difference, Report

SEEDS_AT_ONCE = 10
"""Number of seeds per piece of work: few, so that the progress bar moves and a stop is quick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """The arguments from which a process makes its ``Simulator``, which describes the fields."""

    load: Callable[[], App]
    inputs: Mapping[str, Sequence[InputRecord]]
    partitions: int
    most: int
    kinds: Sequence[Fault] | None = None
    ignore: Sequence[str] = ()
    reset: bool = False
    begin: str | None = None
    """With it or ``end``, a bounded run is simulated; both are positions as on the command line."""
    end: str | None = None

    def simulator(self) -> Simulator:
        if self.begin is not None or self.end is not None:
            return RangeSimulator(
                self.load(),
                self.inputs,
                begin=self.begin or "earliest",
                end=self.end or "latest",
                partitions=self.partitions,
                kinds=self.kinds,
                most=self.most,
                ignore=self.ignore,
            )
        return Simulator(
            self.load(),
            self.inputs,
            partitions=self.partitions,
            kinds=self.kinds,
            most=self.most,
            ignore=self.ignore,
            reset=self.reset,
        )


class _Child:
    """What a process creates once and uses for all its seeds."""

    simulator: ClassVar[Simulator | None] = None


def simulate(simulation: Simulation, seeds: range, processes: int) -> Iterator[Report]:
    """Run seeds in parallel; yield their reports in order, and stop after the first difference.

    All processes use the same ``PYTHONHASHSEED``: sets then have the same order in each of them, so that a
    seed gives the same run everywhere. Raises what ``Simulator`` raises.
    """
    # Without PYTHONSAFEPATH, a file in the current folder could shadow a module of the standard library.
    chosen = {"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    pool = ProcessPoolExecutor(max(1, min(processes, len(seeds))), get_context("spawn"), initializer=_begin)
    chunks = iter(seeds[at : at + SEEDS_AT_ONCE] for at in range(0, len(seeds), SEEDS_AT_ONCE))
    waiting: list[Future[Report]] = []
    try:
        # More pieces than processes are queued, so that no process has to wait.
        waiting += [pool.submit(_run, simulation, chunk) for chunk in islice(chunks, 2 * processes)]
        while waiting:
            report = waiting.pop(0).result()
            yield report
            if report.differences:
                return
            waiting += [pool.submit(_run, simulation, chunk) for chunk in islice(chunks, 1)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _begin() -> None:
    # Ctrl-C goes to the whole process group, and is handled by the parent process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(simulation: Simulation, seeds: Sequence[int]) -> Report:
    if _Child.simulator is None:
        try:
            _Child.simulator = simulation.simulator()
        except StreamsError:
            raise
        except Exception as error:  # noqa: BLE001 - not every exception can be pickled
            raise StreamsError(
                f"the app fails in the run without faults: {type(error).__name__}: {error}"
            ) from None
    *_, report = _Child.simulator.run(seeds)
    return report


def explain(difference: Difference) -> list[str]:
    """Describe a difference: the injected faults in order, and the first record that differs."""
    lines = [f"pace: {difference.schedule.pace}"]
    if not difference.schedule.events and difference.schedule.reset is None:
        lines.append(
            "no fault was injected: the results depend on something besides the input and the stores, "
            "such as the time, random numbers, or variables that outlive a run"
        )
    lines += [f"{number}. {line.strip()}" for number, line in enumerate(difference.story, start=1)]
    if difference.error is not None:
        return [*lines, f"a worker ended with {difference.error}"]
    key, expected, got = difference.view
    number, before, now = difference.first + 1, len(difference.expected), len(difference.got)
    return [
        *lines,
        f"topic {difference.topic}, key {key}, record {number} (of {before} expected and {now} got):",
        f"  expected {expected}",
        f"  got      {got}",
    ]


def as_json(report: Report) -> dict[str, Any]:
    """A report as plain data."""
    return {
        "schedules": report.schedules,
        "faults": dict(sorted(report.faults.items())),
        "points": dict(sorted(report.points.items())),
        "points_passed": report.passed,
        "records_read_again": report.again,
        "records_compared": report.records,
        "compared": report.compared,
        "differences": [
            {
                "seed": difference.seed,
                "pace": difference.schedule.pace._asdict(),
                "schedule": [event._asdict() for event in difference.schedule.events],
                "reset": None if difference.schedule.reset is None else difference.schedule.reset._asdict(),
                "story": [line.strip() for line in difference.story],
                "error": difference.error,
                "topic": difference.topic or None,
                "key": difference.view[0] or None,
                "position": None if difference.error else difference.first,
                "expected": difference.view[1] or None,
                "got": difference.view[2] or None,
            }
            for difference in report.differences
        ],
    }
