"""The log-analysis app through its topology, compared with a count in plain Python over the same lines."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from apps.log_analysis.alert import Alert
from apps.log_analysis.generate import INCIDENT_PATH, generate_lines
from apps.log_analysis.hit import Hit, MalformedLine, parse
from apps.log_analysis.top import LENGTH, PathHits, TopPaths
from apps.log_analysis.topology import (
    ALERTS,
    ERRORS,
    HITS,
    LATE_HITS,
    LINES,
    PATH_OWNERS,
    TEAM_TRAFFIC,
    TOP_PATHS,
    TRAFFIC,
    VISITS,
    app,
)
from apps.log_analysis.traffic import NOBODY, Owner, TeamTraffic, Traffic, section
from apps.log_analysis.visit import Visit
from streams import Record, minutes
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LINE = (
    "{client} - - [17/May/2015:{hour:02d}:{minute:02d}:{second:02d} +0000] "
    '"GET {path} HTTP/1.1" {status} 120 "-" "curl/8"'
)
TEN = 1_431_856_800_000
"""Ten o'clock on that day: milliseconds since the epoch."""
MINUTE = 60_000


def line(
    minute: int = 5,
    second: int = 3,
    *,
    hour: int = 10,
    client: str = "10.0.0.1",
    path: str = "/shop?id=7",
    status: int = 200,
) -> str:
    return LINE.format(hour=hour, minute=minute, second=second, client=client, path=path, status=status)


