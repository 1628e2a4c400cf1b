"""The life cycle of an alert, as a function of what is observed and of a clock that is moved by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, strategies as st

from streams.alerts.alert import (
    CLEARED_KEPT,
    NEXT,
    UNDELIVERED_KEPT,
    Alert,
    AlertKey,
    AlertState,
    Symptom,
    advance,
)
from streams.alerts.rules import AlertName, Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = AlertKey(AlertName.BEHIND, "orders")
RULE = Rule(30.0, 300_000, 60_000, "warning")
HOLDS, GONE, UNKNOWN = "holds", "gone", "unknown"


def step(alert: Alert | None, seen: str, now: int, rule: Rule = RULE) -> Alert | None:
    symptom = Symptom(KEY, 45.0, "App shop is behind.") if seen == HOLDS else None
    return advance(alert, symptom, app="shop", rule=rule, certain=seen != UNKNOWN, now=now)


def state(alert: Alert | None) -> AlertState:
    return AlertState.INACTIVE if alert is None else alert.state


def run(*observed: tuple[str, int], rule: Rule = RULE) -> Alert | None:
    """What becomes of an alert that is observed so, each at so many seconds."""
    alert: Alert | None = None
    for seen, seconds in observed:
        alert = step(alert, seen, seconds * 1000, rule)
    return alert


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ([(HOLDS, 0)], AlertState.PENDING),
        ([(HOLDS, 0), (HOLDS, 299)], AlertState.PENDING),
        ([(HOLDS, 0), (HOLDS, 300)], AlertState.FIRING),
        ([(HOLDS, 0), (GONE, 200), (HOLDS, 300)], AlertState.PENDING),
        ([(HOLDS, 0), (GONE, 200)], AlertState.INACTIVE),
        # What is not known has neither begun nor ended.
        ([(HOLDS, 0), (UNKNOWN, 200), (HOLDS, 300)], AlertState.FIRING),
        ([(HOLDS, 0), (UNKNOWN, 400)], AlertState.PENDING),
        ([(UNKNOWN, 0)], AlertState.INACTIVE),
        ([(HOLDS, 0), (HOLDS, 300), (GONE, 310), (GONE, 369)], AlertState.FIRING),
        ([(HOLDS, 0), (HOLDS, 300), (GONE, 310), (GONE, 370)], AlertState.CLEARED),
        ([(HOLDS, 0), (HOLDS, 300), (GONE, 310), (HOLDS, 340), (GONE, 370)], AlertState.FIRING),
        ([(HOLDS, 0), (HOLDS, 300), (GONE, 310), (UNKNOWN, 340), (GONE, 370)], AlertState.FIRING),
        ([(HOLDS, 0), (HOLDS, 300), (UNKNOWN, 10_000)], AlertState.FIRING),
        ([(HOLDS, 0), (HOLDS, 300), (GONE, 310), (GONE, 370), (HOLDS, 400)], AlertState.PENDING),
        # A clock that is set back.
        ([(HOLDS, 10_000), (HOLDS, 0), (HOLDS, 300)], AlertState.FIRING),
        ([(HOLDS, 9_000), (HOLDS, 9_300), (GONE, 9_310), (GONE, 0), (GONE, 60)], AlertState.CLEARED),
    ],
)
def test_what_becomes_of_an_alert(observed: Sequence[tuple[str, int]], expected: AlertState):
    assert state(run(*observed)) is expected


def test_without_durations_it_follows_at_once():
    at_once = RULE._replace(lasting=0, clearing=0)
    assert state(run((HOLDS, 0), rule=at_once)) is AlertState.FIRING
    assert state(run((HOLDS, 0), (GONE, 1), rule=at_once)) is AlertState.CLEARED


def test_a_cleared_alert_is_kept_for_those_who_do_not_know():
    cleared = run((HOLDS, 0), (HOLDS, 300), (GONE, 310), (GONE, 370))
    assert cleared is not None
    late = 370_000 + CLEARED_KEPT
    assert step(cleared, GONE, late) is None
    told = cleared.notified("hook", AlertState.FIRING)
    assert told.unnotified("hook")
    assert step(told, GONE, late) is told
    assert step(told.notified("hook", AlertState.CLEARED), GONE, late) is None
    assert step(told, GONE, 370_000 + UNDELIVERED_KEPT) is None


OBSERVED = st.lists(
    st.tuples(st.sampled_from([HOLDS, HOLDS, GONE, GONE, UNKNOWN]), st.integers(0, 400)), max_size=60
)


@given(observed=OBSERVED, lasting=st.integers(0, 400), clearing=st.integers(0, 400))
def test_raises_and_clearings_alternate_and_only_allowed_states_follow(
    observed: list[tuple[str, int]], lasting: int, clearing: int
):
    rule = Rule(30.0, lasting * 1000, clearing * 1000, "warning")
    now, alert = 0, None
    events: list[AlertState] = []
    held_since: int | None = None
    gone_since: int | None = None
    for seen, seconds in observed:
        now += seconds * 1000
        if seen == HOLDS:
            held_since, gone_since = now if held_since is None else held_since, None
        elif seen == GONE:
            held_since, gone_since = None, now if gone_since is None else gone_since
        else:
            gone_since = None
        before, alert = alert, step(alert, seen, now, rule)
        if state(alert) is not state(before):
            # A rule without duration passes through PENDING at once.
            path = [state(before), AlertState.PENDING, state(alert)]
            steps = path if state(alert) not in NEXT[state(before)] else [state(before), state(alert)]
            assert all(after in NEXT[first] for first, after in pairwise(steps))
            if state(alert) in {AlertState.FIRING, AlertState.CLEARED}:
                events.append(state(alert))
            if state(alert) is AlertState.FIRING:
                assert held_since is not None
                assert now - held_since >= rule.lasting
            if state(alert) is AlertState.CLEARED:
                assert gone_since is not None
                assert now - gone_since >= rule.clearing
        if alert is not None:
            # It is complete in its record: whoever reads it continues.
            assert msgspec.json.decode(msgspec.json.encode(alert), type=Alert) == alert
    expected = [AlertState.FIRING, AlertState.CLEARED] * len(events)
    assert events == expected[: len(events)]


def test_a_state_that_may_not_follow_is_refused():
    pending = run((HOLDS, 0))
    assert pending is not None
    broken = msgspec.structs.replace(pending, state=AlertState.INACTIVE)
    with pytest.raises(AssertionError, match="inactive cannot become firing"):
        step(broken, HOLDS, 400_000)
