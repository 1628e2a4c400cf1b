"""Apps with alerts, as their programs run them: workers on the broker in memory, and the commands."""

from __future__ import annotations

import json
import threading
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from streams import AlertRule, Alerts, App, Text, Webhook, seconds
from streams.alerts import watch
from streams.alerts.alert import AlertState
from streams.alerts.topics import read_alerts
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.records import Output
from tests.alerts.receiving import HookServer, hook_server
from tests.support.commands import run_streams
from tests.support.logs import capture_logs
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def hook() -> Iterator[HookServer]:
    with hook_server() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch.AlertWatch.__init__, "__kwdefaults__", QUICK)


QUICK = dict(watch.AlertWatch.__init__.__kwdefaults__ or {}) | {"seconds": 0.1, "backoff": 0.05}


def failing(broker: MemoryBroker, tmp_path: Path, alerts: Alerts | None, **settings: Any) -> App:
    """An app each of whose records becomes a dead letter."""

    class Local(App):
        def broker(self, **_: Any) -> MemoryBroker:
            return broker

    def fail(value: str) -> str:
        raise ValueError(value)

    app = Local(
        "shop",
        alerts=alerts,
        state_dir=str(tmp_path / "state"),
        dead_letter_limit=1,
        commit_interval=0.05,
        **settings,
    )
    app.stream("in", value=Text()).map(fail).to("out")
    return app


@contextmanager
def running(app: App, broker: MemoryBroker) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=lambda: app.run(broker=broker, stop=stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def new_broker() -> MemoryBroker:
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name=name, partitions=2) for name in ("in", "out")])
    return broker


def produce(broker: MemoryBroker, count: int) -> None:
    producer = broker.producer()
    producer.produce(Output("in", [b"k"] * count, [b"v"] * count, [1] * count))
    producer.flush(1)
    producer.close()


AT_ONCE = AlertRule(lasting=seconds(0), clearing=seconds(0))


def test_an_app_tells_of_its_alerts_everywhere(hook: HookServer, tmp_path: Path):
    broker = new_broker()
    alerts = Alerts(receivers=[Webhook(hook.url)], rules={"StreamsDeadLetterShare": AT_ONCE})
    app = failing(broker, tmp_path, alerts, http_port=0)
    produce(broker, 10)
    with capture_logs() as lines, running(app, broker):
        wait_until(lambda: hook.posts, 30, what="the hook is notified")
        (url,) = (line["url"] for line in lines if line["event"] == "http listening")

        def fires() -> Any:
            with urllib.request.urlopen(f"{url}/status", timeout=10) as response:
                return json.load(response)["alerts"]

        (alert,) = wait_until(fires, 30, what="it is in the report")
        assert alert["alert"] == "StreamsDeadLetterShare"
        assert alert["sentence"] == "100.00% of the records of app shop become dead letters."
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
            metrics = response.read().decode().splitlines()
        assert 'streams_alerts_firing{alert="StreamsDeadLetterShare"} 1.0' in metrics
        assert 'streams_alerts_firing{alert="StreamsBehind"} 0.0' in metrics
        wait_until(lambda: read_alerts(broker, "shop")[0].raised_to, 30, what="it is noted in the topic")
    assert hook.states() == [("StreamsDeadLetterShare", "", "firing")]
    raised = [line for line in lines if line["event"] == "alert raised"]
    assert [(line["alert"], line["log_level"]) for line in raised] == [("StreamsDeadLetterShare", "warning")]


def test_an_app_without_alerts_has_none(tmp_path: Path):
    broker = new_broker()
    with capture_logs() as lines, running(failing(broker, tmp_path, None, http_port=0), broker):
        found = wait_until(
            lambda: [line for line in lines if line["event"] == "http listening"], 30, what="it listens"
        )
        with urllib.request.urlopen(f"{found[0]['url']}/metrics", timeout=10) as response:
            assert b"streams_alerts_firing" not in response.read()
    assert not {topic for topic in broker.admin().topics() if "alert" in topic}


