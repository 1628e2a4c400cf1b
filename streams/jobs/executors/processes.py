"""Executes jobs in processes of their own, so that they use other cores and can be ended."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from streams.errors import error_text
from streams.jobs.executors.child_process import ChildProcess
from streams.jobs.executors.process_errors import JobProcessEnded, error_of
from streams.jobs.executors.process_messages import Begun, Cancel, Ended, Execute, Item, Reported
from streams.jobs.executors.threads import ThreadExecutor
from streams.jobs.executors.time_limit import exceeded

if TYPE_CHECKING:
    from streams.jobs.executors import Attempt

START_SECONDS = 60.0
"""How long a process may take to start and to import the function's module."""

LOOK_SECONDS = 0.25
"""How often it is looked whether a job that runs was cancelled."""


class ProcessExecutor(ThreadExecutor):
    """Up to ``processes`` processes, each of which belongs to a thread that waits for it.

    A process starts when its thread gets its first job, and executes one after another. If it has ended, the
    job that it executed has failed, and the next one gets a new process.
    """

    reports_overdue = False

    def __init__(self, processes: int) -> None:
        super().__init__(processes)
        self._children: dict[int, ChildProcess] = {}
        """By the identifiers of their threads."""
        self._starting = threading.Lock()

    def close(self) -> None:
        super().close()
        with self._starting:
            children = list(self._children.values())
        for child in children:
            child.kill()

    # --- the threads

    def _run(self) -> None:
        try:
            super()._run()
        finally:
            self._discard()

    def _execute(self, attempt: Attempt) -> None:
        attempt.begin()
        try:
            self._in_child(attempt)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome of this job
            attempt.fail(error)
        attempt.finish()

    def _in_child(self, attempt: Attempt) -> None:
        child = self._begun(_order(attempt))
        members = attempt.members
        limit = attempt.job.definition.timeout
        deadline = time.monotonic() + START_SECONDS
        begun = False
        cancelled: set[int] = set()
        while True:
            left = deadline - time.monotonic() if limit is not None or not begun else LOOK_SECONDS
            if left <= 0:
                self._discard()
                if begun:
                    raise exceeded(attempt.job, "its process was ended")
                raise JobProcessEnded(
                    f"its process was ended: it has not imported {attempt.job.function.__module__} within "
                    f"{START_SECONDS:g} s"
                )
            try:
                message = child.receive(min(left, LOOK_SECONDS))
                asked = {at for at, each in enumerate(members) if each.current.cancelled} - cancelled
                if asked:
                    child.send(Cancel(sorted(asked)))
                    cancelled |= asked
            except (EOFError, OSError):
                how = child.ended()
                self._discard()
                raise JobProcessEnded(f"the process that executed the job has ended: {how}") from None
            match message:
                case Begun():
                    begun = True
                    if limit is not None:
                        deadline = time.monotonic() + limit.total_seconds()
                case Reported():
                    members[message.item].current.report(message.progress)
                case Ended():
                    for each, outcome in zip(members, message.outcomes, strict=True):
                        if isinstance(outcome, bytes):
                            each.result = outcome
                        else:
                            each.fail(error_of(outcome))
                    return
                case None:
                    pass

    def _begun(self, order: Execute) -> ChildProcess:
        """The process of this thread, which has received the order."""
        child = self._children.get(threading.get_ident())
        if child is not None:
            try:
                child.send(order)
            except OSError:
                # It ended while it had nothing to do.
                self._discard()
            else:
                return child
        with self._starting:
            if self._closed:
                raise JobProcessEnded("the worker ends")
            try:
                child = ChildProcess()
            except OSError as error:
                raise JobProcessEnded(
                    f"no process can be started for the job: {error_text(error)}"
                ) from error
            self._children[threading.get_ident()] = child
        # If it has ended, its end of the connection says so.
        with contextlib.suppress(OSError):
            child.send(order)
        return child

    def _discard(self) -> None:
        """End this thread's process, if it has one."""
        with self._starting:
            child = self._children.pop(threading.get_ident(), None)
        if child is not None:
            child.close()


def _order(attempt: Attempt) -> Execute:
    function = attempt.job.function
    members = attempt.members
    return Execute(
        function.__module__,
        function.__qualname__,
        attempt.job.definition.batch is not None,
        [
            Item(
                each.current.id,
                each.current.name,
                each.current.attempt,
                each.current.scheduled,
                each.current.idempotency_key,
                each.current.correlation_id,
                each.payload,
            )
            for each in members
        ],
        {} if attempt.span is None else dict(attempt.span.carrier),
    )
