"""The headers of contexts, without OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams.tracing.context_headers import ContextHeaders

if TYPE_CHECKING:
    from streams import Headers

W3C = ContextHeaders(["tracestate", "traceparent"])
OWN: Headers = [("traceparent", b"own")]


@pytest.mark.parametrize(
    ("names", "lead"),
    [
        (["tracestate", "traceparent"], "traceparent"),
        (["x-b3-traceid", "x-b3-spanid", "x-b3-sampled"], "x-b3-spanid"),
        (["b3"], "b3"),
        (["uber-trace-id"], "uber-trace-id"),
        ([], ""),
    ],
)
def test_one_header_tells_contexts_apart(names, lead):
    assert ContextHeaders(names).lead == lead


def test_the_first_row_of_each_context_has_its_headers():
    column: list[Headers | None] = [
        None,
        [],
        [("other", b"1"), ("traceparent", b"a"), ("tracestate", b"s")],
        [("traceparent", b"a"), ("tracestate", b"later")],
        [("traceparent", b"b")],
        [("traceparent", b"c")],
    ]
    assert W3C.leads(column) == [b"a", b"a", b"b", b"c"]
    assert W3C.first(column, [b"a", b"b"]) == [
        [("traceparent", b"a"), ("tracestate", b"s")],
        [("traceparent", b"b")],
    ]


def test_only_the_context_of_the_input_is_replaced():
    inherited: Headers = [("a", b"1"), ("tracestate", b"s"), ("traceparent", b"in")]
    chosen: Headers = [("traceparent", b"chosen"), ("tracestate", b"s")]
    column: list[Headers | None] = [None, [], [("a", b"1")], inherited, chosen, inherited[2:], chosen[:1]]
    before = [None if row is None else list(row) for row in column]
    assert W3C.stamped(column, 7, OWN, {b"in"}) == [
        OWN,
        OWN,
        [("a", b"1"), *OWN],
        [("a", b"1"), *OWN],
        chosen,
        OWN,
        chosen[:1],
    ]
    assert column == before


def test_a_column_without_headers_gets_the_same_for_each_row():
    assert W3C.stamped(None, 2, OWN, ()) == [OWN, OWN]


def test_without_a_context_nothing_changes():
    column: list[Headers | None] = [None, [("traceparent", b"in")]]
    assert W3C.stamped(column, 2, [], {b"in"}) is column
    assert W3C.stamped(None, 2, [], ()) is None
