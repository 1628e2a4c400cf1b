"""Objects that a worker opens once and the functions of its steps share: a database connection, a client."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from streams.coroutines.awaitables import is_asynchronous
from streams.coroutines.event_loop import current_loop
from streams.errors import StreamsError, TopologyError
from streams.events import Event, get_logger
from streams.process.role import is_job_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

T = TypeVar("T")

Manager: TypeAlias = AbstractContextManager[T] | AbstractAsyncContextManager[T]
"""The context manager that opens and closes a resource; an async one runs in the process's event loop."""

CLOSE_SECONDS = 5.0
"""How long the event loop may take to close an async resource."""

_NO_FACTORY = (
    "give it a function without arguments that returns a context manager: one decorated with "
    "contextlib.contextmanager or asynccontextmanager, or lambda: contextlib.closing(…)"
)

_IN_JOB_PROCESS = (
    "resources belong to the worker, and a job with executor='process' runs in a process of its own: open "
    "what it needs in its function, or leave executor= out"
)


class _InEventLoop(AbstractContextManager[T]):
    """An async context manager that is entered and left in the event loop, by one coroutine."""

    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._manager = manager
        self._loop = current_loop().loop
        self._opened: Future[T] = Future()
        self._closing = asyncio.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> T:
        self._held = asyncio.run_coroutine_threadsafe(self._hold(), self._loop)
        try:
            return self._opened.result()
        except BaseException:
            self._held.cancel()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._error = error
        self._loop.call_soon_threadsafe(self._closing.set)
        self._held.result(CLOSE_SECONDS)

    async def _hold(self) -> None:
        try:
            async with self._manager as value:
                self._opened.set_result(value)
                await self._closing.wait()
                if self._error is not None:
                    raise self._error  # noqa: TRY301 - for the context manager to handle
        except BaseException as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            elif error is not self._error:
                raise


class Resource(Generic[T]):
    """An object of which each worker opens one, see ``App.resource``. Functions of steps ``get`` it."""

    def __init__(self, application: str, factory: Callable[[], Manager[T]]) -> None:
        self.name = str(getattr(factory, "__name__", None) or type(factory).__name__)
        self._application = application
        code: object = factory
        if not callable(code) or is_asynchronous(code):
            raise TopologyError(
                f"resource {self.name!r} of app {application!r} is made by {factory!r:.80}", hint=_NO_FACTORY
            )
        self._factory = factory

    def get(self) -> T:
        """The object that this worker has opened.

        For functions of steps and methods of processors, async functions included. Raises ``StreamsError``
        elsewhere, where no worker has opened it.
        """
        try:
            value: T = _OPENED.get()[self]
        except KeyError:
            raise StreamsError(
                f"resource {self.name!r} of app {self._application!r} is not open here",
                hint=_IN_JOB_PROCESS
                if is_job_process()
                else "call get() in functions of steps and in processors that a worker or a TopologyDriver "
                "runs: not where the app is described, and not in threads of your own",
            ) from None
        return value

    def make(self) -> AbstractContextManager[T]:
        """The context manager from the program's factory, not entered yet."""
        manager: object = self._factory()
        if isinstance(manager, AbstractAsyncContextManager) and not isinstance(
            manager, AbstractContextManager
        ):
            return _InEventLoop(manager)
        if not isinstance(manager, AbstractContextManager):
            raise TopologyError(
                f"resource {self.name!r} of app {self._application!r}: its function returned "
                f"{manager!r:.80}, which is no context manager",
                hint=_NO_FACTORY,
            )
        return manager


_OPENED: ContextVar[Mapping[Resource[Any], Any]] = ContextVar("opened", default={})  # noqa: B039 - never changed
"""The objects that this thread's worker has opened; async functions run in copies of its context."""


class Resources:
    """The resources of one worker: open from ``open`` to ``close``, available within ``active``.

    As a context manager it does all three.
    """

    def __init__(self, declared: Sequence[Resource[Any]]) -> None:
        self._declared = declared
        self._managers: list[tuple[Resource[Any], AbstractContextManager[Any]]] = []
        self._opened: dict[Resource[Any], Any] = {}

    def open(self) -> None:
        """Open all, in the order of declaration, or none. Raises the errors of their own code.

        A later one may ``get`` those before it. Does nothing if they are open.
        """
        try:
            with self.active():
                for resource in self._declared[len(self._managers) :]:
                    manager = resource.make()
                    self._opened[resource] = manager.__enter__()
                    self._managers.append((resource, manager))
        except BaseException as error:
            error.add_note(f"while resource {self._declared[len(self._managers)].name!r} was opened")
            self.close(error)
            raise

    def close(self, error: BaseException | None = None) -> None:
        """Close all, the last opened first, even if another one fails.

        ``error`` is the error that ended the work: it is passed to them, as by ``with``, but they cannot
        suppress it. Without one, the first failure is raised.
        """
        failure: BaseException | None = None
        with self.active():
            while self._managers:
                resource, manager = self._managers.pop()
                trace = None if error is None else error.__traceback__
                try:
                    manager.__exit__(None if error is None else type(error), error, trace)
                except BaseException as also:  # noqa: BLE001 - the others must be closed too
                    if also is not error:
                        also.add_note(f"while resource {resource.name!r} was closed")
                        get_logger().error(Event.CLOSE_FAILED, resource=resource.name, error=repr(also))
                        failure = failure or also
                del self._opened[resource]
        if failure is not None and error is None:
            raise failure

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make these available to ``Resource.get`` in this thread."""
        token = _OPENED.set(self._opened)
        try:
            yield
        finally:
            _OPENED.reset(token)

    def __enter__(self) -> Self:
        self.open()
        self._token = _OPENED.set(self._opened)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _OPENED.reset(self._token)
        self.close(error)
