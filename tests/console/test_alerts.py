"""The page of alerts."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from streams import AlertRule, Alerts, App, Silence, Text, Webhook, seconds
from streams.alerts.alert import Alert, AlertState
from streams.alerts.rules import AlertName
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.console.pages.alerts import ADVICE
from streams.monitoring.worker_report import FiringAlert
from streams.records import Output
from tests.support.waiting import wait_until
from tests.support.worker_reports import console_of, milliseconds, report

PATH = "/apps/shop/alerts"


def shop(alerts: Alerts | None = None, **settings: Any) -> App:
    app = App("shop", alerts=alerts, **settings)
    app.stream("orders", value=Text()).filter(bool, name="keep").to("out")
    return app


def plain(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def firing(**fields: Any) -> FiringAlert:
    known: dict[str, Any] = {
        "alert": "StreamsBehind",
        "subject": "orders",
        "severity": "warning",
        "sentence": "App shop is behind: a record of orders has waited for 2 min.",
        "since": milliseconds() - 600_000,
        "raised": milliseconds() - 300_000,
        "silenced": False,
    }
    return FiringAlert(**(known | fields))


def written(broker: MemoryBroker, *alerts: Alert) -> None:
    """What the worker that decides has written."""
    broker.admin().create_topics([NewTopic(name="shop-alerts", partitions=1)])
    producer = broker.producer()
    producer.produce(
        Output(
            "shop-alerts",
            [str(alert.key).encode() for alert in alerts],
            [msgspec.json.encode(alert) for alert in alerts],
            [milliseconds()] * len(alerts),
            partition=0,
        )
    )
    producer.flush(1)
    producer.close()


def alert(name: AlertName, state: AlertState, **fields: Any) -> Alert:
    known: dict[str, Any] = {
        "app": "shop",
        "alert": name,
        "state": state,
        "severity": "warning",
        "sentence": f"{name} is what is wrong.",
        "value": 1.0,
        "threshold": 0.0,
        "since": milliseconds() - 60_000,
    }
    return Alert(**(known | fields))


def test_the_topic_says_what_fires_also_without_workers():
    broker = MemoryBroker()
    written(
        broker,
        alert(AlertName.BEHIND, AlertState.FIRING, subject="orders", raised_to=("hook",), raised=1),
        alert(AlertName.NO_WORKERS, AlertState.FIRING, severity="critical"),
        alert(AlertName.STALLED, AlertState.FIRING, silenced=True),
        alert(AlertName.RESTORE_LONG, AlertState.PENDING),
        alert(AlertName.JOBS_OVERDUE, AlertState.CLEARED, cleared=milliseconds(), cleared_to=("mail",)),
    )
    with console_of(shop(), broker=broker) as (client, _):
        text = wait_until(
            lambda: found if "3 firing" in (found := client.get(PATH).text) else "", what="the topic is read"
        )
    said = plain(text)
    # Critical ones first.
    assert said.index("StreamsNoWorkers critical") < said.index("StreamsBehind orders warning")
    assert "Notified: hook." in said
    assert "No receiver has been notified." in said
    assert "StreamsStalled warning silenced" in said
    assert "A silence holds its notifications back." in said
    assert re.search(r"StreamsRestoreLong pending", said)
    assert re.search(r"StreamsJobsOverdue cleared .* mail", said)
    assert 'href="/apps/shop/partitions?show=problem"' in text


def test_without_the_topic_workers_say_what_fires():
    with console_of(shop(), report("a", alerts=[firing()]), report("b", alerts=[firing()])) as (client, _):
        text = wait_until(
            lambda: found if "no topic of alerts" in (found := client.get(PATH).text) else "", what="topics"
        )
    said = plain(text)
    assert "1 firing" in said
    assert "a record of orders has waited for 2 min." in said
    # Who was notified is in the topic only.
    assert "No receiver has been notified" not in said


def test_nothing_is_said_to_be_well_that_is_unknown():
    with console_of(shop()) as (client, _):
        text = wait_until(
            lambda: found if "nothing decides about alerts" in (found := client.get(PATH).text) else "",
            what="topics",
        )
    assert "nothing fires" not in text
    assert "No alert fires" not in text


def test_an_app_whose_alerts_are_quiet_says_so():
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name="shop-alerts", partitions=1)])
    with console_of(shop(), report("a"), broker=broker) as (client, _):
        wait_until(lambda: "nothing fires" in client.get(PATH).text, what="the topic is read")


def test_rules_receivers_and_silences_are_those_of_the_program():
    alerts = Alerts(
        receivers=[Webhook("https://hooks.example.com/secret-path", name="pager")],
        rules={"StreamsBehind": AlertRule(threshold=120, lasting=seconds(90))},
        off=["StreamsCronMissed"],
        silences=[
            Silence(alert="StreamsBehind", subject="orders", stop=datetime(2020, 1, 1, tzinfo=UTC)),
            Silence(),
            Silence(alert="StreamsStalled", start=datetime(2090, 1, 1, tzinfo=UTC)),
        ],
    )
    with console_of(shop(alerts, waiting_goal=45)) as (client, _):
        text = wait_until(
            lambda: found if "Receivers" in (found := client.get(PATH).text) else "", what="the rules"
        )
    said = plain(text)
    assert "StreamsBehind warning 120 s 90 s 60 s not the default" in said
    assert "StreamsNotCatchingUp critical 3,600 s 15 min 60 s Streams" in said
    assert re.search(r"StreamsCronMissed warning .* off StreamsSlotUnhealthy", said)
    assert "pager Webhook" in said
    assert "secret-path" not in text
    assert re.search(r"over StreamsBehind about orders, until", said)
    assert "holds all alerts later StreamsStalled, from" in said


def test_a_file_that_cannot_be_read_here_is_said(tmp_path):
    with console_of(shop(alerts_file=str(tmp_path / "missing.toml"))) as (client, _):
        wait_until(
            lambda: "They cannot be read here: the file of alerts" in client.get(PATH).text, what="the file"
        )


@pytest.mark.parametrize("name", list(AlertName))
def test_every_alert_leads_somewhere(name):
    assert ADVICE[name].sentence
    broker = MemoryBroker()
    written(broker, alert(name, AlertState.FIRING))
    with console_of(shop(), broker=broker) as (client, _):
        text = wait_until(
            lambda: found if "1 firing" in (found := client.get(PATH).text) else "", what="the topic is read"
        )
        article = text.partition("<article")[2].partition("</article>")[0]
        (target,) = re.findall(r'href="([^"]+)"', article)
        assert client.get(target.replace("&amp;", "&")).status_code == 200
