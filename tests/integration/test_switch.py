"""Switches of a blue/green pair of worker processes on the real broker, by the command, under traffic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from streams.broker import END, NewTopic
from streams.broker.reading import find_partitions, follow
from streams.monitoring.lag import measure_lag
from streams.records import Output
from streams.runtime.switch_topic import SwitchPhase, SwitchTopic
from tests.integration.conftest import HERE, Count, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka

KEYS = 40
RATE = 400
"""Records a second."""


class Pair(Count):
    """The topics of a pair, its workers by app, traffic, and the command."""

    name = "pair"

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        super().__init__(servers, prefix, folder)
        self._admin.create_topics(
            [
                NewTopic(name=f"{prefix}-{name}", partitions=4, settings={"retention.ms": "-1"})
                for name in ("plain", "numbered", "windowed")
            ]
        )
        self.workers: dict[tuple[str, int], WorkerProcess] = {}
        self.sent: Counter[str] = Counter()
        self.latest: list[tuple[float, float]] = []
        """When each batch of results was read, and the longest latency in it, in seconds."""
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def run(self, app: str, slot: int) -> WorkerProcess:
        self.environment = {
            "PAIR_APP": app,
            "STREAMS_STATE_DIR": str(self._folder / f"{app}-{slot}"),
            "STREAMS_WORKER_ID": f"{app}-{slot}",
        }
        worker = self.workers[app, slot] = self.start(transaction_timeout=3)
        return worker

    def wait_until_caught_up(self, app: str, most: int = 0) -> None:
        group = f"{self.prefix}-{app}"

        def lag() -> int:
            existing = self._admin.topics()
            topics = [self.input, *(name for name in existing if name.startswith(group) and "repart" in name)]
            return sum(item.lag for item in measure_lag(self._admin, group, topics, "read_uncommitted"))

        self.wait_for(lambda: lag() <= most, 90, f"{app} has caught up", lag)

    def wait_until_begun(self, app: str) -> None:
        group = f"{self.prefix}-{app}"
        self.wait_for(lambda: bool(self._admin.committed_offsets(group)), 90, f"{app} reads")

    def traffic(self) -> None:
        """Send records, and read the results, until ``finish``."""
        for work in (self._send, self._read):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _send(self) -> None:
        producer = self.broker.producer()
        begun, count = time.monotonic(), 0
        while not self._stopped.is_set():
            due = int((time.monotonic() - begun) * RATE) - count
            if due > 0:
                self._produce(producer, due, count)
                count += due
            self._stopped.wait(0.01)
        producer.flush(30)
        producer.close()

    def _produce(self, producer: Any, many: int, first: int) -> None:
        now = time.time_ns() // 1_000_000
        keys, values = [], []
        for number in range(first, first + many):
            key = f"k{number % KEYS}"
            keys.append(key.encode())
            values.append(json.dumps({"key": key, "n": self.sent[key]}).encode())
            self.sent[key] += 1
        producer.produce(Output(self.input, keys, values, [now] * many))

    def _read(self) -> None:
        starts = dict.fromkeys(find_partitions(self.broker, [f"{self.prefix}-plain"]), END)
        for fetched in follow(self.broker, starts, self._stopped.is_set):
            now = time.time()
            self.latest.append((now, now - min(fetched.timestamps()) / 1000))

    def finish(self) -> None:
        """End the traffic, and close all windows."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        for app in {app for app, _ in self.workers}:
            self.wait_until_caught_up(app)

    def wait_for_results(self) -> None:
        seen = len(self.latest)
        self.wait_for(lambda: len(self.latest) > seen + 20, 60, "results")

    def longest(self, since: float) -> float:
        return max(latency for now, latency in self.latest if now >= since)

    def command(self, app: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "streams", "replay", "switch", "pair_app:app", "--json", *arguments],
            cwd=HERE,
            env=os.environ
            | {
                "PAIR_PREFIX": self.prefix,
                "PAIR_APP": app,
                "STREAMS_BOOTSTRAP_SERVERS": self.servers,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def switch(self, app: str, *arguments: str) -> dict[str, Any]:
        with self.command(app, *arguments) as process:
            out, error = process.communicate(timeout=180)
        assert process.returncode == 0, error
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    def check(self) -> None:
        plain: dict[str, list[int]] = defaultdict(list)
        for key, value in self.read(f"{self.prefix}-plain"):
            plain[key].append(value["n"])
        expected = {key: [n for n in range(count) if n % 3] for key, count in self.sent.items()}
        assert {key: len(found) for key, found in plain.items()} == {
            key: len(found) for key, found in expected.items()
        }
        assert plain == expected
        numbers: dict[str, list[int]] = defaultdict(list)
        inputs: dict[tuple[str, str], list[int]] = defaultdict(list)
        for group, value in self.read(f"{self.prefix}-numbered"):
            numbers[group].append(value["number"])
            inputs[group, value["key"]].append(value["n"])
        assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())
        assert inputs == {
            (f"g{rest}", key): list(range(rest, count, 8))
            for key, count in self.sent.items()
            for rest in range(8)
        }
        windows = Counter((key, value["start"]) for key, value in self.read(f"{self.prefix}-windowed"))
        assert windows
        assert set(windows.values()) == {1}


