"""The traffic by minute, of each path and of each team that owns paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from apps.log_analysis.hit import Hit
    from streams import Windowed


def server_errors(hit: Hit) -> int:
    """1 for a server error, else 0."""
    return int(hit.status >= 500)


class Traffic(msgspec.Struct, frozen=True):
    """The hits of one path in one window of time, from ``start`` to before ``end``.

    Times are milliseconds since the epoch.
    """

    path: str
    start: int
    end: int
    hits: int
    bytes: int
    """The sum of the response sizes."""
    errors: int
    """Hits with a status of 500 or more."""
    error_share: float
    """Errors among the hits, from 0 to 1."""
    p50_bytes: float
    """The median of the response sizes, with a relative error of at most 1 %."""
    p99_bytes: float
    """The 99th percentile of the response sizes, with a relative error of at most 1 %."""

    @classmethod
    def of(cls, window: Windowed[str, Any]) -> Traffic:
        """The traffic of a window's aggregates."""
        of_path = window.value
        return cls(
            path=window.key,
            start=window.start,
            end=window.end,
            hits=of_path.hits,
            bytes=of_path.bytes,
            errors=of_path.errors,
            error_share=of_path.errors / of_path.hits,
            p50_bytes=of_path.p50_bytes,
            p99_bytes=of_path.p99_bytes,
        )


class Owner(msgspec.Struct, frozen=True):
    """The owner of a section of the site, see ``section``."""

    team: str
    since: int
    """The event time of the change of owner (milliseconds since the epoch), by which it is merged with the
    hits.
    """


NOBODY = "nobody"
"""The team of sections that have no owner."""


def section(path: str) -> str:
    """The first part of a path: ``/products`` of ``/products/oak-lamp``."""
    return "/".join(path.split("/", 2)[:2])


class TeamTraffic(msgspec.Struct, frozen=True):
    """The hits on one team's paths in one window of time, as in ``Traffic``."""

    team: str
    start: int
    end: int
    hits: int
    bytes: int
    errors: int

    @classmethod
    def of(cls, traffic: Traffic, owner: Owner | None) -> TeamTraffic:
        """The team's traffic of one path."""
        team = owner.team if owner else NOBODY
        return cls(team, traffic.start, traffic.end, traffic.hits, traffic.bytes, traffic.errors)

    def plus(self, other: TeamTraffic) -> TeamTraffic:
        """The sum with that of another path, of the same team and window."""
        return msgspec.structs.replace(
            self,
            hits=self.hits + other.hits,
            bytes=self.bytes + other.bytes,
            errors=self.errors + other.errors,
        )
