"""A short part of ``describe_groups``: no death of a coordinator ends a process that checks assignments."""

from __future__ import annotations

import pytest

from streams.broker.kafka.assignment_check import ANSWER_SECONDS
from streams.devstack.kafka import LocalKafka
from tests.conftest import QUICK_GROUPS
from tests.faults.describe_groups import Experiment, Kind

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(280)]


def test_questions_about_a_group_outlive_its_coordinator(tmp_path):
    # The only broker is everybody, so this is also the outage of a whole cluster.
    kind = Kind("away for 2 s, released then", ANSWER_SECONDS, 0.2, killed=True, away=2, dropped=True)
    with LocalKafka.start(tmp_path / "kafka", heap_mb=256, properties=QUICK_GROUPS) as kafka:
        figures = Experiment(kafka, tmp_path).play(kind, rounds=1, asks=20)
    assert figures.aborts == [], figures.last_words
    # The client that took the place of the released one is answered.
    assert figures.answers["answered"] == 1