@pytest.fixture
def pair(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(kafka_bootstrap, prefix, tmp_path)
    yield made
    made.finish()
    made.end()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows figures that a test does not judge, if the user asked for output (``-s``)."""

    def show(text: str) -> None:
        if request.config.getoption("capture") == "no":
            sys.stdout.write(f"\n{text}\n")

    return show


def test_there_and_back_under_traffic_with_a_kill_in_each_phase(
    pair: Pair, report: Callable[[str], None]
) -> None:
    """A kill at every call of every process, in every phase, is for ``tests/replay/test_switch.py``."""
    for slot in range(2):
        pair.run("blue", slot)
    pair.traffic()
    pair.wait_for(lambda: pair.latest, 60, "blue emits")
    for slot in range(2):
        pair.run("green", slot)
    pair.wait_until_begun("green")
    begun = time.time()
    result = pair.switch("green")
    assert result["emitter"].endswith("green")
    assert result["already"] is False
    pair.wait_for_results()
    figures = [f"undisturbed: pause {result['pause']} s, longest latency {pair.longest(begun):.2f} s"]
    emitter = "green"
    for number, (phase, victim) in enumerate(
        [("freezing", "command"), ("advancing", "emitter"), ("sealing", "follower")]
    ):
        for app in ("blue", "green"):
            pair.wait_until_caught_up(app, 20 * RATE)
        other = "green" if emitter == "blue" else "blue"
        killed = (emitter if victim == "emitter" else other, number % 2)
        begun = time.time()
        with pair.command(other) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.strip().endswith(phase):
                    if victim == "command":
                        process.kill()
                    else:
                        pair.workers[killed].kill()
                    break
            else:
                pytest.fail(f"the command never was {phase}")
            process.communicate(timeout=120)
        if victim != "command":
            pair.run(*killed)
            assert process.returncode in (0, 15)
        # Again: it continues, has nothing to do, or begins anew after an abort.
        for _ in range(5):
            with pair.command(other) as process:
                out, error = process.communicate(timeout=120)
            if process.returncode != 15:
                break
        assert process.returncode == 0, error
        result = json.loads(out.splitlines()[-1])
        assert result["emitter"].endswith(other)
        emitter = other
        pair.wait_for_results()
        figures.append(
            f"{victim} killed while {phase}: pause {result['pause']} s, "
            f"longest latency {pair.longest(begun):.2f} s"
        )
    pair.finish()
    pair.check()
    report("\n".join(figures))


def test_a_command_killed_while_sealing_is_continued_by_the_next(pair: Pair) -> None:
    pair.run("blue", 0)
    pair.traffic()
    pair.wait_for(lambda: pair.latest, 60, "blue emits")
    pair.run("green", 0)
    pair.wait_until_begun("green")
    for other in ("green", "blue", "green", "blue", "green"):
        for app in ("blue", "green"):
            pair.wait_until_caught_up(app, 20 * RATE)
        with pair.command(other, "--pause-limit", "120") as process:
            assert process.stderr is not None
            assert any(line.strip().endswith("sealing") for line in process.stderr)
            process.kill()
            process.communicate(timeout=120)
        topic = SwitchTopic(pair.broker, f"{pair.prefix}-pair")
        topic.read(to_end=True)
        topic.close()
        assert topic.record is not None
        # It may have been quicker than the signal.
        if topic.record.phase is SwitchPhase.SEALING:
            break
    else:
        pytest.fail("the command was never killed while sealing")
    version = topic.record.version
    result = pair.switch(other)
    assert result["emitter"].endswith(other)
    assert result["already"] is False
    topic = SwitchTopic(pair.broker, f"{pair.prefix}-pair")
    topic.read(to_end=True)
    topic.close()
    # The same switch was ended, and no other one made.
    assert topic.record is not None
    assert (topic.record.version, topic.record.phase) == (version + 1, SwitchPhase.RUNNING)
    pair.wait_for_results()
    pair.finish()
    pair.check()
