"""Contexts of spans to and from headers, by OpenTelemetry's global propagator."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from opentelemetry import context, propagate, trace

from streams.tracing.context_headers import ContextHeaders
from streams.tracing.spans import MOST_LINKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from streams.records import Fetched, Headers


class Producers:
    """The contexts that the records of a batch carry.

    ``links`` are those of the first ``MOST_LINKS`` different ones, ``count`` is how many there are, and
    ``leads`` are the values by which they are recognised.
    """

    __slots__ = ("count", "leads", "links")

    def __init__(self, leads: Mapping[bytes | None, None], links: Sequence[trace.Link]) -> None:
        self.leads = leads
        self.count = len(leads)
        self.links = links


NO_PRODUCERS = Producers({}, ())


class Propagation:
    """The headers that carry contexts. Not those of baggage, which is one record's and not a batch's."""

    @cached_property
    def headers(self) -> ContextHeaders:
        """Read when they are first needed: a program may choose its propagator after it has declared jobs."""
        return ContextHeaders(propagate.get_global_textmap().fields - {"baggage"})

    def producers(self, records: Fetched) -> Producers:
        """The contexts that records carry."""
        column = records.headers()
        if column is None or not self.headers.lead:
            return NO_PRODUCERS
        leads = dict.fromkeys(self.headers.leads(column))
        if not leads:
            return NO_PRODUCERS
        wanted = list(leads)[:MOST_LINKS]
        return Producers(leads, self.links(self.headers.first(column, wanted)))

    def links(self, contexts: Sequence[Headers]) -> list[trace.Link]:
        """Links to these contexts, without those that cannot be read."""
        spans = (trace.get_current_span(extracted(headers)) for headers in contexts)
        found = (span.get_span_context() for span in spans)
        return [trace.Link(each) for each in found if each.is_valid]


def headers_of(span: Span) -> Headers:
    """The headers that carry a span's context; none if it has no valid one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span, context.Context()))
    return [(name, value.encode()) for name, value in carrier.items()]


def extracted(headers: Headers, into: Context | None = None) -> Context:
    """The context that headers carry, added to ``into``."""
    carrier = {name: (value or b"").decode(errors="replace") for name, value in headers}
    return propagate.extract(carrier, context.Context() if into is None else into)


@contextmanager
def entered(carrier: Mapping[str, str]) -> Iterator[None]:
    """Make the context of another process the current one."""
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)
