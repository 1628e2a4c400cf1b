"""The spans of jobs: where they are put into the queue, and where they are executed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import context, propagate, trace
from opentelemetry.trace import SpanKind

from streams.tracing.propagation import Propagation, extracted
from streams.tracing.spans import MOST_LINKS
from streams.tracing.worker_spans import SCOPE, failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer

    from streams.records import Headers
    from streams.tracing.spans import JobSpan

_OF_ONE_JOB = frozenset({"messaging.kafka.offset", "streams.job.id", "streams.job.attempt"})
"""Attributes that a span of several jobs does not have."""


class OpenTelemetryJobSpans:
    """Implements ``JobSpans`` with the global tracer provider."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._tracer = trace.get_tracer(SCOPE)
        self._propagation = Propagation()

    @contextmanager
    def send(self, topic: str, count: int) -> Iterator[Headers]:
        attributes: dict[str, Any] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
            "messaging.batch.message_count": count,
        }
        # A child of what the program is doing, e.g. of the request that it serves.
        with self._tracer.start_as_current_span(
            f"send {topic}", kind=SpanKind.PRODUCER, attributes=attributes
        ):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            yield [(name, value.encode()) for name, value in carrier.items()]

    def execution(
        self, *, job: str, identifier: str, attempt: int, topic: str, headers: Headers | None
    ) -> OpenTelemetryJobSpan:
        partition, _, offset = identifier.partition("-")
        attributes: dict[str, Any] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "run",
            "messaging.operation.type": "process",
            "messaging.destination.name": topic,
            "messaging.destination.partition.id": partition,
            "messaging.kafka.offset": int(offset),
            "messaging.consumer.group.name": self._application,
            "streams.job.name": job,
            "streams.job.id": identifier,
            "streams.job.attempt": attempt,
        }
        return OpenTelemetryJobSpan(
            self._tracer, self._propagation, f"run {job}", attributes, [headers or []]
        )


class OpenTelemetryJobSpan:
    """Implements ``JobSpan``. ``producers`` are the headers of the jobs' records."""

    def __init__(
        self,
        tracer: Tracer,
        propagation: Propagation,
        name: str,
        attributes: dict[str, Any],
        producers: Sequence[Headers],
    ) -> None:
        self._tracer = tracer
        self._propagation = propagation
        self._name = name
        self._attributes = attributes
        self.producers = producers
        self.leader: OpenTelemetryJobSpan | None = None
        """The span of all that are executed together, instead of this one."""
        self.span: Span | None = None

    def together(self, spans: Sequence[JobSpan]) -> OpenTelemetryJobSpan:
        members = [span for span in spans if isinstance(span, OpenTelemetryJobSpan)]
        attributes = {name: value for name, value in self._attributes.items() if name not in _OF_ONE_JOB}
        leader = OpenTelemetryJobSpan(
            self._tracer,
            self._propagation,
            self._name,
            attributes | {"messaging.batch.message_count": len(members)},
            [headers for span in members for headers in span.producers],
        )
        for span in members:
            span.leader = leader
        return leader

    def begin(self) -> None:
        if self.leader is not None:
            return
        names = self._propagation.headers
        leads = list(dict.fromkeys(names.leads(self.producers)))[:MOST_LINKS]
        self.span = self._tracer.start_span(
            self._name,
            # The thread's context is that of the slice in which the attempt was begun.
            context=context.Context(),
            kind=SpanKind.CONSUMER,
            attributes=self._attributes,
            links=self._propagation.links(names.first(self.producers, leads)),
        )

    def enter(self) -> None:
        if self.span is not None:
            context.attach(self._context(self.span, context.get_current()))

    @property
    def carrier(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        if self.span is not None:
            propagate.inject(carrier, self._context(self.span, context.Context()))
        return carrier

    def _context(self, span: Span, base: Context) -> Context:
        # A single job has the baggage of the code that has enqueued it.
        known = extracted(self.producers[0], base) if len(self.producers) == 1 else base
        return trace.set_span_in_context(span, known)

    def finish(self, errors: Sequence[BaseException]) -> None:
        if self.span is None:
            return
        for error in errors[:MOST_LINKS]:
            failed(self.span, error)
        self.span.end()

    def link(self) -> None:
        own = self._begun_context()
        if own is not None and own.is_valid:
            trace.get_current_span().add_link(own)

    def _begun_context(self) -> SpanContext | None:
        span = self.span if self.leader is None else self.leader.span
        return None if span is None else span.get_span_context()
