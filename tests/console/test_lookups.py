"""Lookups run in the background, and what they found is kept for a while."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from streams.console.formats import ValueFormat
from streams.console.lookups import Lookups
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


@pytest.fixture
def lookups() -> Iterator[Lookups]:
    made = Lookups()
    yield made
    made.close()


def test_what_took_longer_than_it_is_kept_is_shown(lookups: Lookups) -> None:
    calls: list[int] = []
    go = threading.Event()

    def slow() -> int:
        calls.append(len(calls))
        go.wait(30)
        return len(calls)

    first = lookups.get("slow", slow, keep=0.5)
    assert first.pending
    # Longer than it is kept.
    since = time.monotonic()
    wait_until(lambda: time.monotonic() - since > 0.6)
    assert lookups.get("slow", slow, keep=0.5).pending
    go.set()
    found: list[Any] = []

    def done() -> bool:
        found.append(lookups.get("slow", slow, keep=0.5))
        return bool(found[-1].done)

    wait_until(done)
    assert found[-1].value == 1
    assert len(calls) == 1


def test_a_result_is_shown_until_the_next_one_is_there() -> None:
    gate = threading.Event()

    def slow() -> str:
        gate.wait(30)
        return "second"

    with closing(Lookups()) as lookups:
        assert lookups.get("what", lambda: "first", keep=60).value == "first"
        shown = lookups.get("what", slow, keep=0)
        assert (shown.value, shown.done) == ("first", True)
        gate.set()
        wait_until(lambda: lookups.get("what", slow, keep=60).value == "second", 30)


def test_what_was_forgotten_is_not_shown_again() -> None:
    gate = threading.Event()

    def slow() -> str:
        gate.wait(30)
        return "second"

    with closing(Lookups()) as lookups:
        lookups.get(("jobs", "shop"), lambda: "first", keep=60)
        lookups.forget("jobs", "shop")
        assert lookups.get(("jobs", "shop"), slow, keep=60).pending
        gate.set()


def test_fields_of_comparisons_are_masked_by_name_and_path() -> None:
    values = ValueFormat(["email", "customer.phone"])
    assert values.field("customer.phone", "123") == '"•••"'
    assert values.field("customer", {"phone": "123", "name": "Ann"}) == '{"phone": "•••", "name": "Ann"}'
    assert values.field("items[].email", "a@b") == '"•••"'
    assert values.field("value", {"customer": {"phone": "123"}}) == '{"customer": {"phone": "•••"}}'
    assert values.field("phone", "123") == '"123"'
