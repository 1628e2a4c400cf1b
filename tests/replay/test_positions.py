"""Positions in topics: their text, and the offsets that they stand for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, strategies as st

from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.errors import ConfigurationError
from streams.records import Output, TopicPartition
from streams.replay.positions import (
    Ago,
    AtOffsets,
    AtTime,
    Earliest,
    Latest,
    parse_duration,
    parse_position,
    parse_time,
    read_offsets,
    resolve,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("earliest", Earliest()),
        (" latest ", Latest()),
        ("1796025600000", AtTime(1_796_025_600_000)),
        ("0", AtTime(0)),
        ("2026-11-30", AtTime(1_795_996_800_000)),
        ("2026-11-30T08:00Z", AtTime(1_796_025_600_000)),
        ("2026-11-30T08:00", AtTime(1_796_025_600_000)),
        ("2026-11-30 09:00:00.250+01:00", AtTime(1_796_025_600_250)),
        ("-2h", Ago(7_200_000)),
        ("-30m", Ago(1_800_000)),
        ("-1d12h", Ago(36 * 3_600_000)),
        ("-1.5s", Ago(1_500)),
        ("-250ms", Ago(250)),
        ("-PT2H", Ago(7_200_000)),
        ("-P1DT12H30M1.5S", Ago(36 * 3_600_000 + 1_801_500)),
        ("-P2W", Ago(14 * 86_400_000)),
    ],
)
def test_a_position_is_read(text, position):
    assert parse_position(text) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "earliest?",
        "Latest!",
        "yesterday",
        "2026-13-01",
        "20261130",
        "1796025600",
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00+23:00",
        "99999999999999999999",
        "-",
        "-5",
        "-2x",
        "-2h5",
        "-1e3s",
        "--2h",
        "-P",
        "-PT",
        "-P1M",
        "-P1Y",
        "-1.0001s",
        "-99999999999d",
        "+2h",
        "²",
        "12.5",
        "\0.json",
    ],
)
def test_anything_else_is_refused_as_a_configuration_error(text):
    with pytest.raises(ConfigurationError):
        parse_position(text)


def test_the_refusal_has_examples():
    with pytest.raises(ConfigurationError, match=r"2026-11-30T08:00Z.*without a zone it is UTC.*-2h"):
        parse_position("last tuesday")


@given(st.text())
def test_no_text_raises_anything_but_a_configuration_error(text):
    try:
        position = parse_position(text)
    except ConfigurationError:
        return
    assert isinstance(position, Earliest | Latest | AtTime | Ago | AtOffsets)


@given(
    st.datetimes(min_value=datetime(1971, 1, 1)),  # noqa: DTZ001 - hypothesis wants it without a zone
    st.integers(-12 * 60, 14 * 60),
)
def test_a_time_is_read_as_it_was_written(moment, minutes):
    moment = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert parse_time(moment.isoformat()) == (moment - EPOCH) // MILLISECOND
    assert parse_time(moment.replace(tzinfo=None).isoformat()) == (
        (moment.replace(tzinfo=UTC) - EPOCH) // MILLISECOND
    )


@given(st.integers(0, 9999), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 999))
def test_a_duration_is_the_sum_of_its_parts(days, hours, minutes, seconds, thousandths):
    total = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=thousandths)
    expected = total // MILLISECOND
    assert parse_duration(f"{days}d{hours}h{minutes}m{seconds}s{thousandths}ms") == expected
    assert parse_duration(f"P{days}DT{hours}H{minutes}M{seconds}.{thousandths:03}S") == expected


def test_offsets_are_read_from_json_and_from_the_lines_of_kafkas_tool(tmp_path):
    expected = {TopicPartition("a", 0): 12, TopicPartition("a", 10): 0, TopicPartition("b,c", 1): 7}
    as_json, as_csv = tmp_path / "offsets.json", tmp_path / "offsets.csv"
    as_json.write_text(json.dumps({"a": {"0": 12, "10": 0}, "b,c": {"1": 7}}))
    as_csv.write_text('a,0,12\na,10,0\n\n"b,c",1,7\n')
    for path in (as_json, as_csv):
        position = parse_position(str(path))
        assert isinstance(position, AtOffsets)
        assert position.offsets == expected
        assert str(position) == str(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ('{"a": 3}', "instead of offsets by partition"),
        ('{"a": {"x": 3}}', "not a partition number"),
        ('{"a": {"0": -3}}', "a-0: -3 is not an offset"),
        ('{"a": {"0": true}}', "not an offset"),
        ('{"a": {"0": "3"}}', "not an offset"),
        ("a,0", "line 1"),
        ("group,a,0,3", "offsets of a single group"),
        ("a" * 200_000 + ",0,3", "line 1"),
        ("a,0,3\na,x,3", "line 2.*not a partition number"),
        ("a,0,3\na,1,-", "line 2.*not an offset"),
        ("a,0,3\na,0,4", "line 2: a second offset of a-0"),
    ],
)
def test_a_file_that_is_not_offsets_is_refused_with_the_place_in_it(tmp_path, text, reason):
    path = tmp_path / "offsets.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        read_offsets(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read from"):
        parse_position(str(tmp_path / "missing.json"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read from"):
        parse_position(str(tmp_path / "binary.csv"))


PLACES = [TopicPartition("t", number) for number in range(3)]


@pytest.fixture
def admin():
    """A topic with offsets 2 to 4 at 2, 3, 4 s, with one record at 1 s, and an empty partition."""
    broker = MemoryBroker()
    admin = broker.admin()
    admin.create_topics([NewTopic(name="t", partitions=3)])
    producer = broker.producer()
    producer.produce(Output("t", [None] * 5, [b""] * 5, [0, 1000, 2000, 3000, 4000], partition=0))
    producer.produce(Output("t", [None], [b""], [1000], partition=1))
    producer.flush(1)
    admin.delete_records({PLACES[0]: 2})
    return admin


@pytest.mark.parametrize(
    ("position", "offsets"),
    [
        (Earliest(), [2, 0, 0]),
        (Latest(), [5, 1, 0]),
        (AtTime(0), [2, 0, 0]),
        (AtTime(3000), [3, 1, 0]),
        (AtTime(2**62), [5, 1, 0]),
        (Ago(6500), [4, 1, 0]),
        (Ago(10**9), [2, 0, 0]),
    ],
)
def test_a_position_has_an_offset_in_each_partition(admin, position, offsets):
    found = resolve(position, admin, PLACES, now=10_000)
    assert found.offsets == dict(zip(PLACES, offsets, strict=True))
    assert not found.moved


def test_offsets_that_the_log_does_not_have_are_replaced_by_the_nearest(admin):
    position = AtOffsets({PLACES[0]: 1, PLACES[1]: 9, TopicPartition("other", 0): 3})
    found = resolve(position, admin, PLACES, now=0)
    assert found.offsets == {PLACES[0]: 2, PLACES[1]: 1}
    assert found.moved == {PLACES[0]: 1, PLACES[1]: 9}
