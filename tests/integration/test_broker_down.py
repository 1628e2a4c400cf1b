"""Requests to a cluster while one broker is down: the other brokers answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from tests.conftest import QUICK_GROUPS
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from streams.devstack.kafka import Node

pytestmark = pytest.mark.kafka


def test_whichever_broker_hangs_the_others_answer(tmp_path: Path):
    with LocalKafka.start(
        tmp_path, nodes=3, heap_mb=384, properties=QUICK_GROUPS, java_options=QUICK_JAVA
    ) as cluster:
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
            with ThreadPoolExecutor(len(admins)) as pool:
                settings = pool.submit(admins[0].settings, ["first"])
                setting = pool.submit(admins[1].broker_setting, "group.coordinator.rebalance.protocols")
                rights = pool.submit(admins[2].require_rights, {"first": {"READ"}})
                assert settings.result()["first"]["retention.ms"] == "77777"
                assert "consumer" in setting.result()
                rights.result()
            node.resume()
        for admin in admins:
            admin.close()


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
