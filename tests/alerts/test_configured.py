"""Alerts as programs and files declare them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from streams import (
    AlertName,
    AlertRule,
    Alerts,
    App,
    ConfigurationError,
    Email,
    Silence,
    StreamsError,
    Webhook,
)
from streams.alerts.alert import AlertKey
from streams.alerts.configured import Configured, read_alerts_file
from streams.alerts.declared import effective_rules, silenced
from streams.alerts.rules import DEFAULTS
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from pathlib import Path

COMPLETE = """
off = ["StreamsCronMissed"]

[rules.StreamsBehind]
threshold = 120
lasting = 600
clearing = 30

[[webhooks]]
url = "https://hooks.example.com/streams"
secret_from = "HOOK_SECRET"
timeout = 5

[[emails]]
host = "smtp.example.com"
sender_address = "streams@example.com"
to = ["ops@example.com"]

[[silences]]
alert = "StreamsStalled"
start = 2026-12-24T22:00:00Z
stop = 2026-12-25T06:00:00Z
"""


def write(path: Path, text: str) -> Path:
    """Replace a file, as editors and mounted configurations do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)  # noqa: PTH105 - replaces also on Windows
    return path


def test_a_file_declares_all_that_a_program_can(tmp_path: Path):
    alerts = read_alerts_file(write(tmp_path / "alerts.toml", COMPLETE))
    assert alerts == Alerts(
        receivers=[
            Webhook(
                "https://hooks.example.com/streams", secret_from="HOOK_SECRET", timeout=timedelta(seconds=5)
            ),
            Email(host="smtp.example.com", sender_address="streams@example.com", to=["ops@example.com"]),
        ],
        rules={
            "StreamsBehind": AlertRule(
                threshold=120, lasting=timedelta(seconds=600), clearing=timedelta(seconds=30)
            )
        },
        off=["StreamsCronMissed"],
        silences=[
            Silence(
                alert="StreamsStalled",
                start=datetime(2026, 12, 24, 22, tzinfo=UTC),
                stop=datetime(2026, 12, 25, 6, tzinfo=UTC),
            )
        ],
    )


def test_the_rules_are_the_defaults_but_for_what_is_declared():
    own = AlertRule(threshold=0.5, lasting=timedelta(0))
    alerts = Alerts(rules={"StreamsDeadLetterShare": own}, off=["StreamsBehind"])
    rules = effective_rules(alerts, 7.0)
    assert rules.keys() == set(AlertName) - {AlertName.BEHIND}
    assert rules[AlertName.DEAD_LETTER_SHARE] == (0.5, 0, 60_000, "warning")
    assert rules[AlertName.STALLED] == DEFAULTS[AlertName.STALLED]
    assert effective_rules(Alerts(), 7.0)[AlertName.BEHIND].threshold == 7.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("webhooks = 1", "list of tables"),
        ("[[webhooks]]\nurl = 'ftp://x'", r"webhooks\[0\]: Webhook"),
        ("[[webhooks]]\nadress = 'https://x'", r"webhooks\[0\].*adress"),
        ("[[webhooks]]\nurl = 'https://x'\ntimeout = '5s'", "number of seconds"),
        ("[[emails]]\nhost = 'x'", r"emails\[0\]"),
        ("[rules.Behind]\nthreshold = 1", "no alert 'Behind'"),
        ("[rules.StreamsBehind]\nthreshold = 'much'", "threshold is a finite number"),
        ("[rules.StreamsBehind]\nthreshold = nan", "threshold is a finite number"),
        ("[rules]\nStreamsBehind = 3", "is a table"),
        ("off = 'StreamsBehind'", "list of alerts"),
        ("off = ['Streams']", "no alert 'Streams'"),
        ("[[silences]]\nstart = 2026-12-24T22:00:00", "with a zone"),
        ("hooks = []", "hooks is not known"),
        ("off = [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, reason: str):
    with pytest.raises(StreamsError, match=reason):
        Configured(Alerts(), write(tmp_path / "alerts.toml", text))


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"alerts\.toml cannot be read"):
        Configured(Alerts(), tmp_path / "alerts.toml")


def test_a_file_that_changes_is_read_again_and_a_wrong_change_changes_nothing(tmp_path: Path):
    path = write(tmp_path / "alerts.toml", "off = ['StreamsBehind']")
    configured = Configured(Alerts(), path)
    first = configured.current()
    assert configured.current() is first
    write(path, "off = ['StreamsStalled']")
    second = configured.current()
    assert second.off == ["StreamsStalled"]
    with capture_logs() as lines:
        write(path, "off = ['StreamsStalle']")
        assert configured.current() is second
        write(path, "[[webhooks]]\nurl_from = 'NOT_SET_ANYWHERE'")
        assert configured.current() is second
        path.unlink()
        assert configured.current() is second
        assert configured.current() is second
    assert [line["event"] for line in lines] == ["alerts file refused"] * 3
    write(path, "off = []")
    assert configured.current().off == []


@pytest.mark.parametrize(
    ("silence", "covered"),
    [
        (Silence(), True),
        (Silence(alert="StreamsBehind"), True),
        (Silence(alert="StreamsStalled"), False),
        (Silence(subject="orders"), True),
        (Silence(subject="payments"), False),
        (Silence(start=datetime(1970, 1, 1, 0, 0, 10, tzinfo=UTC)), True),
        (Silence(start=datetime(1970, 1, 1, 0, 0, 11, tzinfo=UTC)), False),
        (Silence(stop=datetime(1970, 1, 1, 0, 0, 10, tzinfo=UTC)), False),
        (Silence(stop=datetime(1970, 1, 1, 0, 0, 11, tzinfo=UTC)), True),
    ],
)
def test_what_a_silence_covers(silence: Silence, covered: bool):
    assert silenced(Alerts(silences=[silence]), AlertKey(AlertName.BEHIND, "orders"), 10_000) is covered


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rules": {"Behind": AlertRule()}}, "no alert 'Behind'"),
        ({"rules": {"StreamsBehind": 5}}, "expected AlertRule, got int"),
        ({"off": "StreamsBehind"}, "list of names"),
        ({"receivers": ["https://x"]}, "expected Webhook or Email, got str"),
        ({"receivers": [Webhook("https://a"), Webhook("https://b")]}, "several receivers are named webhook"),
        ({"silences": [3]}, "expected Silence"),
    ],
)
def test_wrong_alerts_are_refused_where_they_are_declared(options: dict[str, Any], reason: str):
    with pytest.raises(ConfigurationError, match=reason):
        Alerts(**options)


def test_an_app_takes_nothing_else_for_alerts():
    with pytest.raises(ConfigurationError, match="alerts takes Alerts"):
        App("shop", alerts="StreamsBehind")  # type: ignore[arg-type]  # what is tested
