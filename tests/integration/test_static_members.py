"""Static members over restarts, kills and doubles, on a real broker."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.integration.test_workers import held, numbered

pytestmark = pytest.mark.kafka

STATIC = {"group_instance_id": "member", "session_timeout": 20}


def rebalances(worker) -> int:
    return sum(len(worker.events(f"partitions {what}")) for what in ("assigned", "revoked", "lost"))


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_static_member_that_restarts_within_its_session_moves_nothing(copy, protocol):
    settings = {**STATIC, "group_protocol": protocol}
    first = copy.start(**settings)
    copy.wait_for(lambda: len(held(first)) == 4, 60, "the first has all")
    second = copy.start(**settings)
    copy.wait_for(lambda: sorted(map(len, (held(first), held(second)))) == [2, 2], 60, "two partitions each")
    copy.produce(numbered(0, 1_000))
    copy.wait_until_consumed()
    before, kept = rebalances(first), held(second)
    for round_ in range(1, 3):
        assert second.stop() == 0
        second = copy.start(**settings)
        copy.wait_for(lambda worker=second: len(held(worker)) == 2, 30, "the second is back")
        assert held(second) == kept
        copy.produce(numbered(round_ * 1_000, (round_ + 1) * 1_000))
        copy.wait_until_consumed()
    assert rebalances(first) == before
    assert copy.outputs() == Counter(numbered(0, 3_000))


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_static_member_that_was_killed_comes_back_to_what_it_had(copy, protocol):
    settings = {**STATIC, "session_timeout": 6, "group_protocol": protocol, "transaction_timeout": 3}
    first = copy.start(**settings)
    copy.wait_for(lambda: len(held(first)) == 4, 60, "the first has all")
    second = copy.start(**settings)
    copy.wait_for(lambda: sorted(map(len, (held(first), held(second)))) == [2, 2], 60, "two partitions each")
    kept = held(second)
    copy.produce(numbered(0, 1_000))
    copy.wait_until_consumed()
    second.kill()
    second = copy.start(**settings)
    copy.produce(numbered(1_000, 2_000))
    copy.wait_until_consumed()
    copy.wait_for(lambda: len(held(second)) == 2, 30, "the second is back")
    assert held(second) == kept
    assert second.process.poll() is None
    assert copy.outputs() == Counter(numbered(0, 2_000))


def test_an_instance_id_that_another_living_member_has_waits_and_is_then_refused(copy, tmp_path):
    settings = {**STATIC, "group_protocol": "consumer", "session_timeout": 6}
    first = copy.start(**settings)
    copy.wait_for(lambda: len(held(first)) == 4, 60, "the first has all")
    # Another machine whose workers have the same instance ids.
    second = copy.start(**settings, state_dir=tmp_path / "elsewhere", worker_id="elsewhere")
    copy.wait_for(
        lambda: "waiting for the end of the previous member" in second.log.read_text(),
        30,
        "it stands in line",
    )
    copy.produce(numbered(0, 1_000))
    copy.wait_until_consumed()
    assert len(held(first)) == 4
    assert not held(second)
    assert first.stop() == 0
    # A static member that stops keeps its place for its session; then the other one gets it.
    copy.wait_for(lambda: len(held(second)) == 4, 60, "the second takes over")
    assert second.stop() == 0
    assert copy.outputs() == Counter(numbered(0, 1_000))
