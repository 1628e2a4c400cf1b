"""One of three brokers hangs, or dies at a step of a commit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from tests.conftest import QUICK_GROUPS
from tests.faults.campaign import Campaign

if TYPE_CHECKING:
    from tests.faults.campaign import Fault

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    with LocalKafka.start(
        folder, nodes=3, heap_mb=384, properties=QUICK_GROUPS, java_options=QUICK_JAVA
    ) as kafka:
        yield kafka


def test_whichever_broker_hangs_the_others_answer(cluster):
    broker = KafkaBroker({"bootstrap.servers": cluster.bootstrap_servers})
    # A client for each request, as those to a broker that hangs take seconds.
    admins = [broker.admin() for _ in range(3)]
    admins[0].create_topics([NewTopic(name="first", partitions=1, settings={"retention.ms": "77777"})])
    for admin in admins:
        admin.topics()
    for number in (1, 2, 3):
        # The client considers one of the three the controller, and it is not known which.
        node = cluster.node(number)
        node.pause()
        try:
            with ThreadPoolExecutor(len(admins)) as pool:
                settings = pool.submit(admins[0].settings, ["first"])
                setting = pool.submit(admins[1].broker_setting, "group.coordinator.rebalance.protocols")
                rights = pool.submit(admins[2].require_rights, {"first": {"READ"}})
                assert settings.result()["first"]["retention.ms"] == "77777"
                assert "consumer" in setting.result()
                rights.result()
        finally:
            node.resume()
    for admin in admins:
        admin.close()


def test_results_are_right_after_the_loss_of_a_transaction_coordinator(cluster, tmp_path):
    """A short part of the fault suite; ``make faults`` runs all kinds for longer."""
    fault: Fault = "transaction coordinator killed during a commit"
    # A broker that hung may still be catching up with the others.
    cluster.wait()
    campaign = Campaign(cluster, tmp_path, 1, protocol="classic", every=0.2)
    outcome = campaign.run([fault], ballast=3_000)
    assert outcome.verdict.violations == []
    assert outcome.verdict.records > outcome.sent
    assert set(outcome.faults) == {fault}
