"""Alerts of an app whose workers are killed, on a real broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from streams.alerts.alert import AlertState
from streams.alerts.topics import read_alerts
from tests.alerts.receiving import hook_server
from tests.integration.conftest import HERE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.conftest import Copy

pytestmark = pytest.mark.kafka

FILE = """
off = ["StreamsNotCatchingUp", "StreamsRebalanceStorm"]

[rules.StreamsBehind]
threshold = 2
lasting = 3
clearing = 3

[rules.StreamsNoWorkers]
lasting = 1
clearing = 3

[[webhooks]]
url = "{url}"
"""


@contextmanager
def watching(copy: Copy, file: Path, log: Path) -> Iterator[None]:
    """``streams alerts watch`` beside the workers."""
    environment = {
        **os.environ,
        "COPY_PREFIX": copy.prefix,
        "STREAMS_BOOTSTRAP_SERVERS": copy.servers,
        "STREAMS_ALERTS_FILE": str(file),
    }
    command = [sys.executable, "-m", "streams", "alerts", "watch", "copy_app:app"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=out, stderr=out)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_an_alert_outlives_the_worker_that_raised_it_and_is_told_once(copy: Copy, tmp_path: Path) -> None:
    with hook_server() as hook:
        file = tmp_path / "alerts.toml"
        file.write_text(FILE.format(url=hook.url))
        copy.environment["COPY_SLOW_SECONDS"] = "0.2"
        copy.produce([f"v{number}" for number in range(100)])
        workers = [copy.start(alerts_file=file, transaction_timeout=3) for _ in range(2)]
        behind = ("StreamsBehind", copy.input)
        copy.wait_for(lambda: (*behind, "firing") in hook.states(), 90, "it is raised")

        def noted() -> bool:
            return any(item.raised_to == ("webhook",) for item in read_alerts(copy.broker, copy.group))

        copy.wait_for(noted, 30, "it is noted in the topic")
        (raised,) = (worker for worker in workers if worker.events("alert raised"))
        (other,) = (worker for worker in workers if worker is not raised)
        raised.kill()
        copy.wait_for(lambda: (*behind, "cleared") in hook.states(), 120, "it is cleared")
        assert hook.states() == [(*behind, "firing"), (*behind, "cleared")]
        assert hook.posts[0].body["id"] == hook.posts[1].body["id"]
        # It was the other one that cleared it, once all was processed.
        assert [event["alert"] for event in other.events("alert cleared")] == [f"StreamsBehind/{copy.input}"]
        assert not other.events("alert raised", "alerts failed")
        assert sum(copy.outputs().values()) == 100

        with watching(copy, file, tmp_path / "watch.log"):
            other.kill()
            none = ("StreamsNoWorkers", "")
            copy.wait_for(lambda: (*none, "firing") in hook.states(), 90, "nobody works")
            last = copy.start(alerts_file=file)
            copy.wait_for(lambda: (*none, "cleared") in hook.states(), 90, "somebody does again")
        assert hook.states()[2:] == [(*none, "firing"), (*none, "cleared")]
        assert [event["alert"] for event in last.events("alert cleared")] == ["StreamsNoWorkers"]
        assert last.stop() == 0
        firing = [item for item in read_alerts(copy.broker, copy.group) if item.state is AlertState.FIRING]
        assert firing == []