def test_a_hanging_receiver_holds_up_neither_records_nor_the_end(hook: HookServer, tmp_path: Path):
    broker = new_broker()
    hook.open.clear()
    alerts = Alerts(receivers=[Webhook(hook.url)], rules={"StreamsDeadLetterShare": AT_ONCE})
    produce(broker, 10)
    with running(failing(broker, tmp_path, alerts), broker):
        assert hook.waiting.wait(30)
        produce(broker, 10)
        wait_until(
            lambda: sum(broker.admin().committed_offsets("shop").values()) >= 20, 30, what="all is processed"
        )
    assert hook.posts == []


PROGRAM = """
import pickle, os
from streams import Alerts, App, Text, Webhook
from tests.alerts import test_apps

class Local(App):
    def broker(self, **_):
        return test_apps.SHARED

app = Local("shop", alerts=Alerts(receivers=[
    Webhook(os.environ["HOOK"], secret_from="HOOK_SECRET"), Webhook("http://127.0.0.1:9", name="nowhere"),
]))
app.stream("in", value=Text()).to("out")
plain = Local("plain")
plain.stream("in", value=Text()).to("out")
"""

SHARED = new_broker()


@pytest.fixture
def command(hook: HookServer, tmp_path: Path) -> Any:
    (tmp_path / "shop.py").write_text(PROGRAM)
    environment = {"HOOK": hook.url, "HOOK_SECRET": "Bearer s3cret", "STREAMS_STATE_DIR": str(tmp_path / "s")}
    return lambda *arguments, **more: run_streams(
        "alerts", *arguments, folder=tmp_path, environment={**environment, **more}
    )


def test_the_command_sends_a_test_to_each_receiver(command: Any, hook: HookServer):
    done = command("test", "shop:app")
    assert done.returncode != 0
    assert "webhook: sent" in done.stdout
    assert "nowhere: ConnectionRefusedError" in done.stdout
    assert "1 of 2 receivers were not notified" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    (post,) = hook.posts
    assert post.headers["authorization"] == "Bearer s3cret"
    assert post.body["sentence"] == "This is a test of the alerts of app shop. Nothing is wrong."
    assert command("test", "shop:app", "--receiver", "webhook").returncode == 0
    assert "receivers are: webhook, nowhere" in command("test", "shop:app", "--receiver", "pager").stderr
    assert "HOOK_SECRET is not set" in command("test", "shop:app", HOOK_SECRET="").stdout


def test_the_command_lists_what_fires(command: Any, tmp_path: Path):
    assert "topics do not exist: shop-alerts" in command("list", "shop:app").stderr
    produce(SHARED, 10)
    app = failing(SHARED, tmp_path, Alerts(rules={"StreamsDeadLetterShare": AT_ONCE}), http_port=0)
    sentence = "100.00% of the records of app shop become dead letters."
    with capture_logs() as lines, running(app, SHARED):
        wait_until(
            lambda: [item for item in _known() if item.state is AlertState.FIRING], 30, what="it fires"
        )
        (url,) = (line["url"] for line in lines if line["event"] == "http listening")
        environment = {"HOOK": "http://unused", "STREAMS_STATE_DIR": str(tmp_path / "s")}

        def status() -> str:
            done = run_streams("status", "shop:app", "--url", url, folder=tmp_path, environment=environment)
            return " ".join(done.stdout.split())

        wait_until(lambda: f"alert StreamsDeadLetterShare: {sentence}" in status(), 30, what="status says it")
    done = command("list", "shop:app", "--json")
    # What fires comes first; that nothing is known yet of a worker that starts may be pending.
    line = json.loads(done.stdout.splitlines()[0])
    assert (line["alert"], line["state"], line["silenced"]) == ("StreamsDeadLetterShare", "firing", False)
    (text, *_) = command("list", "shop:app").stdout.splitlines()
    assert text.startswith("firing since ")
    assert text.endswith(f": StreamsDeadLetterShare (warning): {sentence}")


def _known() -> Any:
    return read_alerts(SHARED, "shop") if "shop-alerts" in SHARED.admin().topics() else []


def test_an_app_without_alerts_has_nothing_to_watch(command: Any):
    done = command("watch", "shop:plain")
    assert done.returncode == 2
    assert "app 'plain' has no alerts" in done.stderr
