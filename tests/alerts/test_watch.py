"""Workers that decide about the alerts of their app, on the broker in memory, with a clock moved by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import Alerts, Webhook
from streams.alerts.alert import Alert, AlertState
from streams.alerts.configured import Configured
from streams.alerts.figures import WorkerFigures
from streams.alerts.topics import read_alerts
from streams.alerts.watch import ROUND_SECONDS, AlertWatch
from streams.broker.memory import MemoryBroker
from streams.broker.reading import read_to_end
from tests.alerts.receiving import HookServer, hook_server
from tests.support.clock import Clock
from tests.support.logs import capture_logs
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

BEHIND = "StreamsBehind"
PARTITIONS = {"orders": 4}


class Site:
    """Workers of one app that share four partitions. They say what ``waiting`` is, in seconds a partition."""

    def __init__(self, alerts: Alerts) -> None:
        self.clock = Clock(1_000_000.0, tick=0.0)
        self.broker = MemoryBroker(clock=self.clock, wait=self.clock.advance)
        self.alerts = alerts
        self.owned: dict[str, list[int]] = {}
        self.waiting = 0.0
        self.watches: dict[str, AlertWatch] = {}

    def start(self, name: str, owned: list[int]) -> AlertWatch:
        """A worker with these partitions, which takes its turns from now on."""
        self.owned[name] = owned
        return self._add(name, watching=False)

    def observe_from_outside(self, name: str = "watch") -> AlertWatch:
        return self._add(name, watching=True)

    def _add(self, name: str, *, watching: bool) -> AlertWatch:
        watch = AlertWatch(
            self.broker,
            "shop",
            name,
            Configured(self.alerts),
            figures=None if watching else lambda: self._figures(name),
            expected=lambda: {} if watching else PARTITIONS,
            goal=30.0,
            backoff=0.01,
            clock=self.clock,
            wall_clock=self.clock.milliseconds,
        )
        watch.prepare()
        self.watches[name] = watch
        return watch

    def kill(self, name: str) -> None:
        """Nothing of it is heard of any more."""
        self.watches.pop(name)
        self.owned.pop(name)

    def _figures(self, name: str) -> WorkerFigures:
        owned = self.owned[name]
        return WorkerFigures(
            time=self.clock.milliseconds(),
            partitions={"orders": owned} if owned else {},
            waiting={"orders": self.waiting} if owned else {},
            arrival_rate=0.0,
            processing_rate=1.0,
        )

    def run(self, duration: float) -> None:
        """Let time pass: each worker has a round every ten seconds."""
        for _ in range(round(duration / ROUND_SECONDS)):
            self.clock.advance(ROUND_SECONDS)
            for watch in list(self.watches.values()):
                watch.round()

    def until(self, condition: Any, what: str) -> None:
        """Let receivers be notified, which happens in threads, without time passing."""

        def holds() -> bool:
            for watch in list(self.watches.values()):
                watch.round()
            return bool(condition())

        wait_until(holds, 20, what=what)

    def records(self) -> list[Alert]:
        """The topic's records in their order, tombstones apart."""
        return [
            msgspec.json.decode(value, type=Alert)
            for fetched in read_to_end(self.broker, ["shop-alerts"])
            for value in fetched.values()
            if value is not None
        ]

    def current(self) -> dict[str, Alert]:
        return {str(item.key): item for item in read_alerts(self.broker, "shop")}

    def close(self) -> None:
        for watch in self.watches.values():
            watch.close()


@pytest.fixture
def hook() -> Iterator[HookServer]:
    with hook_server() as server:
        yield server


@pytest.fixture
def site(hook: HookServer) -> Iterator[Site]:
    made = Site(Alerts(receivers=[Webhook(hook.url)]))
    yield made
    made.close()


def raised(state: str = "firing") -> tuple[str, str, str]:
    return BEHIND, "orders", state


def test_an_alert_is_raised_after_its_time_and_cleared_after_another(site: Site, hook: HookServer):
    site.start("w1", [0, 1, 2, 3])
    site.waiting = 45.0
    with capture_logs() as lines:
        site.run(290)
        assert site.current()["StreamsBehind/orders"].state is AlertState.PENDING
        assert hook.posts == []
        site.run(30)
        site.until(lambda: hook.posts, "the hook is notified")
        assert hook.states() == [raised()]
        body = hook.posts[0].body
        assert body["sentence"] == "App shop is behind: a record of orders has waited for 45 s."
        assert (body["value"], body["threshold"]) == (45.0, 30.0)
        site.until(lambda: site.current()["StreamsBehind/orders"].raised_to == ("webhook",), "it is noted")

        site.waiting = 0.0
        site.run(50)
        assert hook.states() == [raised()]
        site.run(30)
        site.until(lambda: len(hook.posts) == 2, "the hook is notified again")
    assert hook.states() == [raised(), raised("cleared")]
    assert hook.posts[1].body["id"] == hook.posts[0].body["id"]
    events = [line["event"] for line in lines if line["event"].startswith("alert")]
    assert events == ["alert raised", "alert cleared"]
    # After ten minutes nothing is left of it.
    site.until(lambda: site.current()["StreamsBehind/orders"].cleared_to, "that is noted, too")
    site.run(620)
    assert site.current() == {}
