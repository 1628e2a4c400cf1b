"""Runs the units of a bounded run in several processes."""

from __future__ import annotations

import gc
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import TYPE_CHECKING, Any, ClassVar, Final

from streams.errors import StreamsError, WorkersFailed, error_text
from streams.process.ownership import GARBAGE_THRESHOLD, own_process
from streams.replay.bounded.parts import RunParts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streams.app import App
    from streams.replay.bounded.counts import RunCounts
    from streams.replay.bounded.plan import RunPlan
    from streams.replay.bounded.stages import Stage
    from streams.runtime.task import TaskId


LOOK_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class _Work:
    """What a process needs to begin."""

    load: Callable[[], App]
    plan: RunPlan
    read: Any
    """A shared number: how many records all processes have read."""
    stopped: Any
    """Set when the units that run are to end."""


class _Child:
    """What a process creates once and uses for all its units."""

    parts: ClassVar[RunParts | None] = None


class Pool:
    """Processes that share the units of a run. ``load`` is called in each of them, to make the app.

    All use the same ``PYTHONHASHSEED``: sets then have the same order in each of them.
    """

    def __init__(self, load: Callable[[], App], plan: RunPlan, processes: int) -> None:
        context = get_context("spawn")
        self._read = context.Value("Q", 0)
        self._stopped = context.Event()
        # Without PYTHONSAFEPATH, a file in the current folder could shadow a module of the standard library.
        chosen = {"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
        self._before = {name: os.environ.get(name) for name in chosen}
        os.environ.update(chosen)
        self._pool = ProcessPoolExecutor(
            processes, context, initializer=_begin, initargs=(_Work(load, plan, self._read, self._stopped),)
        )

    def run(
        self, stage: Stage, units: Sequence[tuple[TaskId, ...]], progress: Callable[[int], None]
    ) -> Iterator[tuple[tuple[TaskId, ...], RunCounts]]:
        """Run the units of a stage; yield each with what it has done.

        Raises what the first one that fails raises. ``progress`` is called with the number of records that
        all processes have read so far. A process that is killed is a ``WorkersFailed``.
        """
        unit_of = {self._pool.submit(_run, stage.parts[0].number, unit): unit for unit in units}
        waiting = set(unit_of)
        while waiting:
            done, waiting = wait(waiting, LOOK_SECONDS, FIRST_COMPLETED)
            progress(int(self._read.value))
            for each in done:
                try:
                    yield unit_of[each], each.result()
                except BrokenProcessPool as error:
                    raise WorkersFailed(
                        "a process of the replay was ended from outside", hint="repeat the command"
                    ) from error

    def close(self) -> None:
        """End the processes, and the units that run, soon."""
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for name, value in self._before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _begin(work: _Work) -> None:
    # Ctrl-C goes to the whole process group, and is handled by the parent process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="streams-parent", daemon=True).start()

    def progress(records: int) -> None:
        with work.read.get_lock():
            work.read.value += records
        if work.stopped.is_set():
            raise StreamsError("the replay was stopped")

    app = work.load()
    own_process(app.settings.log_format, app.settings.log_level)
    gc.set_threshold(GARBAGE_THRESHOLD)
    _Child.parts = RunParts(app, app.broker(), work.plan, progress)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "it was started by the command"
    wait_for([parent.sentinel])
    os._exit(1)


def _run(first: int, unit: tuple[TaskId, ...]) -> RunCounts:
    parts = _Child.parts
    assert parts is not None, "the process has begun"
    try:
        return parts.run(parts.stage_of(first), unit)
    except StreamsError:
        raise
    except Exception as error:  # noqa: BLE001 - not every exception can be sent to another process
        raise StreamsError(
            f"a process of the replay failed: {type(error).__name__}: {error_text(error)}"
        ) from None
