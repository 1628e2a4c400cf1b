"""Requests to a broker that the cluster considers dead for a moment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from streams.devstack.kafka import Node

pytestmark = pytest.mark.kafka


def _stand_still(node: Node, seconds: float) -> None:
    node.pause()
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, what="the end of the pause")
    node.resume()


def test_topics_are_made_on_a_broker_that_stood_still(tmp_path: Path):
    """The controller, which stood still too, may consider it dead at first, and refuse all partitions."""
    quick = {"broker.session.timeout.ms": "1000", "broker.heartbeat.interval.ms": "500"}
    with LocalKafka.start(tmp_path, heap_mb=384, properties=quick, java_options=QUICK_JAVA) as cluster:
        admin = KafkaBroker({"bootstrap.servers": cluster.bootstrap_servers}).admin()
        node = cluster.node(1)
        log = cluster.log_files[0]
        # Whether it looks for dead brokers before or after it hears of this one is chance.
        for number in range(20):
            _stand_still(node, 1.2)  # longer than its session
            names = {f"one-{number}", f"two-{number}"}
            assert admin.create_topics([NewTopic(name=name, partitions=2) for name in names]) == names
            if log.read_text().count("Fencing broker 1 ") >= 2:
                break
        else:
            pytest.fail(f"the controller never considered the broker dead:\n{log.read_text()[-3000:]}")
        admin.close()
