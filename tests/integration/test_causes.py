"""What holds a worker back on a real broker: quotas, and a broker that stands still."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from streams.records import Output
from tests.conftest import QUICK_GROUPS
from tests.support.quotas import remove_quota, set_quota

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Copy

pytestmark = pytest.mark.kafka

QUOTA = 20_000
"""Bytes a second, a tenth of what is written."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    folder = tmp_path_factory.mktemp("kafka")
    with LocalKafka.start(folder, heap_mb=384, properties=QUICK_GROUPS, java_options=QUICK_JAVA) as started:
        yield started


class Watched:
    """A worker that is fed all the time, and what it says of itself."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        copy.create_topics()
        self.client = f"{copy.prefix}-client"
        copy.environment["STREAMS_CLIENT"] = json.dumps({"client.id": self.client})
        self.worker = copy.start(http_port=0)
        copy.wait_for(lambda: self.worker.events("http listening"), 60, "the port is open")
        self._url = self.worker.events("http listening")[0]["url"]
        copy.wait_for(lambda: self._report()["condition"] == "keeping up", 60, "the worker has begun")
        copy.produce(["a", "b", "c", "d"])
        copy.wait_until_consumed()

    def _report(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._url}/status", timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def causes(self) -> dict[str, str]:
        """The sentences by kind and subject."""
        found = self._report()["bottlenecks"]
        return {f"{item['cause']} {item['subject']}": item["sentence"] for item in found}

    def wait_for(self, condition: Callable[[dict[str, str]], object], what: str) -> dict[str, str]:
        seen: list[dict[str, str]] = []

        def holds() -> object:
            seen.append(self.causes())
            return condition(seen[-1])

        self._copy.wait_for(holds, 90, what, lambda: seen[-3:])
        return seen[-1]

    def stop(self) -> int:
        """Stop once all is committed, for which a broker that was slow may need longer than a stop takes."""
        self._copy.wait_until_consumed()
        return self.worker.stop(30)

    @contextmanager
    def fed(self) -> Iterator[None]:
        """Write 200 kB a second in records that cannot be compressed away, with another client id."""
        end = threading.Event()
        values: list[bytes | None] = [b"v" * 2_000] * 20

        producer = self._copy.broker.producer()

        def write() -> None:
            stamps = [time.time_ns() // 1_000_000] * len(values)
            producer.produce(Output(self._copy.input, [None] * len(values), values, stamps))

        def feed() -> None:
            while not end.wait(0.2):
                write()
            producer.flush(30)
            producer.close()

        # The first write looks for the topic.
        write()
        thread = threading.Thread(target=feed)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


@pytest.fixture
def watched(cluster: LocalKafka, make_copy: Callable[[str], Copy]) -> Watched:
    return Watched(make_copy(cluster.bootstrap_servers))


@pytest.mark.parametrize(
    ("role", "said"),
    [("producer", "the broker acknowledges late because of a quota"), ("consumer", "records arrive late")],
)
def test_a_quota_is_named_while_it_holds_the_worker_back(
    cluster: LocalKafka, watched: Watched, role: str, said: str
) -> None:
    servers = cluster.bootstrap_servers
    with watched.fed():
        set_quota(servers, watched.client, f"{role}_byte_rate", QUOTA)
        name = f"quota {role} at broker 1"
        causes = watched.wait_for(lambda found: name in found, "the quota is named")
        assert causes[name].startswith(said)
        assert not any(kind.startswith(("step", "fetching")) for kind in causes)
        remove_quota(servers, watched.client, f"{role}_byte_rate")
    watched.wait_for(lambda found: not found, "nothing is named any more")
    assert watched.stop() == 0


def test_a_broker_that_stands_still_is_named_while_it_does(cluster: LocalKafka, watched: Watched) -> None:
    node = cluster.node(1)
    with watched.fed():
        watched.wait_for(lambda found: not found, "nothing is wrong yet")
        node.pause()
        try:
            causes = watched.wait_for(
                lambda found: any(kind.startswith("broker") for kind in found), "the broker is named"
            )
            assert not any(kind.startswith(("step", "quota")) for kind in causes)
        finally:
            node.resume()
    watched.wait_for(lambda found: not found, "nothing is named any more")
    assert watched.stop() == 0
