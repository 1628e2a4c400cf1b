"""A short part of the data sync campaign, always the same faults; ``make faults ONLY=sync`` runs all."""

from __future__ import annotations

import pytest

from tests.faults.sync_campaign import SyncCampaign

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(280)]


def test_copies_are_equal_after_all_faults(tmp_path):
    faults = ("worker killed", "target database restarted", "connections cut")
    outcome = SyncCampaign(tmp_path, 1, rows=500, nodes=1).run(faults)
    assert outcome.violations == []
    assert set(outcome.faults) == set(faults)
    assert outcome.rows > 0
    assert outcome.history > 0
