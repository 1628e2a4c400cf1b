"""Lookups: begun by a request, found by the next one, and replaced without a gap."""

from __future__ import annotations

import threading
from contextlib import closing

from streams.console.formats import ValueFormat
from streams.console.lookups import Lookups
from tests.support.waiting import wait_until


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
