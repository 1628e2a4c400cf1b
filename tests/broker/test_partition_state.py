"""The states of a consumer's partition: all allowed transitions, and that others are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams.broker import BEGINNING, END
from streams.broker.kafka.partition_state import Delivery, PartitionState, Position, Reading

if TYPE_CHECKING:
    from collections.abc import Callable

ENDED = "end of an unplaced partition"


def is_paused(state: PartitionState) -> bool:
    return state.paused


def unplaced() -> PartitionState:
    return PartitionState(None)


def unplaced_stopped() -> PartitionState:
    state = unplaced()
    state.stop(None)
    return state


def reading() -> PartitionState:
    return PartitionState(5)


def stopped() -> PartitionState:
    state = reading()
    state.stop(5)
    return state


def out_of_range() -> PartitionState:
    state = stopped()
    state.reported()
    return state


def certain() -> PartitionState:
    state = reading()
    state.end_reached()
    return state


def uncertain() -> PartitionState:
    state = reading()
    state.rebalanced()
    return state


PLACES: dict[Reading, Callable[[], PartitionState]] = {
    Reading.UNPLACED: unplaced,
    Reading.UNPLACED_STOPPED: unplaced_stopped,
    Reading.READING: reading,
    Reading.STOPPED: stopped,
    Reading.OUT_OF_RANGE: out_of_range,
}


def test_a_partition_begins_where_it_is_assigned_and_its_first_end_is_doubted():
    state = reading()
    assert (state.reached, state.reading, state.delivery, state.position) == (
        5,
        Reading.READING,
        Delivery.RUNNING,
        Position.MOVED,
    )
    assert not state.waits
    state = unplaced()
    assert (state.reached, state.reading) == (None, Reading.UNPLACED)
    assert state.unplaced
    assert state.waits


@pytest.mark.parametrize("place", Reading)
def test_each_state_has_the_expected_properties(place):
    assert PLACES[place]().reading is place


@pytest.mark.parametrize("place", Reading)
def test_a_seek_places_it_whatever_it_was(place):
    state = PLACES[place]()
    state.sought(9)
    assert (state.reached, state.reading, state.position) == (9, Reading.READING, Position.MOVED)
    assert state.stopped_at is None
    assert not state.waits


@pytest.mark.parametrize("place", Reading)
def test_a_new_assignment_places_a_partition_and_keeps_its_position_state(place):
    state = PLACES[place]()
    state.rebalanced()
    state.placed(BEGINNING)
    assert (state.reached, state.reading, state.position) == (
        BEGINNING,
        Reading.READING,
        Position.UNCERTAIN,
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Reading.UNPLACED, Reading.UNPLACED_STOPPED),
        (Reading.UNPLACED_STOPPED, Reading.UNPLACED_STOPPED),
        (Reading.READING, Reading.STOPPED),
        (Reading.STOPPED, Reading.STOPPED),
        (Reading.OUT_OF_RANGE, Reading.OUT_OF_RANGE),
    ],
)
def test_a_client_that_stops_is_noted_whatever_the_partition_was(before, after):
    state = PLACES[before]()
    state.stop(7)
    assert state.reading is after
    assert state.stopped
    assert state.waits == (after is not Reading.OUT_OF_RANGE)
    assert state.stopped_at == (None if state.unplaced else 7)


@pytest.mark.parametrize("offset", [None, -1, -1001])
def test_a_client_that_knew_no_offset_stopped_at_none(offset):
    state = reading()
    state.stop(offset)
    assert state.stopped_at is None
    assert state.reached == 5


@pytest.mark.parametrize("place", [Reading.UNPLACED, Reading.UNPLACED_STOPPED, Reading.READING])
def test_only_what_has_stopped_can_be_reported(place):
    state = PLACES[place]()
    with pytest.raises(AssertionError, match=f"{place.value} cannot become out of range"):
        state.reported()
    assert state.reading is place


def test_what_is_handed_out_moves_it_forward():
    state = PartitionState(BEGINNING)
    state.handed_out(3)
    state.handed_out(8)
    assert state.reached == 8


@pytest.mark.parametrize("next_offset", [4, 5])
def test_what_was_handed_out_is_refused_a_second_time(next_offset):
    state = reading()
    with pytest.raises(AssertionError, match="was delivered before: the next offset is 5"):
        state.handed_out(next_offset)
    assert state.reached == 5


@pytest.mark.parametrize("make", [unplaced, unplaced_stopped])
def test_records_and_ends_of_an_unplaced_partition_are_refused(make):
    state = make()
    with pytest.raises(AssertionError, match="records of an unplaced partition"):
        state.handed_out(6)
    with pytest.raises(AssertionError, match=ENDED):
        state.ended(6)
    with pytest.raises(AssertionError, match=ENDED):
        state.doubts(6)


def test_an_end_settles_a_logical_offset_and_no_other():
    logical, known = PartitionState(END), reading()
    logical.ended(9)
    known.ended(9)
    assert (logical.reached, known.reached) == (9, 5)


@pytest.mark.parametrize(
    ("reached", "end", "doubted"),
    [
        (5, 5, False),
        (5, 6, False),
        (5, 7, True),
        (BEGINNING, 0, False),
        (BEGINNING, 1, False),
        (BEGINNING, 2, True),
        (END, 100, False),
    ],
)
def test_after_a_move_an_end_more_than_a_marker_ahead_is_doubted_once(reached, end, doubted):
    state = PartitionState(reached)
    assert state.doubts(end) == doubted
    state.end_reached()
    assert state.position is Position.CERTAIN
    assert not state.doubts(end)
    state.moved()
    assert state.doubts(end) == doubted


def test_an_uncertain_position_is_sought_again_before_any_end_counts():
    state = uncertain()
    with pytest.raises(AssertionError, match="sought before any end counts"):
        state.doubts(9)
    with pytest.raises(AssertionError, match="uncertain cannot become certain"):
        state.end_reached()
    state.moved()
    assert state.doubts(9)


@pytest.mark.parametrize("make", [reading, certain, uncertain])
def test_a_rebalance_and_a_move_count_whatever_the_position_was(make):
    state = make()
    state.rebalanced()
    assert state.position is Position.UNCERTAIN
    state = make()
    state.moved()
    assert state.position is Position.MOVED


def test_a_poll_ends_what_keep_alive_paused():
    state = reading()
    state.idle()
    assert state.delivery is Delivery.IDLE
    assert is_paused(state)
    assert state.waits
    state.resume()
    assert not is_paused(state)


def test_only_the_caller_resumes_what_the_caller_paused():
    state = reading()
    state.idle()
    state.pause()
    state.pause()
    assert state.delivery is Delivery.PAUSED
    assert not state.waits
    with pytest.raises(AssertionError, match="paused cannot become idle"):
        state.idle()
    state.resume()
    assert not is_paused(state)
    state.pause()
    assert is_paused(state)
    assert not state.waits


def test_what_runs_is_not_resumed_and_what_is_idle_not_made_so_again():
    state = reading()
    with pytest.raises(AssertionError, match="running cannot become running"):
        state.resume()
    state.idle()
    with pytest.raises(AssertionError, match="idle cannot become idle"):
        state.idle()


def test_a_partition_may_stay_paused_over_an_assignment():
    assert PartitionState(0, Delivery.PAUSED).paused
