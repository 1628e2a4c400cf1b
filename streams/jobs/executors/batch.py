"""Several jobs of one function, which is called once for all of them."""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams.jobs.batch import outcomes
from streams.jobs.current import enter_jobs
from streams.jobs.executors import Attempt

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class BatchAttempt(Attempt):
    """The attempts at several jobs of one function. Each has an outcome of its own."""

    items: Sequence[Attempt] = field(default_factory=list)

    @classmethod
    def of(cls, items: Sequence[Attempt]) -> BatchAttempt:
        """Together."""
        first = items[0]
        spans = [item.span for item in items if item.span is not None]
        return cls(
            first.offset,
            first.job,
            (([item.arguments[0][0] for item in items],), {}),
            first.current,
            copy_context(),
            first.ended,
            items=items,
            span=spans[0].together(spans) if spans else None,
        )

    @property
    def members(self) -> Sequence[Attempt]:
        return self.items

    def begin(self) -> None:
        for item in self.items:
            item.begin()
            item.share = len(self.items)
        if self.span is not None:
            self.span.begin()

    def enter(self) -> None:
        enter_jobs([item.current for item in self.items], together=True)
        if self.span is not None:
            self.span.enter()

    def succeed(self, returned: Any) -> None:
        for item, outcome in zip(self.items, outcomes(self.job.name, returned, len(self.items)), strict=True):
            if isinstance(outcome, BaseException):
                item.error = outcome
                continue
            try:
                item.succeed(outcome)
            except Exception as error:  # noqa: BLE001 - only this one has failed
                item.error = error

    def fail(self, error: BaseException) -> None:
        for item in self.items:
            item.result = b""
            item.error = error

    def finish(self) -> None:
        if self.span is not None:
            # An error of the function itself is that of all its jobs.
            errors = {id(item.error): item.error for item in self.items if item.error is not None}
            self.span.finish(list(errors.values()))
        self.finished = True
        for item in self.items:
            item.finish()
