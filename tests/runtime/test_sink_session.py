"""A session that is closed while it connects leaves no connection open, and none to a later one."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from streams import App, Text
from streams.connectors.sink import SinkContext
from streams.errors import SinkUnavailable
from streams.records import TopicPartition
from streams.runtime.sink_session import SinkSession
from tests.support.connectors import Database, MemorySink, MemoryWriter
from tests.support.waiting import wait_until

PLACE = TopicPartition("in", 0)


class SlowWriter(MemoryWriter):
    """To open the first one takes until the test says so."""

    made: list[SlowWriter]
    gate: threading.Event

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.closed = 0
        self.made.append(self)
        if self is self.made[0]:
            assert self.gate.wait(60)

    def close(self) -> None:
        self.closed += 1
        super().close()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> SinkSession:
    monkeypatch.setattr(SlowWriter, "made", [], raising=False)
    monkeypatch.setattr(SlowWriter, "gate", threading.Event(), raising=False)
    monkeypatch.setattr("tests.support.connectors.MemoryWriter", SlowWriter)
    app = App("app")
    app.stream("in", value=Text()).sink(MemorySink(Database()))
    (node,) = app.topology.sink_connectors
    context = SinkContext(application="app", name="rows", worker="w", lock_timeout=1)
    made = SinkSession(node, context, committed=lambda _: {}, waiting=lambda: None, clock=time.monotonic)
    made.add(PLACE)
    return made


def claim(session: SinkSession) -> dict[TopicPartition, int]:
    return session.claim(lambda topics: dict.fromkeys(topics, "id"))


def test_a_connection_that_is_opened_while_the_session_closes_is_closed(session: SinkSession):
    claim(session)
    wait_until(lambda: SlowWriter.made)
    session.close()
    SlowWriter.gate.set()
    wait_until(lambda: SlowWriter.made[0].closed == 1)


def test_the_next_connection_is_not_replaced_by_a_late_one(session: SinkSession):
    claim(session)
    wait_until(lambda: SlowWriter.made)
    session.abandon()
    claim(session)
    wait_until(lambda: session.ready or claim(session))
    late, current = SlowWriter.made
    SlowWriter.gate.set()
    wait_until(lambda: late.closed == 1)
    assert session.write([]) == []
    session.rollback()
    session.close()
    wait_until(lambda: current.closed == 1)
    assert late.closed == 1


def test_a_connection_whose_positions_cannot_be_read_is_closed_once(session: SinkSession):
    SlowWriter.gate.set()
    session.node.connector.database.faults["claim"] = ["unavailable"]  # type: ignore[attr-defined]  # the test's sink
    with pytest.raises(SinkUnavailable):
        wait_until(lambda: claim(session))
    wait_until(lambda: SlowWriter.made[0].closed == 1)
    session.close()
    assert SlowWriter.made[0].closed == 1
