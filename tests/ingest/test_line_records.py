from __future__ import annotations

import pytest

from streams.errors import ConfigurationError
from streams.ingest.line_records import FieldPart, LineRecords, PatternPart, parse_headers, part


@pytest.mark.parametrize(
    ("path", "line", "key"),
    [
        ("user", b'{"user":"ann"}', b"ann"),
        ("user.id", b'{"user":{"id":7}}', b"7"),
        ("$.user.id", b'{"user":{"id":"x"}}', b"x"),
        ("user.id", b'{"user.id":1,"user":{"id":2}}', b"1"),
        ("a.b.c", b'{"a":{"b.c":true}}', b"true"),
        ("items.1.sku", b'{"items":[{"sku":1},{"sku":2}]}', b"2"),
        ("0", b'["first"]', b"first"),
        ("user", b'{"user":""}', b""),
        ("user", b'{"user":{"b":1,"a":[2]}}', b'{"b":1,"a":[2]}'),
        ("user", '{"user":"größe"}'.encode(), "größe".encode()),
        ("user", b'{"user":null}', None),
        ("user", b'{"name":"ann"}', None),
        ("user.id", b'{"user":"ann"}', None),
        ("user", b"not json", None),
        ("user", b"\xff\xfe", None),
        ("user", b"", None),
        ("items.7", b'{"items":[1]}', None),
        ("user", b"[" * 100_000, None),
    ],
)
def test_a_key_is_a_field_of_json(path, line, key):
    shape = LineRecords("t", key=FieldPart(path))
    assert shape.records([line], 5).keys == [key]
    assert shape.without_key == (key is None)


@pytest.mark.parametrize(
    ("pattern", "line", "key"),
    [
        (r"^(\S+) ", b"203.0.113.9 - -", b"203.0.113.9"),
        (r"user=(\w*)", b"a user= b", b""),
        (r"\d+", b"order 17", b"17"),
        (r"(a)|(b)", b"b", None),
        (r"x", b"y", None),
        (r"id=(.)", b"id=\xff", b"\xff"),
    ],
)
def test_a_key_is_what_a_pattern_finds(pattern, line, key):
    assert LineRecords("t", key=PatternPart(pattern)).records([line], 5).keys == [key]


@pytest.mark.parametrize(
    ("line", "time"),
    [
        (b'{"at":1431857103123}', 1_431_857_103_123),
        (b'{"at":"1431857103123"}', 1_431_857_103_123),
        (b'{"at":1431857103123.9}', 1_431_857_103_123),
        (b'{"at":"2015-05-17T10:05:03.123Z"}', 1_431_857_103_123),
        (b'{"at":"2015-05-17T12:05:03.123+02:00"}', 1_431_857_103_123),
        (b'{"at":"2015-05-17T10:05:03"}', None),
        (b'{"at":true}', None),
        (b'{"at":-5}', None),
        (b'{"at":1e300}', None),
        (b'{"at":"9999999999999999"}', None),
        (b'{"at":"yesterday"}', None),
        (b"{}", None),
    ],
)
def test_an_event_time_is_a_field_or_the_time_of_arrival(line, time):
    shape = LineRecords("t", timestamp=FieldPart("at"))
    assert shape.records([line], 5).timestamps == [5 if time is None else time]
    assert shape.without_timestamp == (time is None)


def test_lines_are_values_as_they_are_with_the_time_of_arrival():
    output = LineRecords("t").records([b"\0", b"", b"\xff"], 77)
    assert (output.topic, output.keys, output.values) == ("t", [None] * 3, [b"\0", b"", b"\xff"])
    assert (output.timestamps, output.headers) == ([77] * 3, None)


def test_headers_are_those_of_every_record():
    headers = parse_headers(["source=web=1", "empty="])
    assert (
        LineRecords("t", headers=headers).records([b"a", b"b"], 1).headers
        == [[("source", b"web=1"), ("empty", b"")]] * 2
    )
    with pytest.raises(ConfigurationError, match="'nothing' is not a header"):
        parse_headers(["nothing"])


def test_a_part_is_given_by_field_or_by_pattern():
    assert part("key", None, None) is None
    with pytest.raises(ConfigurationError, match="--key and --key-pattern are both given"):
        part("key", "a", "b")
    with pytest.raises(ConfigurationError, match=r"not a valid regular expression"):
        part("key", None, "(")
    with pytest.raises(ConfigurationError, match="does not name a field"):
        part("key", ".", None)
