from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from apps.log_analysis.generate import INCIDENT, INCIDENT_FAILURES, INCIDENT_PATH, generate_lines, main
from apps.log_analysis.hit import Hit, MalformedLine, parse

ROOT = Path(__file__).parents[2]

START = 1_779_098_400_000
HOUR = 3_600_000


def outcome(line: str) -> Hit | MalformedLine:
    try:
        return parse(line)
    except MalformedLine as error:
        return error


@cache
def lines() -> list[str]:
    return list(generate_lines(50_000))


@cache
def hits() -> list[Hit]:
    return [hit for hit in map(outcome, lines()) if isinstance(hit, Hit)]


def test_gives_as_many_lines_as_requested():
    assert len(lines()) == 50_000
    assert list(generate_lines(0)) == []
    assert len(list(generate_lines(1))) == 1


def test_exactly_the_share_of_malformed_lines_is_refused():
    assert len(lines()) - len(hits()) == 250


@settings(max_examples=30)
@given(count=st.integers(0, 400), seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_exactly_the_share_is_refused_for_any_count_seed_and_share(count, seed, share):
    outcomes = [outcome(line) for line in generate_lines(count, seed, share)]
    assert len(outcomes) == count
    assert sum(isinstance(one, MalformedLine) for one in outcomes) == round(count * share)


def test_malformed_lines_are_of_every_kind():
    refused = [
        one
        for one in map(outcome, generate_lines(1_000, malformed_share=1))
        if isinstance(one, MalformedLine)
    ]
    reasons = Counter(error.reason for error in refused)
    assert set(reasons) == {
        "not a known format",
        "line ends early",
        "bad time",
        "no request",
        "bad status",
        "bad size",
    }
    assert min(reasons.values()) > 50


def test_malformed_lines_are_spread_among_the_others():
    positions = [number for number, line in enumerate(lines()) if isinstance(outcome(line), MalformedLine)]
    quarters = Counter(position // 12_500 for position in positions)
    assert all(quarters[quarter] > 35 for quarter in range(4))


def test_the_same_seed_gives_the_same_lines_and_another_seed_others():
    assert list(generate_lines(2_000, seed=11)) == list(generate_lines(2_000, seed=11))
    assert list(generate_lines(2_000, seed=11)) != list(generate_lines(2_000, seed=12))


def test_the_lines_are_the_same_under_any_version_of_python():
    # After an intended change of the log, update the digest.
    text = "\n".join(generate_lines(5_000, seed=3, malformed_share=0.02))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "9dfbadf602b29785952c94c138d246b839b5405aad72def7607417aa015cac0b"
    )


def test_a_line_is_one_line():
    assert all(line.splitlines() == [line] for line in lines())


def test_times_are_in_order_and_fill_the_hour():
    times = [hit.time for hit in hits()]
    assert times == sorted(times)
    assert START <= times[0] < START + 1_000
    assert START + HOUR - 1_000 <= times[-1] < START + HOUR
    minutes = Counter((time - START) // 60_000 for time in times)
    assert set(minutes) == set(range(60))
    assert max(minutes.values()) < 1.1 * min(minutes.values())


def test_start_and_duration_are_the_callers():
    times = [
        parse(line).time for line in generate_lines(500, malformed_share=0, start_ms=0, duration_ms=10_000)
    ]
    assert {time // 1_000 for time in times} == set(range(10))


def test_errors_are_rare_but_during_the_incident_on_its_path():
    begin, end = (START + share * HOUR for share in INCIDENT)
    inside = [hit for hit in hits() if begin + 1_000 <= hit.time < end - 1_000]
    struck = [hit for hit in inside if hit.path == INCIDENT_PATH]
    others = [hit for hit in hits() if not begin - 1_000 <= hit.time < end + 1_000]
    failed = sum(hit.status >= 500 for hit in struck)
    assert len(struck) > 40
    assert failed == pytest.approx(INCIDENT_FAILURES * len(struck), rel=0.2)
    assert sum(hit.status >= 500 for hit in others) < 0.003 * len(others)
    assert 0.001 < sum(hit.status >= 500 for hit in hits()) / len(hits()) < 0.01


def test_most_answers_are_good_and_some_of_every_class_are_not():
    classes = Counter(hit.status_class for hit in hits())
    assert set(classes) == {"2xx", "3xx", "4xx", "5xx"}
    assert classes["2xx"] > 0.75 * len(hits())
    assert classes["3xx"] > classes["4xx"] > classes["5xx"]


def test_not_modified_has_no_size():
    unchanged = [line for line in lines() if '" 304 ' in line and isinstance(outcome(line), Hit)]
    assert len(unchanged) > 1_000
    assert all('" 304 - "' in line for line in unchanged)


def test_few_paths_make_most_of_the_traffic():
    paths = Counter(hit.path for hit in hits())
    assert len(paths) > 200
    assert sum(count for _, count in paths.most_common(10)) > 0.35 * len(hits())
    assert sum(hit.query is not None for hit in hits()) > 0.1 * len(hits())


def test_sizes_differ_by_orders_of_magnitude_with_a_long_tail():
    sizes = sorted(hit.bytes for hit in hits() if hit.status == 200)
    median = sizes[len(sizes) // 2]
    assert sum(sizes) / len(sizes) > 1.3 * median
    assert sizes[-1] > 10 * median


def test_clients_are_many_some_by_ipv6_some_known_by_name_and_some_programs():
    clients = Counter(hit.client for hit in hits())
    assert 1_000 < len(clients) < 3_000
    assert 0.05 < sum(":" in hit.client for hit in hits()) / len(hits()) < 0.4
    assert 0.02 < sum(hit.bot for hit in hits()) / len(hits()) < 0.3
    assert len({hit.user for hit in hits()}) > 10
    assert len({hit.referrer for hit in hits()}) > 5
    assert any('"' in (hit.agent or "") for hit in hits())


def test_some_hits_are_odd_but_well_formed():
    assert {"-", "HTTP/0.9", "HTTP/1.0", "HTTP/1.1", "HTTP/2.0"} == {hit.protocol for hit in hits()}
    assert any(hit.status == 408 and hit.path == "-" for hit in hits())


def test_lines_come_one_by_one():
    assert len(list(islice(generate_lines(10**15, malformed_share=0), 10))) == 10


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": -1},
        {"malformed_share": -0.1},
        {"malformed_share": 1.1},
        {"start_ms": -1},
        {"duration_ms": 0},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_refused_at_once(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        generate_lines(**arguments)


def test_the_command_writes_a_file(tmp_path):
    file = tmp_path / "access.log"
    main(["--lines", "300", "--seed", "5", "--malformed", "0.1", "--out", str(file)])
    expected = "".join(f"{line}\n" for line in generate_lines(300, 5, 0.1))
    assert file.read_bytes() == expected.encode()


def test_the_command_writes_to_standard_output(capfdbinary):
    main(["--lines", "20", "--malformed", "0.5"])
    expected = "".join(f"{line}\n" for line in generate_lines(20, malformed_share=0.5))
    assert capfdbinary.readouterr().out == expected.encode()


def test_the_command_ends_quietly_when_its_reader_has_seen_enough():
    command = [sys.executable, "-m", "apps.log_analysis.generate", "--lines", "20000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_command_refuses_an_argument_out_of_range(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--malformed", "3"])
    assert caught.value.code == 2
    assert "malformed_share must be from 0 to 1, got 3.0" in capsys.readouterr().err
