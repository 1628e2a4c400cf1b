"""Workers that decide about the alerts of their app, on the broker in memory, with a clock moved by hand."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import AlertRule, Alerts, Silence, Webhook, seconds
from streams.alerts.alert import Alert, AlertState
from streams.alerts.configured import Configured
from streams.alerts.figures import WorkerFigures
from streams.alerts.topics import read_alerts
from streams.alerts.watch import ROUND_SECONDS, AlertWatch
from streams.broker.memory import MemoryBroker
from streams.broker.reading import read_to_end
from streams.errors import BrokerUnreachable
from streams.records import Output
from tests.alerts.receiving import HookServer, hook_server
from tests.support.clock import Clock
from tests.support.logs import capture_logs
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.broker import Appended
    from streams.broker.memory.appender import MemoryAppender

BEHIND = "StreamsBehind"
PARTITIONS = {"orders": 4}


class DistantBroker(MemoryBroker):
    """A broker that can be cut off."""

    away = False

    def appender(self, transactional_id: str) -> MemoryAppender:
        made = super().appender(transactional_id)
        append = made.append

        def append_if_there(output: Output, timeout: float) -> list[Appended]:
            if self.away:
                raise BrokerUnreachable("no broker answers at nowhere:9092")
            return append(output, timeout)

        made.append = append_if_there  # type: ignore[method-assign]  # of this one alone
        return made


class Site:
    """Workers of one app that share four partitions. They say what ``waiting`` is, in seconds a partition."""

    def __init__(self, alerts: Alerts) -> None:
        self.clock = Clock(1_000_000.0, tick=0.0)
        self.broker = DistantBroker(clock=self.clock, wait=self.clock.advance)
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
            figures=lambda: self._figures(name),
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
        self.owned.pop(name, None)

    def _figures(self, name: str) -> WorkerFigures:
        if name not in self.owned:
            return WorkerFigures(time=self.clock.milliseconds(), watching=True)
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
                watch.attempt()

    def until(self, condition: Any, what: str) -> None:
        """Let receivers be notified, which happens in threads, without time passing."""

        def holds() -> bool:
            for watch in list(self.watches.values()):
                watch.attempt()
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


def deliveries() -> set[threading.Thread]:
    """The threads that notify receivers."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("streams-alerts-")}


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


def test_the_alert_of_an_app_is_one_whoever_of_its_workers_is_behind(site: Site, hook: HookServer):
    site.start("w1", [0, 1])
    site.start("w2", [2, 3])
    site.waiting = 45.0
    site.run(320)
    site.until(lambda: hook.posts, "the hook is notified")
    site.waiting = 0.0
    site.run(80)
    site.until(lambda: len(hook.posts) == 2, "the hook is notified again")
    assert hook.states() == [raised(), raised("cleared")]
    assert {item.worker for item in site.records()} == {"w1"}


def test_a_worker_that_dies_neither_clears_what_fires_nor_raises_it_again(site: Site, hook: HookServer):
    site.start("w1", [0, 1])
    site.start("w2", [2, 3])
    site.waiting = 45.0
    site.run(320)
    site.until(lambda: hook.posts, "the hook is notified")
    site.kill("w1")
    # For a while nobody has its partitions, and what waits in the others is gone.
    site.waiting = 0.0
    site.run(200)
    assert site.watches["w2"].leads
    assert site.current()["StreamsBehind/orders"].state is AlertState.FIRING
    site.owned["w2"] = [0, 1, 2, 3]
    site.waiting = 45.0
    site.run(600)
    site.start("w1", [0, 1])
    site.owned["w2"] = [2, 3]
    site.run(600)
    assert hook.states() == [raised()]
    site.waiting = 0.0
    site.run(80)
    site.until(lambda: len(hook.posts) == 2, "the hook is notified again")
    assert hook.states() == [raised(), raised("cleared")]
    assert [item.state for item in site.records()].count(AlertState.CLEARED) >= 1
    assert len({item.occurrence for item in site.records() if item.raised}) == 1


