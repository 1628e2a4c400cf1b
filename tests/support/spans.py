"""The spans that tests look at: the process has one provider, to which this adds an exporter in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from streams import Headers

_EXPORTER = InMemorySpanExporter()
_ADDED: list[TracerProvider] = []


class Spans:
    """The spans that have ended since the test began."""

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in _EXPORTER.get_finished_spans() if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        found = self.named(name)
        assert len(found) == 1, f"{name!r}: {len(found)} of {self.names()}"
        return found[0]

    def names(self) -> list[str]:
        return [span.name for span in _EXPORTER.get_finished_spans()]


def recorded() -> Iterator[Spans]:
    """What a fixture yields."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    if not _ADDED:
        provider.add_span_processor(SimpleSpanProcessor(_EXPORTER))
        _ADDED.append(provider)
    _EXPORTER.clear()
    yield Spans()
    _EXPORTER.clear()


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def traceparent_of(span: ReadableSpan) -> bytes:
    """The header of the records that are written in a span."""
    return _header(context_of(span))


def _header(context: SpanContext) -> bytes:
    trace_id, span_id = format_trace_id(context.trace_id), format_span_id(context.span_id)
    return f"00-{trace_id}-{span_id}-{context.trace_flags:02x}".encode()


def traceparent(number: int) -> bytes:
    """The header of a producer's record."""
    return b"00-%032x-%016x-01" % (number + 0xABC, number + 0xDEF)


def linked(span: ReadableSpan) -> list[bytes]:
    """The contexts to which a span links, as the header has them."""
    return [_header(link.context) for link in span.links]


def header(headers: Headers | None, name: str = "traceparent") -> bytes | None:
    """The only header of a name; ``None`` if there is none."""
    found = [value for own, value in headers or () if own == name]
    assert len(found) <= 1
    return found[0] if found else None


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})
