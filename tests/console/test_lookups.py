"""Lookups run in the background, and what they found is kept for a while."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

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


def test_the_result_before_is_known_while_it_is_looked_up_again(lookups: Lookups) -> None:
    go = threading.Event()
    assert lookups.get("one", lambda: "old", keep=60).value == "old"

    def slow() -> str:
        go.wait(30)
        return "new"

    again = lookups.get("one", slow, keep=-1)
    assert again.pending
    assert again.value is None
    assert again.known == "old"
    go.set()
    wait_until(lambda: lookups.get("one", slow, keep=60).known == "new")