def test_workers_that_die_one_after_another_do_not_delay_an_alert(site: Site, hook: HookServer):
    site.waiting = 45.0
    site.start("w1", [0, 1, 2, 3])
    for number in range(2, 7):
        site.run(60)
        site.kill(f"w{number - 1}")
        site.start(f"w{number}", [0, 1, 2, 3])
    site.run(30)
    site.until(lambda: hook.posts, "the hook is notified")
    assert hook.states() == [raised()]


def test_of_two_that_decide_at_once_one_has_raised_the_alert(site: Site, hook: HookServer):
    """As if each were the only one: neither hears of the other."""
    first, second = site.start("w1", [0, 1, 2, 3]), site.start("w2", [0, 1, 2, 3])
    first._topics.read()  # noqa: SLF001 - what has been read when both decide
    second._topics.read()  # noqa: SLF001
    site.waiting = 45.0
    first.round()
    site.clock.advance(301.0)
    for watch in (first, second):
        # Both have read that it is pending, and nothing later.
        watch._topics.read()  # noqa: SLF001
    for watch in (second, first):
        watch._decide([site._figures("w1")])  # noqa: SLF001
    assert next(item.worker for item in site.records() if item.state is AlertState.FIRING) == "w2"
    (only,) = site.current().values()
    assert only.worker == "w2"
    site.run(20)
    site.until(lambda: hook.posts, "the hook is notified")
    assert hook.states() == [raised()]


def test_a_new_worker_tells_what_the_last_one_could_not(site: Site, hook: HookServer):
    others = deliveries()
    hook.statuses = [503] * 10_000
    site.waiting = 45.0
    site.start("w1", [0, 1, 2, 3])
    with capture_logs() as lines:
        site.run(320)
        site.until(lambda: [line for line in lines if line["event"] == "alert not delivered"], "it is logged")
    (line,) = (line for line in lines if line["event"] == "alert not delivered")
    assert line["error"] == "WebhookRefused: it answered 503 Service Unavailable"
    watch = site.watches["w1"]
    site.kill("w1")
    watch.close()
    # A notification that is on its way when a worker dies arrives, and is sent again by the next one.
    wait_until(lambda: not deliveries() - others, 20, what="nothing is on its way")
    hook.statuses = []
    site.start("w2", [0, 1, 2, 3])
    site.run(100)
    site.until(lambda: hook.posts, "the hook is notified")
    assert hook.states() == [raised()]


def test_a_notification_on_its_way_is_not_repeated_by_who_decides_next(site: Site, hook: HookServer):
    hook.open.clear()
    site.waiting = 45.0
    site.start("w1", [0, 1, 2, 3])
    site.run(320)
    assert hook.waiting.wait(20)
    site.owned["w1"] = []
    first = site.start("w0", [0, 1, 2, 3])
    site.run(10)
    assert (first.leads, site.watches["w1"].leads) == (True, False)
    hook.open.set()
    site.until(lambda: site.current()["StreamsBehind/orders"].raised_to, "it is noted")
    site.run(100)
    assert hook.states() == [raised()]


def test_a_restarted_worker_does_not_repeat_what_is_noted(site: Site, hook: HookServer):
    site.waiting = 45.0
    site.start("w1", [0, 1, 2, 3])
    site.run(320)
    site.until(lambda: site.current()["StreamsBehind/orders"].raised_to, "the hook is notified")
    site.kill("w1")
    site.start("w1", [0, 1, 2, 3])
    site.run(100)
    assert hook.states() == [raised()]


def test_a_receiver_that_hangs_delays_neither_rounds_nor_others(hook: HookServer):
    with hook_server() as other:
        site = Site(Alerts(receivers=[Webhook(hook.url), Webhook(other.url, name="other")]))
        hook.open.clear()
        site.waiting = 45.0
        site.start("w1", [0, 1, 2, 3])
        site.run(320)
        site.until(lambda: other.posts, "the other one is notified")
        assert hook.waiting.wait(20)
        site.waiting = 0.0
        site.run(80)
        site.until(lambda: len(other.posts) == 2, "and when it is cleared")
        assert hook.posts == []
        hook.open.set()
        # What it got late is followed by what happened since.
        site.until(lambda: len(hook.posts) == 2, "the one that hung")
        assert hook.states() == [raised(), raised("cleared")]
        site.close()


