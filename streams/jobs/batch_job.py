"""A function that is given many jobs at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Required, TypeVar, Unpack, overload

from streams.jobs.batch import items_function
from streams.jobs.job import BaseJob, CallOptions, JobOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from datetime import timedelta

T = TypeVar("T")
R = TypeVar("R")


class BatchOptions(JobOptions, total=False):
    """The options of ``App.job`` for a function that takes a list of jobs."""

    batch: Required[int]
    within: timedelta


class BatchJob(BaseJob[[T], R]):
    """A function that takes a list, each item of which is a job of its own: ``enqueue`` takes one item.

    Made by ``App.job(batch=…)``. It can be called as before, with a list.
    """

    def __call__(self, items: list[T]) -> Any:
        """Call the function here and now."""
        function: Any = self.function
        return function(items)

    def using(self, **options: Unpack[CallOptions]) -> BatchJob[T, R]:
        """The same job, enqueued in another way; see ``Job.using``."""
        changed: BatchJob[T, R] = super().using(**options)
        return changed

    def _described(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return items_function(self.name, function)


class BatchDecorator(Protocol):
    """What ``App.job(batch=…)`` returns: it makes a function that takes a list a job.

    The function returns ``None``, or a list with a result or an exception for each item.
    """

    @overload
    def __call__(self, function: Callable[[list[T]], Coroutine[Any, Any, None]], /) -> BatchJob[T, None]: ...

    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, Sequence[R | Exception]]], /
    ) -> BatchJob[T, R]: ...

    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, Sequence[R | Exception] | None]], /
    ) -> BatchJob[T, R | None]: ...

    @overload
    def __call__(self, function: Callable[[list[T]], None], /) -> BatchJob[T, None]: ...

    @overload
    def __call__(self, function: Callable[[list[T]], Sequence[R | Exception]], /) -> BatchJob[T, R]: ...

    @overload
    def __call__(
        self, function: Callable[[list[T]], Sequence[R | Exception] | None], /
    ) -> BatchJob[T, R | None]: ...
