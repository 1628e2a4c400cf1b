"""Simulations of an app in processes of their own, several at a time."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, ClassVar

from streams.errors import StreamsError
from streams.simulation.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from streams.app import App
    from streams.simulation.run import InputRecord
    from streams.simulation.schedule import Disturbance
    from streams.simulation.simulator import Difference, Report

SEEDS_AT_ONCE = 10
"""A process is given so many seeds at a time: few, so that the count goes on and a stop does not last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What a process needs to make a ``Simulator``; see there for the fields."""

    load: Callable[[], App]
    inputs: Mapping[str, Sequence[InputRecord]]
    partitions: int
    most: int
    kinds: Sequence[Disturbance] | None = None
    ignore: Sequence[str] = ()

    def simulator(self) -> Simulator:
        return Simulator(
            self.load(),
            self.inputs,
            partitions=self.partitions,
            kinds=self.kinds,
            most=self.most,
            ignore=self.ignore,
        )


class _Child:
    """What a process has made once, for all its seeds."""

    simulator: ClassVar[Simulator | None] = None


def simulate(simulation: Simulation, seeds: range, processes: int) -> Iterator[Report]:
    """What came of each of the next seeds, in order, until there is a difference.

    The seeds are run in processes with one hash seed: sets have the same order in each of them, so that a
    seed means the same run everywhere. Raises what ``Simulator`` raises.
    """
    # Without the second, a file of the current folder could take the place of one of Python's own modules.
    chosen = {"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    pool = ProcessPoolExecutor(max(1, min(processes, len(seeds))), get_context("spawn"), initializer=_begin)
    chunks = iter(seeds[at : at + SEEDS_AT_ONCE] for at in range(0, len(seeds), SEEDS_AT_ONCE))
    waiting: list[Future[Report]] = []
    try:
        # A few more than there are processes, so that none has to wait.
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
    # Ctrl-C is for the process that waits for these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(simulation: Simulation, seeds: Sequence[int]) -> Report:
    if _Child.simulator is None:
        try:
            _Child.simulator = simulation.simulator()
        except StreamsError:
            raise
        except Exception as error:  # noqa: BLE001 - not every exception can go from process to process
            raise StreamsError(
                f"the app fails although nothing disturbs it: {type(error).__name__}: {error}"
            ) from None
    *_, report = _Child.simulator.run(seeds)
    return report


def explain(difference: Difference) -> list[str]:
    """A difference in words: what was disturbed, step by step, and the first record that is another one."""
    lines = [f"pace: {difference.schedule.pace}"]
    if not difference.schedule.events:
        lines.append(
            "nothing was disturbed: the results depend on something besides the input and the stores, "
            "such as the time, random numbers, or variables that outlive a run"
        )
    lines += [f"{number}. {line.strip()}" for number, line in enumerate(difference.story, start=1)]
    if difference.error is not None:
        return [*lines, f"a worker ended with {difference.error}"]
    key, expected, got = difference.shown
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
        "disturbances": dict(sorted(report.disturbances.items())),
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
                "story": [line.strip() for line in difference.story],
                "error": difference.error,
                "topic": difference.topic or None,
                "key": difference.shown[0] or None,
                "position": None if difference.error else difference.first,
                "expected": difference.shown[1] or None,
                "got": difference.shown[2] or None,
            }
            for difference in report.differences
        ],
    }
