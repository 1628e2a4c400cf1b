"""The headers of records in which the contexts of spans are (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from streams.records import Headers

LEADS = ("traceparent", "b3", "x-b3-spanid")
"""Headers that differ wherever the contexts do, of the usual propagators."""


class ContextHeaders:
    """The headers called ``names``, all of one context. ``lead`` is the one by which contexts differ."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self.lead = next((name for name in LEADS if name in self.names), min(self.names, default=""))

    def leads(self, column: Sequence[Headers | None]) -> list[bytes | None]:
        """The values of the header that distinguishes contexts, of all rows that have one."""
        lead = self.lead
        return [value for headers in column if headers for name, value in headers if name == lead]

    def first(self, column: Sequence[Headers | None], wanted: Collection[bytes | None]) -> list[Headers]:
        """The context's headers of the first row with each of these leads."""
        lead, missing = self.lead, set(wanted)
        found: list[Headers] = []
        for headers in column:
            if not headers:
                continue
            here = next((value for name, value in headers if name == lead), None)
            if here in missing:
                missing.discard(here)
                found.append([pair for pair in headers if pair[0] in self.names])
                if not missing:
                    break
        return found

    def stamped(
        self,
        column: Sequence[Headers | None] | None,
        count: int,
        own: Headers,
        inherited: Collection[bytes | None],
    ) -> Sequence[Headers | None] | None:
        """The headers of ``count`` rows with those of a context, ``own``.

        Where a row has the lead of another context, it stays if it is not ``inherited`` from the row's input:
        then the program has set it.
        """
        if not own:
            return column
        if column is None:
            return [own] * count
        lead, replaced = self.lead, self._replaced
        # Most rows have no header, or this one from their input: they need no call.
        return [
            own
            if not headers or (len(headers) == 1 and headers[0][0] == lead and headers[0][1] in inherited)
            else replaced(headers, own, inherited)
            for headers in column
        ]

    def _replaced(self, headers: Headers, own: Headers, inherited: Collection[bytes | None]) -> Headers:
        lead = self.lead
        for name, value in headers:
            if name == lead:
                if value not in inherited:
                    return headers
                names = self.names
                return [pair for pair in headers if pair[0] not in names] + own
        return [*headers, *own]
