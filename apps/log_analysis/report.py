"""The app's results, read back from its topics and verified against the hits in plain Python."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from apps.log_analysis import topology
from apps.log_analysis.alert import Alert
from apps.log_analysis.hit import Hit
from apps.log_analysis.top import LENGTH, PathHits, TopPaths
from apps.log_analysis.traffic import TeamTraffic, Traffic
from apps.log_analysis.visit import Visit
from streams.broker.reading import read_to_end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.broker import Broker

T = TypeVar("T")

MINUTE = 60_000
PAUSE = 30 * MINUTE
"""The longest pause within a visit; milliseconds, as all times here."""


@dataclass(slots=True)
class Report:
    """The figures, without the results of the closing lines, at ``closing`` or later."""

    lines: int
    seconds: float
    closing: int
    sent: int = 0
    """Bytes."""
    bots: int = 0
    errors: int = 0
    dead_letters: int = 0
    late_hits: int = 0
    statuses: Counter[str] = field(default_factory=Counter[str])
    reasons: Counter[str] = field(default_factory=Counter[str])
    dead_letter_origins: set[tuple[bytes, bytes]] = field(default_factory=set[tuple[bytes, bytes]])
    hits_by_window: Counter[tuple[int, str]] = field(default_factory=Counter[tuple[int, str]])
    """The recount: hits by start of the minute and path, without late ones."""
    times_by_client: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    traffic: list[Traffic] = field(default_factory=list[Traffic])
    top_paths: list[TopPaths] = field(default_factory=list[TopPaths])
    teams: list[TeamTraffic] = field(default_factory=list[TeamTraffic])
    visits: list[Visit] = field(default_factory=list[Visit])
    alerts: list[Alert] = field(default_factory=list[Alert])

    @classmethod
    def read(cls, broker: Broker, *, lines: int, seconds: float, closing: int) -> Report:
        """Read the app's topics; ``seconds`` is how long it took."""
        report = cls(lines, seconds, closing)
        for hit in _values(broker, topology.HITS, Hit):
            report._add_hit(hit)
        report.errors = sum(hit.time < closing for hit in _values(broker, topology.ERRORS, Hit))
        for hit in _values(broker, topology.LATE_HITS, Hit):
            report.late_hits += 1
            report.hits_by_window[hit.time - hit.time % MINUTE, hit.path] -= 1
        report._add_dead_letters(broker)
        report.traffic = [each for each in _values(broker, topology.TRAFFIC, Traffic) if each.start < closing]
        report.top_paths = [
            each for each in _values(broker, topology.TOP_PATHS, TopPaths) if each.start < closing
        ]
        report.teams = [
            each for each in _values(broker, topology.TEAM_TRAFFIC, TeamTraffic) if each.start < closing
        ]
        report.visits = [each for each in _values(broker, topology.VISITS, Visit) if each.start < closing]
        report.alerts = sorted(
            _values(broker, topology.ALERTS, Alert), key=lambda alert: (alert.time, alert.path)
        )
        return report

    def _add_hit(self, hit: Hit) -> None:
        if hit.time >= self.closing:
            return
        self.sent += hit.bytes
        self.bots += hit.bot
        self.statuses[hit.status_class] += 1
        self.hits_by_window[hit.time - hit.time % MINUTE, hit.path] += 1
        self.times_by_client[hit.client].append(hit.time)

    def _add_dead_letters(self, broker: Broker) -> None:
        for fetched in read_to_end(broker, [topology.app.dead_letter_topic]):
            for headers in fetched.headers() or ():
                fields = dict(headers or ())
                self.dead_letters += 1
                message = (fields["__streams.errors.message"] or b"").decode()
                self.reasons[message.partition(" at column")[0]] += 1
                self.dead_letter_origins.add(
                    (
                        fields["__streams.errors.partition"] or b"",
                        fields["__streams.errors.offset"] or b"",
                    )
                )

    @property
    def hits(self) -> int:
        """The number of well-formed lines."""
        return self.statuses.total()

    @property
    def filtered(self) -> int:
        """Hits that are not in the errors topic by design: those below status 500."""
        return self.hits - self.statuses["5xx"]

    @property
    def first(self) -> int | None:
        """When the first hit was received."""
        return min((min(times) for times in self.times_by_client.values()), default=None)

    @property
    def last(self) -> int | None:
        """When the last hit was received."""
        return max((max(times) for times in self.times_by_client.values()), default=None)

    @property
    def claims(self) -> dict[str, bool]:
        """The consistency checks, and whether each holds."""
        counted = sum(each.hits for each in self.traffic)
        return {
            f"{self.hits:,} hits + {self.dead_letters:,} dead letters = {self.lines:,} lines": (
                self.hits + self.dead_letters == self.lines
                and len(self.dead_letter_origins) == self.dead_letters
            ),
            f"{self.errors:,} errors + {self.filtered:,} other hits = {self.hits:,} hits": (
                self.errors + self.filtered == self.hits
            ),
            f"{counted:,} hits in {len(self.traffic):,} windows + {self.late_hits:,} late = "
            f"{self.hits:,} hits, and each window equals a recount": (
                counted + self.late_hits == self.hits
                and sum(each.bytes for each in self.traffic) == self.sent
                and self._traffic_is_recounted()
            ),
            f"{sum(each.hits for each in self.visits):,} hits in {len(self.visits):,} visits, "
            "each equal to a recount": self._visits_are_recounted(),
            f"{sum(each.hits for each in self.teams):,} hits of teams, in the same minutes": (
                _by_minute(self.teams) == _by_minute(self.traffic)
            ),
            f"{len(self.top_paths):,} rankings, each equal to sorting all paths": (
                self._rankings_are_recounted()
            ),
        }

    @property
    def problems(self) -> list[str]:
        """The failed checks; empty when every line is accounted for exactly once."""
        return [claim for claim, holds in self.claims.items() if not holds]

    def _traffic_is_recounted(self) -> bool:
        windows = {(each.start, each.path): each.hits for each in self.traffic}
        return len(windows) == len(self.traffic) and windows == +self.hits_by_window

    def _visits_are_recounted(self) -> bool:
        recounted: list[tuple[str, int, int, int]] = []
        for client, times in self.times_by_client.items():
            times.sort()
            begin = 0
            for position in range(1, len(times) + 1):
                if position == len(times) or times[position] - times[position - 1] > PAUSE:
                    recounted.append((client, times[begin], times[position - 1], position - begin))
                    begin = position
        visits = [(visit.client, visit.start, visit.end, visit.hits) for visit in self.visits]
        return sorted(visits) == sorted(recounted)

    def _rankings_are_recounted(self) -> bool:
        rankings: dict[int, list[PathHits]] = {}
        for (start, path), hits in (+self.hits_by_window).items():
            rankings.setdefault(start, []).append(PathHits(path, hits))
        for ranking in rankings.values():
            ranking.sort(key=lambda place: (-place.hits, place.path))
        expected = {start: ranking[:LENGTH] for start, ranking in rankings.items()}
        found = {each.start: each.paths for each in self.top_paths}
        return len(found) == len(self.top_paths) and found == expected

    def as_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        hits, sizes, errors = self.by_path("hits"), self.by_path("bytes"), self.by_path("errors")
        return {
            "lines": self.lines,
            "hits": self.hits,
            "errors": self.errors,
            "filtered": self.filtered,
            "dead_letters": self.dead_letters,
            "late_hits": self.late_hits,
            "hits_in_windows": hits.total(),
            "hits_in_visits": sum(visit.hits for visit in self.visits),
            "accounted_for": not self.problems,
            "problems": self.problems,
            "seconds": round(self.seconds, 3),
            "records_per_second": round(self.lines / self.seconds),
            "bytes": self.sent,
            "bots": self.bots,
            "clients": len(self.times_by_client),
            "first_hit": self.first,
            "last_hit": self.last,
            "statuses": dict(sorted(self.statuses.items())),
            "windows": len(self.traffic),
            "visits": len(self.visits),
            "top_paths": [
                {"path": path, "hits": count, "bytes": sizes[path], "errors": errors[path]}
                for path, count in hits.most_common(10)
            ],
            "teams": dict(self.by_team("hits").most_common()),
            "alerts": msgspec.to_builtins(self.alerts),
            "dead_letter_reasons": dict(self.reasons.most_common()),
        }

    def by_path(self, figure: Literal["hits", "bytes", "errors"]) -> Counter[str]:
        """The sum of each path over all windows."""
        totals: Counter[str] = Counter()
        for each in self.traffic:
            totals[each.path] += getattr(each, figure)
        return totals

    def by_team(self, figure: Literal["hits", "bytes", "errors"]) -> Counter[str]:
        """The sum of each team over all windows."""
        totals: Counter[str] = Counter()
        for each in self.teams:
            totals[each.team] += getattr(each, figure)
        return totals


def _by_minute(results: list[Traffic] | list[TeamTraffic]) -> dict[int, list[int]]:
    """Hits, bytes and errors of all paths or teams, by start of the minute."""
    totals: dict[int, list[int]] = {}
    for each in results:
        counts = totals.setdefault(each.start, [0, 0, 0])
        counts[0] += each.hits
        counts[1] += each.bytes
        counts[2] += each.errors
    return totals


def _values(broker: Broker, topic: str, kind: type[T]) -> Iterator[T]:
    serde = topology.avro(kind)
    for fetched in read_to_end(broker, [topic]):
        yield from serde.deserialize([value for value in fetched.values() if value is not None])