def real_log() -> Path:
    folder = os.environ.get("STREAMS_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data"
    return Path(folder) / "apache_access.log"


def real_lines() -> list[str]:
    log = real_log()
    if not log.is_file():
        pytest.skip(f"the real log is not there: {log}")
    return log.read_text().splitlines()


def send(driver: TopologyDriver, lines: Iterable[str], *, partition: int = 0) -> None:
    driver.send_all(LINES, [Record(None, text, 0) for text in lines], partition=partition)


def close_windows(driver: TopologyDriver) -> None:
    """Advance the clock until all windows close, and those over their results too."""
    for _ in range(2):
        driver.advance(minutes(60))


def processed(lines: Sequence[str]) -> TopologyDriver:
    """The lines spread over four partitions, some at a time, and all windows closed."""
    driver = TopologyDriver(app, partitions=4)
    for key, team in (("/images", "web"), ("/products", "shop"), ("/presentations", "talks"), ("/", "web")):
        driver.send(PATH_OWNERS, Owner(team, since=0), key=key)
    for number, begin in enumerate(range(0, len(lines), 50)):
        send(driver, lines[begin : begin + 50], partition=number % 4)
    close_windows(driver)
    return driver


class Results:
    """What the app makes of a log. Several tests look at it, as to process a log takes seconds."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        driver = processed(lines)
        topics = (HITS, ERRORS, TRAFFIC, LATE_HITS, TOP_PATHS, VISITS, TEAM_TRAFFIC, ALERTS)
        self.of: dict[str, list[Any]] = {topic: driver.values(topic) for topic in topics}
        self.dead_letters = driver.dead_letters()
        self.late = driver.late()


@pytest.fixture(scope="module")
def generated() -> Results:
    return Results(list(generate_lines(20_000)))


@pytest.fixture(scope="module")
def real() -> Results:
    return Results(real_lines())


@pytest.fixture(params=["generated", "real"])
def results(request: pytest.FixtureRequest) -> Results:
    found: Results = request.getfixturevalue(request.param)
    return found


def parsed(lines: Iterable[str]) -> list[Hit]:
    hits = []
    for text in lines:
        try:
            hits.append(parse(text))
        except MalformedLine:
            continue
    return hits


def by_window(hits: Iterable[Hit]) -> dict[tuple[int, str], list[Hit]]:
    """The hits of each minute and path."""
    found: defaultdict[tuple[int, str], list[Hit]] = defaultdict(list)
    for hit in hits:
        found[hit.time - hit.time % MINUTE, hit.path].append(hit)
    return found


def traffic_key(traffic: Traffic) -> tuple[int, str]:
    return traffic.start, traffic.path


def about_quantile(result: float, values: Sequence[int], q: float) -> bool:
    rank = q * (len(values) - 1)
    ordered = sorted(values)
    return 0.99 * ordered[int(rank)] <= result <= 1.01 * ordered[-int(-rank // 1)]


def test_a_line_becomes_a_hit_at_its_event_time_keyed_by_client():
    driver = TopologyDriver(app)
    driver.send(LINES, line(), timestamp=1)
    (record,) = driver.read(HITS)
    assert (record.key, record.timestamp) == ("10.0.0.1", TEN + 5 * MINUTE + 3_000)
    assert (record.value.path, record.value.status, record.value.status_class) == ("/shop", 200, "2xx")


def test_server_errors_are_hits_and_errors():
    driver = TopologyDriver(app)
    send(driver, [line(status=status) for status in (200, 404, 500, 503)])
    assert [hit.status for hit in driver.values(HITS)] == [200, 404, 500, 503]
    assert [hit.status for hit in driver.values(ERRORS)] == [500, 503]


def test_a_malformed_line_becomes_a_dead_letter_with_its_reason():
    driver = TopologyDriver(app)
    send(driver, [line(client="a"), "nonsense", line(client="b")])
    assert [record.key for record in driver.read(HITS)] == ["a", "b"]
    (letter,) = driver.dead_letters()
    headers = dict(letter.headers or ())
    assert letter.value == b"nonsense"
    assert headers["__streams.errors.offset"] == b"1"
    assert headers["__streams.errors.step"] == b"map-parse"
    assert (headers["__streams.errors.message"] or b"").startswith(b"not a known format")


def test_the_traffic_of_a_path_is_told_once_its_minute_and_the_grace_are_over():
    driver = TopologyDriver(app)
    send(driver, [line(5, 3), line(5, 9, status=500), line(6, 59)])
    assert driver.values(TRAFFIC) == []
    send(driver, [line(7, 0, path="/shop")])
    (record,) = driver.read(TRAFFIC)
    assert record.key == "/shop"
    assert record.value.p50_bytes == pytest.approx(120, rel=0.01)
    assert record.value.p99_bytes == pytest.approx(120, rel=0.01)
    assert record.value == Traffic(
        path="/shop",
        start=TEN + 5 * MINUTE,
        end=TEN + 6 * MINUTE,
        hits=2,
        bytes=240,
        errors=1,
        error_share=0.5,
        p50_bytes=record.value.p50_bytes,
        p99_bytes=record.value.p99_bytes,
    )


def test_the_traffic_of_quiet_hours_is_told_as_the_wall_clock_goes_on():
    driver = TopologyDriver(app)
    send(driver, [line()])
    driver.advance(minutes(3))
    assert [traffic.hits for traffic in driver.values(TRAFFIC)] == [1]


def test_all_lines_are_in_windows_or_dead_letters(results):
    letters, hits = results.dead_letters, results.of[HITS]
    in_windows = sum(traffic.hits for traffic in results.of[TRAFFIC])
    assert len(hits) == in_windows
    assert in_windows + len(letters) == len(results.lines)
    assert {(letter.value or b"").decode() for letter in letters} <= set(results.lines)
    assert results.of[LATE_HITS] == []
    assert results.late == {}
    assert len(results.of[ERRORS]) == sum(hit.status >= 500 for hit in hits)


def test_lines_that_come_too_late_are_kept_apart():
    shuffled = list(generate_lines(20_000))
    shuffled = shuffled[4_000:] + shuffled[:4_000]
    driver = processed(shuffled)
    late, letters = driver.values(LATE_HITS), driver.dead_letters()
    in_windows = sum(traffic.hits for traffic in driver.values(TRAFFIC))
    assert len(late) > 3_000
    assert in_windows + len(late) + len(letters) == 20_000


def test_the_traffic_is_what_a_count_in_plain_python_gives(results):
    found = results.of[TRAFFIC]
    expected = by_window(parsed(results.lines))
    assert sorted(map(traffic_key, found)) == sorted(expected)
    for traffic in found:
        hits = expected[traffic_key(traffic)]
        sizes = [hit.bytes for hit in hits]
        errors = sum(hit.status >= 500 for hit in hits)
        assert (traffic.hits, traffic.bytes, traffic.errors) == (len(hits), sum(sizes), errors)
        assert traffic.error_share == errors / len(hits)
        assert about_quantile(traffic.p50_bytes, sizes, 0.5)
        assert about_quantile(traffic.p99_bytes, sizes, 0.99)


def test_the_top_paths_are_those_that_sorting_all_paths_gives(results):
    expected: defaultdict[int, list[PathHits]] = defaultdict(list)
    for (start, path), hits in by_window(parsed(results.lines)).items():
        expected[start].append(PathHits(path, len(hits)))
    assert results.of[TOP_PATHS] == [
        TopPaths(
            start,
            start + MINUTE,
            sorted(expected[start], key=lambda place: (-place.hits, place.path))[:LENGTH],
        )
        for start in sorted(expected)
    ]


def test_visits_share_all_hits_out_at_pauses_of_more_than_half_an_hour(results):
    visits = results.of[VISITS]
    of_client: defaultdict[str, list[Hit]] = defaultdict(list)
    for hit in parsed(results.lines):
        of_client[hit.client].append(hit)
    expected = []
    for client, hits in of_client.items():
        visit: list[Hit] = []
        for hit in sorted(hits, key=lambda hit: (hit.time, hit.path)):
            if visit and hit.time - visit[-1].time > 30 * MINUTE:
                expected.append(visit_of(client, visit))
                visit = []
            visit.append(hit)
        expected.append(visit_of(client, visit))
    assert sorted(visits, key=visit_key) == sorted(expected, key=visit_key)
    assert sum(visit.hits for visit in visits) == sum(map(len, of_client.values()))


def visit_key(visit: Visit) -> tuple[str, int]:
    return visit.client, visit.start


def visit_of(client: str, hits: Sequence[Hit]) -> Visit:
    return Visit(
        client=client,
        start=hits[0].time,
        end=hits[-1].time,
        duration=hits[-1].time - hits[0].time,
        hits=len(hits),
        bytes=sum(hit.bytes for hit in hits),
        first_path=hits[0].path,
        last_path=hits[-1].path,
    )


def test_a_pause_of_half_an_hour_is_within_a_visit_and_a_longer_one_ends_it():
    driver = TopologyDriver(app)
    send(driver, [line(0, 0), line(30, 0, path="/cart"), line(0, 1, hour=11, path="/")])
    close_windows(driver)
    first, second = driver.values(VISITS)
    assert (first.hits, first.first_path, first.last_path, first.duration) == (2, "/shop", "/cart", 1_800_000)
    assert (second.hits, second.first_path, second.duration) == (1, "/", 0)


def test_each_teams_traffic_is_that_of_its_sections(results):
    found = results.of[TEAM_TRAFFIC]
    teams = {"/images": "web", "/products": "shop", "/presentations": "talks", "/": "web"}
    expected: Counter[tuple[int, str]] = Counter()
    for (start, path), hits in by_window(parsed(results.lines)).items():
        expected[start, teams.get(section(path), NOBODY)] += len(hits)
    assert {(result.start, result.team): result.hits for result in found} == expected
    assert len(found) == len(expected)


def test_paths_without_an_owner_are_nobodys_and_a_new_owner_takes_over():
    driver = TopologyDriver(app)
    send(driver, [line(0), line(0, path="/cart", status=500)])
    driver.send(PATH_OWNERS, Owner("shop", since=TEN), key="/shop")
    send(driver, [line(2)])
    driver.send(PATH_OWNERS, Owner("web", since=TEN + 3 * MINUTE), key="/shop")
    send(driver, [line(4)])
    close_windows(driver)
    assert driver.values(TEAM_TRAFFIC) == [
        TeamTraffic(NOBODY, TEN, TEN + MINUTE, 1, 120, 1),
        TeamTraffic("shop", TEN, TEN + MINUTE, 1, 120, 0),
        TeamTraffic("web", TEN + 2 * MINUTE, TEN + 3 * MINUTE, 1, 120, 0),
        TeamTraffic("web", TEN + 4 * MINUTE, TEN + 5 * MINUTE, 1, 120, 0),
    ]


def test_an_alert_is_raised_once_and_cleared_once():
    driver = TopologyDriver(app)
    for minute in range(20):
        failing = 5 <= minute < 12
        send(driver, [line(minute, second, status=500 if failing else 200) for second in range(6)])
        # A stop between two windows neither repeats an alert nor forgets it.
        driver.restart()
    close_windows(driver)
    assert driver.values(ALERTS) == [
        Alert("/shop", "raised", TEN + 8 * MINUTE, 1.0),
        Alert("/shop", "cleared", TEN + 15 * MINUTE, 0.0),
    ]
    assert driver.store("alert-watches") == {}


def test_the_incident_of_the_generated_log_raises_one_alert_and_nothing_else_does(generated):
    assert [(alert.path, alert.state) for alert in generated.of[ALERTS]] == [
        (INCIDENT_PATH, "raised"),
        (INCIDENT_PATH, "cleared"),
    ]


def test_the_real_log_is_the_one_known(real):
    hits = real.of[HITS]
    assert (len(hits), len(real.dead_letters)) == (9_999, 1)
    assert Counter(hit.status_class for hit in hits) == {"2xx": 9_170, "3xx": 609, "4xx": 217, "5xx": 3}
    assert real.of[ALERTS] == []
