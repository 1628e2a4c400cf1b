"""The spans that the engine makes, as protocols: without OpenTelemetry."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from streams.records import Fetched, Headers

W3C_HEADERS: Final = frozenset({"traceparent", "tracestate"})
"""The headers in which records carry the context of a span, unless ``OTEL_PROPAGATORS`` chooses others."""

MOST_LINKS: Final = 128
"""The most links of a span, and the most dead letters that it names: OpenTelemetry's own limits."""


class Work(StrEnum):
    """What a slice is made of."""

    PROCESS = "process"
    """Records of a topic."""
    RETRY = "retry"
    """Records of dead letters."""
    SOURCE = "source"
    """Records of a source connector."""
    TIMERS = "timers"
    IDLE = "idle windows"
    OUTCOMES = "job outcomes"
    COMMIT = "commit"
    """What steps forward when a commit is made."""


class Carried(Protocol):
    """A span whose context records carry that are written within it."""

    @property
    def headers(self) -> Headers:
        """Its context; empty if it has none, as no SDK is set up."""

    def stamped(self, column: Sequence[Headers | None] | None, count: int) -> Sequence[Headers | None] | None:
        """Headers of ``count`` rows with its context, unless a row has another one than its input had."""


class BatchSpan(Carried, Protocol):
    """The span of one slice."""

    def dead_letters(self, letters: Iterator[tuple[str, Exception, str]], count: int) -> None:
        """Note dead letters: the step, the error and the input record of each."""


class CommitSpan(Carried, Protocol):
    """The span of one commit."""

    def ended(self, *, records: int, outcome: str, reason: str) -> None:
        """Note how many records were written since the last commit, and how it ended.

        ``reason`` is why nothing was committed; empty if it was.
        """


class WorkerSpans(Protocol):
    """The spans of one worker, in its thread."""

    @property
    def uncommitted(self) -> bool:
        """Whether there were slices since the last commit."""

    @property
    def committing(self) -> CommitSpan | None:
        """The span of the commit that is being made."""

    def batch(
        self, work: Work, task: str, records: Fetched | None, source: str
    ) -> AbstractContextManager[BatchSpan]:
        """A span of a slice, which is the current one meanwhile, and has failed if that raises.

        It links to the contexts that ``records`` carry. ``source`` is the name of the node that reads them.
        """

    def commit(self) -> AbstractContextManager[CommitSpan]:
        """A span of the commit of all slices since the last one, which is the current one meanwhile."""

    def rewound(self) -> None:
        """Note that the slices since the last commit were discarded."""


class JobSpan(Protocol):
    """The span of one execution of a job, or of several together."""

    def together(self, spans: Sequence[JobSpan]) -> JobSpan:
        """One span for several executions, of which this is the first, instead of their own."""

    def begin(self) -> None:
        """Start it, in any thread."""

    def enter(self) -> None:
        """Make it the current one, from here to the end of this context."""

    @property
    def carrier(self) -> Mapping[str, str]:
        """Its context, for another process."""

    def finish(self, errors: Sequence[BaseException]) -> None:
        """End it, if it was started; the job has failed with these errors."""

    def link(self) -> None:
        """Link the current span to it, if it was started."""


class JobSpans(Protocol):
    """The spans of jobs, in any thread."""

    def send(self, topic: str, count: int) -> AbstractContextManager[Headers]:
        """A span in which jobs are put into the queue, with the headers that their records get."""

    def execution(
        self, *, job: str, identifier: str, attempt: int, topic: str, headers: Headers | None
    ) -> JobSpan:
        """A span for one attempt at a job, which links to where it was put into the queue."""
