"""Two workers as processes on a real broker, each queried for the state of both, while one is restarted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from streams.broker import NewTopic
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.broker.kafka import KafkaBroker

pytestmark = pytest.mark.kafka

PARTITIONS = 4
USERS = [f"user-{number:02d}" for number in range(40)]
DAY = 24 * 3600 * 1000


class Asked:
    """A ``streams run`` with an HTTP port: started, queried, killed or stopped, and started again."""

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = folder.with_suffix(".log")
        self._environment = {
            **os.environ,
            "QUERY_PREFIX": prefix,
            "STREAMS_BOOTSTRAP_SERVERS": servers,
            "STREAMS_STATE_DIR": str(folder),
            "STREAMS_WORKER_ID": folder.name,
            "STREAMS_HTTP_PORT": str(self.port),
            "STREAMS_LOG_FORMAT": "json",
            # Short enough that a killed worker is removed from the group within a test.
            "STREAMS_GROUP_PROTOCOL": "classic",
            "STREAMS_SESSION_TIMEOUT": "6",
            "STREAMS_TRANSACTION_TIMEOUT": "3",
        }
        self.process = self._run()

    def get(self, path: str) -> tuple[int, Any]:
        """Status and answer; status 0 without an answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
        except OSError as error:
            return 0, str(error)

    def held(self) -> list[int]:
        status, answer = self.get("/stores")
        return answer["stores"][0]["held"] if status == 200 else []

    def log(self) -> str:
        return self._log.read_text()[-3000:]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.log()

    def restart(self) -> None:
        self.process = self._run()

    def _run(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "streams", "run", "query_app:app"],
                cwd=Path(__file__).parent,
                env=self._environment,
                stdout=file,
                stderr=file,
            )


@pytest.fixture
def pair(kafka_bootstrap: str, kafka: KafkaBroker, prefix: str, tmp_path: Path) -> Iterator[list[Asked]]:
    kafka.admin().create_topics(
        [NewTopic(name=f"{prefix}-{name}", partitions=PARTITIONS) for name in ("in", "out")]
    )
    workers = [Asked(kafka_bootstrap, prefix, tmp_path / f"machine-{number}") for number in range(2)]
    yield workers
    for worker in workers:
        if worker.process.poll() is None:
            worker.kill()


def wait_for(condition: Callable[[], object], workers: list[Asked], timeout: float = 60.0) -> None:
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up, "\n".join(worker.log() for worker in workers)
        time.sleep(0.05)


def shared(workers: list[Asked]) -> bool:
    shares = [worker.held() for worker in workers]
    return sorted(map(len, shares)) == [2, 2] and sorted(shares[0] + shares[1]) == list(range(PARTITIONS))


def visit(kafka: KafkaBroker, prefix: str) -> None:
    """Send one more visit of each user."""
    producer = kafka.producer()
    keys = [user.encode() for user in USERS]
    producer.produce(Output(f"{prefix}-in", keys, keys, [5 * DAY] * len(keys)))
    producer.flush(30)
    producer.close()


def counted(worker: Asked, visits: int) -> bool:
    status, answer = worker.get("/stores/visits?all=true")
    return status == 200 and bool(answer["entries"] == [{"key": user, "value": visits} for user in USERS])


def test_each_worker_answers_for_all_keys_also_when_one_was_restarted(pair, kafka, prefix):
    one, two = pair
    wait_for(lambda: shared(pair), pair)
    visit(kafka, prefix)
    for worker in pair:
        wait_for(partial(counted, worker, 1), pair)
        for user in USERS:
            assert worker.get(f"/stores/visits/keys/{user}") == (200, {"key": user, "value": 1})
        assert worker.get(f"/stores/daily/windows/{USERS[0]}") == (
            200,
            {"key": USERS[0], "windows": [{"start": 5 * DAY, "end": 6 * DAY, "value": 1}]},
        )
        assert worker.get("/stores/visits/keys/nobody")[1]["reason"] == "no value"
    local = [user for user in USERS if user in str(one.get("/stores/visits")[1]["entries"])]
    foreign = [user for user in USERS if user not in local]
    assert local
    assert foreign

    # Foreign records and a false announcement: both workers find each other again.
    producer = kafka.producer()
    claim = b'{"address":"127.0.0.1:9","stores":{"visits":[0,1,2,3],"daily":[0,1,2,3]}}'
    names: list[bytes | None] = [b"\xff\xfe", b"somebody", b"else"]
    values: list[bytes | None] = [b"{}", b"\0", claim]
    place = TopicPartition(f"{prefix}-visits-replicas", 0)
    producer.produce(Output(place.topic, names, values, [-1] * 3, partition=0))
    producer.flush(30)
    producer.close()
    admin = kafka.admin()
    end = admin.end_offsets([place])[place]
    wait_for(lambda: admin.end_offsets([place])[place] >= end + 2, pair)
    admin.close()
    for worker in pair:
        wait_for(partial(counted, worker, 1), pair)

    two.kill()
    # Keys held here are answered as before; the others have no owner until the dead worker's session ends.
    status, answer = one.get(f"/stores/visits/keys/{foreign[0]}")
    assert (status, answer["reason"]) == (503, "unavailable")
    assert "no worker answers for partition" in answer["error"]
    assert one.get(f"/stores/visits/keys/{local[0]}")[0] == 200
    wait_for(lambda: one.held() == list(range(PARTITIONS)), pair)
    assert counted(one, 1)

    two.restart()
    seen = set()
    give_up = time.monotonic() + 60
    while not shared(pair):
        assert time.monotonic() < give_up, one.log() + two.log()
        for user in (local[0], foreign[0]):
            status, answer = one.get(f"/stores/visits/keys/{user}")
            seen.add(status)
            assert answer == {"key": user, "value": 1} or (status, answer["reason"]) == (503, "unavailable")
    assert 200 in seen
    visit(kafka, prefix)
    for worker in pair:
        wait_for(partial(counted, worker, 2), pair)

    one.stop()
    wait_for(lambda: counted(two, 2), pair)
