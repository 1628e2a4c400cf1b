"""A short part of the fault suite, always the same plan; ``make faults`` runs it for longer."""

from __future__ import annotations

import pytest

from streams.localkafka import LocalKafka
from tests.conftest import QUICK_GROUPS
from tests.faults.campaign import WORKER_FAULTS, Campaign

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    with LocalKafka.start(folder, nodes=3, heap_mb=384, properties=QUICK_GROUPS) as kafka:
        yield kafka


@pytest.mark.parametrize(
    ("guarantee", "protocol", "faults", "seconds"),
    [
        ("exactly_once", "consumer", WORKER_FAULTS, 30),
        ("exactly_once", "classic", ("broker killed", "broker restarted"), 5),
        ("at_least_once", "consumer", ("worker killed", "worker stopped"), 5),
    ],
)
def test_results_are_right_whatever_happened(cluster, tmp_path, guarantee, protocol, faults, seconds):
    campaign = Campaign(cluster, tmp_path, 1, guarantee=guarantee, protocol=protocol)
    outcome = campaign.run(seconds, faults)
    assert outcome.verdict.violations == []
    assert outcome.verdict.records > outcome.sent
    assert outcome.faults
