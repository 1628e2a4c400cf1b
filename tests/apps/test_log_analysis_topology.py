"""The log-analysis app through its topology, on lines written here and on a real log."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from apps.log_analysis.generate import generate_lines
from apps.log_analysis.topology import ERRORS, HITS, LINES, app
from streams import Record
from streams.testing import TopologyDriver

LINE = (
    '{client} - - [17/May/2015:10:05:{second:02d} +0000] "GET /shop?id=7 HTTP/1.1" {status} 120 "-" "curl/8"'
)


def real_log() -> Path:
    folder = os.environ.get("STREAMS_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data"
    return Path(folder) / "apache_access.log"


def test_a_line_becomes_a_hit_at_its_event_time_keyed_by_client():
    driver = TopologyDriver(app)
    driver.send(LINES, LINE.format(client="10.0.0.1", second=3, status=200), timestamp=1)
    (record,) = driver.read(HITS)
    assert (record.key, record.timestamp) == ("10.0.0.1", 1_431_857_103_000)
    assert (record.value.path, record.value.status, record.value.status_class) == ("/shop", 200, "2xx")
    assert driver.topics == []


def test_server_errors_are_hits_and_errors():
    driver = TopologyDriver(app)
    for second, status in enumerate((200, 404, 500, 503)):
        driver.send(LINES, LINE.format(client="a", second=second, status=status))
    assert [hit.status for hit in driver.values(HITS)] == [200, 404, 500, 503]
    assert [hit.status for hit in driver.values(ERRORS)] == [500, 503]


def test_a_malformed_line_becomes_a_dead_letter_with_its_reason():
    driver = TopologyDriver(app)
    driver.send_all(
        LINES,
        [
            Record(None, line, 5)
            for line in (
                LINE.format(client="a", second=1, status=200),
                "nonsense",
                LINE.format(client="b", second=2, status=200),
            )
        ],
    )
    assert [record.key for record in driver.read(HITS)] == ["a", "b"]
    (letter,) = driver.dead_letters()
    headers = dict(letter.headers or ())
    assert letter.value == b"nonsense"
    assert headers["__streams.errors.offset"] == b"1"
    assert headers["__streams.errors.step"] == b"map-parse"
    assert (headers["__streams.errors.message"] or b"").startswith(b"not the common or combined format")


def test_every_generated_line_is_accounted_for():
    driver = TopologyDriver(app, partitions=1)
    lines = list(generate_lines(5_000, malformed_share=0.02))
    driver.send_all(LINES, [Record(None, line, 0) for line in lines])
    hits = driver.values(HITS)
    letters = driver.dead_letters()
    assert (len(hits), len(letters)) == (4_900, 100)
    assert len(driver.values(ERRORS)) == sum(hit.status >= 500 for hit in hits)
    assert {letter.value.decode() for letter in letters} <= set(lines)


def test_no_line_of_a_real_log_is_lost():
    log = real_log()
    if not log.exists():
        pytest.skip(f"the real log is not there: {log}")
    lines = log.read_text().splitlines()
    driver = TopologyDriver(app)
    driver.send_all(LINES, [Record(None, line, 0) for line in lines])
    hits, letters = driver.values(HITS), driver.dead_letters()
    assert len(hits) + len(letters) == len(lines) == 10_000
    assert len(letters) == 1
    assert Counter(hit.status_class for hit in hits) == {"2xx": 9_170, "3xx": 609, "4xx": 217, "5xx": 3}