def test_what_was_cleared_before_a_receiver_could_know_it_is_not_told(hook: HookServer):
    hook.close()
    site = Site(Alerts(receivers=[Webhook(hook.url)]))
    site.waiting = 45.0
    site.start("w1", [0, 1, 2, 3])
    with capture_logs() as lines:
        site.run(320)
        site.until(lambda: [line for line in lines if line["event"] == "alert not delivered"], "it is tried")
    site.waiting = 0.0
    site.run(80)
    assert site.current()["StreamsBehind/orders"].state is AlertState.CLEARED
    # It is kept for ten minutes, and not for the hour of those who know that it was raised.
    site.run(620)
    assert site.current() == {}
    site.close()


def test_a_silence_holds_back_notifications_and_nothing_else(hook: HookServer):
    now = datetime.fromtimestamp(1_000_000, tz=UTC)
    silence = Silence(alert=BEHIND, stop=now + timedelta(seconds=900))
    site = Site(Alerts(receivers=[Webhook(hook.url)], silences=[silence]))
    site.waiting = 45.0
    site.start("w1", [0, 1, 2, 3])
    site.run(600)
    alert = site.current()["StreamsBehind/orders"]
    assert (alert.state, alert.silenced, hook.posts) == (AlertState.FIRING, True, [])
    assert [(item.alert, item.silenced) for item in site.watches["w1"].firing] == [(BEHIND, True)]
    # It fires still when its silence ends.
    site.run(310)
    site.until(lambda: hook.posts, "the hook is notified")
    assert hook.states() == [raised()]
    site.close()


def test_an_alert_that_is_switched_off_while_it_fires_is_cleared(site: Site, hook: HookServer):
    site.waiting = 45.0
    site.start("w1", [0, 1, 2, 3])
    site.run(320)
    site.until(lambda: site.current()["StreamsBehind/orders"].raised_to, "the hook is notified")
    site.kill("w1")
    site.alerts = Alerts(receivers=[Webhook(hook.url)], off=[BEHIND])
    site.start("w1", [0, 1, 2, 3])
    site.run(20)
    site.until(lambda: len(hook.posts) == 2, "the hook is notified again")
    assert hook.states() == [raised(), raised("cleared")]


def test_thresholds_and_durations_can_be_set(hook: HookServer):
    rule = AlertRule(threshold=100, lasting=seconds(20), clearing=seconds(0))
    site = Site(Alerts(receivers=[Webhook(hook.url)], rules={BEHIND: rule}))
    site.start("w1", [0, 1, 2, 3])
    site.waiting = 99.0
    site.run(600)
    assert site.current() == {}
    site.waiting = 101.0
    site.run(30)
    site.until(lambda: hook.posts, "the hook is notified")
    site.waiting = 0.0
    site.run(10)
    site.until(lambda: len(hook.posts) == 2, "and again")
    site.close()


def test_only_who_watches_from_outside_sees_that_there_are_no_workers(site: Site, hook: HookServer):
    site.start("w1", [0, 1, 2, 3])
    outside, second = site.observe_from_outside("watch-a"), site.observe_from_outside("watch-b")
    site.run(600)
    assert (outside.leads, site.current()) == (False, {})
    site.kill("w1")
    site.run(310)
    assert hook.posts == []
    site.run(20)
    site.until(lambda: hook.posts, "the hook is notified")
    assert hook.states() == [("StreamsNoWorkers", "", "firing")]
    assert hook.posts[0].body["sentence"] == "App shop has no workers."
    assert (outside.leads, second.leads) == (True, False)
    # Another one takes over without telling it again.
    site.kill("watch-a")
    site.run(100)
    assert second.leads
    # The next worker clears it.
    site.start("w1", [0, 1, 2, 3])
    site.run(100)
    site.until(lambda: len(hook.posts) == 2, "the hook is notified again")
    assert hook.states()[1:] == [("StreamsNoWorkers", "", "cleared")]
    assert not second.leads


