"""Why a worker's partitions changed, as the worker knows it."""

from __future__ import annotations

import pytest

from streams import App, Text
from streams.records import TopicPartition
from streams.runtime.rebalances import KEPT, Reason, Rebalance, Rebalances, reason_of
from tests.support.cluster import MemoryCluster

PLACE = TopicPartition("in", 0)


@pytest.mark.parametrize(
    ("kind", "known", "reason"),
    [
        ("assigned", {"first": True}, Reason.JOINED),
        ("assigned", {}, Reason.MEMBERS),
        ("revoked", {}, Reason.MEMBERS),
        ("revoked", {"stopping": True}, Reason.STOPPING),
        ("lost", {"silent": 300.0}, Reason.POLL_DEADLINE),
        ("lost", {"silent": 50.0}, Reason.SESSION),
        ("lost", {}, Reason.REMOVED),
        ("lost", {"silent": 300.0, "stopping": True}, Reason.STOPPING),
    ],
)
def test_the_reason_follows_from_what_the_worker_did(kind, known, reason):
    state = {"first": False, "stopping": False, "silent": 0.1} | known
    assert reason_of(kind, poll_deadline=300.0, session=45.0, **state) is reason


def test_calls_that_change_nothing_are_no_rebalance_and_old_ones_are_forgotten():
    rebalances = Rebalances()
    rebalances.note(Rebalance(1, "assigned", Reason.MEMBERS, (), 0.1))
    assert rebalances.history == []
    for number in range(KEPT + 10):
        rebalances.note(Rebalance(number, "revoked", Reason.MEMBERS, (PLACE,), 0.5))
    assert len(rebalances.history) == KEPT
    assert rebalances.history[0].time == 10
    assert rebalances.counts[Reason.MEMBERS] == KEPT + 10
    assert rebalances.seconds == (KEPT + 10) / 2


def test_a_worker_notes_who_has_caused_what():
    app = App("copying")
    app.stream("in", value=Text()).to("out")
    cluster = MemoryCluster({"in": 2, "out": 2})
    first, second = (cluster.make_worker(app, name, transaction_timeout=100.0) for name in ("one", "two"))

    def run() -> None:
        for _ in range(5):
            first.run_once()
            if second.state.value == "running":
                second.run_once()

    first.start()
    run()
    second.start()
    run()
    reasons = [item.reason for item in first.rebalances.history]
    assert reasons[0] is Reason.JOINED
    assert set(reasons[1:]) == {Reason.MEMBERS}
    assert second.rebalances.history[-1].reason is Reason.JOINED
    second.close()
    run()
    assert sum(len(item.partitions) for item in first.rebalances.history if item.kind == "assigned") >= 3
    first.request_stop()
    first.close()
    assert first.rebalances.history[-1].reason is Reason.STOPPING
