"""Positions of a change stream: nothing is taken twice, and nothing is left out, wherever it is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from streams.connectors.debezium.position import EventsMissing, Position, Transactions, lsn_number, lsn_text
from streams.connectors.debezium.settings import server_name
from streams.errors import ConnectorError

transactions = st.lists(st.integers(1, 5), min_size=1, max_size=8)


def log(sizes: list[int]) -> list[tuple[int, int]]:
    """Events as (end of the commit before, number), in the order of commits."""
    events, number = [], 0
    for at, size in enumerate(sizes):
        events += [(100 * at, number + index) for index in range(size)]
        number += size
    return events


@given(transactions, st.lists(st.lists(st.integers(1, 7), max_size=4), max_size=8))
def test_every_event_is_taken_once_wherever_the_stream_is_cut(sizes, readers):
    events = log(sizes)
    taken: list[int] = []
    lsn = included = 0
    # Each reader gets pieces of these sizes before it is closed; the last one gets everything.
    for pieces in [*readers, [len(events)]]:
        # The server sends all transactions that committed after the position.
        stream = [event for event in events if event[0] >= lsn]
        state = Transactions(lsn, included)
        for size in pieces:
            piece, stream = stream[:size], stream[size:]
            if piece:
                skipped = state.take([before for before, _ in piece])
                taken += [number for _, number in piece[skipped:]]
                lsn, included = state.lsn, state.events
    assert taken == [number for _, number in events]


@given(transactions, st.integers(1, 6), st.booleans())
def test_the_position_goes_only_forward(sizes, size, heartbeats):
    state = Transactions(0, 0)
    orders = [(0, 0)]
    events = log(sizes)
    while events:
        state.take([before for before, _ in events[:size]])
        events = events[size:]
        orders.append((state.lsn, state.events))
        if heartbeats and events and events[0][0] > state.lsn:
            state.committed(events[0][0])
            orders.append((state.lsn, state.events))
    assert orders == sorted(set(orders))


def test_a_commit_that_was_seen_before_changes_nothing():
    state = Transactions(100, 2)
    state.committed(100)
    state.committed(None)
    assert (state.lsn, state.events) == (100, 2)


def test_the_rest_of_a_transaction_that_is_not_sent_again_is_missed():
    state = Transactions(100, 3)
    assert state.take([100, 100]) == 2
    with pytest.raises(EventsMissing, match="3 events had been read, 1 of which"):
        state.take([200])


def test_a_commit_beyond_a_transaction_that_is_not_sent_again_is_missed():
    with pytest.raises(EventsMissing, match="2 of which"):
        Transactions(100, 2).committed(200)


def test_commits_do_not_go_back():
    with pytest.raises(EventsMissing, match="went back from 200 to 100"):
        Transactions(200, 0).take([100])


def test_the_first_transaction_has_no_name():
    state = Transactions(100, 1)
    assert state.take([None, None, 200]) == 1
    assert (state.lsn, state.events) == (200, 1)


def test_a_position_is_read_as_it_was_written():
    position = Position(
        phase="stream",
        snapshot=2,
        label="a",
        lsn=5,
        events=3,
        confirmed=4,
        number=9,
        system="7",
        tables={"p.t": "1 (id)"},
    )
    assert Position.decode(position.encode()) == position
    assert Position.decode(b"") == Position()
    assert Position().order < Position(snapshot=1).order < position.order


def test_the_position_of_another_source_is_refused():
    with pytest.raises(ConnectorError, match="not one of a Debezium source"):
        Position.decode(b'{"phase": 7}')


@given(st.integers(0, 2**64 - 1))
def test_log_sequence_numbers_are_written_as_the_server_does(number):
    assert lsn_number(lsn_text(number)) == number


def test_a_log_sequence_number_in_text():
    assert lsn_text(24281712) == "0/1728270"


def test_sources_with_similar_names_have_slots_of_their_own():
    names = [
        ("a", "b"),
        ("a-b", "c"),
        ("a_b", "c"),
        ("a", "b_c"),
        ("A", "b"),
        ("x" * 70, "y"),
        ("x" * 70, "z"),
    ]
    slots = [server_name(*name) for name in names]
    assert slots[0] == "a_b"
    assert len(set(slots)) == len(slots)
    assert all(re.fullmatch(r"[a-z0-9_]{1,63}", slot) for slot in slots)