def test_who_watches_from_outside_leaves_alone_what_it_cannot_know(site: Site, hook: HookServer):
    site.waiting = 45.0
    site.start("w1", [0, 1, 2, 3])
    site.run(320)
    site.until(lambda: site.current()["StreamsBehind/orders"].raised_to, "the hook is notified")
    site.observe_from_outside()
    site.kill("w1")
    site.run(1200)
    site.until(lambda: len(hook.posts) == 2, "the hook is notified")
    assert hook.states() == [raised(), ("StreamsNoWorkers", "", "firing")]


def test_records_of_others_in_the_topics_are_left_out(site: Site, hook: HookServer):
    site.start("w1", [0, 1, 2, 3])
    site.waiting = 45.0
    site.run(100)
    producer = site.broker.producer()
    for topic in ("shop-alerts", "shop-alert-figures"):
        rows = [b"\xff", b"{}", b"[1]", b"{" * 5_000, b"null", None]
        keys = [b"\xff\xfe", b"StreamsBehind/other", b"", b"x", b"y", b"z"]
        producer.produce(Output(topic, keys, rows, [1] * len(rows), partition=0))
    producer.flush(5)
    with capture_logs() as lines:
        site.run(320)
        site.until(lambda: hook.posts, "the hook is notified")
    assert hook.states() == [raised()]
    assert not [line for line in lines if line["event"] == "alerts failed"]


def test_that_the_broker_does_not_answer_is_told_by_one_worker_and_cleared_later(
    site: Site, hook: HookServer
):
    first, second = site.start("w1", [0, 1]), site.start("w2", [2, 3])
    site.run(60)
    site.broker.away = True
    with capture_logs() as lines:
        site.run(590)
        assert hook.posts == []
        site.run(30)
        site.until(lambda: hook.posts, "the hook is notified")
        site.run(100)
        assert hook.states() == [("StreamsConditionUnknown", "", "firing")]
        assert (first.leads, second.leads) == (False, False)
        site.broker.away = False
        site.run(20)
        assert site.current()["StreamsConditionUnknown"].raised_to == ("webhook",)
        site.run(80)
        site.until(lambda: len(hook.posts) == 2, "the hook is notified again")
    assert hook.states()[1:] == [("StreamsConditionUnknown", "", "cleared")]
    events = [line["event"] for line in lines if line["event"] in {"alert raised", "alert cleared"}]
    assert events == ["alert raised", "alert cleared"]
    assert len([line for line in lines if line["event"] == "alerts failed"]) == 2


def test_a_short_outage_of_the_broker_is_no_news(site: Site, hook: HookServer):
    site.start("w1", [0, 1, 2, 3])
    site.run(60)
    site.broker.away = True
    site.run(300)
    site.broker.away = False
    site.run(700)
    assert hook.posts == []
    assert site.current() == {}


def test_an_outage_of_the_broker_does_not_end_other_notifications(site: Site, hook: HookServer):
    hook.open.clear()
    site.waiting = 45.0
    site.start("w1", [0, 1, 2, 3])
    site.run(320)
    assert hook.waiting.wait(20)
    site.broker.away = True
    site.run(20)
    hook.open.set()
    wait_until(lambda: hook.posts, 20, what="the hook is notified")
    site.run(60)
    site.broker.away = False
    site.until(lambda: site.current()["StreamsBehind/orders"].raised_to, "it is noted")
    site.run(100)
    assert hook.states() == [raised()]


def test_the_firing_alerts_are_counted_by_the_one_that_decides(site: Site):
    first, second = site.start("w1", [0, 1]), site.start("w2", [2, 3])
    site.waiting = 45.0
    site.run(320)
    counts = first.counts()
    assert counts is not None
    assert (counts[BEHIND], counts["StreamsStalled"]) == (1, 0)
    assert second.counts() is None
    assert [item.alert for item in second.firing] == [BEHIND]
