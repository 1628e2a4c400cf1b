from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from streams.connectors.row_origins import origins_of
from streams.connectors.zeromq.frames import (
    Columns,
    checked_frames,
    columns_of,
    messages_of,
)
from streams.errors import ConfigurationError
from streams.records import TopicPartition


def named(messages, names):
    """The columns of messages, each a list of frames."""
    frames = [frame for message in messages for frame in message]
    more = [int(place < len(message) - 1) for message in messages for place in range(len(message))]
    return columns_of(frames, more, names)


def test_one_frame_is_a_value_and_two_are_a_key_and_a_value():
    assert named([[b"1"], [b"2"]], ("key", "value")) == Columns([None, None], [b"1", b"2"], None)
    assert named([[b"k", b"1"], [b"", b""]], ("key", "value")) == Columns([b"k", None], [b"1", b""], None)
    assert named([[b"1", b"k"]] * 2, ("value", "key")) == Columns([b"k"] * 2, [b"1"] * 2, None)


def test_other_frames_are_headers():
    columns = named(
        [[b"k", b"v", b"t/0/1"], [b"v"], [b"k", b"v", b"t/0/2", b"x"]], ("key", "value", "origin")
    )
    assert columns.keys == [b"k", None, b"k"]
    assert columns.values == [b"v", b"v", b"v"]
    assert columns.headers == [
        [("origin", b"t/0/1")],
        None,
        [("origin", b"t/0/2"), ("frame-3", b"x")],
    ]
    assert named([[b"v", b"x"]], ("value",)).headers == [[("frame-1", b"x")]]


def test_a_message_shorter_than_its_names_has_its_last_frame_as_value():
    columns = named([[b"k", b"t/0/1"]], ("key", "origin", "value"))
    assert (columns.keys, columns.values) == ([b"k"], [b"t/0/1"])


def test_pairs_of_headers_without_an_end():
    columns = named([[b"k", b"v", b"a", b"1", b"\xff"]], ("key", "value", "headers"))
    assert columns.headers == [[("a", b"1"), ("\ufffd", None)]]


FRAME = st.binary(max_size=3)
ROWS = st.lists(
    st.tuples(
        st.none() | FRAME.filter(bool),
        FRAME,
        st.none() | st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=2), FRAME), max_size=2),
    ),
    min_size=1,
    max_size=6,
)


@given(ROWS)
def test_what_a_sink_sends_is_read_back_by_a_source(rows):
    names = ("key", "value", "headers")
    keys, values, headers = ([*column] for column in zip(*rows, strict=True))
    frames, more = messages_of(names, keys, values, [b""] * len(rows), headers)
    columns = columns_of(frames, [int(follows) for follows in more], names)
    assert list(columns.keys) == keys
    assert list(columns.values) == values
    read = columns.headers or [None] * len(rows)
    assert [own or [] for own in read] == [own or [] for own in headers]


def test_rows_of_one_record_have_numbers():
    place = TopicPartition("my.orders-1_x", 3)
    assert origins_of(place, [7, 8, 9]) == [b"my.orders-1_x/3/7", b"my.orders-1_x/3/8", b"my.orders-1_x/3/9"]
    assert origins_of(place, [7, 7, 8, 7]) == [
        b"my.orders-1_x/3/7",
        b"my.orders-1_x/3/7/1",
        b"my.orders-1_x/3/8",
        b"my.orders-1_x/3/7/2",
    ]


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        (("key",), "has no 'value'"),
        (("value", "value"), "has a name twice"),
        (("headers", "value"), "has 'headers' not last"),
        (("value", "colour"), "has 'colour'"),
    ],
)
def test_names_of_frames_are_checked(frames, fault):
    with pytest.raises(ConfigurationError, match=fault):
        checked_frames("PushSink", frames, known=True)
