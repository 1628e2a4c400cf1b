"""A short part of ``describe_groups``: with the assignment check's requests, no fault crashes the process."""

from __future__ import annotations

import pytest

from streams.broker.kafka.assignment_check import ANSWER_SECONDS
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from tests.conftest import QUICK_GROUPS
from tests.faults.describe_groups import Experiment, Kind

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(280)]


def test_describing_a_group_survives_the_loss_of_its_coordinator(tmp_path):
    # There is only one broker, so this is also the outage of a complete cluster.
    kind = Kind("away for 2 s, released then", ANSWER_SECONDS, 0.2, killed=True, away=2, dropped=True)
    with LocalKafka.start(
        tmp_path / "kafka", heap_mb=256, properties=QUICK_GROUPS, java_options=QUICK_JAVA
    ) as kafka:
        figures = Experiment(kafka, tmp_path).play(kind, rounds=1, asks=20)
    assert figures.aborts == [], figures.last_words
    # The client that replaced the closed one gets answers.
    assert figures.answers["answered"] == 1
