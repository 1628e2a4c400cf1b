"""The spans of a worker: one for each slice, and one for each commit."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, Status, StatusCode

from streams.errors import error_text
from streams.tracing.propagation import NO_PRODUCERS, Propagation, headers_of
from streams.tracing.spans import MOST_LINKS, Work

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from opentelemetry.trace import Span, SpanContext

    from streams.records import Fetched, Headers
    from streams.tracing.context_headers import ContextHeaders

SCOPE = "streams"
"""The name of the instrumentation, as tools show it."""


class _Carried:
    """A span in whose context rows are written; those of its input carried ``inherited``."""

    def __init__(self, span: Span, names: ContextHeaders, inherited: Collection[bytes | None]) -> None:
        self.span = span
        self.headers: Headers = headers_of(span)
        self._names = names
        self._inherited = inherited

    def stamped(self, column: Sequence[Headers | None] | None, count: int) -> Sequence[Headers | None] | None:
        return self._names.stamped(column, count, self.headers, self._inherited)


class _BatchSpan(_Carried):
    def dead_letters(self, letters: Iterator[tuple[str, Exception, str]], count: int) -> None:
        if not count or not self.span.is_recording():
            return
        self.span.set_attribute("streams.dead_letters", count)
        for step, error, record in islice(letters, MOST_LINKS):
            self.span.add_event(
                "dead letter",
                {
                    "streams.step": step,
                    "streams.record": record,
                    "exception.type": type(error).__qualname__,
                    "exception.message": error_text(error),
                },
            )


class _CommitSpan(_Carried):
    def ended(self, *, records: int, outcome: str, reason: str) -> None:
        self.span.set_attributes({"streams.records_written": records, "streams.transaction": outcome})
        if reason:
            self.span.set_status(Status(StatusCode.ERROR, reason))


class OpenTelemetryWorkerSpans:
    """Implements ``WorkerSpans`` with the global tracer provider.

    Spans are roots: a slice has many producers, to which it links, and the span in which a program has
    started its worker would never end.
    """

    def __init__(self, application: str) -> None:
        self._application = application
        self._tracer = trace.get_tracer(SCOPE)
        self._propagation = Propagation()
        self._slices: deque[SpanContext] = deque(maxlen=MOST_LINKS)
        """The contexts of the last slices since the last commit."""
        self.uncommitted = False
        self.committing: _CommitSpan | None = None

    @contextmanager
    def batch(self, work: Work, task: str, records: Fetched | None, source: str) -> Iterator[_BatchSpan]:
        producers = NO_PRODUCERS if records is None else self._propagation.producers(records)
        attributes: dict[str, Any] = {"streams.task": task}
        name, kind = str(work), SpanKind.INTERNAL
        if records is not None:
            kind = SpanKind.CONSUMER
            name = f"process {source if work is Work.SOURCE else records.topic}"
            attributes |= self._of_records(work, records, source)
            if producers.count > MOST_LINKS:
                attributes["streams.producers"] = producers.count
        span = self._tracer.start_span(
            name, context=context.Context(), kind=kind, attributes=attributes, links=producers.links
        )
        with _current(span):
            yield _BatchSpan(span, self._propagation.headers, producers.leads)
        self.uncommitted = True
        if span.get_span_context().is_valid:
            self._slices.append(span.get_span_context())

    def _of_records(self, work: Work, records: Fetched, source: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.batch.message_count": len(records),
        }
        if work is Work.SOURCE:
            return found | {"streams.source": source}
        if work is Work.RETRY:
            found["streams.retried"] = True
        else:
            found["messaging.kafka.offset"] = records.offsets([0])[0]
        return found | {
            "messaging.system": "kafka",
            "messaging.destination.name": records.topic,
            "messaging.destination.partition.id": str(records.partition),
            "messaging.consumer.group.name": self._application,
        }

    @contextmanager
    def commit(self) -> Iterator[_CommitSpan]:
        slices, self.uncommitted = list(self._slices), False
        self._slices.clear()
        parent = commit_parent(slices)
        empty = context.Context()
        span = self._tracer.start_span(
            "commit",
            context=empty if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), empty),
            kind=SpanKind.CLIENT,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.name": "commit",
                "messaging.operation.type": "settle",
                "messaging.consumer.group.name": self._application,
            },
            links=[Link(each) for each in slices if each is not parent],
        )
        with _current(span):
            self.committing = _CommitSpan(span, self._propagation.headers, ())
            try:
                yield self.committing
            finally:
                self.committing = None

    def rewound(self) -> None:
        self._slices.clear()
        self.uncommitted = False


def commit_parent(slices: Sequence[SpanContext]) -> SpanContext | None:
    """Of the slices of a commit, the last one that is recorded, so that the commit is recorded with it."""
    recorded = [each for each in slices if each.trace_flags.sampled]
    return next(reversed(recorded or slices), None)


@contextmanager
def _current(span: Span) -> Iterator[None]:
    """Make a span the current one, and end it."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except Exception as error:
            failed(span, error)
            raise
        except BaseException:
            # The slice begins again: the group has moved its partition, or a commit was due.
            span.set_attribute("streams.abandoned", True)
            raise


def failed(span: Span, error: BaseException) -> None:
    """Note that what the span is of has failed."""
    span.record_exception(error)
    span.set_attribute("error.type", type(error).__qualname__)
    text = error_text(error) if isinstance(error, Exception) else str(error)
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {text}"))
