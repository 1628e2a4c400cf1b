"""The program of a process that executes jobs: one after another, for the worker that started it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import inspect
import os
import runpy
import signal
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from operator import attrgetter
from queue import SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Any, Never

from streams.errors import TopologyError
from streams.jobs.arguments import Arguments, Result
from streams.jobs.batch import items_function, outcomes
from streams.jobs.current import CurrentJob, enter_jobs
from streams.jobs.executors.process_errors import MAIN_OF_CHILD, failure_of
from streams.jobs.executors.process_messages import (
    Begun,
    Cancel,
    Ended,
    Execute,
    Failure,
    FromChild,
    Item,
    Reported,
    Setup,
    decode_to_child,
    encode,
)
from streams.jobs.job import BaseJob
from streams.process.role import become_job_process
from streams.tracing.setting import remote_span

if TYPE_CHECKING:
    from collections.abc import Callable


def _to_nobody(_progress: str) -> None:
    return


@dataclass(slots=True)
class ReportingJob(CurrentJob):
    """A job whose progress the worker is told."""

    send: Callable[[str], None] = field(default=_to_nobody, compare=False)

    def report(self, progress: str) -> None:
        self.progress = progress
        self.send(progress)


class _Function:
    """A job's function, found in this process, and the codecs of its arguments and results."""

    def __init__(self, order: Execute, module: ModuleType) -> None:
        try:
            found: Any = attrgetter(order.function)(module)
        except AttributeError:
            raise TopologyError(
                f"there is no {order.function} in module {module.__name__}, imported by the job's process",
                hint="define functions with executor='process' with def in a module, whatever __name__ is",
            ) from None
        job = inspect.unwrap(found, stop=lambda each: isinstance(each, BaseJob))
        name = order.items[0].name
        if isinstance(job, BaseJob):
            self.call: Callable[..., Any] = job.function
            self.arguments, self.result = job.arguments, job.result
        else:
            self.call = found
            described = items_function(name, found) if order.together else found
            self.arguments, self.result = Arguments(name, described), Result(name, described)


class Child:
    """Executes what arrives on ``connection``. The worker holds the other end of the pipe ``alive``."""

    def __init__(self, connection: Connection, alive: int) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._orders: SimpleQueue[Execute] = SimpleQueue()
        self._setup: Setup | None = None
        self._main: ModuleType | None = None
        self._functions: dict[tuple[str, str], _Function] = {}
        self._running: list[ReportingJob] = []
        _end_with(alive)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # The worker ends this process. A handler, as programs started here would inherit SIG_IGN.
            signal.signal(number, lambda _number, _frame: None)

    def run(self) -> Never:
        """Execute jobs in this thread until the worker has ended, or has enough of this process."""
        threading.Thread(target=self._receive, name="streams-orders", daemon=True).start()
        while True:
            order = self._orders.get()
            self._running = [self._job(at, item) for at, item in enumerate(order.items)]
            try:
                with remote_span(order.context) if order.context else contextlib.nullcontext():
                    ended: list[bytes | Failure] = self._execute(order)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome of these jobs
                ended = [failure_of(error)] * len(order.items)
            self._running = []
            self._send(Ended(ended))

    def _execute(self, order: Execute) -> list[bytes | Failure]:
        function = self._function(order)
        enter_jobs(self._running, together=order.together)
        self._send(Begun())
        if not order.together:
            args, kwargs = function.arguments.decode(order.items[0].arguments)
            return [function.result.encode(function.call(*args, **kwargs))]
        items = [function.arguments.decode(item.arguments)[0][0] for item in order.items]
        ended: list[bytes | Failure] = []
        for outcome in outcomes(order.items[0].name, function.call(items), len(items)):
            try:
                if isinstance(outcome, BaseException):
                    raise outcome  # noqa: TRY301 - fails as if this item alone had raised it
                ended.append(function.result.encode(outcome))
            except BaseException as error:  # noqa: BLE001 - the outcome of this item
                ended.append(failure_of(error))
        return ended

    def _function(self, order: Execute) -> _Function:
        place = order.module, order.function
        found = self._functions.get(place)
        if found is None:
            module = self._program() if order.module == "__main__" else importlib.import_module(order.module)
            found = self._functions[place] = _Function(order, module)
        return found

    def _program(self) -> ModuleType:
        """The worker's main module, imported under another name so that it does not run again."""
        if self._main is not None:
            return self._main
        setup = self._setup
        assert setup is not None, "the setup comes first"
        if setup.main_module is not None:
            found = runpy.run_module(setup.main_module, run_name=MAIN_OF_CHILD, alter_sys=True)
        elif setup.main_path is not None:
            found = runpy.run_path(setup.main_path, run_name=MAIN_OF_CHILD)
        else:
            raise TopologyError(
                "functions with executor='process' must be in a module: an interactive session has none"
            )
        self._main = ModuleType(MAIN_OF_CHILD)
        self._main.__dict__.update(found)
        sys.modules["__main__"] = sys.modules[MAIN_OF_CHILD] = self._main
        return self._main

    def _job(self, at: int, item: Item) -> ReportingJob:
        return ReportingJob(
            item.id,
            item.name,
            item.attempt,
            item.scheduled,
            item.idempotency_key,
            correlation_id=item.correlation_id,
            send=lambda progress: self._send(Reported(at, progress)),
        )

    def _receive(self) -> None:
        try:
            while True:
                message = decode_to_child(self._connection.recv_bytes())
                match message:
                    case Setup():
                        sys.argv[:] = message.argv
                        self._setup = message
                    case Cancel():
                        running = self._running
                        for at in message.items:
                            if at < len(running):
                                running[at].cancelled = True
                    case Execute():
                        self._orders.put(message)
        except (EOFError, OSError):
            _end()

    def _send(self, message: FromChild) -> None:
        with self._sending:
            try:
                self._connection.send_bytes(encode(message))
            except OSError:
                _end()


def _end_with(alive: int) -> None:
    """Let the kernel kill this process, and those that it has started, when the pipe's other end is closed.

    The thread that reads orders notices it too, but not while a library keeps all threads from running.
    """
    set_signal = getattr(fcntl, "F_SETSIG", None)
    if set_signal is None:
        # Other systems than Linux.
        return
    fcntl.fcntl(alive, set_signal, signal.SIGKILL)
    fcntl.fcntl(alive, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(alive, fcntl.F_SETFL, fcntl.fcntl(alive, fcntl.F_GETFL) | os.O_ASYNC)


def _end() -> Never:
    """End this process and those that it has started."""
    with contextlib.suppress(OSError):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def main(connection: int, alive: int) -> Never:
    """Run; the arguments are file descriptors."""
    become_job_process()
    for descriptor in (connection, alive):
        # Programs that jobs start must not keep the pipes open.
        os.set_inheritable(descriptor, False)
    Child(Connection(connection), alive).run()
