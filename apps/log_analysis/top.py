"""The paths with the most hits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from apps.log_analysis.traffic import Traffic
    from streams import Windowed

LENGTH = 10
"""The number of paths in a ranking."""


class PathHits(msgspec.Struct, frozen=True):
    """A path's place in a ranking."""

    path: str
    hits: int


class TopPaths(msgspec.Struct, frozen=True):
    """The paths with the most hits in one window of time, most hits first, ties by name.

    From ``start`` to before ``end``, in milliseconds since the epoch.
    """

    start: int
    end: int
    paths: list[PathHits]

    @classmethod
    def of(cls, window: Windowed[str, list[PathHits]]) -> TopPaths:
        """The ranking of a window."""
        return cls(window.start, window.end, window.value)


def ranked(best: list[PathHits], traffic: Traffic) -> list[PathHits]:
    """The ranking with one more path. Exact if each path comes once, with all of its hits."""
    candidates = [*best, PathHits(traffic.path, traffic.hits)]
    return sorted(candidates, key=lambda candidate: (-candidate.hits, candidate.path))[:LENGTH]
