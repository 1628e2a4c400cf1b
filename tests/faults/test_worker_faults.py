"""A short part of the fault suite, always the same faults; ``make faults`` runs all kinds for longer.

Faults of workers need one broker only: with three, most of the time goes into replicas, whose faults
``test_broker_faults.py`` has.
"""

from __future__ import annotations

import pytest

from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from tests.conftest import QUICK_GROUPS
from tests.faults.campaign import Campaign
from tests.faults.scenarios import SCENARIOS, play

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(280)]

EVERY = 0.2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    with LocalKafka.start(folder, heap_mb=384, properties=QUICK_GROUPS, java_options=QUICK_JAVA) as kafka:
        yield kafka


@pytest.mark.parametrize(
    ("guarantee", "faults"),
    [
        ("exactly_once", ("worker killed and its disk damaged", "rebalance during a restore")),
        ("at_least_once", ("worker killed", "worker stopped")),
    ],
)
def test_results_are_right_after_all_faults(cluster, tmp_path, guarantee, faults):
    campaign = Campaign(cluster, tmp_path, 1, guarantee=guarantee, every=EVERY)
    outcome = campaign.run(faults, ballast=3_000)
    assert outcome.verdict.violations == []
    assert outcome.verdict.records > outcome.sent
    assert set(outcome.faults) == set(faults)


def test_partitions_that_are_added_to_the_input_end_the_workers_with_an_error(cluster, tmp_path):
    scenario = next(item for item in SCENARIOS if item.name.startswith("partitions added"))
    outcome = play(scenario, cluster, tmp_path, 1, every=EVERY)
    assert outcome.verdict.violations == []
    assert outcome.verdict.checked["loud"] == 2
