"""A visit: the hits of a client without a long pause."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from apps.log_analysis.hit import Hit


class Visit(msgspec.Struct, frozen=True):
    """The hits of one client that belong together; a single hit is a visit too.

    Times are milliseconds since the epoch, of whole seconds as the log's are: of hits in the same second, the
    one whose path sorts first is the earlier one. So the result does not depend on the order of arrival.
    """

    client: str
    start: int
    """When the first hit was received."""
    end: int
    """When the last hit was received."""
    duration: int
    """From the first hit to the last, in milliseconds."""
    hits: int
    bytes: int
    first_path: str
    last_path: str

    @classmethod
    def of(cls, hit: Hit) -> Visit:
        """The visit of a single hit."""
        return cls(hit.client, hit.time, hit.time, 0, 1, hit.bytes, hit.path, hit.path)

    def joined(self, other: Visit) -> Visit:
        """The visit that combines two, in any order."""
        first = min(self, other, key=lambda visit: (visit.start, visit.first_path))
        last = max(self, other, key=lambda visit: (visit.end, visit.last_path))
        return Visit(
            client=self.client,
            start=first.start,
            end=last.end,
            duration=last.end - first.start,
            hits=self.hits + other.hits,
            bytes=self.bytes + other.bytes,
            first_path=first.first_path,
            last_path=last.last_path,
        )
